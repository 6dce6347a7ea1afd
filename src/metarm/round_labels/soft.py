# SPDX-License-Identifier: Apache-2.0
"""Votes to labels: how likely the first response of each pair is the better one."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Final

from numpy.typing import ArrayLike

from metarm.annotators.fitting import fit_annotators
from metarm.labels.votes import Choice, LabelPair, Vote

__all__ = ["WORTH", "soft_labels"]

WORTH: Final[Mapping[Choice, float]] = MappingProxyType({"first": 1.0, "tie": 0.5, "second": 0.0})
"""Choice -> how much it is for the first response; a skip is worth nothing, and is not there."""


def soft_labels(
    pairs: Sequence[LabelPair],
    votes: Sequence[Vote],
    features: Callable[[], Mapping[str, ArrayLike]],
    *,
    history: Sequence[Vote] = (),
    gold: Mapping[str, Choice] = MappingProxyType({}),
) -> dict[str, float | None]:
    """Pair id -> probability that the first response is better; None where nobody says.

    Of one annotator, what they say: a tie is one half, a skip nothing, two votes on one pair their
    mean. Of several, what the joint model of rewards and annotators makes of all their votes: a
    round's own are few to judge somebody by.

    Args:
        pairs: What was asked.
        votes: On these pairs.
        features: Gives the features of every pair that is voted on, first response minus second;
            asked where needed.
        history: Votes on other pairs: of earlier rounds, or on pairs with known answers.
        gold: Pair -> its known answer.

    Example:
        >>> pair = LabelPair("p", "a", "b")
        >>> soft_labels([pair], [Vote(pair.id, "ann", "tie")], dict)[pair.id]
        0.5
    """
    given: dict[str, list[float]] = {pair.id: [] for pair in pairs}
    said = [vote for vote in votes if vote.choice in WORTH]
    for vote in said:
        given[vote.pair].append(WORTH[vote.choice])
    told = [*said, *(vote for vote in history if vote.choice in WORTH)]
    if len({vote.annotator for vote in told}) < 2:
        return {pair: sum(worth) / len(worth) if worth else None for pair, worth in given.items()}
    belief = fit_annotators(told, features(), gold=gold)
    return {pair: belief.label_of(pair) if worth else None for pair, worth in given.items()}
