# SPDX-License-Identifier: Apache-2.0
"""Votes to labels: how likely the first response of each pair is the better one."""

from collections.abc import Sequence
from typing import Final

from metarm.labels.votes import Choice, LabelPair, Vote

__all__ = ["soft_labels"]

_WORTH: Final[dict[Choice, float]] = {"first": 1.0, "tie": 0.5, "second": 0.0}


def soft_labels(pairs: Sequence[LabelPair], votes: Sequence[Vote]) -> dict[str, float | None]:
    """Pair id -> probability that the first response is better; None where nobody says.

    The share of the votes for the first response; a tie is half a vote, a skip none.

    Example:
        >>> pair = LabelPair("p", "a", "b")
        >>> soft_labels([pair], [Vote(pair.id, "x", "first"), Vote(pair.id, "y", "tie")])[pair.id]
        0.75
    """
    given: dict[str, list[float]] = {pair.id: [] for pair in pairs}
    for vote in votes:
        if vote.choice in _WORTH:
            given[vote.pair].append(_WORTH[vote.choice])
    return {pair: sum(worth) / len(worth) if worth else None for pair, worth in given.items()}
