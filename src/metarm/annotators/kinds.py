# SPDX-License-Identifier: Apache-2.0
"""Judge against people: how far two kinds of annotators agree, where not, and whom to believe."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from metarm.annotators.beliefs import UNTOLD, Belief, Interval, share_interval
from metarm.errors import EmptySetError
from metarm.labels.votes import AnnotatorKind, Choice, LabelPair, Vote
from metarm.metrics import accuracy_estimate
from metarm.schema import Estimate, is_picked, prompt_text

__all__ = [
    "KindComparison",
    "KindReliability",
    "Slice",
    "compare_kinds",
    "reliability_of_kinds",
    "telling_votes",
]

Floats = NDArray[np.float64]

CERTAIN: Final = 0.9
"""Soft label, of the likelier side, from which on a pair counts as certain."""
CHOICES: Final = ("first", "second", "tie")
TURNED: Final = [1, 0, 2]
"""The same with the responses of a pair the other way round."""


@dataclass(frozen=True, slots=True)
class Slice:
    """Some of the pairs, and how the two kinds agree there."""

    by: str
    """What divides: `length`, `certainty`, `source`, or a caller's own."""
    value: str
    agreement: Estimate
    """As `KindComparison.agreement`."""
    pairs: tuple[str, ...]
    """Those of the slice on which both kinds voted."""


@dataclass(frozen=True, slots=True)
class KindReliability:
    """How far annotators of one kind are believed, together."""

    kind: AnnotatorKind
    names: tuple[str, ...]
    num_votes: int
    reliability: Interval
    """Mean over the kind's votes, of the same joint model for all kinds."""


@dataclass(frozen=True, slots=True)
class KindComparison:
    """Two kinds of annotators on the pairs that both voted on, of `telling_votes`."""

    first_kind: AnnotatorKind
    second_kind: AnnotatorKind
    agreement: Estimate
    """Mean over pairs of the share of (vote, vote) of the two kinds that say the same."""
    kappa: Estimate | None
    """Cohen's, of the same votes, with an interval over pairs; None where chance agrees as well."""
    longer_fractions: tuple[Estimate | None, Estimate | None]
    """How often each kind prefers the longer response, a tie one half; equal lengths left out."""
    slices: tuple[Slice, ...]
    disputed: tuple[str, ...]
    """Pairs on which the two kinds prefer different sides, the widest apart first."""

    def to_json(self) -> dict[str, Any]:
        """Nested plain JSON values."""
        return asdict(self)


def compare_kinds(
    votes: Sequence[Vote],
    kinds: Mapping[str, AnnotatorKind],
    pairs: Mapping[str, LabelPair],
    *,
    first_kind: AnnotatorKind = "model",
    second_kind: AnnotatorKind = "person",
    gold: Mapping[str, Choice] | None = None,
    labels: Mapping[str, float] | None = None,
    slices: Mapping[str, Callable[[LabelPair], str]] | None = None,
    num_resamples: int = 1000,
    seed: int = 0,
) -> KindComparison:
    """How far two kinds of annotators agree, and where they do not.

    A pair counts once, however many votes it has; intervals take the pairs of a prompt together.
    Which response of a pair was written first changes nothing.

    Args:
        votes: Of anybody; those of other kinds do not count, nor what `telling_votes` leaves out.
        kinds: Annotator -> kind; whoever is missing is a person.
        pairs: Id -> pair, for lengths and sources.
        first_kind: One side.
        second_kind: The other.
        gold: Pair -> its known answer.
        labels: Pair -> soft label of a fit, which divides pairs into certain and uncertain ones.
        slices: Name -> what tells a pair's slice; added to length, certainty and source.
        num_resamples: Of the bootstrap of kappa.
        seed: Of the same.

    Raises:
        EmptySetError: When no pair has a vote of each kind.
    """
    told = telling_votes(votes, pairs, gold or {})
    tables = _answers(told, kinds, (first_kind, second_kind))
    both = [pair for pair in tables[0] if pair in tables[1]]
    if not both:
        raise EmptySetError(
            f"expected pairs with a vote of a {first_kind} and of a {second_kind}, got none: have "
            "both vote on some of the same pairs that no strategy picked, without known answers"
        )
    # How often each combination of answers is given on a pair, as shares; (pairs, 3, 3).
    joint = np.stack([np.outer(tables[0][pair], tables[1][pair]) for pair in both])
    joint = (joint + joint[:, TURNED][:, :, TURNED]) / 2.0
    same = np.trace(joint, axis1=1, axis2=2)
    clusters = [prompt_text(pairs[pair].prompt) if pair in pairs else pair for pair in both]
    dividers: dict[str, Callable[[str], str]] = {
        "length": lambda pair: _longer(first_kind, tables[0][pair], pairs.get(pair)),
        "certainty": lambda pair: _certainty((labels or {}).get(pair)),
        "source": lambda pair: (pairs[pair].source if pair in pairs else "") or "unknown",
    }
    for name, divide in (slices or {}).items():
        dividers[name] = lambda pair, divide=divide: divide(pairs[pair])  # type: ignore[misc]
    return KindComparison(
        first_kind=first_kind,
        second_kind=second_kind,
        agreement=accuracy_estimate(same, clusters),
        kappa=_kappa(joint, clusters, num_resamples, seed),
        longer_fractions=(_longer_share(tables[0], pairs), _longer_share(tables[1], pairs)),
        slices=tuple(_slices(both, same, clusters, dividers)),
        disputed=_disputed(tables, both),
    )


def telling_votes(
    votes: Sequence[Vote], pairs: Mapping[str, LabelPair], gold: Mapping[str, Choice]
) -> list[Vote]:
    """Votes that tell of pairs in general.

    Not those on known answers, which are often easy, nor on pairs that a strategy picked for being
    hard, say: only random ones then, and those that nobody chose.

    Example:
        >>> pairs = [LabelPair("q", "a", "b", chosen_by=by) for by in ("random", "near-tie")]
        >>> votes = [Vote(name, "ann", "first") for name in ("p", "q", "r")]
        >>> told = telling_votes(votes, dict(zip("pq", pairs)), {"r": "first"})
        >>> [vote.pair for vote in told]
        ['p']
    """
    return [
        vote
        for vote in votes
        if vote.pair not in gold
        and not (vote.pair in pairs and is_picked(pairs[vote.pair].chosen_by))
    ]


def reliability_of_kinds(
    belief: Belief, kinds: Mapping[str, AnnotatorKind]
) -> tuple[KindReliability, ...]:
    """Each kind's reliability, of those that are told, by the annotators' covariance."""
    told = np.array([one.reliability.is_told for one in belief.annotators])
    names = belief.table.annotators
    found = []
    for kind in dict.fromkeys(kinds.get(name, "person") for name in names):
        own = np.array([kinds.get(name, "person") == kind for name in names])
        counts = own * np.array([one.num_votes for one in belief.annotators], dtype=np.float64)
        weights = counts * told / max((counts * told).sum(), 1.0)
        value = float(weights @ [one.reliability.value for one in belief.annotators])
        error = float(np.sqrt(weights @ belief.covariance @ weights))
        found.append(
            KindReliability(
                kind,
                tuple(name for name, is_own in zip(names, own, strict=True) if is_own),
                int(counts.sum()),
                share_interval(value, error) if weights.any() else UNTOLD,
            )
        )
    return tuple(found)


def _answers(
    votes: Sequence[Vote], kinds: Mapping[str, AnnotatorKind], wanted: Sequence[AnnotatorKind]
) -> tuple[dict[str, Floats], ...]:
    """For each kind: pair -> the shares of its votes, shape (3,)."""
    tables: tuple[dict[str, Floats], ...] = tuple({} for _ in wanted)
    for vote in votes:
        kind = kinds.get(vote.annotator, "person")
        if kind in wanted and vote.choice != "skip":
            table = tables[wanted.index(kind)]
            table.setdefault(vote.pair, np.zeros(3))[CHOICES.index(vote.choice)] += 1.0
    return tuple({pair: row / row.sum() for pair, row in table.items()} for table in tables)


def _kappa(
    joint: Floats, clusters: Sequence[str], num_resamples: int, seed: int
) -> Estimate | None:
    count = len(joint)
    _, place = np.unique(clusters, return_inverse=True)
    flat = np.zeros((place.max() + 1, joint[0].size))
    np.add.at(flat, place, joint.reshape(count, -1))
    draw = np.random.default_rng(seed)
    times = draw.multinomial(len(flat), np.full(len(flat), 1.0 / len(flat)), num_resamples)
    values = [
        _kappa_of(row.reshape(3, 3) / row.sum()) for row in (flat.sum(axis=0), *(times @ flat))
    ]
    if values[0] is None:
        return None
    told = [value for value in values[1:] if value is not None]
    low, high = np.percentile(told, [2.5, 97.5])
    return Estimate(values[0], float(low), float(high), count)


def _kappa_of(shares: Floats) -> float | None:
    """Cohen's, of a table of shares; None where chance agrees throughout."""
    chance = float(shares.sum(axis=1) @ shares.sum(axis=0))
    if chance >= 1.0 - 1e-12:
        return None
    return (float(np.trace(shares)) - chance) / (1.0 - chance)


def _first_share(row: Floats) -> float:
    """Share of votes for first, a tie one half."""
    return float(row[0] + row[2] / 2.0)


def _longer(kind: AnnotatorKind, answers: Floats, pair: LabelPair | None) -> str:
    """Whether a kind prefers the longer response of a pair, or the shorter."""
    if pair is None:
        return "unknown"
    lean = (_first_share(answers) - 0.5) * (len(pair.first) - len(pair.second))
    if lean == 0:
        return "same length, or undecided"
    return f"{kind} prefers the {'longer' if lean > 0 else 'shorter'}"


def _longer_share(table: Mapping[str, Floats], pairs: Mapping[str, LabelPair]) -> Estimate | None:
    shares, prompts = [], []
    for pair, row in table.items():
        if pair in pairs and (gap := len(pairs[pair].first) - len(pairs[pair].second)):
            share = _first_share(row)
            shares.append(share if gap > 0 else 1.0 - share)
            prompts.append(prompt_text(pairs[pair].prompt))
    return accuracy_estimate(shares, prompts) if shares else None


def _certainty(label: float | None) -> str:
    if label is None:
        return "unknown"
    return "certain" if max(label, 1.0 - label) >= CERTAIN else "uncertain"


def _slices(
    both: Sequence[str],
    same: Floats,
    clusters: Sequence[str],
    dividers: Mapping[str, Callable[[str], str]],
) -> list[Slice]:
    found = []
    for by, divide in dividers.items():
        parts: dict[str, list[int]] = {}
        for place, pair in enumerate(both):
            parts.setdefault(divide(pair), []).append(place)
        # One part for all says nothing.
        if len(parts) > 1:
            found += [
                Slice(
                    by,
                    value,
                    accuracy_estimate(same[own], [clusters[at] for at in own]),
                    tuple(both[at] for at in own),
                )
                for value, own in sorted(parts.items())
            ]
    return found


def _disputed(tables: Sequence[Mapping[str, Floats]], both: Sequence[str]) -> tuple[str, ...]:
    """The kinds' majorities are on different sides; the widest apart first."""
    gaps = {
        pair: (_first_share(tables[0][pair]) - 0.5) * (_first_share(tables[1][pair]) - 0.5)
        for pair in both
    }
    return tuple(sorted((pair for pair, gap in gaps.items() if gap < 0), key=gaps.__getitem__))
