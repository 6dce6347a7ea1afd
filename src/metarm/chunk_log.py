# SPDX-License-Identifier: Apache-2.0
"""Work done in parts: each part is kept as soon as it is done, and found again after any end."""

import errno
import hashlib
import json
import logging
import os
from pathlib import Path
from typing import Any

from metarm.errors import RunError

__all__ = ["ChunkLog"]

logger = logging.getLogger(__name__)


class ChunkLog:
    """Parts by their keys, one a line, each with a digest; a torn or damaged end is cut off.

    A line costs microseconds: it is not synced, so that a loss of power may take the last ones,
    whose digests then tell; the death of the process takes none.

    Args:
        path: The file; it and its folder are made with the first part.

    Raises:
        RunError: When the file is there and cannot be read or cut.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._parts: dict[str, Any] = {}
        try:
            self._read()
        except OSError as error:
            raise RunError(f"{path}: cannot be read: {error.strerror}. Remove it.") from error

    def _read(self) -> None:
        if not self.path.exists():
            return
        whole = 0
        data = self.path.read_bytes()
        for line in data.splitlines(keepends=True):
            part = _read_line(line)
            if part is None:
                break
            self._parts[part[0]] = part[1]
            whole += len(line)
        if whole < len(data):
            logger.warning(
                "%s: the last %d bytes are torn or damaged and are made again",
                self.path,
                len(data) - whole,
            )
            os.truncate(self.path, whole)

    def get(self, key: str) -> Any:
        """The part's value; None where it is not done yet."""
        return self._parts.get(key)

    def put(self, key: str, value: Any) -> None:
        """Keep a part.

        Args:
            key: Names it.
            value: As JSON, not None; floats come back as they were, bit for bit.
        """
        text = json.dumps([key, value])
        line = f"{hashlib.sha256(text.encode()).hexdigest()[:16]} {text}\n".encode()
        if not self._parts:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "ab", buffering=0) as stream:
            if stream.write(line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
        self._parts[key] = value


def _read_line(line: bytes) -> tuple[str, Any] | None:
    """Key and value of a line; None where it is not what `put` wrote."""
    digest, _, text = line.rstrip(b"\n").partition(b" ")
    if not line.endswith(b"\n") or hashlib.sha256(text).hexdigest()[:16].encode() != digest:
        return None
    key, value = json.loads(text)
    return key, value
