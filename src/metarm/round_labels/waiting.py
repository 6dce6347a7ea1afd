# SPDX-License-Identifier: Apache-2.0
"""Rounds that wait for people: what they ask, and how much of it is answered; no torch."""

from collections import defaultdict
from collections.abc import Collection, Container, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any, Final, NamedTuple

from metarm.config_labels import PEOPLE
from metarm.errors import RunError
from metarm.labels.reading import LabelReader, vote_of_event
from metarm.labels.store import LabelStore
from metarm.labels.tables import is_made
from metarm.labels.votes import Choice, LabelPair, Vote
from metarm.storage import STAGE_FILE, read_json, read_json_lines

__all__ = [
    "ASKED",
    "LABELS",
    "PAIRS_FILE",
    "STORE_FILE",
    "KnownAnswers",
    "StoreVotes",
    "Waiting",
    "hand_out",
    "mend_store",
    "read_known_answers",
    "read_store_votes",
    "read_waiting",
    "waiting_text",
]

STORE_FILE: Final = "labels.sqlite"
"""The label store of a run, in the run's folder."""
ASKED: Final = "asked"
LABELS: Final = "labels"
"""The two stages of a round with labels."""
PAIRS_FILE: Final = "pairs.jsonl"


@dataclass(frozen=True, slots=True)
class Waiting:
    """A round that goes on when people have answered."""

    arm: str
    seed: int
    round: int
    num_asked: int
    num_answered: int

    @property
    def num_left(self) -> int:
        """Pairs without an answer."""
        return self.num_asked - self.num_answered

    def to_json(self) -> dict[str, Any]:
        """Where it waits, and for how much."""
        place = {"arm": self.arm, "seed": self.seed, "round": self.round}
        return {**place, "num_asked": self.num_asked, "num_answered": self.num_answered}


class KnownAnswers(NamedTuple):
    """What annotators said where the truth is known."""

    pairs: tuple[LabelPair, ...]
    votes: tuple[Vote, ...]
    answers: dict[str, Choice]
    """Pair -> its known answer."""


class StoreVotes(NamedTuple):
    """The votes that count in a store on some pairs, and which of the pairs have enough."""

    votes: tuple[Vote, ...]
    kinds: dict[str, str]
    """Annotator -> kind, of those who voted on one of the pairs."""
    answered: frozenset[str]
    """Ids of pairs that have enough answers of people; a skip is one, and is no label."""


def read_store_votes(path: Path, pairs: Collection[str], votes_per_pair: int) -> StoreVotes:
    """What a label store has on some pairs; nothing where there is no store yet."""
    if not is_made(path):
        return StoreVotes((), {}, frozenset())
    with LabelReader(path) as store:
        kinds = {annotator.name: str(annotator.kind) for annotator in store.annotators()}
        votes = _votes_on(store, pairs)
    people: defaultdict[str, set[str]] = defaultdict(set)
    for vote in votes:
        if kinds[vote.annotator] == "person":
            people[vote.pair].add(vote.annotator)
    answered = frozenset(pair for pair, names in people.items() if len(names) >= votes_per_pair)
    own = {vote.annotator for vote in votes}
    return StoreVotes(votes, {name: kinds[name] for name in kinds if name in own}, answered)


def _votes_on(store: LabelReader, pairs: Container[str]) -> tuple[Vote, ...]:
    """The votes that count on some pairs, in an order of their own.

    The same votes give the same labels, bit for bit, in whatever order they came.
    """
    events = [event for event in store.vote_events() if event.pair in pairs]
    events.sort(key=lambda event: (event.pair, event.annotator, event.showing))
    return tuple(map(vote_of_event, events))


def read_known_answers(path: Path) -> KnownAnswers:
    """The pairs of a label store that its owner knows the answer to, and the votes on them."""
    if not is_made(path):
        return KnownAnswers((), (), {})
    with LabelReader(path) as store:
        gold = store.gold()
        pairs = sorted((pair for pair in store.pairs() if pair.id in gold), key=lambda one: one.id)
        return KnownAnswers(tuple(pairs), _votes_on(store, gold), gold)


def read_waiting(run_dir: Path) -> list[Waiting]:
    """The rounds of a run that wait for people, by arm, seed and round."""
    waiting = []
    for place, pairs, votes_per_pair in _open_questions(run_dir):
        seed_name, _, arm, round_name = place.relative_to(run_dir).parts
        seed, number = (int(name.rpartition("_")[2]) for name in (seed_name, round_name))
        asked = {pair.id for pair in pairs}
        answered = read_store_votes(run_dir / STORE_FILE, asked, votes_per_pair).answered
        waiting.append(Waiting(arm, seed, number, len(asked), len(answered)))
    return sorted(waiting, key=lambda one: (one.arm, one.seed, one.round))


def _open_questions(run_dir: Path) -> Iterator[tuple[Path, list[LabelPair], int]]:
    """Rounds whose pairs are with people: place, pairs, votes that each waits for."""
    for path in sorted(run_dir.glob(f"seed_*/arms/*/round_*/{ASKED}/{STAGE_FILE}")):
        place = path.parent.parent
        told = read_json(path).get("metrics", {})
        if told.get("labels_from") == PEOPLE and not (place / LABELS / STAGE_FILE).exists():
            rows = read_json_lines(path.parent / PAIRS_FILE)
            yield place, [LabelPair.from_json(row) for row in rows], int(told["votes_per_pair"])


def mend_store(run_dir: Path) -> None:
    """Make a run's label store whole, where a process died while it wrote; else nothing changes.

    Writes:
        `labels.sqlite` and its journal, in the run's folder, brought up to date with each other.
    """
    path = run_dir / STORE_FILE
    if not path.is_file():
        return
    # Whoever has it has mended it; what cannot be mended is told by whoever needs to read it.
    with suppress(RunError), LabelStore(path):
        pass


def hand_out(run_dir: Path) -> int:
    """Put what rounds ask people into the run's label store; what is there stays as it is.

    Each pair wants the votes that held when its round asked it, whatever later rounds ask for; of
    two rounds that ask the same pair, the larger number.

    Returns:
        How many pairs were new.

    Raises:
        RunError: When there is news and another process has the store, as a page that is served:
            the same command hands it out when that was stopped.

    Writes:
        `labels.sqlite` and its journal, in the run's folder.
    """
    asked: dict[str, LabelPair] = {}
    wanted: dict[str, int] = {}
    rounds = [[(pair, votes) for pair in pairs] for _, pairs, votes in _open_questions(run_dir)]
    # In turns: the queue keeps the order of a strategy, and no arm is to be answered last.
    for pair, votes in chain.from_iterable(filter(None, turn) for turn in zip_longest(*rounds)):
        asked.setdefault(pair.id, pair)
        wanted[pair.id] = max(votes, wanted.get(pair.id, 0))
    path = run_dir / STORE_FILE
    before: dict[str, int] = {}
    if is_made(path):
        # A page may be serving it: whoever only reads does not disturb.
        with LabelReader(path) as reader:
            usual = reader.settings.votes_per_pair
            # Pairs of a store that an earlier metarm made want what its settings say.
            before = {pair.id: usual for pair in reader.pairs() if wanted.get(pair.id) == usual}
            before |= reader.wanted()
    more = {pair: votes for pair, votes in wanted.items() if before.get(pair, 0) < votes}
    if not more:
        return 0
    try:
        with LabelStore(path) as store:
            return store.add_pairs([asked[pair] for pair in more], wanted=more)
    except RunError as error:
        raise RunError(
            f"{len(more)} pairs wait for people and could not be handed out: {error}. All else "
            "is finished: stop `metarm label serve` where it has the store, run the same command "
            "again, and serve the page again."
        ) from error


def waiting_text(run_dir: Path, waiting: Collection[Waiting]) -> str:
    """What is to be done, in one line."""
    num_left = sum(one.num_left for one in waiting)
    arms = ", ".join(dict.fromkeys(one.arm for one in waiting))
    return (
        f"waiting for {num_left} labels ({arms}): metarm label serve {run_dir / STORE_FILE}; "
        "run the same command again when they are there"
    )
