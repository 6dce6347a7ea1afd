# SPDX-License-Identifier: Apache-2.0
"""How far annotators agree with each other, with themselves, and with known answers."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from metarm.annotators.agreement import alpha_estimate
from metarm.labels.votes import AnnotatorKind, Choice, Vote
from metarm.metrics import accuracy_estimate
from metarm.schema import Estimate

__all__ = ["CrowdAgreement", "OwnFigures", "measure_agreement", "pair_alpha"]


@dataclass(frozen=True, slots=True)
class OwnFigures:
    """What needs no model: counts, and one annotator against itself and against known answers."""

    name: str
    num_votes: int
    """Without skips."""
    num_skips: int
    tie_fraction: float
    left_fraction: Estimate | None
    """Share of votes for the left of those with a known side and a winner; Wilson's interval."""
    self_agreement: Estimate | None
    """Share of mirrored repeats with the same answer; Wilson's interval; None without repeats."""
    gold_accuracy: Estimate | None
    """Share of votes on known pairs that are right; Wilson's interval; None without such votes."""
    seconds: float | None
    """Median time of a vote; None where none was measured."""


@dataclass(frozen=True, slots=True)
class CrowdAgreement:
    """Agreement of a crowd, from its votes as they are."""

    alpha: Estimate | None
    """See `pair_alpha`; of all annotators."""
    alpha_of_people: Estimate | None
    """The same of people alone."""
    annotators: tuple[OwnFigures, ...]
    matrix: Mapping[tuple[str, str], Estimate]
    """Two annotators -> share of pairs that both voted on, on which they say the same; without
    pairs of known answers."""

    def to_json(self) -> dict[str, Any]:
        """Nested plain JSON values."""
        return {
            "alpha": None if self.alpha is None else asdict(self.alpha),
            "alpha_of_people": None
            if self.alpha_of_people is None
            else asdict(self.alpha_of_people),
            "annotators": [asdict(one) for one in self.annotators],
            "pairs_of_annotators": [
                {"first": first, "second": second, **asdict(share)}
                for (first, second), share in self.matrix.items()
            ],
        }


def measure_agreement(
    votes: Sequence[Vote],
    gold: Mapping[str, Choice] | None = None,
    kinds: Mapping[str, AnnotatorKind] | None = None,
    *,
    num_resamples: int = 1000,
    seed: int = 0,
) -> CrowdAgreement:
    """Alpha, who agrees with whom, with themselves on mirrored repeats, and with known answers.

    Between annotators the first vote of each on a pair counts.

    Args:
        votes: With skips, if there are any.
        gold: Pair -> its known answer; such pairs say nothing of how annotators agree elsewhere.
        kinds: Annotator -> kind; whoever is missing is a person.
        num_resamples: Of the bootstrap of alpha.
        seed: Of the same.
    """
    known = gold or {}
    names = list(dict.fromkeys(vote.annotator for vote in votes))
    of_name = {name: [vote for vote in votes if vote.annotator == name] for name in names}
    first_votes = {name: _first_votes(own, known) for name, own in of_name.items()}
    of_people = {
        name: own
        for name, own in first_votes.items()
        if (kinds or {}).get(name, "person") == "person"
    }
    alpha, alpha_of_people = (
        pair_alpha(_by_pair(own), num_resamples=num_resamples, seed=seed)
        for own in (first_votes, of_people)
    )
    return CrowdAgreement(
        alpha=alpha,
        alpha_of_people=alpha_of_people,
        annotators=tuple(_own_figures(name, own, known) for name, own in of_name.items()),
        matrix=_matrix(first_votes),
    )


def _first_votes(votes: Sequence[Vote], known: Mapping[str, Choice]) -> dict[str, Choice]:
    return {
        vote.pair: vote.choice
        for vote in reversed(votes)
        if vote.choice != "skip" and vote.pair not in known
    }


def pair_alpha(
    answers: Mapping[str, Mapping[str, Choice]], *, num_resamples: int = 1000, seed: int = 0
) -> Estimate | None:
    """Krippendorff's alpha of pairs, nominal, whichever response of each was written first.

    Args:
        answers: Pair -> annotator -> choice, without pairs whose answer is known: everybody may be
            right on those, and guess elsewhere.
        num_resamples: Of the bootstrap over pairs.
        seed: Of the same.

    Returns:
        None where no pair has two votes.
    """
    shared = [own for own in answers.values() if len(own) > 1]
    if not shared:
        return None
    names = dict.fromkeys(name for own in shared for name in own)
    ratings = [[own.get(name) for own in shared] for name in names]
    return alpha_estimate(
        ratings, sides=("first", "second"), num_resamples=num_resamples, seed=seed
    )


def _by_pair(first_votes: Mapping[str, Mapping[str, Choice]]) -> dict[str, dict[str, Choice]]:
    found: dict[str, dict[str, Choice]] = {}
    for name, own in first_votes.items():
        for pair, choice in own.items():
            found.setdefault(pair, {})[name] = choice
    return found


def _matrix(first_votes: Mapping[str, Mapping[str, Choice]]) -> dict[tuple[str, str], Estimate]:
    names, found = list(first_votes), {}
    for place, first in enumerate(names):
        for second in names[place + 1 :]:
            one, other = first_votes[first], first_votes[second]
            same = [choice == other[pair] for pair, choice in one.items() if pair in other]
            if same:
                found[first, second] = accuracy_estimate(same)
    return found


def _own_figures(name: str, votes: Sequence[Vote], gold: Mapping[str, Choice]) -> OwnFigures:
    said = [vote for vote in votes if vote.choice != "skip"]
    left = [vote.chose_left for vote in said if vote.chose_left is not None]
    of_pair: dict[str, list[Vote]] = {}
    for vote in said:
        of_pair.setdefault(vote.pair, []).append(vote)
    repeats = [
        own[0].choice == again.choice
        for own in of_pair.values()
        for again in own[1:]
        if {own[0].is_turned, again.is_turned} == {True, False}
    ]
    right = [vote.choice == gold[vote.pair] for vote in said if vote.pair in gold]
    times = sorted(vote.seconds for vote in said if vote.seconds is not None)
    return OwnFigures(
        name=name,
        num_votes=len(said),
        num_skips=len(votes) - len(said),
        tie_fraction=sum(vote.choice == "tie" for vote in said) / max(1, len(said)),
        left_fraction=accuracy_estimate(left) if left else None,
        self_agreement=accuracy_estimate(repeats) if repeats else None,
        gold_accuracy=accuracy_estimate(right) if right else None,
        seconds=times[len(times) // 2] if times else None,
    )
