# SPDX-License-Identifier: Apache-2.0
"""Gold at equal KL: crossings by hand, which rounds lead to the last policy, paired differences."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from metarm.config import RunSettings
from metarm.reports.equal_kl import (
    final_trajectory,
    gold_at,
    gold_at_kl,
    gold_at_kl_difference,
    kl_reached,
)
from metarm.reports.read_run import Cell, CurvePoint, Run


def points(*values: tuple[float, float | None]) -> tuple[CurvePoint, ...]:
    return tuple(CurvePoint(*value) for value in values)


LINE = points((0, 1), (1, 2), (2, 3), (4, 5), (2.5, 2.5), (3.5, 4.5), (2.9, 3.3))


@pytest.mark.parametrize(
    ("kl", "gold"),
    [
        (0.0, 1.0),
        (0.25, 1.25),
        (1.0, 2.0),  # a point that is passed: one crossing, not two
        (1.5, 2.5),
        (2.5, (3.5 + 2.5) / 2),  # on the way to 4, and a turning point
        (3.0, (4.0 + 10 / 3 + 3.5 + 3.5) / 4),  # four crossings
        (4.0, 5.0),
        (4.1, None),
        (-0.1, None),
    ],
)
def test_gold_where_the_trajectory_crosses(kl: float, gold: float | None) -> None:
    assert gold_at_kl(LINE, kl) == (None if gold is None else pytest.approx(gold))


def test_points_without_gold_are_passed_over() -> None:
    assert gold_at_kl(points((0, 1), (1, None), (2, 3)), 1.0) == pytest.approx(2.0)
    assert gold_at_kl((), 1.0) is None
    assert kl_reached(points((0, 1), (3, None), (2, 3))) == 3
    assert kl_reached(()) == 0


def run_of(
    curves: Mapping[tuple[str, int, int], Sequence[tuple[float, float]]], policy_start: str, **more
) -> Run:
    settings = RunSettings.model_validate(
        {"output_dir": "run", "world": {}, "policy_start": policy_start, **more}
    )
    seeds = {seed for _, seed, _ in curves}
    cards = {Cell(arm, seed, 2): None for arm in ("plain", "meta") for seed in seeds}
    return Run(
        folder=Path("run"),
        arms=("plain", "meta"),
        cards=cards,  # type: ignore[arg-type]
        samples={},
        curves={Cell(*cell): points(*values) for cell, values in curves.items()},
        settings=settings,
        settings_text="",
        facts={},
        missing=(),
    )


def test_the_way_from_sft_to_the_last_policy() -> None:
    curves = {("plain", 0, 1): [(0.0, 1.0), (1.0, 2.0)], ("plain", 0, 2): [(0.0, 1.5), (2.0, 2.5)]}
    first, second = (points(*values) for values in curves.values())
    assert final_trajectory(run_of(curves, "previous"), "plain", 0) == (*first, *second)
    assert final_trajectory(run_of(curves, "sft"), "plain", 0) == second
    own = {"custom_arms": {"plain": {"settings": {"policy_start": "sft"}}}}
    assert final_trajectory(run_of(curves, "previous", **own), "plain", 0) == second
    del curves["plain", 0, 2]
    assert final_trajectory(run_of(curves, "sft"), "plain", 0) == (), "it has not finished"


def test_differences_are_paired_by_seed_where_both_arrive() -> None:
    curves = {}
    for seed, (plain, meta) in enumerate([(1.0, 1.5), (5.0, 5.7), (3.0, 3.6), (9.0, 1.0)]):
        far = 2.0 if seed < 3 else 0.5  # the last seed of meta stays near
        for number in (1, 2):
            curves["plain", seed, number] = [(0.0, plain), (2.0, plain)]
            curves["meta", seed, number] = [(0.0, meta), (far, meta)]
    run = run_of(curves, "sft")
    gap = gold_at_kl_difference(run, "meta", "plain", 1.0)
    assert gap is not None
    assert (gap.value, gap.count) == (pytest.approx(0.6), 3)
    # t(0.975, 2) * 0.1 / sqrt(3)
    assert gap.high - gap.value == pytest.approx(4.302653 * 0.1 / 3**0.5, rel=1e-5)
    assert gold_at(run, "meta", 1.0).count == 3
    assert gold_at(run, "plain", 1.0).count == 4
    assert gold_at(run, "plain", 3.0) is None
    assert gold_at_kl_difference(run, "meta", "plain", 3.0) is None
