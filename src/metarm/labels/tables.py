# SPDX-License-Identifier: Apache-2.0
"""The tables of a label store: schema versions, the journal mode, and how a database is opened."""

import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Final
from urllib.parse import quote

from metarm.errors import RunError
from metarm.labels.journal import journal_path, read_journal
from metarm.storage import sync

__all__ = [
    "APPLICATION_ID",
    "MIGRATIONS",
    "is_made",
    "journal_mode",
    "migrate",
    "open_reader",
    "open_writer",
    "schema_version",
    "transaction",
    "write_copy",
]

APPLICATION_ID: Final = 0x4D52_4D4C
"""Tells a label store from other SQLite files."""
FIXED_WAL: Final = (3, 51, 3)
WITHDRAWN: Final = (3, 52, 0)
BUSY_SECONDS: Final = 30.0

MIGRATIONS: Final[tuple[tuple[str, ...], ...]] = (
    (
        """CREATE TABLE setting (
            number INTEGER PRIMARY KEY, store TEXT NOT NULL, value TEXT NOT NULL, at REAL NOT NULL
        ) STRICT""",
        """CREATE TABLE pair (
            number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, prompt TEXT NOT NULL,
            first TEXT NOT NULL, second TEXT NOT NULL, source TEXT NOT NULL,
            chosen_by TEXT NOT NULL, place INTEGER NOT NULL, at REAL NOT NULL
        ) STRICT""",
        """CREATE TABLE gold (
            pair TEXT PRIMARY KEY REFERENCES pair (id),
            choice TEXT NOT NULL CHECK (choice IN ('first', 'second', 'tie')), at REAL NOT NULL
        ) STRICT""",
        """CREATE TABLE annotator (
            number INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE,
            kind TEXT NOT NULL CHECK (kind IN ('person', 'model', 'gold', 'rule')),
            at REAL NOT NULL
        ) STRICT""",
        """CREATE TABLE invitation (
            number INTEGER PRIMARY KEY, token TEXT NOT NULL UNIQUE,
            annotator TEXT NOT NULL REFERENCES annotator (name),
            at REAL NOT NULL, expires_at REAL NOT NULL
        ) STRICT""",
        """CREATE TABLE revocation (
            number INTEGER PRIMARY KEY, annotator TEXT NOT NULL REFERENCES annotator (name),
            last_invitation INTEGER NOT NULL, at REAL NOT NULL
        ) STRICT""",
        """CREATE TABLE event (
            number INTEGER PRIMARY KEY AUTOINCREMENT, key TEXT NOT NULL UNIQUE,
            pair TEXT NOT NULL REFERENCES pair (id),
            annotator TEXT NOT NULL REFERENCES annotator (name),
            showing INTEGER NOT NULL CHECK (showing IN (0, 1)), revision INTEGER NOT NULL,
            choice TEXT NOT NULL CHECK (choice IN ('first', 'second', 'tie', 'skip', 'undo')),
            strength INTEGER NOT NULL CHECK (strength IN (1, 2)),
            is_turned INTEGER CHECK (is_turned IN (0, 1)), lead_ms INTEGER CHECK (lead_ms >= 0),
            at REAL NOT NULL, supersedes TEXT UNIQUE REFERENCES event (key), corrects TEXT,
            is_outdated INTEGER NOT NULL CHECK (is_outdated IN (0, 1)), note TEXT NOT NULL,
            flag INTEGER NOT NULL CHECK (flag IN (0, 1)), UNIQUE (pair, annotator, revision)
        ) STRICT""",
        "CREATE INDEX event_by_annotator ON event (annotator, pair)",
        "CREATE INDEX event_by_correction ON event (corrects) WHERE corrects IS NOT NULL",
        """CREATE TRIGGER event_stays BEFORE UPDATE ON event
            BEGIN SELECT RAISE (ABORT, 'events are never changed'); END""",
        """CREATE TRIGGER event_is_kept BEFORE DELETE ON event
            BEGIN SELECT RAISE (ABORT, 'events are never removed'); END""",
        """CREATE VIEW vote AS SELECT * FROM event AS e WHERE choice <> 'undo' AND is_outdated = 0
            AND NOT EXISTS (SELECT 1 FROM event AS f WHERE f.supersedes = e.key)""",
        """CREATE TABLE item (
            id TEXT PRIMARY KEY, pair TEXT NOT NULL REFERENCES pair (id),
            annotator TEXT NOT NULL REFERENCES annotator (name),
            showing INTEGER NOT NULL CHECK (showing IN (0, 1)),
            is_turned INTEGER NOT NULL CHECK (is_turned IN (0, 1)),
            UNIQUE (pair, annotator, showing)
        ) STRICT""",
        """CREATE TABLE lease (
            number INTEGER PRIMARY KEY AUTOINCREMENT,
            item TEXT NOT NULL UNIQUE REFERENCES item (id), expires_at REAL NOT NULL
        ) STRICT""",
    ),
    (
        """CREATE TABLE want (
            pair TEXT NOT NULL REFERENCES pair (id), votes INTEGER NOT NULL CHECK (votes >= 1),
            at REAL NOT NULL, PRIMARY KEY (pair, votes)
        ) STRICT""",
    ),
    (
        """CREATE TABLE batch (
            number INTEGER PRIMARY KEY, annotator TEXT NOT NULL REFERENCES annotator (name),
            last_event INTEGER NOT NULL, at REAL NOT NULL
        ) STRICT""",
        "CREATE INDEX batch_by_annotator ON batch (annotator, last_event)",
    ),
)
"""Statements that bring a store from each schema version to the next; an empty file is version 0.

A statement that was released is never edited: a change is a new entry.
"""

STAND_INS: Final[Mapping[int, tuple[str, ...]]] = MappingProxyType(
    {
        2: ("CREATE TEMP TABLE want (pair TEXT, votes INTEGER, at REAL)",),
        3: (
            "CREATE TEMP TABLE batch (number INTEGER, annotator TEXT, last_event INTEGER, at REAL)",
        ),
    }
)
"""Schema version -> what a reader of an earlier store has, empty, in place of what it adds."""


def journal_mode(version: Sequence[int] | None = None) -> str:
    """`WAL` where SQLite's own write-ahead log can be trusted, else `DELETE`.

    Args:
        version: Of SQLite; None: of this process's.

    Source:
        SQLite's WAL-reset bug, 3.7.0 to 3.51.2: two connections that write or checkpoint at once
        can corrupt the file. 3.52.0 was withdrawn.

    Example:
        >>> journal_mode((3, 40, 1)), journal_mode((3, 51, 3)), journal_mode((3, 52, 0))
        ('DELETE', 'WAL', 'DELETE')
    """
    known = tuple(version or sqlite3.sqlite_version_info)
    return "WAL" if known >= FIXED_WAL and known != WITHDRAWN else "DELETE"


def open_writer(path: Path) -> sqlite3.Connection:
    """The one read-write connection, made as strict as SQLite goes; nothing is migrated yet.

    Raises:
        RunError: When the file cannot be opened or is no label store.
    """
    try:
        connection = sqlite3.connect(path, isolation_level=None, timeout=BUSY_SECONDS)
    except sqlite3.Error as error:
        raise RunError(f"{path}: cannot be opened: {error}. Choose another place.") from error
    with _closed_unless_ready(connection, path):
        _prepare(connection)
        connection.execute("PRAGMA foreign_keys = ON")
        _check_kind(connection, path, is_new_fine=True)
        mode = journal_mode()
        (found,) = connection.execute(f"PRAGMA journal_mode = {mode}").fetchone()
        if found.upper() != mode:
            raise RunError(f"{path}: expected journal mode {mode}, got {found}: is it read-only?")
        connection.execute("PRAGMA synchronous = FULL")
    return connection


@contextmanager
def _closed_unless_ready(connection: sqlite3.Connection, path: Path) -> Iterator[None]:
    """A block that prepares a connection: whatever ends it closes that; SQLite's errors are told.

    Raises:
        RunError: When the file cannot be read.
    """
    with ExitStack() as undone:
        undone.callback(connection.close)
        try:
            yield
        except sqlite3.Error as error:
            raise _unreadable(path, error) from error
        undone.pop_all()


def open_reader(path: Path) -> sqlite3.Connection:
    """A connection that cannot write, beside whatever writer there is.

    A store of an earlier version is read as it is, where `STAND_INS` knows how.

    Raises:
        RunError: When there is no such file, it is no label store, or one of another version.
    """
    if not is_made(path):
        raise RunError(f"{path}: no such label store. Make it with `metarm label add`.")
    connection = _connect_to_read(path)
    with _closed_unless_ready(connection, path):
        _check_kind(connection, path, is_new_fine=False)
        version = schema_version(connection)
        lacking = range(version + 1, len(MIGRATIONS) + 1)
        if version > len(MIGRATIONS) or any(number not in STAND_INS for number in lacking):
            raise RunError(_other_version(path, version))
        for number in lacking:
            for statement in STAND_INS[number]:
                connection.execute(statement)
    return connection


def is_made(path: Path) -> bool:
    """Whether there is anything to read: a process may have died while it made the store.

    Raises:
        RunError: When the file cannot be read.
    """
    if not path.is_file() or not path.stat().st_size:
        return False
    with closing(_connect_to_read(path)) as connection:
        try:
            names = {row[0] for row in connection.execute("SELECT name FROM sqlite_schema")}
            if "setting" not in names:
                return bool(names)
            return connection.execute("SELECT 1 FROM setting").fetchone() is not None
        except sqlite3.Error as error:
            raise _unreadable(path, error) from error


def _connect_to_read(path: Path) -> sqlite3.Connection:
    place = quote(str(path.resolve()))
    connection = sqlite3.connect(
        f"file:{place}?mode=ro", uri=True, isolation_level=None, timeout=BUSY_SECONDS
    )
    with _closed_unless_ready(connection, path):
        _prepare(connection)
    return connection


def _prepare(connection: sqlite3.Connection) -> None:
    connection.row_factory = sqlite3.Row
    connection.execute("PRAGMA mmap_size = 0")
    connection.execute("PRAGMA trusted_schema = OFF")


def _unreadable(path: Path, error: sqlite3.Error) -> RunError:
    # A store that is only busy raises an OperationalError: nobody is told to move that away.
    if type(error) is sqlite3.DatabaseError:
        content = read_journal(journal_path(path))
        if content.entries and not content.num_damaged:
            return RunError(
                f"{path}: cannot be read as a label store: {error}. The journal beside it is whole "
                f"({len(content.entries)} entries): move {path.name} itself away, leave the "
                "journal, and run `metarm label verify --replay`."
            )
    return RunError(
        f"{path}: cannot be read as a label store: {error}. If a process died while it wrote, "
        "`metarm label verify` mends the file; if it is damaged, restore a backup and run "
        "`metarm label verify --replay`."
    )


def _check_kind(connection: sqlite3.Connection, path: Path, *, is_new_fine: bool) -> None:
    (found,) = connection.execute("PRAGMA application_id").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    if found == APPLICATION_ID or (is_new_fine and not tables and not found):
        return
    raise RunError(f"{path}: expected a label store, got another SQLite file. Mend the path.")


def _other_version(path: Path, version: int) -> str:
    known = len(MIGRATIONS)
    told = f"{path}: expected a label store of schema version {known}, got {version}."
    if version > known:
        return f"{told} A newer metarm wrote it: use that one."
    return f"{told} `metarm label verify` brings it up to date."


def schema_version(connection: sqlite3.Connection) -> int:
    """The version that the file has; 0: it is empty."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    return int(version)


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """All of the block or nothing; what it wrote is durable when it ends.

    Raises:
        RunError: When the disk is full or the database is locked or damaged; nothing was written.
    """
    try:
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            connection.execute("COMMIT")
        finally:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
    except sqlite3.OperationalError as error:
        raise RunError(
            f"the label store cannot be written: {error}. Nothing was taken: mend the place and "
            "send it again."
        ) from error


def migrate(connection: sqlite3.Connection, path: Path) -> None:
    """Bring the schema up to date.

    Raises:
        RunError: When a newer metarm wrote the file.

    Writes:
        `NAME.vN.backup` beside a store that had version N.
    """
    version = schema_version(connection)
    if version > len(MIGRATIONS):
        raise RunError(_other_version(path, version))
    if 0 < version < len(MIGRATIONS):
        write_copy(connection, path.with_name(f"{path.name}.v{version}.backup"))
    for number, statements in enumerate(MIGRATIONS[version:], start=version + 1):
        with transaction(connection):
            for statement in statements:
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {number}")


def write_copy(connection: sqlite3.Connection, path: Path) -> None:
    """Copy a store, as one moment saw it, into a file that appears whole or not at all.

    Raises:
        RunError: When the copy cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        connection.execute("VACUUM INTO ?", (str(temporary),))
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)
    except (OSError, sqlite3.Error) as error:
        raise RunError(
            f"{path}: the copy cannot be written: {error}. Choose another place."
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
