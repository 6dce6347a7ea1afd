# SPDX-License-Identifier: Apache-2.0
"""Opening a label store to write: the lock, the schema, and database and journal made the same."""

import logging
import secrets
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from metarm.errors import ConfigError, FormatError, RunError
from metarm.labels.entries import Entry, add_entry, entry_key, read_entries, store_of
from metarm.labels.journal import Journal, JournalContent, journal_path, read_journal
from metarm.labels.settings import LabelSettings
from metarm.labels.tables import journal_mode, migrate, open_writer, transaction
from metarm.locks import lock_file
from metarm.storage import check_writable

__all__ = ["OpenedStore", "open_store"]

logger: Final = logging.getLogger(__name__)

SECRET_BYTES: Final = 16
"""Of a store's id, which tells it from others and is what its draws are made of."""


@dataclass(frozen=True, slots=True)
class OpenedStore:
    """A store that is held by this process, and what opening it had to mend."""

    connection: sqlite3.Connection
    journal: Journal
    num_replayed: int
    """Entries that the database had lost and the journal had not."""
    num_journalled: int
    """Entries that the journal had not got yet."""


@contextmanager
def open_store(
    path: Path, settings: LabelSettings | None, now: float, *, replay: bool
) -> Iterator[OpenedStore]:
    """Hold a store against every other process for as long as the block lasts.

    Args:
        path: The database.
        settings: To be in force from now on; None: as they are, or the defaults.
        now: Seconds since 1970.
        replay: Whether a database that is gone is made again from its journal.

    Raises:
        RunError: When another process holds it, or database and journal cannot be made the same.
        ConfigError: When `settings` has another seed than the store, or the path is a folder.
    """
    if path.is_dir():
        raise ConfigError(f"{path}: expected a label store, which is a file, got a folder")
    check_writable(path.parent)
    with open(path.with_name(f".{path.name}.lock"), "w", encoding="utf-8") as lock:
        lock_file(lock, path, "label store")
        content = read_journal(journal_path(path))
        _check_whole(path, content, replay=replay)
        with closing(open_writer(path)) as connection:
            migrate(connection, path)
            num_replayed = _replay(connection, path, content)
            with closing(Journal(journal_path(path), content.whole_bytes)) as journal:
                num_journalled = _catch_up(connection, journal, content)
                _keep_settings(connection, journal, settings, now)
                logger.info(
                    "%s: SQLite %s, journal mode %s",
                    path,
                    sqlite3.sqlite_version,
                    journal_mode(),
                )
                yield OpenedStore(connection, journal, num_replayed, num_journalled)


def _check_whole(path: Path, content: JournalContent, *, replay: bool) -> None:
    """Refuse a journal without its database, unless that is to be made again."""
    is_gone = not path.exists() or not path.stat().st_size
    if is_gone and content.entries and not replay:
        raise RunError(
            f"{path}: there is no database, but a journal of {len(content.entries)} entries beside "
            "it. Restore a backup, have it made again with `metarm label verify --replay`, or move "
            "the journal away."
        )
    if content.num_damaged:
        logger.warning("%s: %d damaged lines are left out", journal_path(path), content.num_damaged)


def _replay(connection: sqlite3.Connection, path: Path, content: JournalContent) -> int:
    """Add to the database what only the journal has; how many entries that were."""
    there = {entry_key(entry): entry for entry in read_entries(connection)}
    one, other = store_of(there.values()), store_of(content.entries)
    if one and other and one != other:
        raise RunError(
            f"{path}: expected the journal of this store, got that of another one. Move it away, "
            "or restore the database that it belongs to."
        )
    lost = {entry_key(entry): entry for entry in content.entries if entry_key(entry) not in there}
    try:
        with transaction(connection):
            for entry in lost.values():
                add_entry(connection, entry["entry"], entry["row"])
    except (FormatError, KeyError) as error:
        raise RunError(
            f"{path}: the journal has entries that do not fit the database: {error}. Restore a "
            "backup of the database and run `metarm label verify --replay`."
        ) from error
    if lost:
        logger.warning("%s: %d entries came back from the journal", path, len(lost))
    return len(lost)


def _catch_up(connection: sqlite3.Connection, journal: Journal, content: JournalContent) -> int:
    """Add to the journal what only the database has; how many entries that were."""
    known = {entry_key(entry) for entry in content.entries}
    owed = [entry for entry in read_entries(connection) if entry_key(entry) not in known]
    if owed:
        journal.append(owed)
    return len(owed)


def _keep_settings(
    connection: sqlite3.Connection,
    journal: Journal,
    settings: LabelSettings | None,
    now: float,
) -> None:
    """Store the settings where they are new."""
    row = connection.execute(
        "SELECT number, store, value FROM setting ORDER BY number DESC LIMIT 1"
    ).fetchone()
    if row is None:
        number, store, wanted = 1, secrets.token_hex(SECRET_BYTES), settings or LabelSettings()
    else:
        before = LabelSettings.model_validate_json(row["value"])
        if settings is None:
            return
        if settings.seed not in (None, before.seed):
            kept = "no seed" if before.seed is None else f"seed={before.seed}"
            raise ConfigError(
                f"expected {kept}, as the sides in the store were drawn, got seed={settings.seed}: "
                "leave it out"
            )
        wanted = settings.model_copy(update={"seed": before.seed})
        if wanted == before:
            return
        number, store = row["number"] + 1, row["store"]
    with transaction(connection):
        values = {"number": number, "store": store, "value": wanted.model_dump(), "at": now}
        entry: Entry = add_entry(connection, "setting", values)
    journal.append([entry])
