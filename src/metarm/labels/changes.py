# SPDX-License-Identifier: Apache-2.0
"""One change of a label store, while it is made: rows that are added, and their entries."""

import sqlite3
from dataclasses import dataclass, field
from typing import Any

from metarm.labels.entries import Entry, add_entry
from metarm.labels.settings import LabelSettings

__all__ = ["Change"]


@dataclass(slots=True)
class Change:
    """What one transaction adds; the writer brings `entries` into the journal after it."""

    connection: sqlite3.Connection
    settings: LabelSettings
    seed: int
    """What sides, order, gold items and repeats are drawn by."""
    now: float
    """Seconds since 1970."""
    entries: list[Entry] = field(default_factory=list)

    def add(self, table: str, /, **row: Any) -> None:
        """Add a row of one of `entries.KINDS`."""
        self.entries.append(add_entry(self.connection, table, row))

    def add_numbered(self, table: str, /, **row: Any) -> None:
        """Add a row with the next number of its table; its time is now where no other is given."""
        query = f"SELECT ifnull(max(number), 0) + 1 FROM {table}"
        (number,) = self.connection.execute(query).fetchone()
        self.add(table, **{"at": self.now, **row, "number": number})

    def has(self, table: str, column: str, value: str) -> bool:
        """Whether the table has such a row."""
        return self.find(f"SELECT 1 FROM {table} WHERE {column} = ?", value) is not None

    def find(self, query: str, *values: object) -> sqlite3.Row | None:
        """The first row of an answer."""
        row: sqlite3.Row | None = self.connection.execute(query, values).fetchone()
        return row
