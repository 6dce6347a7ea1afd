# SPDX-License-Identifier: Apache-2.0
"""Intervals over splits that share prompts: clustered by prompt, against formulas by hand."""

import math
import random

import pytest
from scipy.stats import t as student_t

from metarm.bench.results import Cell, Tally, clustered_difference, clustered_mean

ONE = Tally(("a", "b", "c"), (2, 2, 2), (2.0, 1.0, 0.0))
TWO = Tally(("a", "b", "d"), (2, 2, 2), (2.0, 2.0, 1.0))


def test_a_prompt_in_two_splits_is_one_cluster() -> None:
    found = clustered_mean([ONE, TWO])
    # sums by prompt: a 4 of 4, b 3 of 4, c 0 of 2, d 1 of 2; mean 8 / 12
    assert found.value == pytest.approx(8 / 12)
    assert found.count == 4
    residuals = [4 - 4 * 8 / 12, 3 - 4 * 8 / 12, 0 - 2 * 8 / 12, 1 - 2 * 8 / 12]
    variance = 4 / 3 * sum(r * r for r in residuals) / 12**2
    half = student_t.ppf(0.975, 3) * math.sqrt(variance)
    assert found.high - found.value == pytest.approx(half)
    assert found.value - found.low == pytest.approx(half)


def test_equal_methods_differ_by_nothing() -> None:
    found = clustered_difference([ONE, TWO], [ONE, TWO])
    assert (found.value, found.low, found.high) == (0, 0, 0)


def test_difference_is_that_of_the_means_and_pairing_narrows_it() -> None:
    draw = random.Random(0)
    names = tuple(map(str, range(200)))
    theirs = Tally(names, (3,) * 200, tuple(float(draw.randint(0, 3)) for _ in names))
    ours = Tally(
        names, (3,) * 200, tuple(min(3.0, c + (draw.random() < 0.1)) for c in theirs.correct)
    )
    found = clustered_difference([ours], [theirs])
    assert found.value == pytest.approx(ours.accuracy - theirs.accuracy)
    alone = clustered_mean([ours])
    assert found.high - found.low < 0.5 * (alone.high - alone.low)
    assert found.low > 0


def test_intervals_cover_as_they_say() -> None:
    """Splits of one pool of prompts, each with an ability of its own: 95 of 100 hold the truth."""
    draw = random.Random(1)
    held = 0
    for _ in range(300):
        abilities = [draw.random() for _ in range(60)]
        truth = 0.5
        tallies = []
        for _ in range(5):
            tested = draw.sample(range(60), 30)
            correct = tuple(
                float(sum(draw.random() < abilities[p] for _ in range(4))) for p in tested
            )
            tallies.append(Tally(tuple(map(str, tested)), (4,) * 30, correct))
        found = clustered_mean(tallies)
        held += found.low <= truth <= found.high
    assert 0.91 <= held / 300 <= 0.99


def test_a_cell_survives_its_file() -> None:
    cell = Cell("s", "m", 1, 20, ONE, None, None, 0.5, 0.7, ((20, 0.5, 0.6, None),), 3, 4, 0.1)
    assert Cell.from_json(cell.to_json()) == cell
