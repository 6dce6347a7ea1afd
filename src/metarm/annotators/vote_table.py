# SPDX-License-Identifier: Apache-2.0
"""Votes as arrays: which pair, whose, which way, how strongly, and on which side it stood.

One vote of each annotator on a pair: whoever answers it again, mirrored, tells of themselves.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from metarm.errors import EmptySetError
from metarm.labels.votes import Vote

__all__ = ["Ints", "VoteTable", "build_table"]

Ints = NDArray[np.int64]

DIRECTIONS = {"first": 1, "second": -1, "tie": 0}
SIDES = {False: 1, True: -1, None: 0}


@dataclass(frozen=True, slots=True, eq=False)
class VoteTable:
    """Votes that say something, a row each and one of an annotator on a pair; no skips."""

    pairs: tuple[str, ...]
    """Ids, in the order of their first vote; those without any vote come last."""
    annotators: tuple[str, ...]
    """Names, in the order of their first vote."""
    pair: Ints
    """Place in `pairs`, shape (votes,)."""
    annotator: Ints
    """Place in `annotators`, shape (votes,)."""
    direction: Ints
    """1: first, -1: second, 0: tie; shape (votes,)."""
    strength: Ints
    """1 or 2, shape (votes,)."""
    side: Ints
    """1: `first` stood on the left, -1: on the right, 0: no side is known; shape (votes,)."""

    @property
    def num_votes(self) -> int:
        """How many votes there are."""
        return len(self.pair)

    @property
    def has_ties(self) -> bool:
        """Whether anybody said that neither is better."""
        return bool((self.direction == 0).any())

    @property
    def has_strengths(self) -> bool:
        """Whether anybody said `much better`."""
        return bool((self.strength == 2).any())

    @property
    def votes_of_annotator(self) -> Ints:
        """Counts, shape (annotators,)."""
        return np.bincount(self.annotator, minlength=len(self.annotators)).astype(np.int64)

    @property
    def votes_of_pair(self) -> Ints:
        """Counts, shape (pairs,): of annotators, as each has one vote."""
        return np.bincount(self.pair, minlength=len(self.pairs)).astype(np.int64)

    @property
    def num_shared_votes(self) -> int:
        """Votes on pairs that another annotator voted on too."""
        counts = self.votes_of_pair
        return int(counts[counts > 1].sum())

    def has_witness(self, known: Collection[str]) -> NDArray[np.bool_]:
        """Whether an annotator has a vote that something is beside, shape (annotators,).

        Args:
            known: Ids of pairs whose answer is known; elsewhere it is another annotator's vote.
        """
        is_known = np.fromiter((pair in known for pair in self.pairs), bool, len(self.pairs))
        beside = (is_known | (self.votes_of_pair > 1))[self.pair]
        return np.bincount(self.annotator, beside, minlength=len(self.annotators)) > 0


def build_table(votes: Iterable[Vote], unvoted: Sequence[str] = ()) -> VoteTable:
    """The votes as arrays, without those that were skipped or are repeats.

    Args:
        votes: Of several by one annotator on a pair the first counts: the others are no evidence
            on the pair, since people agree with themselves where others would not.
        unvoted: Ids of further pairs that the table is to hold.

    Raises:
        EmptySetError: When no vote says anything.
    """
    firsts: dict[tuple[str, str], Vote] = {}
    for vote in votes:
        if vote.choice != "skip":
            firsts.setdefault((vote.pair, vote.annotator), vote)
    said = list(firsts.values())
    if not said:
        raise EmptySetError("expected at least one vote that is not a skip, got none")
    pairs = {vote.pair: None for vote in said} | dict.fromkeys(unvoted)
    place_of_pair = {pair: place for place, pair in enumerate(pairs)}
    names = dict.fromkeys(vote.annotator for vote in said)
    place_of_name = {name: place for place, name in enumerate(names)}

    def column(values: Iterable[int]) -> Ints:
        return np.fromiter(values, dtype=np.int64, count=len(said))

    return VoteTable(
        pairs=tuple(pairs),
        annotators=tuple(names),
        pair=column(place_of_pair[vote.pair] for vote in said),
        annotator=column(place_of_name[vote.annotator] for vote in said),
        direction=column(DIRECTIONS[vote.choice] for vote in said),
        strength=column(vote.strength if vote.choice != "tie" else 1 for vote in said),
        side=column(SIDES[vote.is_turned] for vote in said),
    )
