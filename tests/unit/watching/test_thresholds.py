# SPDX-License-Identifier: Apache-2.0
"""The budget is spent and no more: closed sums, and whole runs without a shift."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from metarm.errors import ConfigError
from metarm.watching.measuring import Measured
from metarm.watching.thresholds import AlarmBudget, num_relabellings
from metarm.watching.watch import Watch, WatchRules


@given(st.floats(0.001, 0.5), st.one_of(st.none(), st.integers(1, 40)), st.integers(1, 5))
def test_levels_sum_to_the_budget(alpha: float, planned: int | None, num_tests: int) -> None:
    budget = AlarmBudget(alpha, planned)
    looks = 3000
    spent = num_tests * math.fsum(budget.level(n, num_tests) for n in range(1, looks + 1))
    beyond = looks - (planned or 0)
    left = (0.1 if planned else 1.0) * alpha / (beyond + 1)
    assert spent == pytest.approx(alpha - left, rel=1e-9)


def test_relabellings_can_reach_the_level_until_it_is_out_of_reach() -> None:
    for level in (0.05, 1e-3, 4.5e-4, 1e-5):
        assert 1 / (1 + num_relabellings(level)) < level
    assert num_relabellings(1e-9) == 200_000


@pytest.mark.parametrize("alpha", [0.0, 1.0, -1.0, float("nan")])
def test_a_chance_is_between_0_and_1(alpha: float) -> None:
    with pytest.raises(ConfigError, match="between 0 and 1"):
        AlarmBudget(alpha)


def test_looks_are_counted_from_one() -> None:
    with pytest.raises(ConfigError, match="1 or more"):
        AlarmBudget(planned_looks=0)
    with pytest.raises(ConfigError, match="from 1 on"):
        AlarmBudget().level(0, 1)


@pytest.mark.parametrize("planned", [6, None])
def test_runs_without_a_shift_alarm_within_the_budget(planned: int | None) -> None:
    """One reference, six looks at it, two tests each: the runs with any alarm at all."""
    draw, alpha, alarmed = np.random.default_rng(0), 0.2, 0
    runs = 120
    for number in range(runs):
        scale = np.exp(draw.normal(size=(16, 1)))
        scores = scale * draw.standard_t(3, size=(16, 6 + 6 * 3))
        lengths = np.exp(draw.normal(size=scores.shape))
        states = np.stack([scores, lengths], axis=2) + draw.normal(size=(*scores.shape, 2))
        sides = [
            Measured(scores[:, rows], lengths[:, rows], states[:, rows], None)
            for rows in (slice(0, 6), *(slice(6 + 3 * n, 9 + 3 * n) for n in range(6)))
        ]
        watch = Watch(sides[0], WatchRules(budget=AlarmBudget(alpha, planned), seed=number))
        alarmed += any(watch.look(side, step=n).state != "fine" for n, side in enumerate(sides[1:]))
    assert stats.binomtest(alarmed, runs, alpha, "greater").pvalue > 1e-4, alarmed
    # Bonferroni wastes some of it, not all.
    assert alarmed > 0
