# SPDX-License-Identifier: Apache-2.0
"""The journal beside a label store: every entry once more, one a line with its digest, synced."""

import contextlib
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metarm.errors import RunError
from metarm.labels.entries import KINDS, Entry
from metarm.storage import sync

__all__ = ["Journal", "JournalContent", "journal_path", "read_journal"]


def journal_path(database: Path) -> Path:
    """Where a database's journal is."""
    return database.with_name(f"{database.name}.journal.jsonl")


@dataclass(frozen=True, slots=True)
class JournalContent:
    """What can be read of a journal."""

    entries: tuple[Entry, ...]
    num_damaged: int
    """Lines in the middle that are not as they were written."""
    whole_bytes: int
    """Size without a torn last line."""
    num_bytes: int


def read_journal(path: Path) -> JournalContent:
    """The entries of a journal; damaged lines are counted and left out, a torn last one too.

    Raises:
        RunError: When the file cannot be read.
    """
    try:
        data = path.read_bytes() if path.exists() else b""
    except OSError as error:
        raise RunError(f"{path}: cannot be read: {error.strerror}. Mend its rights.") from error
    entries = []
    num_damaged = whole = 0
    for line in data.split(b"\n")[:-1]:
        whole += len(line) + 1
        entry = _read_line(line)
        if entry is None:
            num_damaged += 1
        else:
            entries.append(entry)
    return JournalContent(tuple(entries), num_damaged, whole, len(data))


def _line(entry: Entry) -> bytes:
    text = json.dumps(entry, allow_nan=False)
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    return f'{{"digest": "{digest}", {text[1:]}\n'.encode()


def _read_line(line: bytes) -> Entry | None:
    """The entry in a line; None where the line is not what was written."""
    head = b'{"digest": "'
    digest, text = line[len(head) : len(head) + 16], b"{" + line[len(head) + 19 :]
    if hashlib.sha256(text).hexdigest()[:16].encode() != digest:
        return None
    entry: dict[str, Any] = json.loads(text)
    return entry if entry.get("entry") in KINDS else None


class Journal:
    """A journal that is written: whoever holds the database's lock is the only one.

    Args:
        path: The file; made with the first entry.
        whole_bytes: Where a torn last line begins, which is cut off.
    """

    def __init__(self, path: Path, whole_bytes: int) -> None:
        self.path = path
        self._end = whole_bytes
        is_new = not path.exists()
        try:
            self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o666)
            os.ftruncate(self._descriptor, whole_bytes)
            if is_new:
                sync(path.parent)
        except OSError as error:
            raise RunError(f"{path}: cannot be written: {error.strerror}. Mend it.") from error

    def append(self, entries: Sequence[Entry]) -> None:
        """Write entries; they are durable when it returns.

        Raises:
            RunError: When the disk is full; what was written of them is cut off again.
        """
        data = b"".join(map(_line, entries))
        left = memoryview(data)
        try:
            os.lseek(self._descriptor, self._end, os.SEEK_SET)
            while left:
                left = left[os.write(self._descriptor, left) :]
            os.fsync(self._descriptor)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, self._end)
            raise RunError(
                f"{self.path}: cannot be written: {error.strerror}. Free space and send it again."
            ) from error
        self._end += len(data)

    def close(self) -> None:
        """Give the file back."""
        os.close(self._descriptor)
