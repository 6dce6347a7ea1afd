# SPDX-License-Identifier: Apache-2.0
"""Batches of an annotator's answers: how far the open one is, and what a closed one came to.

A batch is closed by its annotator. From then on its answers cannot be undone, since they may have
been told how the known answers among them were met; a later vote of the page on any of them does
not count. What was taken back before, and is given again after, is an answer of the later batch.
"""

import json
import sqlite3
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final, NamedTuple

from metarm.labels import queue
from metarm.labels.changes import Change
from metarm.labels.votes import Choice

__all__ = [
    "Batch",
    "KnownAnswer",
    "OpenBatch",
    "close_batch",
    "find_batch",
    "is_closed",
    "is_final",
    "num_unanswered",
    "read_batch",
]

_BEGAN: Final = """(
    SELECT min(f.number) FROM event AS f WHERE f.annotator = v.annotator AND f.pair = v.pair
    AND f.showing = v.showing AND f.is_outdated = 0 AND f.number > ifnull((
        SELECT max(u.number) FROM event AS u WHERE u.annotator = v.annotator AND u.pair = v.pair
        AND u.showing = v.showing AND u.choice = 'undo' AND u.number < v.number
    ), 0)
)"""
"""When the answer of the vote `v` was first given, after whatever was taken back before it.

By this it is in a batch: one that is corrected stays where it was, one that was taken back is gone.
"""
_OWN: Final = f"""
SELECT v.pair, v.showing, v.choice, v.lead_ms, g.choice AS known, {_BEGAN} AS began
FROM vote AS v LEFT JOIN gold AS g ON g.pair = v.pair AND v.showing = 0
WHERE v.annotator = :annotator AND v.number > :after AND began > :after AND began <= :until
ORDER BY began
"""
"""The answers of a batch. No vote came before its answer began: most are told by their number."""
_LAST: Final = 2**62


class OpenBatch(NamedTuple):
    """The batch that an annotator is at."""

    number: int
    """1, 2, ... of this annotator."""
    after: int
    """Number of the last event before it."""
    num_answers: int
    """Answers in it: skips, known answers and repeats too, so that their number tells nothing."""


@dataclass(frozen=True, slots=True)
class KnownAnswer:
    """A pair with a known answer, and what the annotator said."""

    pair: str
    choice: Choice
    known: Choice


@dataclass(frozen=True, slots=True)
class Batch:
    """What a closed batch came to."""

    number: int
    num_answers: int
    num_skips: int
    seconds: float | None
    """From shown to answered, over all answers whose time is known."""
    known: tuple[KnownAnswer, ...]
    """Pairs with a known answer among them, those that were skipped left out."""

    @property
    def num_right(self) -> int:
        """Known answers that were met."""
        return sum(one.choice == one.known for one in self.known)


def find_batch(connection: sqlite3.Connection, annotator: str) -> OpenBatch:
    """The open batch of an annotator; its beginning is where the last one was closed."""
    closed, after = connection.execute(
        "SELECT count(*), ifnull(max(last_event), 0) FROM batch WHERE annotator = ?", (annotator,)
    ).fetchone()
    rows = _answers(connection, annotator, after, _LAST)
    return OpenBatch(closed + 1, after, len(rows))


def read_batch(connection: sqlite3.Connection, annotator: str, number: int) -> Batch | None:
    """A closed batch of an annotator; None where it is not closed, or none of theirs."""
    ends = [0] + [
        row[0]
        for row in connection.execute(
            "SELECT last_event FROM batch WHERE annotator = ? ORDER BY number", (annotator,)
        )
    ]
    if not 0 < number < len(ends):
        return None
    rows = _answers(connection, annotator, ends[number - 1], ends[number])
    times = [row["lead_ms"] / 1000 for row in rows if row["lead_ms"] is not None]
    return Batch(
        number,
        len(rows),
        sum(row["choice"] == "skip" for row in rows),
        sum(times) if times else None,
        tuple(
            KnownAnswer(row["pair"], row["choice"], row["known"])
            for row in rows
            if row["known"] is not None and row["choice"] != "skip"
        ),
    )


def close_batch(change: Change, annotator: str, number: int) -> bool:
    """Close a batch; as `LabelStore.close_batch`."""
    found, size = find_batch(change.connection, annotator), change.settings.batch_size
    if number != found.number:
        return number < found.number
    if not size or not found.num_answers:
        return False
    if found.num_answers < size and _is_more_to_answer(change, annotator):
        return False
    last = change.find("SELECT max(number) FROM event")
    change.add_numbered("batch", annotator=annotator, last_event=last[0] if last else 0)
    return True


def num_unanswered(connection: sqlite3.Connection, annotator: str, items: Collection[str]) -> int:
    """How many of these items of an annotator have no vote that counts."""
    (number,) = connection.execute(
        "SELECT count(*) FROM item AS i WHERE i.annotator = ? "
        "AND i.id IN (SELECT value FROM json_each (?)) AND NOT EXISTS (SELECT 1 FROM vote AS v "
        "WHERE v.pair = i.pair AND v.annotator = i.annotator AND v.showing = i.showing)",
        (annotator, json.dumps(list(items))),
    ).fetchone()
    return int(number)


def is_closed(connection: sqlite3.Connection, annotator: str, key: str) -> bool:
    """Whether a vote's answer is one of a closed batch, by the same date as `read_batch` has."""
    row = connection.execute(
        "SELECT 1 FROM event AS v JOIN batch AS b ON b.annotator = v.annotator "
        f"AND b.last_event >= {_BEGAN} WHERE v.key = ? AND v.annotator = ?",
        (key, annotator),
    ).fetchone()
    return row is not None


def is_final(change: Change, head: sqlite3.Row, *, is_served: bool) -> bool:
    """Whether an event in force is an answer that a later vote does not take the place of.

    Args:
        change: Of the store.
        head: The event in force.
        is_served: Whether the later vote is on an item, as those of the page are. For them all of
            a closed batch is final: were it the known answers alone, it would tell which they are.
            A vote from elsewhere counts, unless the known answer may have been told.
    """
    if head["choice"] == "undo" or not is_closed(change.connection, head["annotator"], head["key"]):
        return False
    return is_served or (head["showing"] == 0 and change.has("gold", "pair", head["pair"]))


def _answers(
    connection: sqlite3.Connection, annotator: str, after: int, until: int
) -> list[sqlite3.Row]:
    values = {"annotator": annotator, "after": after, "until": until}
    return connection.execute(_OWN, values).fetchall()


def _is_more_to_answer(change: Change, annotator: str) -> bool:
    leased = change.find(
        "SELECT 1 FROM lease AS l JOIN item AS i ON i.id = l.item "
        "WHERE i.annotator = ? AND l.expires_at > ?",
        annotator,
        change.now,
    )
    if leased is not None:
        return True
    shown = queue.choose_showing(
        change.connection, change.settings, change.seed, annotator, change.now
    )
    return shown is not None
