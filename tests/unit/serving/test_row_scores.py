# SPDX-License-Identifier: Apache-2.0
"""A row by itself has the same bits whoever asks; side by side it is equal up to rounding."""

import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from metarm.models.reward_model import RewardModelScore, load_score_function
from metarm.serving.row_scores import RowScores

Row = tuple[int, ...]


@pytest.fixture(scope="module")
def score(reward_model_dir: Path) -> RewardModelScore:
    return load_score_function(reward_model_dir, batch_size=8)


def rows_of(seed: int, count: int) -> list[Row]:
    draw = random.Random(seed)
    lengths = [draw.choice([3, 4, 5, 9, 17, 24]) for _ in range(count)]
    return [(1, *(draw.randrange(4, 10) for _ in range(n - 2)), 2) for n in lengths]


def alone(score: RewardModelScore, rows: Sequence[Row]) -> list[float]:
    return [score.score_tokens([row], [0])[0] for row in rows]


@pytest.mark.parametrize("seed", range(3))
def test_every_bit_is_that_of_a_row_alone(score: RewardModelScore, seed: int) -> None:
    rows = rows_of(seed, 40)
    assert RowScores(score, is_exact=True)(rows, range(40)) == alone(score, rows)


def test_side_by_side_is_equal_up_to_rounding_and_in_order(score: RewardModelScore) -> None:
    rows = rows_of(7, 40)
    found = RowScores(score, is_exact=False)(rows, [number // 4 for number in range(40)])
    assert found == pytest.approx(alone(score, rows), abs=1e-5)
    assert found != alone(score, rows), "then rows could always go side by side"


@pytest.mark.parametrize("is_exact", [True, False])
def test_equal_rows_are_computed_once(score: RewardModelScore, is_exact: bool) -> None:
    rows = [(1, 4, 2), (1, 5, 6, 2), (1, 4, 2), (1, 7, 2)]
    scores = RowScores(score, is_exact=is_exact)
    assert scores(rows, range(4)) == pytest.approx(alone(score, rows), abs=1e-5)
    assert (scores.num_alone, scores.num_together) == ((3, 0) if is_exact else (0, 3))
    assert scores([], []) == []
