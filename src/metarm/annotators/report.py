# SPDX-License-Identifier: Apache-2.0
"""Everything that votes say of pairs and annotators, worked out once for files, page and loop."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike

from metarm.annotators.beliefs import Belief
from metarm.annotators.crowd_agreement import CrowdAgreement, measure_agreement
from metarm.annotators.fitting import fit_annotators
from metarm.annotators.information import NextVote, expected_information, rank_next_votes
from metarm.annotators.kinds import (
    KindComparison,
    KindReliability,
    compare_kinds,
    reliability_of_kinds,
    telling_votes,
)
from metarm.annotators.label_data import LabelData
from metarm.annotators.suspects import ALPHA, Suspect, name_suspects
from metarm.labels.votes import ANNOTATOR_KINDS, AnnotatorKind
from metarm.schema import PreferencePair, is_picked

__all__ = ["BeliefReport", "build_report", "label_rows", "soft_pairs"]

NUM_NEXT: Final = 20


@dataclass(frozen=True, slots=True)
class BeliefReport:
    """A fit, and what follows from it."""

    belief: Belief
    suspects: tuple[Suspect, ...]
    agreement: CrowdAgreement
    kinds: tuple[KindReliability, ...]
    comparisons: tuple[KindComparison, ...]
    """Every two kinds with votes on the same pairs, of `telling_votes`."""
    num_picked: int
    """Pairs with votes that a strategy picked, which comparisons leave out."""
    next_votes: tuple[NextVote, ...]
    nats_per_vote: tuple[float, ...]
    """What one more vote of each annotator is expected to tell, mean over pairs: a figure for
    whoever pays or assigns, who decides."""

    def to_json(self) -> dict[str, Any]:
        """Nested plain JSON values."""
        own = zip(self.belief.annotators, self.nats_per_vote, strict=True)
        return {
            "model": self.belief.model,
            "votes": self.belief.table.num_votes,
            "pairs": int((self.belief.table.votes_of_pair > 0).sum()),
            "annotators": [one.to_json() | {"nats_per_vote": nats} for one, nats in own],
            "suspects": [one.to_json() for one in self.suspects],
            "agreement": self.agreement.to_json(),
            "kinds": [
                {
                    "kind": one.kind,
                    "annotators": list(one.names),
                    "votes": one.num_votes,
                    "reliability": one.reliability.to_json(),
                }
                for one in self.kinds
            ],
            "num_picked": self.num_picked,
            "comparisons": [one.to_json() for one in self.comparisons],
            "next_votes": [one.to_json() for one in self.next_votes],
        }


def build_report(
    data: LabelData,
    features: Mapping[str, ArrayLike] | None = None,
    *,
    model: str | None = None,
    alpha: float = ALPHA,
    num_next: int = NUM_NEXT,
    seed: int = 0,
) -> BeliefReport:
    """Fit annotators and work out all that is reported of them.

    Args:
        data: Votes, pairs, known answers, kinds.
        features: As in `fit_annotators`.
        model: The same.
        alpha: Chance that a reliable annotator is named a bad one, over all of them.
        num_next: How many next votes to list.
        seed: Of bootstraps.

    Raises:
        ConfigError: As `fit_annotators`, `name_suspects`.
        DataError: As `fit_annotators`.
        EmptySetError: When no vote says anything.
    """
    further = () if features is not None else data.pairs
    belief = fit_annotators(data.votes, features, gold=data.gold, pairs=further, model=model)
    table = belief.table
    people = [
        name for name in table.annotators if data.kinds.get(name, "person") in ("person", "model")
    ]
    nats = expected_information(belief, table.annotators)
    labels = dict(zip(table.pairs, belief.labels.tolist(), strict=True))
    return BeliefReport(
        belief=belief,
        suspects=name_suspects(belief, alpha=alpha),
        agreement=measure_agreement(data.votes, data.gold, data.kinds, seed=seed),
        kinds=reliability_of_kinds(belief, data.kinds),
        comparisons=tuple(_comparisons(data, labels, seed)),
        num_picked=sum(
            is_picked(data.pairs[pair].chosen_by)
            for pair, count in zip(table.pairs, table.votes_of_pair, strict=True)
            if count and pair in data.pairs
        ),
        next_votes=tuple(
            rank_next_votes(
                belief,
                annotators=people or None,
                done=[(vote.pair, vote.annotator) for vote in data.votes],
                limit=num_next,
            )
        ),
        nats_per_vote=tuple(np.mean(nats, axis=0).tolist()),
    )


def _comparisons(data: LabelData, labels: Mapping[str, float], seed: int) -> list[KindComparison]:
    """Each kind against people first, then the others."""
    voted: dict[AnnotatorKind, set[str]] = {}
    for vote in telling_votes(data.votes, data.pairs, data.gold):
        if vote.choice != "skip":
            voted.setdefault(data.kinds.get(vote.annotator, "person"), set()).add(vote.pair)
    kinds = [kind for kind in ANNOTATOR_KINDS if kind in voted]
    found = []
    for place, second in enumerate(kinds):
        for first in kinds[place + 1 :]:
            if voted[first] & voted[second]:
                found.append(
                    compare_kinds(
                        data.votes,
                        data.kinds,
                        data.pairs,
                        first_kind=first,
                        second_kind=second,
                        gold=data.gold,
                        labels=labels,
                        seed=seed,
                    )
                )
    return found


def soft_pairs(belief: Belief, data: LabelData) -> list[PreferencePair]:
    """Every pair with a vote and a text, to train on: the likelier side is `chosen`, with `p`."""
    return [pair for _, pair in _soft(belief, data)]


def label_rows(belief: Belief, data: LabelData) -> list[dict[str, Any]]:
    """The same as rows, with the pair's id, its votes, where it comes from, and what chose it."""
    counts = dict(zip(belief.table.pairs, belief.table.votes_of_pair.tolist(), strict=True))
    return [
        soft.to_json()
        | {"pair": pair, "votes": counts[pair]}
        | ({"source": source} if (source := data.pairs[pair].source) else {})
        for pair, soft in _soft(belief, data)
    ]


def _soft(belief: Belief, data: LabelData) -> list[tuple[str, PreferencePair]]:
    table, found = belief.table, []
    for pair, label, count in zip(table.pairs, belief.labels, table.votes_of_pair, strict=True):
        if not count or pair not in data.pairs:
            continue
        one = data.pairs[pair]
        sides = (one.first, one.second) if label >= 0.5 else (one.second, one.first)
        # Rounding must not leave [0, 1].
        p = min(1.0, max(float(label), 1.0 - float(label)))
        found.append((pair, PreferencePair(one.prompt, *sides, p=p, chosen_by=one.chosen_by)))
    return found
