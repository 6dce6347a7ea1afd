# SPDX-License-Identifier: Apache-2.0
"""What a label store holds, read through any connection: pairs, votes, annotators, counts."""

import json
import sqlite3
import statistics
from dataclasses import dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from metarm.labels import queue
from metarm.labels.batches import find_batch
from metarm.labels.events import Annotator, Event, Item, LabelContent, Progress, VoteEvent
from metarm.labels.settings import LabelSettings
from metarm.labels.tables import open_reader
from metarm.labels.votes import Choice, LabelPair, Vote
from metarm.schema import prompt_from_json

__all__ = [
    "HOLDS",
    "LabelReader",
    "StoreCounts",
    "find_event",
    "find_pair",
    "pair_of_row",
    "read_annotators",
    "read_content",
    "read_counts",
    "read_events",
    "read_gold",
    "read_invited",
    "read_item",
    "read_pairs",
    "read_progress",
    "read_seed",
    "read_settings",
    "read_votes",
    "read_wanted",
    "vote_of_event",
]

DAY_SECONDS: Final = 86_400
HOLDS: Final = """expires_at > ? AND NOT EXISTS (
    SELECT 1 FROM revocation AS r WHERE r.annotator = i.annotator AND r.last_invitation >= i.number
)"""
"""Whether the invitation `i` is neither over at a time nor revoked."""
_EVENT_FIELDS: Final = tuple(field.name for field in fields(Event))


@dataclass(frozen=True, slots=True)
class StoreCounts:
    """How much there is of everything."""

    num_pairs: int
    num_gold: int
    """Of the pairs, those with a known answer."""
    num_done: int
    """Pairs without a known answer that have as many votes of people as are wanted."""
    num_votes: int
    """Votes that count, skips included."""
    num_skips: int
    num_repeats: int
    """Of the votes, those on mirrored repeats."""
    num_flags: int
    num_events: int
    num_annotators: int


def pair_of_row(row: sqlite3.Row) -> LabelPair:
    """The pair in a row of the table."""
    prompt = prompt_from_json(json.loads(row["prompt"]))
    return LabelPair(prompt, row["first"], row["second"], row["source"], row["chosen_by"])


def read_settings(connection: sqlite3.Connection) -> LabelSettings:
    """The settings in force."""
    (text,) = connection.execute(
        "SELECT value FROM setting ORDER BY number DESC LIMIT 1"
    ).fetchone()
    return LabelSettings.model_validate_json(text)


def read_seed(connection: sqlite3.Connection) -> int:
    """What sides, order, gold items and repeats are drawn by: the seed given, or the secret id."""
    given = read_settings(connection).seed
    if given is not None:
        return given
    (store,) = connection.execute("SELECT store FROM setting ORDER BY number LIMIT 1").fetchone()
    return int(store, 16)


def read_wanted(connection: sqlite3.Connection) -> dict[str, int]:
    """Pair -> votes of people that it wants, where that is not what the settings say."""
    rows = connection.execute("SELECT pair, max(votes) FROM want GROUP BY pair")
    return dict(map(tuple, rows))


def read_pairs(connection: sqlite3.Connection) -> list[LabelPair]:
    """Every pair, in the order of its coming."""
    rows = connection.execute("SELECT * FROM pair ORDER BY number").fetchall()
    return [pair_of_row(row) for row in rows]


def read_gold(connection: sqlite3.Connection) -> dict[str, Choice]:
    """Pair -> its known answer."""
    return dict(map(tuple, connection.execute("SELECT pair, choice FROM gold ORDER BY rowid")))


def find_event(connection: sqlite3.Connection, key: str) -> Event | None:
    """The event of a key; None where there is none."""
    names = ", ".join(_EVENT_FIELDS)
    row = connection.execute(f"SELECT {names} FROM event WHERE key = ?", (key,)).fetchone()
    return None if row is None else _event(row)


def find_pair(connection: sqlite3.Connection, pair: str) -> LabelPair | None:
    """The pair of an id; None where there is none."""
    row = connection.execute("SELECT * FROM pair WHERE id = ?", (pair,)).fetchone()
    return None if row is None else pair_of_row(row)


def read_events(connection: sqlite3.Connection, table: str = "event") -> list[Event]:
    """Every event, oldest first; with `table="vote"` those that count as votes."""
    names = ", ".join(_EVENT_FIELDS)
    rows = connection.execute(f"SELECT {names} FROM {table} ORDER BY number").fetchall()
    return [_event(row) for row in rows]


def _event(row: sqlite3.Row) -> Event:
    values = dict(zip(_EVENT_FIELDS, row, strict=True))
    for name in ("is_outdated", "flag"):
        values[name] = bool(values[name])
    if values["is_turned"] is not None:
        values["is_turned"] = bool(values["is_turned"])
    return Event(**values)


def vote_of_event(event: Event) -> Vote:
    """The vote that an event is; one that takes a vote back is none."""
    assert event.choice != "undo", "the caller leaves these out"
    seconds = None if event.lead_ms is None else event.lead_ms / 1000
    return Vote(event.pair, event.annotator, event.choice, event.strength, event.is_turned, seconds)


def read_votes(connection: sqlite3.Connection) -> list[Vote]:
    """The votes that count, oldest first: skips too, and two by one annotator on a repeat."""
    return [vote_of_event(event) for event in read_events(connection, "vote")]


def read_content(connection: sqlite3.Connection) -> LabelContent:
    """All that can go to another place."""
    pairs = read_pairs(connection)
    places = {pair.id: place for place, pair in enumerate(pairs)}
    events = read_events(connection, "vote")
    events.sort(key=lambda event: (places[event.pair], event.number))
    kinds = {annotator.name: annotator.kind for annotator in read_annotators(connection)}
    return LabelContent(
        tuple(pairs),
        read_gold(connection),
        {name: kinds[name] for name in sorted({event.annotator for event in events})},
        tuple(_sent(event) for event in events),
    )


def _sent(event: Event) -> VoteEvent:
    """A stored vote as one that arrives."""
    vote = vote_of_event(event)
    return VoteEvent(
        event.key,
        vote.annotator,
        vote.choice,
        pair=vote.pair,
        strength=vote.strength,
        is_turned=vote.is_turned,
        seconds=vote.seconds,
        note=event.note,
        flag=event.flag,
        is_repeat=bool(event.showing),
        at=event.at,
    )


def read_annotators(connection: sqlite3.Connection) -> list[Annotator]:
    """Everybody who may vote, in the order of their coming."""
    rows = connection.execute(
        "SELECT a.name, a.kind, a.at, count(v.key) FROM annotator AS a "
        "LEFT JOIN vote AS v ON v.annotator = a.name GROUP BY a.number ORDER BY a.number"
    ).fetchall()
    return [Annotator(*row) for row in rows]


def read_invited(connection: sqlite3.Connection, now: float) -> list[str]:
    """Names that have an invitation which holds at `now`, neither over nor revoked; sorted."""
    rows = connection.execute(
        f"SELECT DISTINCT annotator FROM invitation AS i WHERE {HOLDS} ORDER BY annotator", (now,)
    ).fetchall()
    return [str(row["annotator"]) for row in rows]


def read_counts(connection: sqlite3.Connection) -> StoreCounts:
    """How much there is of everything."""
    usual = {"usual": read_settings(connection).votes_per_pair}

    def count(query: str) -> int:
        (number,) = connection.execute(f"SELECT count(*) FROM {query}", usual).fetchone()
        return int(number)

    done = (
        "(SELECT p.id FROM vote AS v JOIN annotator AS a ON a.name = v.annotator "
        "JOIN pair AS p ON p.id = v.pair "
        "WHERE a.kind = 'person' AND v.showing = 0 AND v.choice <> 'skip' "
        f"AND p.id NOT IN (SELECT pair FROM gold) GROUP BY p.id HAVING count(*) >= {queue.WANTED})"
    )
    return StoreCounts(
        num_pairs=count("pair"),
        num_gold=count("gold"),
        num_done=count(done),
        num_votes=count("vote"),
        num_skips=count("vote WHERE choice = 'skip'"),
        num_repeats=count("vote WHERE showing = 1"),
        num_flags=count("vote WHERE flag = 1"),
        num_events=count("event"),
        num_annotators=count("annotator"),
    )


def read_item(connection: sqlite3.Connection, annotator: str, item: str) -> Item | None:
    """An item that was served to this annotator once; None where it was not."""
    row = connection.execute(
        "SELECT i.showing, i.is_turned, p.*, p.id IN (SELECT pair FROM gold) AS is_gold "
        "FROM item AS i JOIN pair AS p ON p.id = i.pair WHERE i.id = ? AND i.annotator = ?",
        (item, annotator),
    ).fetchone()
    if row is None:
        return None
    return Item(
        item,
        pair_of_row(row),
        is_turned=bool(row["is_turned"]),
        is_repeat=bool(row["showing"]),
        is_gold=bool(row["is_gold"]),
    )


def read_progress(connection: sqlite3.Connection, annotator: str, now: float) -> Progress:
    """How far an annotator is; `now` says which day it is."""
    rows = connection.execute(
        "SELECT choice, lead_ms, at FROM vote WHERE annotator = ?", (annotator,)
    ).fetchall()
    times = [row["lead_ms"] / 1000 for row in rows if row["lead_ms"] is not None]
    settings, batch = read_settings(connection), find_batch(connection, annotator)
    return Progress(
        num_votes=len(rows),
        num_skipped=sum(row["choice"] == "skip" for row in rows),
        num_today=sum(row["at"] // DAY_SECONDS == now // DAY_SECONDS for row in rows),
        num_left=queue.count_left(connection, settings, annotator, now),
        median_seconds=statistics.median(times) if times else None,
        batch=batch.number,
        num_in_batch=batch.num_answers,
        batch_size=settings.batch_size,
    )


class LabelReader:
    """A label store that is only read, beside whoever writes it.

    Args:
        path: The database.

    Raises:
        RunError: When there is no such store, or it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._connection = open_reader(path)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file."""
        self._connection.close()

    @property
    def settings(self) -> LabelSettings:
        """The settings in force."""
        return read_settings(self._connection)

    def content(self) -> LabelContent:
        """All that can go to another place."""
        return read_content(self._connection)

    def wanted(self) -> dict[str, int]:
        """Pair -> votes of people that it wants, where that is not what the settings say."""
        return read_wanted(self._connection)

    def pairs(self) -> list[LabelPair]:
        """Every pair, in the order of its coming."""
        return read_pairs(self._connection)

    def gold(self) -> dict[str, Choice]:
        """Pair -> its known answer."""
        return read_gold(self._connection)

    def votes(self) -> list[Vote]:
        """The votes that count, oldest first: skips too, and two by one annotator on a repeat."""
        return read_votes(self._connection)

    def vote_events(self) -> list[Event]:
        """As `votes`, with all that is stored of each."""
        return read_events(self._connection, "vote")

    def events(self) -> list[Event]:
        """Every event, oldest first."""
        return read_events(self._connection)

    def annotators(self) -> list[Annotator]:
        """Everybody who may vote, in the order of their coming."""
        return read_annotators(self._connection)

    def invited(self, now: float) -> list[str]:
        """Names that have an invitation which holds at `now`, in seconds since 1970."""
        return read_invited(self._connection, now)

    def counts(self) -> StoreCounts:
        """How much there is of everything."""
        return read_counts(self._connection)
