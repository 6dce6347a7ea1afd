# SPDX-License-Identifier: Apache-2.0
"""Rows score together what they score alone, to the last bit, or they are not scored together."""

import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from metarm.models.reward_model import RewardModelScore, load_score_function
from metarm.serving.exact_rows import GIVE_UP, WIDTHS, ExactRows


@pytest.fixture(scope="module")
def score(reward_model_dir: Path) -> RewardModelScore:
    return load_score_function(reward_model_dir)


def rows_of(seed: int, count: int) -> list[list[int]]:
    draw = random.Random(seed)
    lengths = [draw.choice([3, 4, 5, 9, 17, 24]) for _ in range(count)]
    return [[1, *(draw.randrange(4, 10) for _ in range(n - 2)), 2] for n in lengths]


def alone(score: RewardModelScore, rows: Sequence[Sequence[int]]) -> list[float]:
    return [score.score_tokens([row], [0])[0] for row in rows]


@pytest.mark.parametrize("seed", range(4))
def test_every_bit_is_that_of_a_row_alone(score: RewardModelScore, seed: int) -> None:
    exact = ExactRows(score)
    for part in range(4):
        rows = rows_of(10 * seed + part, 60)
        assert exact(rows) == alone(score, rows)


def test_equal_rows_are_computed_once_and_order_is_kept(score: RewardModelScore) -> None:
    exact = ExactRows(score)
    rows = [[1, 4, 2], [1, 5, 6, 2], [1, 4, 2], [1, 7, 2]]
    assert exact(rows) == alone(score, rows)
    assert exact.num_alone + exact.num_together == 3
    assert exact([]) == []


class _Counting:
    """A score that moves with the rows it is asked for together, as `moves` says."""

    def __init__(self, moves: bool) -> None:
        self.moves, self.calls = moves, []

    def score_tokens(self, rows, group_of_row):
        self.calls.append(len(rows))
        off = 1e-9 * len(rows) if self.moves else 0.0
        return [sum(row) + off for row in rows]


def test_a_shape_that_moves_a_bit_is_never_used() -> None:
    score = _Counting(moves=True)
    exact = ExactRows(score)
    for first in range(3):
        rows = [[first, number] for number in range(64)]
        assert exact(rows) == [first + number + 1e-9 for number in range(64)]
    assert exact.num_together == 0


def test_after_enough_shapes_that_failed_none_is_tried() -> None:
    score = _Counting(moves=True)
    exact = ExactRows(score)
    for length in range(1, 3 + GIVE_UP):
        exact([[0] * (length - 1) + [number] for number in range(2)])
    score.calls.clear()
    exact([[0] * 99 + [number] for number in range(64)])
    assert set(score.calls) == {1}


def test_a_shape_that_holds_is_used_from_its_second_batch_on() -> None:
    score = _Counting(moves=False)
    exact = ExactRows(score)
    width = WIDTHS[0]
    exact([[5, number] for number in range(width)])
    assert exact.num_together == 0
    score.calls.clear()
    exact([[6, number] for number in range(width)])
    assert score.calls == [width]
    assert exact.num_together == width
