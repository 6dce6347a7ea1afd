# SPDX-License-Identifier: Apache-2.0
"""Intervals and differences against hand-computed values."""

import math
from dataclasses import replace

import pytest

from metarm.reports.comparisons import (
    change_since_start,
    compare,
    difference,
    summarise,
    summary_of,
    t_interval,
)
from metarm.reports.read_run import read_run
from metarm.schema import Estimate


def test_t_interval_is_the_hand_computed_one():
    summary = t_interval([0.60, 0.64, 0.65])
    # mean 0.63; sd = sqrt((0.0009 + 0.0001 + 0.0004) / 2); t(0.975, 2) = 4.302653
    half = 4.302653 * math.sqrt(0.0014 / 2) / math.sqrt(3)
    assert summary.value == pytest.approx(0.63)
    assert summary.low == pytest.approx(0.63 - half, abs=1e-6)
    assert summary.high == pytest.approx(0.63 + half, abs=1e-6)
    assert (summary.count, summary.over) == (3, "seeds")


def test_differences_are_paired_by_seed_and_not_by_place():
    wide = {0: 0.50, 1: 0.60, 2: 0.70}
    shifted = {2: 0.72, 0: 0.51, 1: 0.63, 7: 0.99}
    summary = difference(shifted, wide)
    # paired differences 0.01, 0.03, 0.02: sd 0.01, half = 4.302653 * 0.01 / sqrt(3)
    half = 4.302653 * 0.01 / math.sqrt(3)
    assert summary is not None
    assert summary.value == pytest.approx(0.02)
    assert summary.low == pytest.approx(0.02 - half, abs=1e-6)
    assert summary.count == 3


def test_one_seed_combines_the_intervals_over_prompts():
    left, right = Estimate(0.60, 0.57, 0.62, 200), Estimate(0.58, 0.54, 0.61, 256)
    summary = difference({0: left}, {0: right})
    assert summary is not None
    assert summary.value == pytest.approx(0.02)
    assert summary.low == pytest.approx(0.02 - math.hypot(0.03, 0.03))
    assert summary.high == pytest.approx(0.02 + math.hypot(0.02, 0.04))
    assert (summary.count, summary.over) == (200, "prompts")


def test_no_interval_is_made_up_where_there_is_none():
    alone = summarise({3: 0.5})
    assert alone is not None
    assert (alone.low, alone.high) == (None, None)
    assert not alone.excludes_zero
    assert alone.verdict() == "no interval"
    one_prompt = Estimate(0.4, 0.4, 0.4, 1)
    lone = summarise({3: one_prompt})
    assert lone is not None
    assert (lone.low, lone.excludes_zero, lone.verdict()) == (None, False, "no interval")
    gap = difference({0: Estimate(0.6, 0.5, 0.7, 9)}, {0: one_prompt})
    assert gap is not None
    assert (gap.value, gap.low) == (pytest.approx(0.2), None)
    assert summarise({0: None, 1: None}) is None
    assert difference({0: 0.5}, {1: 0.4}) is None


def test_a_missing_value_is_left_out_of_the_mean():
    summary = summarise({0: 0.2, 1: None, 2: 0.4})
    assert summary is not None
    assert summary.value == pytest.approx(0.3)
    assert summary.count == 2


def test_an_interval_that_touches_zero_does_not_exclude_it():
    same = difference({0: 0.5, 1: 0.6}, {0: 0.5, 1: 0.6})
    assert same is not None
    assert (same.low, same.high) == (0.0, 0.0)
    assert not same.excludes_zero


def test_comparisons_of_a_run_take_the_named_arm_round_and_sign(make_run, tmp_path, with_accuracy):
    values = {("plain", 2): 0.60, ("meta", 2): 0.70, ("meta", 1): 0.10, ("sft", 0): 0.65}

    def change(card):
        value = values.get((card.arm, card.round), 0.5)
        return with_accuracy(card, value + 0.001 * card.seed)

    run = read_run(make_run(tmp_path / "run", rounds=2, seeds=(0, 1), change=change))
    gap = compare(run, "accuracy_shifted", "meta", "plain", 2)
    assert gap is not None
    assert gap.value == pytest.approx(0.10)
    moved = change_since_start(run, "accuracy_shifted", "plain", 2)
    assert moved is not None
    assert moved.difference.value == pytest.approx(-0.05)


def test_a_change_starts_from_the_seeds_that_have_ended(make_run, tmp_path, with_accuracy):
    def change(card):
        if card.arm == "plain" and card.seed == 1:
            return None
        return with_accuracy(card, 0.70 if card.seed == 0 else 0.90)

    run = read_run(make_run(tmp_path / "run", rounds=1, seeds=(0, 1), change=change))
    moved = change_since_start(run, "accuracy_shifted", "plain", 1)
    assert moved is not None
    assert moved.start == pytest.approx(0.70)


def test_gap_spread_ratio_is_a_quotient_and_needs_a_reference(make_run, tmp_path):
    def change(card):
        return replace(card, gap_spread=0.6, gap_spread_reference=0.0 if card.round == 2 else 1.2)

    run = read_run(make_run(tmp_path / "run", rounds=2, seeds=(0,), change=change))
    first = summary_of(run, "gap_spread_ratio", "plain", 1)
    assert first is not None
    assert first.value == pytest.approx(0.5)
    assert summary_of(run, "gap_spread_ratio", "plain", 2) is None


def test_intervals_stay_among_the_numbers_there_can_be(make_run, tmp_path):
    def change(card):
        values = {"win_fraction": Estimate(0.1 + 0.8 * card.seed, 0, 1, 9), "response_tokens": 8.0}
        return replace(card, **values, gap_spread=1.0 + card.seed, rank_correlation_plain=0.9)

    run = read_run(make_run(tmp_path / "run", arms=("sft", "plain"), seeds=(0, 1), change=change))
    wins, spread = (summary_of(run, name, "plain", 1) for name in ("win_fraction", "gap_spread"))
    assert wins is not None
    assert spread is not None
    assert (wins.value, wins.low, wins.high) == (pytest.approx(0.5), 0.0, 1.0)
    assert spread.low == 0.0
    assert spread.high == pytest.approx(1.5 + 12.7062 * 0.5, abs=1e-3)


def test_what_rounds_to_zero_has_no_sign():
    summary = summarise({0: Estimate(-1e-9, -0.2, -1e-9, 4)})
    assert summary is not None
    assert summary.text(2) == "0.00 [-0.20, 0.00]"
    assert summary.text(2, sign=True) == "+0.00 [-0.20, +0.00]"
