# SPDX-License-Identifier: Apache-2.0
"""Token rows to scores: each row by itself, or side by side where the last bits may move.

The shapes of matrix products decide in which order a kernel adds, so a row's last bits depend on
how many tokens stand beside it, padding or not (`benchmarks/batch_bits.py` counts how often). A row
by itself gives the same bits whoever else asks.
"""

from collections.abc import Sequence

from metarm.models.reward_model import RewardModelScore

__all__ = ["RowScores"]

Row = tuple[int, ...]


class RowScores:
    """Scores of token rows by one model; not for several threads at once."""

    def __init__(self, score: RewardModelScore, *, is_exact: bool) -> None:
        self._score, self._is_exact = score, is_exact
        self.num_alone = 0
        """Rows that were scored by themselves."""
        self.num_together = 0
        """Rows that were scored side by side with others."""

    def __call__(self, rows: Sequence[Row], group_of_row: Sequence[int]) -> list[float]:
        """Scores in logits, in the order given; equal rows are computed once.

        Args:
            rows: Token ids.
            group_of_row: Rows of equal number begin alike, which side by side saves work.

        Raises:
            ModelError: When a score is not finite.
        """
        groups = dict(zip(rows, group_of_row, strict=True))
        found = self._alone(list(groups)) if self._is_exact else self._together(groups)
        return [found[row] for row in rows]

    def _alone(self, rows: Sequence[Row]) -> dict[Row, float]:
        self.num_alone += len(rows)
        return {row: self._score.score_tokens([row], [0])[0] for row in rows}

    def _together(self, groups: dict[Row, int]) -> dict[Row, float]:
        """In batches of like lengths, those of a group beside each other."""
        self.num_together += len(groups)
        longest: dict[int, int] = {}
        for row, group in groups.items():
            longest[group] = max(len(row), longest.get(group, 0))
        order = sorted(groups, key=lambda row: (longest[groups[row]], groups[row]))
        found: dict[Row, float] = {}
        for start in range(0, len(order), self._score.batch_size):
            part = order[start : start + self._score.batch_size]
            scores = self._score.score_tokens(part, [groups[row] for row in part])
            found.update(zip(part, scores, strict=True))
        return found
