# SPDX-License-Identifier: Apache-2.0
"""The length-controlled win rate: an exact fit, held against other ways to the same number."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize

from metarm.errors import DataError, EmptySetError, ShapeError
from metarm.judging.length_control import (
    LENGTH_PRIOR_SD,
    bootstrap_interval,
    fit_length,
    length_controlled_win_rate,
)
from metarm.metrics import mean_estimate

OUTCOMES = st.sampled_from([0.0, 0.5, 1.0])
ROWS = st.lists(st.tuples(OUTCOMES, st.integers(-300, 300)), min_size=1, max_size=40)


def drawn(quality: float, length: float, count: int, seed: int, shift: float = 0.0):
    """Outcomes of a judge who likes length, and length differences."""
    draw = np.random.default_rng(seed)
    differences = draw.normal(shift, 100.0, count)
    logits = quality + length * np.tanh(differences / differences.std(ddof=1))
    return (draw.random(count) < 1 / (1 + np.exp(-logits))).astype(float), differences


def test_the_fit_is_the_maximum_that_another_optimiser_finds() -> None:
    wins, differences = drawn(0.4, 1.5, 300, seed=0)
    feature = np.tanh(differences / differences.std(ddof=1))

    def loss(place):
        logits = place[0] + place[1] * feature
        fit = np.logaddexp(0, logits) - wins * logits
        return fit.sum() + 0.5 * (place[1] / LENGTH_PRIOR_SD) ** 2

    found = minimize(loss, np.zeros(2), method="BFGS", options={"gtol": 1e-9})
    assert fit_length(wins, differences) == pytest.approx(tuple(found.x), abs=1e-5)


def test_without_differences_it_is_the_plain_win_rate() -> None:
    wins = [1.0] * 30 + [0.5] * 4 + [0.0] * 10
    fit = fit_length(wins, np.zeros(44))
    assert fit.win_rate == pytest.approx(32 / 44, abs=1e-12)
    assert fit.length == 0.0


def test_a_judge_of_length_alone_is_seen_through() -> None:
    """The longer response always wins, and the first arm is longer in 80 % of the comparisons."""
    differences = np.array([100.0] * 80 + [-100.0] * 20)
    wins = (differences > 0).astype(float)
    fit = fit_length(wins, differences)
    assert wins.mean() == 0.8
    assert fit.length > 2.0
    assert fit.win_rate < 0.7


@pytest.mark.parametrize("quality", [-1.0, 0.0, 0.7])
def test_a_planted_quality_is_found_where_the_arm_is_longer(quality: float) -> None:
    wins, differences = drawn(quality, 1.5, 40_000, seed=1, shift=100.0)
    fit = fit_length(wins, differences)
    assert fit.quality == pytest.approx(quality, abs=0.06)
    assert fit.length == pytest.approx(1.5, abs=0.12)
    assert wins.mean() > fit.win_rate + 0.1


@given(ROWS)
def test_swapping_the_arms_gives_the_rest_to_one(rows) -> None:
    wins, differences = map(np.array, zip(*rows, strict=True))
    one, other = fit_length(wins, differences), fit_length(1.0 - wins, -differences)
    if one is None:
        assert other is None
    else:
        assert one.win_rate == pytest.approx(1.0 - other.win_rate, abs=1e-9)
        assert 0.0 <= one.win_rate <= 1.0
        assert math.isfinite(one.length)


def test_length_and_arm_that_are_one_cannot_be_told_apart() -> None:
    assert fit_length([1, 0, 1], [50, 50, 50]) is None
    assert fit_length([1], [50]) is None
    rate = length_controlled_win_rate([1, 0], [5, 5], [0, 1], num_resamples=5, seed=0)
    assert rate is None


def test_who_wins_everything_wins_at_any_length() -> None:
    assert fit_length([1, 1, 1], [1, 2, -5]).win_rate == 1.0
    assert fit_length([0, 0, 0], [1, 2, -5]).win_rate == 0.0


def test_the_interval_is_over_prompts_not_comparisons() -> None:
    wins, differences = drawn(0.3, 0.0, 60, seed=2)
    settings = {"num_resamples": 300, "seed": 0}
    single = length_controlled_win_rate(wins, differences, range(60), **settings)
    # Each prompt four times is no more evidence: the resamples of prompts are the same.
    four = length_controlled_win_rate(
        np.tile(wins, 4), np.tile(differences, 4), np.tile(np.arange(60), 4), **settings
    )
    assert four.count == single.count == 60
    width = single.high - single.low
    assert four.high - four.low == pytest.approx(width, rel=0.1)
    assert single.low < single.value < single.high
    assert length_controlled_win_rate(wins, differences, range(60), **settings) == single
    alone = length_controlled_win_rate([1, 0], [3, -4], [0, 0], **settings)
    assert (alone.low, alone.high, alone.count) == (0.0, 1.0, 1)


def test_the_bootstrap_of_a_mean_is_its_clustered_interval() -> None:
    draw = np.random.default_rng(3)
    clusters = np.repeat(np.arange(80), 3)
    values = np.clip(0.5 + 0.2 * draw.normal(size=80)[clusters] + 0.1 * draw.normal(size=240), 0, 1)
    low, high, count = bootstrap_interval(
        clusters, lambda rows: float(values[rows].mean()), num_resamples=2000, seed=0
    )
    expected = mean_estimate(values, clusters)
    assert count == expected.count == 80
    assert low == pytest.approx(expected.low, abs=0.1 * (expected.high - expected.low))
    assert high == pytest.approx(expected.high, abs=0.1 * (expected.high - expected.low))


def test_bad_input_is_said() -> None:
    with pytest.raises(EmptySetError):
        fit_length([], [])
    with pytest.raises(ShapeError):
        fit_length([1.0], [1.0, 2.0])
    with pytest.raises(DataError):
        fit_length([1.5], [1.0])
    with pytest.raises(DataError):
        fit_length([1.0], [math.nan])
