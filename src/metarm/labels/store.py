# SPDX-License-Identifier: Apache-2.0
"""The label store: one writer, append-only events, and nothing acknowledged that is not durable.

A change is one transaction in SQLite and then the same entries in the journal beside it; only when
both are on the disk does a method return. Where a death fell between the two, opening mends it.
"""

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from metarm.labels import batches, reading
from metarm.labels.adding import (
    add_annotator,
    add_content,
    add_invitation,
    add_pairs,
    add_settings,
    ask_next,
    find_invited,
    is_known,
    revoke_invitations,
)
from metarm.labels.changes import Change
from metarm.labels.entries import Entry
from metarm.labels.events import Annotator, Event, Item, LabelContent, Progress, Recorded, VoteEvent
from metarm.labels.opening import open_store
from metarm.labels.settings import LabelSettings
from metarm.labels.standings import make_standings, read_strategies
from metarm.labels.tables import transaction
from metarm.labels.votes import AnnotatorKind, Choice, LabelPair, Vote
from metarm.labels.voting import (
    check_annotator,
    is_taken_back,
    serve_item,
    take_back,
    take_vote,
)

__all__ = ["LabelStore"]


class LabelStore:
    """A label store that is written; of one database there is one, in one process.

    It belongs to the thread that enters it. A server gives it a thread of its own and sends all
    calls there; whoever only reads takes a `LabelReader`.

    Attributes:
        settings: In force.
        seed: What sides, order, gold items and repeats are drawn by: not for annotators' eyes.

    Args:
        path: The database; the journal and the lock lie beside it.
        settings: Kept in the store; None: those that it has, or the defaults for a new one.
        clock: Seconds since 1970.
        replay: Whether a database that is gone is made again from its journal; else that is an
            error. Single changes that only one of the two has are always brought to the other.

    Raises:
        RunError: On entering, when another process has the store, or it cannot be used as it is.
        ConfigError: On entering, when `settings` has another seed than the store.
    """

    def __init__(
        self,
        path: Path,
        settings: LabelSettings | None = None,
        *,
        clock: Callable[[], float] = time.time,
        replay: bool = False,
    ) -> None:
        self.path = Path(path)
        self._given = settings
        self._clock = clock
        self._replay = replay
        self._held = ExitStack()
        self._owed: list[Entry] = []

    def __enter__(self) -> Self:
        with ExitStack() as held:
            opened = held.enter_context(
                open_store(self.path, self._given, self._clock(), replay=self._replay)
            )
            self._connection, self._journal = opened.connection, opened.journal
            make_standings(self._connection)
            self.settings = reading.read_settings(self._connection)
            self.seed = reading.read_seed(self._connection)
            self.opened = opened
            self._held = held.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._held.__exit__(kind, error, trace)

    @contextmanager
    def _changing(self) -> Iterator[Change]:
        """One change, durable in database and journal when the block ends."""
        # To the microsecond, as files of votes have it: a vote comes back as it was.
        change = Change(self._connection, self.settings, self.seed, round(self._clock(), 6))
        with transaction(self._connection):
            yield change
        # As the database has them now, whatever becomes of the journal.
        self.settings = reading.read_settings(self._connection)
        self._owed += change.entries
        # What an earlier change could not bring into a full journal comes first.
        if self._owed:
            self._journal.append(self._owed)
            self._owed = []

    def _looking(self) -> Change:
        """A change that nothing is added to."""
        return Change(self._connection, self.settings, self.seed, self._clock())

    def add_pairs(
        self,
        pairs: Iterable[LabelPair],
        *,
        gold: Mapping[str, Choice] | None = None,
        wanted: Mapping[str, int] | None = None,
    ) -> int:
        """Add pairs to the queue; those that are there already stay as they are.

        Args:
            pairs: In any number; all are added, or none.
            gold: Pair id -> known answer, also of pairs that are there already.
            wanted: Pair id -> votes of people that it wants, also of pairs that are there already,
                whatever the settings say now or later; of several numbers the largest.

        Returns:
            How many were new.

        Raises:
            FormatError: When a text cannot be stored, or a known answer is none.
            DataError: When a known answer has no pair, or differs from the one that is there; when
                votes are wanted for a pair that is not there.
            ConfigError: When fewer than one vote are wanted.
        """
        with self._changing() as change:
            return add_pairs(change, pairs, gold or {}, wanted or {})

    def ask_next(self, wanted: Mapping[str, int]) -> int:
        """Have people asked for more votes on pairs that are there, before all other pairs.

        Args:
            wanted: Pair id -> votes of people that it is to have, those that it has included; of
                several numbers the largest, and none asks for fewer than the settings.

        Returns:
            For how many pairs that is news; the same once more changes nothing.

        Raises:
            DataError: When there is no such pair.
            ConfigError: When fewer than one vote are wanted.
        """
        with self._changing() as change:
            return ask_next(change, wanted)

    def add_annotator(self, name: str, kind: AnnotatorKind = "person") -> None:
        """Add somebody who votes; the same once more changes nothing.

        Raises:
            ConfigError: When the name cannot be one, or belongs to an annotator of another kind.
        """
        with self._changing() as change:
            add_annotator(change, name, kind)

    def has_annotator(self, name: str, kind: AnnotatorKind) -> bool:
        """Whether there is an annotator of this name; nobody is added.

        Raises:
            ConfigError: When `add_annotator` would refuse the name.
        """
        return is_known(self._looking(), name, kind)

    def invite(self, name: str, *, days: float) -> str:
        """A new invitation of an annotator, who is added as a person where unknown.

        Returns:
            The token: its hash is kept, itself nowhere.
        """
        with self._changing() as change:
            return add_invitation(change, name, days)

    def annotator_of(self, token: str) -> str | None:
        """Whom a token invites; None where it is unknown, over or revoked."""
        return find_invited(self._connection, token, self._clock())

    def revoke(self, name: str) -> None:
        """End all invitations of an annotator that there are.

        Raises:
            ConfigError: When there is no such annotator.
        """
        with self._changing() as change:
            revoke_invitations(change, name)

    def set_open(self, is_open: bool) -> None:
        """Open the queue, or close it: then no new pair is handed out, to anybody.

        What was handed out before stays with its annotator, and is answered as ever.
        """
        with self._changing() as change:
            add_settings(change, self.settings.model_copy(update={"is_open": is_open}))

    def next_item(self, annotator: str, *, besides: Collection[str] = ()) -> Item | None:
        """What an annotator is to answer; an item that is open for them is served again.

        Serving takes a lease, or renews it: for so long nobody else is offered the pair.

        Args:
            annotator: Who asks.
            besides: Items of theirs whose answers are on the way.

        Returns:
            None where the queue has nothing for them at the moment.

        Raises:
            ConfigError: When there is no such annotator.
        """
        with self._changing() as change:
            found = serve_item(change, annotator, besides)
        return None if found is None else self.item(annotator, found)

    def item(self, annotator: str, item: str) -> Item | None:
        """An item that was served to this annotator once; None where it was not."""
        return reading.read_item(self._connection, annotator, item)

    def record(self, vote: VoteEvent) -> Recorded:
        """Take a vote; it is durable when this returns.

        A vote takes the place of the annotator's vote on the same showing of the pair, but on an
        item of a closed batch it is only kept. One whose lease is over counts as any other, and so
        does one on a pair that has enough.

        Raises:
            FormatError: When the key belongs to another annotator's vote, or the sides are not
                those that were shown.
            ConfigError: When there is no such annotator.
            DataError: When there is no such item of theirs, or no such pair.
        """
        return self.record_all([vote])[0]

    def record_all(self, votes: Iterable[VoteEvent]) -> list[Recorded]:
        """Take votes, all or none, and be done with all of them at once; otherwise as `record`."""
        with self._changing() as change:
            return [take_vote(change, vote) for vote in votes]

    def add_content(self, content: LabelContent) -> list[Recorded]:
        """Add pairs, known answers, annotators and votes from elsewhere, all or nothing.

        Raises:
            MetarmError: As the methods for each.
        """
        with self._changing() as change:
            return add_content(change, content)

    def undo(self, annotator: str, key: str) -> Item:
        """Take a vote back; its item is open again, and is the next one served.

        Nothing is removed: an event takes the vote's place. Once more, after the vote was replaced
        or its batch was closed, it changes nothing.

        Raises:
            DataError: When the annotator has no such vote.
        """
        with self._changing() as change:
            item = take_back(change, annotator, key)
        found = self.item(annotator, item)
        assert found is not None, "it was kept just now"
        return found

    def is_taken_back(self, annotator: str, key: str) -> bool:
        """Whether an undo took a vote back; also where it was given anew since."""
        return is_taken_back(self._connection, annotator, key)

    def close_batch(self, annotator: str, number: int) -> bool:
        """End an annotator's batch: its answers are no longer undone, and how it went can be told.

        Args:
            annotator: Whose.
            number: Of the batch, as `Progress.batch` has it.

        Returns:
            Whether it is closed now; not where there are no batches, or the open one has fewer
            answers than make a batch and there is more to answer.

        Raises:
            ConfigError: When there is no such annotator.
        """
        with self._changing() as change:
            check_annotator(change, annotator)
            return batches.close_batch(change, annotator, number)

    def batch(self, annotator: str, number: int) -> batches.Batch | None:
        """What a closed batch came to; None where it is not closed."""
        return batches.read_batch(self._connection, annotator, number)

    def is_in_closed_batch(self, annotator: str, key: str) -> bool:
        """Whether a vote is one that can no longer be undone."""
        return batches.is_closed(self._connection, annotator, key)

    def num_unanswered(self, annotator: str, items: Collection[str]) -> int:
        """How many of these items, served to the annotator, have no vote that counts."""
        return batches.num_unanswered(self._connection, annotator, items)

    def progress(self, annotator: str) -> Progress:
        """How far an annotator is.

        Raises:
            ConfigError: When there is no such annotator.
        """
        look = self._looking()
        check_annotator(look, annotator)
        return reading.read_progress(self._connection, annotator, look.now)

    def content(self) -> LabelContent:
        """All that can go to another place."""
        return reading.read_content(self._connection)

    def pairs(self) -> list[LabelPair]:
        """Every pair, in the order of its coming."""
        return reading.read_pairs(self._connection)

    def pair(self, pair: str) -> LabelPair | None:
        """The pair of an id; None where there is none."""
        return reading.find_pair(self._connection, pair)

    def event(self, key: str) -> Event | None:
        """The event of a key; None where there is none."""
        return reading.find_event(self._connection, key)

    def is_gold(self, pair: str) -> bool:
        """Whether a pair has a known answer."""
        return self._looking().has("gold", "pair", pair)

    def strategies(self) -> list[str]:
        """Which strategies chose pairs that have no known answer, sorted."""
        return read_strategies(self._connection)

    def gold(self) -> dict[str, Choice]:
        """Pair -> its known answer."""
        return reading.read_gold(self._connection)

    def votes(self) -> list[Vote]:
        """The votes that count, oldest first: skips too, and two by one annotator on a repeat."""
        return reading.read_votes(self._connection)

    def events(self) -> list[Event]:
        """Every event, oldest first."""
        return reading.read_events(self._connection)

    def annotators(self) -> list[Annotator]:
        """Everybody who may vote, in the order of their coming."""
        return reading.read_annotators(self._connection)

    def counts(self) -> reading.StoreCounts:
        """How much there is of everything."""
        return reading.read_counts(self._connection)
