# SPDX-License-Identifier: Apache-2.0
"""Restored accuracy: the next round's start minus this round's end, on the same pairs."""

import re
from dataclasses import replace

import pytest

from metarm.reports.headline import headline
from metarm.reports.page import write_report
from metarm.reports.read_run import read_run
from metarm.reports.restored import LABEL, restored, restored_difference
from metarm.schema import Estimate

BEFORE = {"plain": (0.9, 0.60, 0.62), "meta": (0.9, 0.64, 0.70)}


def change(card):
    if card.round == 0:
        return card
    before = BEFORE.get(card.arm, (0.5, 0.5, 0.5))[card.round - 1] + 0.01 * card.seed
    return replace(
        card,
        accuracy_before=Estimate(before, before - 0.03, before + 0.03, 256),
        accuracy_shifted=Estimate(0.55, 0.51, 0.59, 256),
    )


def test_mean_over_rounds_from_the_second(make_run, tmp_path):
    run = read_run(make_run(tmp_path / "run", seeds=(0,), change=change))
    found = restored(run, "plain")
    # jumps 0.05 and 0.07, each +- hypot(0.03, 0.04) = 0.05; their mean +- 0.05 / sqrt(2)
    assert found.value == pytest.approx(0.06)
    assert found.high - found.value == pytest.approx(0.05 / 2**0.5)
    assert found.value - found.low == pytest.approx(0.05 / 2**0.5)
    assert restored(run, "frozen") is None
    assert restored_difference(run, "meta", "plain").value == pytest.approx(0.06)


def test_over_seeds_and_paired(make_run, tmp_path):
    run = read_run(make_run(tmp_path / "run", seeds=(0, 1, 2), change=change))
    found = restored(run, "plain")
    assert (found.value, found.count, found.over) == (pytest.approx(0.07), 3, "seeds")
    gap = restored_difference(run, "meta", "plain")
    # the same 0.06 in every seed: pairing leaves no width
    assert (gap.low, gap.high) == (pytest.approx(0.06), pytest.approx(0.06))
    (point,) = [text for text in headline(run).points if text.startswith("meta (")]
    assert "): accuracy restored by retraining, on the same pairs +0.130 [" in point
    assert "difference to plain +0.060" in point
    assert not any("restored" in p for p in headline(run).points if p.startswith("frozen"))


def test_it_is_in_the_table_and_in_a_lead(make_run, tmp_path):
    folder = make_run(tmp_path / "run", seeds=(0, 1, 2), change=change)
    text = write_report(folder).read_text("utf-8")
    row = text.split(f"{LABEL} <span")[1].split("</tr>")[0]
    cells = [" ".join(cell.split())[:6] for cell in re.findall(r"<td>([^<]*)", row)]
    assert cells[:4] == ["-", "-", "+0.070", "+0.130"], "sft, frozen, plain, meta"
    lone = read_run(make_run(tmp_path / "lone", arms=("sft", "plain"), seeds=(0, 1), change=change))
    assert "on the same pairs +0.065 [" in headline(lone).lead
