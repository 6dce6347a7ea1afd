# SPDX-License-Identifier: Apache-2.0
"""Whether a label store is whole: SQLite's own checks, and database and journal against each other.

It only reads, and may look on while a server writes.
"""

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from metarm.errors import RunError
from metarm.labels.entries import Entry, entry_key, read_entries, store_of
from metarm.labels.journal import JournalContent, journal_path, read_journal
from metarm.labels.tables import open_reader, write_copy

__all__ = ["Verified", "back_up", "is_part_of", "verify_store"]

SETTLE_SECONDS: Final = 1.0
"""Time that a writer is given to bring into the journal what it has just committed."""


@dataclass(frozen=True, slots=True)
class Verified:
    """What was found; whole is a store without any finding."""

    num_entries: int
    """In the database."""
    num_journalled: int
    """In the journal."""
    problems: tuple[str, ...]
    """What SQLite says is wrong with the file or between its tables."""
    only_database: tuple[str, ...]
    """Entries that the journal lacks."""
    only_journal: tuple[str, ...]
    """Entries that the database lacks."""
    different: tuple[str, ...]
    """Entries that both have, otherwise."""
    num_damaged_lines: int
    """Of the journal."""
    has_torn_line: bool
    """Whether the journal ends in a line that was never finished."""
    is_foreign_journal: bool
    """Whether the journal is that of another store."""

    @property
    def is_whole(self) -> bool:
        """Whether database and journal are whole and say the same."""
        between = (self.problems, self.only_database, self.only_journal, self.different)
        of_journal = (self.num_damaged_lines, self.has_torn_line, self.is_foreign_journal)
        return not any((*between, *of_journal))

    def to_json(self) -> dict[str, Any]:
        """The findings as plain JSON values."""
        return {"is_whole": self.is_whole, **asdict(self)}


def verify_store(path: Path) -> Verified:
    """Look a label store over.

    Raises:
        RunError: When there is no store, or SQLite cannot read it at all.
    """
    before = read_journal(journal_path(path))
    connection = open_reader(path)
    try:
        rows = connection.execute("PRAGMA integrity_check").fetchall()
        problems = [str(row[0]) for row in rows if row[0] != "ok"]
        for row in connection.execute("PRAGMA foreign_key_check").fetchall():
            problems.append(f"{row[0]}, row {row[1]}: what it names in {row[2]} is not there")
        there = _by_key(tuple(read_entries(connection)))
    finally:
        connection.close()
    after = read_journal(journal_path(path))
    if _lacking(after, there):
        time.sleep(SETTLE_SECONDS)
        after = read_journal(journal_path(path))
    own, other = store_of(there.values()), store_of(after.entries)
    earlier, later = _by_key(before.entries), _by_key(after.entries)
    differing = (key for key, entry in there.items() if key in later and later[key] != entry)
    return Verified(
        num_entries=len(there),
        num_journalled=len(later),
        problems=tuple(problems),
        only_database=_lacking(after, there),
        only_journal=tuple(_told(key) for key in earlier if key not in there),
        different=tuple(map(_told, differing)),
        num_damaged_lines=after.num_damaged,
        has_torn_line=after.whole_bytes < after.num_bytes,
        is_foreign_journal=None not in (own, other) and own != other,
    )


def _by_key(entries: tuple[Entry, ...]) -> dict[tuple[Any, ...], Entry]:
    """Entries as their lines would give them: of one that stands twice, the first."""
    found: dict[tuple[Any, ...], Entry] = {}
    for entry in entries:
        found.setdefault(entry_key(entry), json.loads(json.dumps(entry)))
    return found


def _lacking(content: JournalContent, there: dict[tuple[Any, ...], Entry]) -> tuple[str, ...]:
    known = {entry_key(entry) for entry in content.entries}
    return tuple(_told(key) for key in there if key not in known)


def _told(key: tuple[Any, ...]) -> str:
    return " ".join(map(str, key))


def is_part_of(store: Path, path: Path) -> bool:
    """Whether a path is a label store's database or is named like a file kept beside it.

    Those are `STORE.*` and `.STORE.*`, and SQLite's own `STORE-wal`, `STORE-shm` and
    `STORE-journal`; of a store behind a link, beside the link and beside what it points to.
    """
    for own in (store.absolute(), store.resolve()):
        beside = (f"{own.name}.", f".{own.name}.")
        databases = {f"{own.name}{end}" for end in ("", "-wal", "-shm", "-journal")}
        for wanted in (path.absolute(), path.resolve()):
            is_named = wanted.name in databases or wanted.name.startswith(beside)
            if is_named and wanted.parent.resolve() == own.parent.resolve():
                return True
    return False


def back_up(path: Path, copy: Path) -> None:
    """Copy a label store while it is in use; the copy is one moment of it, and a store itself.

    Put back beside its journal, it gets from there what came after.

    Raises:
        RunError: When there is no store, or the copy cannot be written; when a file stands there
            that is no earlier copy of this store, or a copy with entries of its own.

    Writes:
        `copy`, whole or not at all; an earlier copy is replaced.
    """
    connection = open_reader(path)
    try:
        if copy.exists():
            _check_earlier(copy, path, tuple(read_entries(connection)))
        write_copy(connection, copy)
    finally:
        connection.close()


def _check_earlier(copy: Path, path: Path, entries: tuple[Entry, ...]) -> None:
    """Refuse to replace what is no copy of a store, or a copy that went on by itself."""
    there = _entries_of(copy)
    if store_of(there) != store_of(entries):
        raise RunError(
            f"{copy} exists and is no copy of {path}: name another file, or remove it first"
        )
    known = _by_key(entries)
    if more := [key for key, entry in _by_key(there).items() if known.get(key) != entry]:
        raise RunError(
            f"{copy} exists and has {len(more)} entries that {path} lacks, such as "
            f"{_told(more[0])}: it is no earlier copy. Name another file."
        )


def _entries_of(path: Path) -> tuple[Entry, ...]:
    """The entries of the store that a file is; none where it is no store."""
    try:
        connection = open_reader(path)
    except RunError:
        return ()
    try:
        return tuple(read_entries(connection))
    finally:
        connection.close()
