# SPDX-License-Identifier: Apache-2.0
"""How flat an optimum is, and which trial is the best, against cases worked out by hand."""

import math

import pytest

from metarm.bench.space import Dimension
from metarm.bench.tuning_results import Trial, Tuning, measure_flatness

SPACE = {"strength": Dimension(0.01, 1.0, 0.1)}


def trial(number: int, strength: float, *values: float, num_seeds: int = 2) -> Trial:
    return Trial(number, {"strength": strength}, values, len(values) < num_seeds, number == 0)


def tuning(*trials: Trial) -> Tuning:
    return Tuning(
        "s", "joint", "o", (0, 1), len(trials), SPACE, trials, None, None, (), ()
    )  # fmt: skip


def test_the_share_is_of_the_box_and_not_of_the_trials() -> None:
    """Ten trials in the best tenth of the box, one for all the rest: still a small share."""
    best = trial(0, 0.01, 0.8, 0.8)
    near = [trial(n, 0.01 * 1.001**n, 0.8, 0.79) for n in range(1, 10)]
    far = trial(10, 0.1, 0.8, 0.6)
    found = measure_flatness([best, *near, far], best, SPACE)
    assert found is not None
    # Gaps (0, 0.01): variance 5e-5, over two seeds.
    assert found.standard_error == pytest.approx(math.sqrt(5e-5 / 2))
    assert found.trials == tuple(range(10))
    assert found.ranges == {"strength": (0.01, near[-1].settings["strength"])}
    # In log scale the last good trial is at 0.002 and the bad one at 0.5: up to the middle.
    assert found.share == pytest.approx(0.25, abs=0.02)


def test_a_pruned_trial_is_compared_on_the_seeds_it_has() -> None:
    """The first seed is the harder one: a plain mean would put the pruned trial far behind."""
    best, other = trial(0, 0.1, 0.5, 0.9), trial(1, 0.01, 0.4, 0.9)
    pruned = trial(2, 1.0, 0.5)
    found = measure_flatness([best, other, pruned], best, SPACE)
    assert found is not None
    assert 2 in found.trials
    assert tuning(best, other, pruned).paired_value(pruned) == pytest.approx(0.7)


def test_one_seed_or_one_trial_tells_nothing() -> None:
    one = trial(0, 0.1, 0.5, num_seeds=1)
    assert measure_flatness([one, trial(1, 0.2, 0.4, num_seeds=1)], one, SPACE) is None
    assert measure_flatness([trial(0, 0.1, 0.5, 0.5)], trial(0, 0.1, 0.5, 0.5), SPACE) is None


def test_the_best_has_all_seeds_and_the_default_keeps_against_an_equal() -> None:
    found = tuning(trial(0, 0.1, 0.5, 0.7), trial(1, 0.2, 0.6, 0.6), trial(2, 0.3, 0.9))
    assert found.best.number == 0
    assert tuning(trial(0, 0.1, 0.5, 0.5), trial(1, 0.2, 0.6, 0.6)).best.number == 1
