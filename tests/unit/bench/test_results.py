# SPDX-License-Identifier: Apache-2.0
"""Intervals over splits that share prompts: clustered by prompt, against formulas by hand."""

import math
import random

import pytest
from scipy.stats import t as student_t

from metarm.bench.results import Cell, Tally, clustered_difference, clustered_mean

ONE = Tally(("a", "b", "c"), (2, 2, 2), (2.0, 1.0, 0.0))
TWO = Tally(("a", "b", "d"), (2, 2, 2), (2.0, 2.0, 1.0))


def test_prompts_and_splits_are_clusters() -> None:
    found = clustered_mean([ONE, TWO])
    mean = 8 / 12
    assert found.value == pytest.approx(mean)
    rows = [
        (prompt, split, correct)
        for split, tally in enumerate((ONE, TWO))
        for prompt, correct in zip(tally.prompts, tally.correct, strict=True)
    ]
    residuals = [(p, s, (c - 2 * mean) / 12) for p, s, c in rows]

    def variance(key) -> float:
        sums: dict[object, float] = {}
        for row in residuals:
            sums[key(row)] = sums.get(key(row), 0.0) + row[2]
        return len(sums) / (len(sums) - 1) * sum(value**2 for value in sums.values())

    by_prompt, by_split = variance(lambda row: row[0]), variance(lambda row: row[1])
    both = variance(lambda row: row[:2])
    expected = max(by_prompt + by_split - both, by_prompt, by_split)
    half = student_t.ppf(0.975, 1) * math.sqrt(expected)
    assert found.high - found.value == pytest.approx(half)
    assert found.value - found.low == pytest.approx(half)
    assert found.count == 2
    alone = clustered_mean([ONE])
    spread = math.sqrt(3 / 2 * (1 / 36 + 0 + 1 / 36))
    assert alone.high - alone.value == pytest.approx(student_t.ppf(0.975, 2) * spread)


def test_the_luck_of_a_training_is_in_the_interval() -> None:
    """Every prompt alike, every split another accuracy: only the splits tell what to expect."""
    names = tuple(map(str, range(100)))
    values = (1.0, 0.0, 0.5, 0.7)
    tallies = [Tally(names, (1,) * 100, (value,) * 100) for value in values]
    found = clustered_mean(tallies)
    mean = sum(values) / 4
    variance = sum((value - mean) ** 2 for value in values) / 3 / 4
    assert found.value == pytest.approx(mean)
    assert found.high - mean == pytest.approx(
        student_t.ppf(0.975, 3) * math.sqrt(variance), rel=0.02
    )


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


@pytest.mark.parametrize("luck", [0.0, 0.1])
def test_intervals_cover_as_they_say(luck: float) -> None:
    """Splits of one pool of prompts, each prompt and each training with an ability of its own."""
    draw = random.Random(1)
    held = 0
    for _ in range(200):
        abilities = [draw.uniform(0.2, 0.8) for _ in range(60)]
        tallies = []
        for _ in range(8):
            of_training = draw.uniform(-luck, luck)
            tested = draw.sample(range(60), 30)
            correct = tuple(
                float(sum(draw.random() < abilities[p] + of_training for _ in range(4)))
                for p in tested
            )
            tallies.append(Tally(tuple(map(str, tested)), (4,) * 30, correct))
        found = clustered_mean(tallies)
        held += found.low <= 0.5 <= found.high
    assert held / 200 >= 0.93


def test_a_cell_survives_its_file() -> None:
    cell = Cell("s", "m", 1, 20, ONE, None, None, 0.5, 0.7, 1.0, ((20, 0.5, 0.6, None),), 3, 4, 0.1)
    assert Cell.from_json(cell.to_json()) == cell
