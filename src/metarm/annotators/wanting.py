# SPDX-License-Identifier: Apache-2.0
"""What to ask next as rows that a label store takes: pairs, and the votes of people each wants."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

from metarm.annotators.information import NextVote
from metarm.annotators.label_data import LabelData

__all__ = ["want_rows"]


def want_rows(next_votes: Iterable[NextVote], data: LabelData) -> list[dict[str, Any]]:
    """Each pair with `wanted`: one vote more than people gave it, so that it says the same twice.

    Skips, repeats and the votes of models and rules are none of theirs. Pairs with a known answer
    are left out, since people are not asked what is known.

    Args:
        next_votes: As `rank_next_votes` gives them, the best first.
        data: The votes that they were worked out from.
    """
    voted = {
        (vote.pair, vote.annotator)
        for vote in data.votes
        if vote.choice != "skip" and data.kinds.get(vote.annotator, "person") == "person"
    }
    counts = Counter(pair for pair, _ in voted)
    return [
        {**one.to_json(), "wanted": counts[one.pair] + 1}
        for one in next_votes
        if one.pair not in data.gold
    ]
