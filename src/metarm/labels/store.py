# SPDX-License-Identifier: Apache-2.0
"""The label store: one writer, append-only events, and nothing acknowledged that is not durable.

A change is one transaction in SQLite and then the same entries in the journal beside it; only when
both are on the disk does a method return. Where a death fell between the two, opening mends it.
"""

import secrets
import sqlite3
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from metarm.data.fields import Row
from metarm.errors import ConfigError, DataError, FormatError
from metarm.labels import queue, reading
from metarm.labels.entries import Entry, add_entry
from metarm.labels.events import Annotator, Event, Item, Progress, Recorded, VoteEvent
from metarm.labels.opening import open_store
from metarm.labels.settings import LabelSettings
from metarm.labels.tables import transaction
from metarm.labels.votes import ANNOTATOR_KINDS, AnnotatorKind, Choice, LabelPair, Vote
from metarm.schema import prompt_to_json

__all__ = ["LabelStore"]

DAY_SECONDS: Final = 86_400
LONGEST_NAME: Final = 100
TOKEN_BYTES: Final = 24


class LabelStore:
    """A label store that is written; of one database there is one, in one process.

    It belongs to the thread that enters it. A server gives it a thread of its own and sends all
    calls there; whoever only reads takes a `LabelReader`.

    Args:
        path: The database; the journal and the lock lie beside it.
        settings: Kept in the store; None: those that it has, or the defaults for a new one.
        clock: Seconds since 1970.
        replay: Whether a database that lost what its journal has is mended from there; else that
            is an error.

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
            self.settings = reading.read_settings(self._connection)
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
    def _changing(self) -> Iterator[list[Entry]]:
        """One change: entries added to the list inside are durable, twice, when the block ends."""
        entries: list[Entry] = []
        with transaction(self._connection):
            yield entries
        self._owed += entries
        self._settle()

    def _settle(self) -> None:
        """Bring into the journal what the database has already."""
        if self._owed:
            self._journal.append(self._owed)
            self._owed = []

    def _add(self, entries: list[Entry], table: str, /, **row: Any) -> None:
        entries.append(add_entry(self._connection, table, row))

    def _next_number(self, table: str) -> int:
        query = f"SELECT ifnull(max(number), 0) + 1 FROM {table}"
        (number,) = self._connection.execute(query).fetchone()
        return int(number)

    def add_pairs(
        self, pairs: Iterable[LabelPair], *, gold: Mapping[str, Choice] | None = None
    ) -> int:
        """Add pairs to the queue; those that are there already stay as they are.

        Args:
            pairs: In any number; all are added, or none.
            gold: Pair id -> known answer, also of pairs that are there already.

        Returns:
            How many were new.

        Raises:
            FormatError: When a text cannot be stored, or a known answer is none.
            DataError: When a known answer has no pair, or differs from the one that is there.
        """
        added = 0
        with self._changing() as entries:
            number, now = self._next_number("pair"), self._clock()
            for pair in pairs:
                _check_pair(pair)
                pair_id = pair.id
                if self._has("pair", "id", pair_id):
                    continue
                self._add(
                    entries,
                    "pair",
                    number=number + added,
                    id=pair_id,
                    prompt=prompt_to_json(pair.prompt),
                    first=pair.first,
                    second=pair.second,
                    source=pair.source,
                    chosen_by=pair.chosen_by,
                    place=queue.place_of(self.settings.seed, pair_id),
                    at=now,
                )
                added += 1
            known = reading.read_gold(self._connection)
            for pair_id, choice in (gold or {}).items():
                if known.get(pair_id) == choice:
                    continue
                self._check_gold(pair_id, choice, known)
                self._add(entries, "gold", pair=pair_id, choice=choice, at=now)
        return added

    def _has(self, table: str, column: str, value: str) -> bool:
        query = f"SELECT 1 FROM {table} WHERE {column} = ?"
        return self._connection.execute(query, (value,)).fetchone() is not None

    def _check_gold(self, pair: str, choice: Choice, known: Mapping[str, Choice]) -> None:
        if choice not in ("first", "second", "tie"):
            raise FormatError(f"expected a known answer of first, second or tie, got {choice!r}")
        if not self._has("pair", "id", pair):
            raise DataError(f"expected a known answer for a pair that is there, got {pair!r}")
        if pair in known:
            raise DataError(f"pair {pair}: the known answer is {known[pair]}, not {choice}")

    def add_annotator(self, name: str, kind: AnnotatorKind = "person") -> None:
        """Add somebody who votes; the same once more changes nothing.

        Raises:
            ConfigError: When the name cannot be one, or belongs to an annotator of another kind.
        """
        if kind not in ANNOTATOR_KINDS:
            raise ConfigError(f"expected a kind of {', '.join(ANNOTATOR_KINDS)}, got {kind!r}")
        if not (name.strip() and name.isprintable() and len(name) <= LONGEST_NAME):
            raise ConfigError(
                f"expected a name of 1 to {LONGEST_NAME} visible characters, got {name!r}"
            )
        query = "SELECT kind FROM annotator WHERE name = ?"
        row = self._connection.execute(query, (name,)).fetchone()
        if row is None:
            with self._changing() as entries:
                number = self._next_number("annotator")
                self._add(
                    entries, "annotator", number=number, name=name, kind=kind, at=self._clock()
                )
        elif row[0] != kind:
            raise ConfigError(
                f"{name} is an annotator of the kind {row[0]}, not {kind}: give another name"
            )

    def invite(self, name: str, *, days: float) -> str:
        """A new invitation of an annotator, who is added as a person where unknown.

        Returns:
            The token: its hash is kept, itself nowhere.
        """
        if not days > 0:
            raise ConfigError(f"expected days above 0, got {days}")
        if not self._has("annotator", "name", name):
            self.add_annotator(name)
        token = secrets.token_urlsafe(TOKEN_BYTES)
        now = self._clock()
        with self._changing() as entries:
            self._add(
                entries,
                "invitation",
                number=self._next_number("invitation"),
                token=_hashed(token),
                annotator=name,
                at=now,
                expires_at=now + days * DAY_SECONDS,
            )
        return token

    def annotator_of(self, token: str) -> str | None:
        """Whom a token invites; None where it is unknown, over or revoked."""
        row = self._connection.execute(
            "SELECT annotator FROM invitation AS i WHERE token = ? AND expires_at > ? "
            "AND NOT EXISTS (SELECT 1 FROM revocation AS r "
            "WHERE r.annotator = i.annotator AND r.last_invitation >= i.number)",
            (_hashed(token), self._clock()),
        ).fetchone()
        return None if row is None else str(row[0])

    def revoke(self, name: str) -> None:
        """End all invitations of an annotator that there are.

        Raises:
            ConfigError: When there is no such annotator.
        """
        self._check_annotator(name)
        with self._changing() as entries:
            self._add(
                entries,
                "revocation",
                number=self._next_number("revocation"),
                annotator=name,
                last_invitation=self._next_number("invitation") - 1,
                at=self._clock(),
            )

    def _check_annotator(self, name: str) -> None:
        if not self._has("annotator", "name", name):
            raise ConfigError(f"expected an annotator of the store, got {name!r}: add them first")

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
        self._check_annotator(annotator)
        now = self._clock()
        with self._changing():
            self._connection.execute("DELETE FROM lease WHERE expires_at <= ?", (now,))
            opened = self._connection.execute(
                "SELECT i.id FROM lease AS l JOIN item AS i ON i.id = l.item "
                "WHERE i.annotator = ? ORDER BY l.number DESC",
                (annotator,),
            ).fetchall()
            found = next((row[0] for row in opened if row[0] not in besides), None)
            if found is None:
                showing = queue.choose_showing(
                    self._connection, self.settings, annotator, now, besides
                )
                if showing is None:
                    return None
                found = self._keep_item(showing.pair, annotator, showing.number)
            self._lease(found, now)
        return self.item(annotator, found)

    def _keep_item(self, pair: str, annotator: str, showing: int) -> str:
        """The id of a showing, whose sides are drawn and stored with the first serving."""
        seed = self.settings.seed
        found = queue.item_id(seed, pair, annotator, showing)
        turned = queue.is_side_turned(seed, pair, annotator, showing)
        self._connection.execute(
            "INSERT OR IGNORE INTO item (id, pair, annotator, showing, is_turned) "
            "VALUES (?, ?, ?, ?, ?)",
            (found, pair, annotator, showing, turned),
        )
        return found

    def _lease(self, item: str, now: float) -> None:
        self._connection.execute(
            "INSERT INTO lease (item, expires_at) VALUES (?, ?) "
            "ON CONFLICT (item) DO UPDATE SET expires_at = excluded.expires_at",
            (item, now + self.settings.lease_minutes * 60),
        )

    def item(self, annotator: str, item: str) -> Item | None:
        """An item that was served to this annotator once; None where it was not."""
        row = self._connection.execute(
            "SELECT i.showing, i.is_turned, p.*, p.id IN (SELECT pair FROM gold) AS is_gold "
            "FROM item AS i JOIN pair AS p ON p.id = i.pair WHERE i.id = ? AND i.annotator = ?",
            (item, annotator),
        ).fetchone()
        if row is None:
            return None
        return Item(
            item,
            reading.pair_of_row(row),
            is_turned=bool(row["is_turned"]),
            is_repeat=bool(row["showing"]),
            is_gold=bool(row["is_gold"]),
        )

    def record(self, vote: VoteEvent) -> Recorded:
        """Take a vote; it is durable when this returns.

        A vote takes the place of the annotator's vote on the same showing of the pair. One whose
        lease is over counts as any other, and so does one on a pair that has enough.

        Raises:
            FormatError: When the key belongs to another annotator's vote, or the sides are not
                those that were shown.
            ConfigError: When there is no such annotator.
            DataError: When there is no such item of theirs, or no such pair.
        """
        return self.record_all([vote])[0]

    def record_all(self, votes: Iterable[VoteEvent]) -> list[Recorded]:
        """Take votes, all or none, and be done with all of them at once; otherwise as `record`."""
        with self._changing() as entries:
            return [self._take(vote, entries) for vote in votes]

    def _take(self, vote: VoteEvent, entries: list[Entry]) -> Recorded:
        """Add a vote inside the transaction."""
        self._check_annotator(vote.annotator)
        before = self._event_of(vote.key)
        if before is not None:
            if before["annotator"] != vote.annotator:
                raise FormatError(f"the key {vote.key!r} belongs to a vote of somebody else")
            return Recorded(is_new=False, revision=before["revision"])
        pair, showing, is_turned = self._shown(vote)
        head = self._head(pair, vote.annotator, showing)
        is_outdated = self._is_corrected(vote, pair, showing)
        lead = None if vote.seconds is None else round(vote.seconds * 1000)
        number = self._add_event(
            entries,
            key=vote.key,
            pair=pair,
            annotator=vote.annotator,
            showing=showing,
            choice=vote.choice,
            strength=vote.strength,
            is_turned=is_turned,
            lead_ms=lead,
            supersedes=None if is_outdated or head is None else head["key"],
            corrects=vote.supersedes,
            is_outdated=is_outdated,
            note=_storable(vote.note),
            flag=vote.flag,
        )
        self._connection.execute(
            "DELETE FROM lease WHERE item IN "
            "(SELECT id FROM item WHERE pair = ? AND annotator = ? AND showing = ?)",
            (pair, vote.annotator, showing),
        )
        return Recorded(is_new=True, revision=number)

    def _add_event(self, entries: list[Entry], **row: Any) -> int:
        """Add an event with its number, revision and time; its revision."""
        (revision,) = self._connection.execute(
            "SELECT ifnull(max(revision), 0) + 1 FROM event WHERE pair = ? AND annotator = ?",
            (row["pair"], row["annotator"]),
        ).fetchone()
        number = self._next_number("event")
        self._add(entries, "event", number=number, revision=revision, at=self._clock(), **row)
        return int(revision)

    def _event_of(self, key: str) -> sqlite3.Row | None:
        query = "SELECT * FROM event WHERE key = ?"
        row: sqlite3.Row | None = self._connection.execute(query, (key,)).fetchone()
        return row

    def _shown(self, vote: VoteEvent) -> tuple[str, int, bool | None]:
        """Pair, showing and sides of what a vote is on."""
        if not vote.item:
            if not self._has("pair", "id", vote.pair):
                raise DataError(f"expected a vote on a pair of the store, got {vote.pair!r}")
            return vote.pair, 0, vote.is_turned
        row = self._connection.execute(
            "SELECT pair, showing, is_turned FROM item WHERE id = ? AND annotator = ?",
            (vote.item, vote.annotator),
        ).fetchone()
        if row is None:
            raise DataError(f"expected an item served to {vote.annotator}, got {vote.item!r}")
        is_turned = bool(row["is_turned"])
        if vote.is_turned is not None and vote.is_turned != is_turned:
            raise FormatError(f"item {vote.item}: expected the sides that were shown, got others")
        return row["pair"], row["showing"], is_turned

    def _head(self, pair: str, annotator: str, showing: int) -> sqlite3.Row | None:
        """The event in force of a showing: a vote, or one that took a vote back."""
        row: sqlite3.Row | None = self._connection.execute(
            "SELECT * FROM event AS e WHERE pair = ? AND annotator = ? AND showing = ? "
            "AND is_outdated = 0 AND NOT EXISTS "
            "(SELECT 1 FROM event AS f WHERE f.supersedes = e.key)",
            (pair, annotator, showing),
        ).fetchone()
        return row

    def _is_corrected(self, vote: VoteEvent, pair: str, showing: int) -> bool:
        """Whether the correction of a vote was here before the vote itself."""
        query = (
            "SELECT 1 FROM event WHERE corrects = ? AND annotator = ? AND pair = ? AND showing = ?"
        )
        values = (vote.key, vote.annotator, pair, showing)
        return self._connection.execute(query, values).fetchone() is not None

    def undo(self, annotator: str, key: str) -> Item:
        """Take a vote back; its item is open again, and is the next one served.

        Nothing is removed: an event takes the vote's place. Once more, or after the vote was
        replaced, it changes nothing.

        Raises:
            DataError: When the annotator has no such vote.
        """
        before = self._event_of(key)
        if before is None or before["annotator"] != annotator or before["choice"] == "undo":
            raise DataError(f"expected the key of a vote of {annotator}, got {key!r}")
        pair, showing = before["pair"], before["showing"]
        with self._changing() as entries:
            item = self._keep_item(pair, annotator, showing)
            head = self._head(pair, annotator, showing)
            if head is not None and head["key"] == key:
                self._add_event(
                    entries,
                    **{name: before[name] for name in ("strength", "note")},
                    **{name: bool(before[name]) for name in ("is_turned", "flag")},
                    key=f"undo {key}",
                    pair=pair,
                    annotator=annotator,
                    showing=showing,
                    choice="undo",
                    lead_ms=None,
                    supersedes=key,
                    corrects=None,
                    is_outdated=False,
                )
                self._connection.execute("DELETE FROM lease WHERE item = ?", (item,))
                self._lease(item, self._clock())
        found = self.item(annotator, item)
        assert found is not None, "it was kept just now"
        return found

    def progress(self, annotator: str) -> Progress:
        """How far an annotator is.

        Raises:
            ConfigError: When there is no such annotator.
        """
        self._check_annotator(annotator)
        return reading.read_progress(self._connection, annotator, self._clock())

    def pairs(self) -> list[LabelPair]:
        """Every pair, in the order of its coming."""
        return reading.read_pairs(self._connection)

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


def _hashed(token: str) -> str:
    return sha256(token.encode(errors="replace")).hexdigest()


def _check_pair(pair: LabelPair) -> None:
    """Refuse what no tokenizer and no file can take.

    Raises:
        FormatError: When a text holds a NUL character or half of a surrogate pair.
    """
    row = Row("pair", pair.to_json())
    for name in ("first", "second", "source", "chosen_by"):
        if name in row.values:
            row.text(name)
    row.prompt("prompt")


def _storable(text: str) -> str:
    """The text without halves of surrogate pairs and NULs, which files cannot keep."""
    return (
        text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").replace("\0", "\ufffd")
    )
