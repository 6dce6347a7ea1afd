# SPDX-License-Identifier: Apache-2.0
"""What a label store remembers for good, as entries: JSON objects for its journal, rows for SQLite.

Settings, pairs, known answers, votes that single pairs want, annotators, invitations, revocations,
events and closed batches are entries; items served and leases are not, since both are worked out
anew.
"""

import json
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from metarm.errors import FormatError

__all__ = ["KINDS", "Entry", "add_entry", "entry_key", "read_entries", "store_of"]

Entry = Mapping[str, Any]
"""`kind`, a name of `KINDS`, and the kind's fields."""


def _as_is(value: Any) -> Any:
    return value


def _flag(value: Any) -> bool | None:
    return None if value is None else bool(value)


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


@dataclass(frozen=True, slots=True)
class _Kind:
    """A table's columns that are remembered, and those that say which entry it is."""

    columns: tuple[str, ...]
    key: tuple[str, ...]
    json_columns: frozenset[str] = frozenset()
    flags: frozenset[str] = frozenset()

    def to_entry(self, column: str) -> Callable[[Any], Any]:
        """How a column's value becomes the entry's."""
        if column in self.json_columns:
            return json.loads
        return _flag if column in self.flags else _as_is

    def to_row(self, column: str) -> Callable[[Any], Any]:
        """The inverse of `to_entry`."""
        return _text if column in self.json_columns else _as_is


KINDS: Final[Mapping[str, _Kind]] = MappingProxyType(
    {
        "setting": _Kind(("number", "store", "value", "at"), ("number",), frozenset({"value"})),
        "pair": _Kind(
            ("number", "id", "prompt", "first", "second", "source", "chosen_by", "place", "at"),
            ("id",),
            frozenset({"prompt"}),
        ),
        "gold": _Kind(("pair", "choice", "at"), ("pair",)),
        "want": _Kind(("pair", "votes", "at"), ("pair", "votes")),
        "annotator": _Kind(("number", "name", "kind", "at"), ("name",)),
        "invitation": _Kind(("number", "token", "annotator", "at", "expires_at"), ("token",)),
        "revocation": _Kind(("number", "annotator", "last_invitation", "at"), ("number",)),
        "event": _Kind(
            (
                "number",
                "key",
                "pair",
                "annotator",
                "showing",
                "revision",
                "choice",
                "strength",
                "is_turned",
                "lead_ms",
                "at",
                "supersedes",
                "corrects",
                "is_outdated",
                "note",
                "flag",
            ),
            ("key",),
            flags=frozenset({"is_turned", "is_outdated", "flag"}),
        ),
        "batch": _Kind(("number", "annotator", "last_event", "at"), ("number",)),
    }
)
"""Kind of entry, also its table's name -> its columns; a later kind may need an earlier."""


def entry_key(entry: Entry) -> tuple[Any, ...]:
    """What tells an entry from all others."""
    return (entry["entry"], *(entry["row"][name] for name in KINDS[entry["entry"]].key))


def add_entry(connection: sqlite3.Connection, kind: str, row: Mapping[str, Any]) -> Entry:
    """Insert an entry's row, inside the caller's transaction.

    Returns:
        The entry.

    Raises:
        FormatError: When the row is not of the kind, or does not fit those that are there.
    """
    columns = KINDS[kind].columns
    values = [KINDS[kind].to_row(name)(row[name]) for name in columns]
    marks = ", ".join("?" * len(columns))
    names = ", ".join(columns)
    try:
        connection.execute(f"INSERT INTO {kind} ({names}) VALUES ({marks})", values)
    except sqlite3.IntegrityError as error:
        raise FormatError(
            f"expected a new {kind} that fits the store, got one that does not: {error}"
        ) from error
    return {"entry": kind, "row": {name: row[name] for name in columns}}


def read_entries(
    connection: sqlite3.Connection, kinds: Sequence[str] = tuple(KINDS)
) -> Iterator[Entry]:
    """Every entry in the database, kind by kind, each in the order of its coming."""
    for kind in kinds:
        told = KINDS[kind]
        names = ", ".join(told.columns)
        for row in connection.execute(f"SELECT {names} FROM {kind} ORDER BY rowid").fetchall():
            values = {name: told.to_entry(name)(row[name]) for name in told.columns}
            yield {"entry": kind, "row": values}


def store_of(entries: Iterable[Entry]) -> str | None:
    """The id of the store that entries are of."""
    return next((entry["row"]["store"] for entry in entries if entry["entry"] == "setting"), None)
