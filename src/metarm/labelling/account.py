# SPDX-License-Identifier: Apache-2.0
"""What a store's votes come to: agreement, each annotator, disputed pairs, what is left."""

import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from metarm.annotators.beliefs import AnnotatorBelief
from metarm.annotators.crowd_agreement import OwnFigures, measure_agreement, pair_alpha
from metarm.annotators.fitting import fit_annotators
from metarm.annotators.suspects import SuspectKind, name_suspects
from metarm.errors import EmptySetError
from metarm.labelling.desk import Behaviour
from metarm.labels.events import Annotator, Event
from metarm.labels.reading import LabelReader, StoreCounts, vote_of_event
from metarm.labels.votes import Choice, LabelPair, Vote
from metarm.metrics import accuracy_estimate
from metarm.schema import Estimate

__all__ = [
    "Account",
    "AnnotatorRow",
    "Disputed",
    "Flagged",
    "Moment",
    "StrategyRow",
    "Votes",
    "account_of",
    "read_votes_of",
]

LABELS: Final[tuple[Choice, ...]] = ("first", "second", "tie")
RESAMPLES: Final = 1000
RESAMPLES_OF_A_MOMENT: Final = 300
MOMENTS: Final = 12
"""Points of the curve of agreement over time."""
MOST_DISPUTED: Final = 10


@dataclass(frozen=True, slots=True)
class Votes:
    """All of a store that its account is made of, as one moment saw it."""

    pairs: Mapping[str, LabelPair]
    gold: Mapping[str, Choice]
    events: Sequence[Event]
    """Votes that count, oldest first."""
    annotators: Sequence[Annotator]
    counts: StoreCounts
    votes_per_pair: int
    wanted: Mapping[str, int]
    """Pair -> votes that it wants, where that is another number."""


@dataclass(frozen=True, slots=True)
class Moment:
    """Agreement after so many votes."""

    num_votes: int
    alpha: Estimate


@dataclass(frozen=True, slots=True)
class AnnotatorRow:
    """One annotator; None where there is nothing to tell from."""

    name: str
    kind: str
    own: OwnFigures
    """Counts, and the annotator against itself and known answers."""
    belief: AnnotatorBelief | None
    """How far a model of all annotators believes this one."""
    suspect: SuspectKind | None
    """What the votes look most like, where they are less reliable than half the typical ones."""
    others: Estimate | None
    """Share of the same answers among pairs that others answered, each of them counted."""
    num_changes: int
    num_pastes: int
    away_fraction: float | None
    """Of the time from shown to answered, that without the page's focus."""
    left_seconds: float | None
    """Median time that the left response was in view; None where no page told."""
    right_seconds: float | None
    num_unseen: int
    """Decided votes before one of the two responses was ever in view."""


@dataclass(frozen=True, slots=True)
class Disputed:
    """A pair that people see differently."""

    pair: LabelPair
    votes: Mapping[str, int]
    by: Sequence[tuple[str, str]]
    """Annotator and choice."""


@dataclass(frozen=True, slots=True)
class Flagged:
    """A pair that somebody flagged or wrote a note on."""

    pair: LabelPair
    annotator: str
    choice: str
    note: str
    is_flagged: bool


@dataclass(frozen=True, slots=True)
class StrategyRow:
    """What became of the pairs that one strategy chose."""

    name: str
    num_pairs: int
    num_votes: int
    ties: Estimate | None
    alpha: Estimate | None


@dataclass(frozen=True, slots=True)
class Account:
    """Everything on the dashboard that is counted from votes."""

    counts: StoreCounts
    num_left: int
    """Votes of people that are still wanted."""
    num_paid: int
    """Votes of people, gold items and repeats too; skips are none, models have their own cost."""
    alpha: Estimate | None
    """Krippendorff's alpha of people, nominal; None where no two answered the same pair."""
    moments: Sequence[Moment]
    rows: Sequence[AnnotatorRow]
    model: str | None
    """That `AnnotatorRow.belief` is of; None where no vote says anything."""
    matrix: Mapping[tuple[str, str], Estimate]
    """Two annotators -> share of equal answers among pairs that both answered."""
    disputed: Sequence[Disputed]
    flagged: Sequence[Flagged]
    strategies: Sequence[StrategyRow]
    pairs: Mapping[str, LabelPair]
    """Of the store, by id."""
    labels: Mapping[str, Choice]
    """Pair -> what most people say; none without a majority, or with a known answer."""
    median_seconds: float | None
    votes_per_day: float | None
    """Of people, over the days on which there was one."""


def read_votes_of(reader: LabelReader) -> Votes:
    """What the account needs of a store."""
    return Votes(
        pairs={pair.id: pair for pair in reader.pairs()},
        gold=reader.gold(),
        events=reader.vote_events(),
        annotators=reader.annotators(),
        counts=reader.counts(),
        votes_per_pair=reader.settings.votes_per_pair,
        wanted=reader.wanted(),
    )


def account_of(votes: Votes, behaviour: Mapping[str, Behaviour]) -> Account:
    """The account of a store.

    Args:
        votes: What the store holds.
        behaviour: Key of a vote -> how it came about.
    """
    people = {one.name for one in votes.annotators if one.kind == "person"}
    plain = [e for e in votes.events if e.showing == 0 and e.choice in LABELS]
    of_people = [e for e in plain if e.annotator in people]
    # Where the answer is known everybody may be right, and guess elsewhere.
    open_ones = [e for e in of_people if e.pair not in votes.gold]
    by_pair = _by_pair(open_ones)
    counted = Counter(e.pair for e in open_ones)
    wanted = [pair for pair in votes.pairs if pair not in votes.gold]
    seconds = [e.lead_ms / 1000 for e in of_people if e.lead_ms is not None]
    days = Counter(int(e.at // 86_400) for e in of_people)
    told = [vote_of_event(event) for event in votes.events]
    kinds = {one.name: one.kind for one in votes.annotators}
    agreement = measure_agreement(told, votes.gold, kinds, num_resamples=RESAMPLES)
    beliefs, suspects, model = _believe(told, votes.gold)
    return Account(
        counts=votes.counts,
        num_paid=sum(e.annotator in people and e.choice in LABELS for e in votes.events),
        num_left=sum(
            max(0, votes.wanted.get(pair, votes.votes_per_pair) - counted[pair]) for pair in wanted
        ),
        alpha=agreement.alpha_of_people,
        moments=_moments(open_ones),
        rows=[
            _row(
                own,
                kinds[own.name],
                votes,
                plain,
                behaviour,
                beliefs.get(own.name),
                suspects.get(own.name),
            )
            for own in agreement.annotators
        ],
        model=model,
        matrix=agreement.matrix,
        disputed=_disputed(votes.pairs, by_pair),
        flagged=[
            Flagged(votes.pairs[e.pair], e.annotator, e.choice, e.note, e.flag)
            for e in reversed(votes.events)
            if e.flag or e.note
        ],
        strategies=_strategies(votes.pairs, by_pair),
        pairs=votes.pairs,
        labels=_majority(by_pair),
        median_seconds=statistics.median(seconds) if seconds else None,
        votes_per_day=len(of_people) / len(days) if days else None,
    )


def _believe(
    votes: Sequence[Vote], gold: Mapping[str, Choice]
) -> tuple[dict[str, AnnotatorBelief], dict[str, SuspectKind], str | None]:
    """Annotator -> how far they are believed; those who stand out; by which model."""
    try:
        belief = fit_annotators(votes, gold=gold)
    except EmptySetError:
        return {}, {}, None
    suspects = {one.name: one.kind for one in name_suspects(belief)}
    return {one.name: one for one in belief.annotators}, suspects, belief.model


def _by_pair(events: Iterable[Event]) -> dict[str, dict[str, Choice]]:
    """Pair -> annotator -> choice."""
    found: dict[str, dict[str, Choice]] = defaultdict(dict)
    for event in events:
        assert event.choice != "undo", "votes that count are none"
        found[event.pair][event.annotator] = event.choice
    return dict(found)


def _moments(events: Sequence[Event]) -> list[Moment]:
    """Agreement of all votes so far, at moments evenly spread over them."""
    found = []
    cuts = np.unique(np.linspace(0, len(events), MOMENTS + 1).round().astype(int)[1:])
    for cut in cuts:
        alpha = pair_alpha(_by_pair(events[:cut]), num_resamples=RESAMPLES_OF_A_MOMENT)
        if alpha is not None:
            found.append(Moment(int(cut), alpha))
    return found


def _share(hits: Sequence[bool]) -> Estimate | None:
    return accuracy_estimate(hits) if hits else None


def _row(
    own: OwnFigures,
    kind: str,
    votes: Votes,
    plain: Sequence[Event],
    behaviour: Mapping[str, Behaviour],
    belief: AnnotatorBelief | None,
    suspect: SuspectKind | None,
) -> AnnotatorRow:
    events = [event for event in votes.events if event.annotator == own.name]
    first = {event.pair: event.choice for event in plain if event.annotator == own.name}
    seen = [behaviour[event.key] for event in events if event.key in behaviour]
    timed = [event for event in events if event.key in behaviour and event.lead_ms]
    viewed = [
        (row.left_seconds, row.right_seconds)
        for event in events
        if event.choice != "skip"
        and (row := behaviour.get(event.key))
        and row.left_seconds is not None
        and row.right_seconds is not None
    ]
    total = sum((event.lead_ms or 0) / 1000 for event in timed)
    away = sum(behaviour[event.key].away_seconds for event in timed)
    return AnnotatorRow(
        name=own.name,
        kind=kind,
        own=own,
        belief=belief,
        suspect=suspect,
        others=_share(
            [
                event.choice == first[event.pair]
                for event in plain
                if event.annotator != own.name
                and event.pair in first
                and event.pair not in votes.gold
            ]
        ),
        num_changes=sum(row.changes for row in seen),
        num_pastes=sum(row.pastes for row in seen),
        away_fraction=min(1.0, away / total) if total else None,
        left_seconds=statistics.median(left for left, _ in viewed) if viewed else None,
        right_seconds=statistics.median(right for _, right in viewed) if viewed else None,
        num_unseen=sum(0 in both for both in viewed),
    )


def _disputed(
    pairs: Mapping[str, LabelPair], by_pair: Mapping[str, Mapping[str, Choice]]
) -> list[Disputed]:
    """Pairs on which the largest share of votes goes against the most frequent answer."""
    found: list[tuple[float, int, int, Disputed]] = []
    for pair, of in by_pair.items():
        counts: Counter[str] = Counter(of.values())
        against = len(of) - max(counts.values())
        if against:
            row = Disputed(pairs[pair], counts, sorted(of.items()))
            found.append((-against / len(of), -len(of), len(found), row))
    return [row for *_, row in sorted(found, key=lambda one: one[:3])[:MOST_DISPUTED]]


def _majority(by_pair: Mapping[str, Mapping[str, Choice]]) -> dict[str, Choice]:
    found: dict[str, Choice] = {}
    for pair, of in by_pair.items():
        (choice, most), *others = Counter(of.values()).most_common()
        if not others or others[0][1] < most:
            found[pair] = choice
    return found


def _strategies(
    pairs: Mapping[str, LabelPair], by_pair: Mapping[str, Mapping[str, Choice]]
) -> list[StrategyRow]:
    chosen: dict[str, list[str]] = defaultdict(list)
    for pair_id, pair in pairs.items():
        chosen[pair.chosen_by].append(pair_id)
    rows = []
    for name, own in sorted(chosen.items()):
        of = [by_pair[pair] for pair in own if pair in by_pair]
        answers = [choice for votes in of for choice in votes.values()]
        rows.append(
            StrategyRow(
                name,
                len(own),
                len(answers),
                _share([choice == "tie" for choice in answers]),
                pair_alpha(
                    {pair: by_pair[pair] for pair in own if pair in by_pair},
                    num_resamples=RESAMPLES,
                ),
            )
        )
    return rows
