# SPDX-License-Identifier: Apache-2.0
"""How often a reward model agrees with single votes, on pairs that were drawn at random alone."""

from collections.abc import Sequence
from dataclasses import dataclass

from metarm.gold_labels import gold_gaps
from metarm.labels.votes import LabelPair, Vote
from metarm.metrics import accuracy_estimate
from metarm.protocols import ScoreFunction
from metarm.round_labels.soft import WORTH
from metarm.schema import RANDOM, Estimate

__all__ = ["Agreement", "agreement_with_votes"]


@dataclass(frozen=True, slots=True)
class Agreement:
    """How often a reward model agrees with votes, and with how many."""

    share: Estimate
    """In [0, 1], 0.5 for guessing; its interval takes the votes on one prompt together."""
    num_votes: int
    num_pairs: int


def agreement_with_votes(
    pairs: Sequence[LabelPair], votes: Sequence[Vote], score: ScoreFunction
) -> Agreement | None:
    """Share of votes that a reward model agrees with.

    Of votes as they were given, not of what a joint model makes of them: that one knows the reward
    model's features, and would find it right too often. Every vote counts as one, of whatever
    annotator; a tie of either is one half, a skip nothing. Pairs that were chosen, for being hard
    say, tell nothing of others and are left out.

    Args:
        pairs: What was asked, each with the strategy that chose it.
        votes: On these pairs.
        score: The reward model's; called once, with the random pairs, or not at all.

    Returns:
        An annotator who errs in 1 of 10 keeps a perfect model at 0.9. None: there is no such vote.

    Example:
        >>> pair = LabelPair("p", "long", "s", chosen_by="random")
        >>> votes = [Vote(pair.id, "ann", "first"), Vote(pair.id, "bob", "tie")]
        >>> length = lambda prompts, responses: [float(len(one)) for one in responses]
        >>> agreement_with_votes([pair], votes, length).share.value
        0.75
    """
    drawn = {pair.id: pair for pair in pairs if pair.chosen_by == RANDOM}
    told = [vote for vote in votes if vote.pair in drawn and vote.choice in WORTH]
    if not told:
        return None
    asked = {vote.pair: drawn[vote.pair] for vote in told}
    gaps = {pair.id: gap for pair, gap in gold_gaps(list(asked.values()), score)}
    prompts = [drawn[vote.pair].prompt for vote in told]
    numbers = {prompt: number for number, prompt in enumerate(dict.fromkeys(prompts))}
    share = accuracy_estimate(
        [_agreement(gaps[vote.pair], WORTH[vote.choice]) for vote in told],
        [numbers[prompt] for prompt in prompts],
    )
    return Agreement(share, len(told), len(asked))


def _agreement(gap: float, worth: float) -> float:
    """1 where model and vote say the same, 0 where the reverse, one half where either ties."""
    if gap == 0:
        return 0.5
    return worth if gap > 0 else 1 - worth
