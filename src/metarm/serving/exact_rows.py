# SPDX-License-Identifier: Apache-2.0
"""Rows scored side by side only where that changes no bit; by themselves everywhere else.

A score must not depend on whom it was scored with. Padding and the shapes of matrix products do
change last bits, so only rows of one length go side by side, without padding, and a shape (rows,
tokens) is used only after all its rows gave the bits that each gives alone. The order in which a
kernel adds depends on shapes and not on numbers, so that one batch speaks for all of its shape.
"""

from collections.abc import Iterator, Sequence
from typing import Final

from metarm.models.reward_model import RewardModelScore

__all__ = ["GIVE_UP", "WIDTHS", "ExactRows"]

WIDTHS: Final = (32, 16, 8, 4, 2)
"""How many rows go side by side; few widths, so that few shapes have to be tried."""
GIVE_UP: Final = 16
"""Shapes that failed, where none has held, after which no more are tried."""

Row = tuple[int, ...]


class ExactRows:
    """Scores of token rows, each bit for bit what a batch of that row alone gives.

    Not for several threads at once: what it learns of shapes is kept without a lock.
    """

    def __init__(self, score: RewardModelScore) -> None:
        self._score = score
        self._is_exact: dict[tuple[int, int], bool] = {}
        self.num_together = 0
        """Rows that were scored side by side with others."""
        self.num_alone = 0

    def __call__(self, rows: Sequence[Sequence[int]]) -> list[float]:
        """Scores in logits, in the order given; equal rows are computed once.

        Raises:
            ModelError: When a score is not finite.
        """
        by_length: dict[int, list[Row]] = {}
        for row in dict.fromkeys(map(tuple, rows)):
            by_length.setdefault(len(row), []).append(row)
        found: dict[Row, float] = {}
        for length, alike in by_length.items():
            for chunk in self._chunks(length, alike):
                found.update(zip(chunk, self._score_chunk(chunk), strict=True))
        return [found[tuple(row)] for row in rows]

    def _chunks(self, length: int, rows: list[Row]) -> Iterator[list[Row]]:
        start = 0
        while start < len(rows):
            left = len(rows) - start
            width = next((w for w in WIDTHS if w <= left and self._may_hold(w, length)), 1)
            yield rows[start : start + width]
            start += width

    def _may_hold(self, width: int, length: int) -> bool:
        known = self._is_exact.get((width, length))
        return not self._has_given_up() if known is None else known

    def _has_given_up(self) -> bool:
        return len(self._is_exact) >= GIVE_UP and not any(self._is_exact.values())

    def _score_chunk(self, rows: list[Row]) -> list[float]:
        shape = (len(rows), len(rows[0]))
        if len(rows) == 1:
            self.num_alone += 1
            return self._score.score_tokens(rows, [0])
        is_exact = self._is_exact.get(shape)
        if is_exact:
            self.num_together += len(rows)
            return self._score.score_tokens(rows, range(len(rows)))
        alone = [self._score.score_tokens([row], [0])[0] for row in rows]
        self.num_alone += len(rows)
        self._is_exact[shape] = self._score.score_tokens(rows, range(len(rows))) == alone
        return alone
