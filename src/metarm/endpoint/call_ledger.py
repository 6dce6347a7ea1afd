# SPDX-License-Identifier: Apache-2.0
"""What calls of several processes took together, in one file: caps that hold over all of them.

A file of answers belongs to one process; this one is shared, and only counts. A call is written
down at its most before it is sent, and at what it took when it has ended: one whose process died
counts at its most, and none begins whose most would break a cap.
"""

import fcntl
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from metarm.endpoint.answers import Spent, TokenBound
from metarm.endpoint.caps import Caps
from metarm.errors import RunError

__all__ = ["CallLedger", "Entered"]


class Entered(NamedTuple):
    """A call in a ledger, or why there is none."""

    name: str
    reached: str | None
    """The cap that is in its way."""


class CallLedger:
    """The calls of everybody who was given the same file, over all starts.

    Args:
        path: The file; made with the first call.
        caps: Of all of them together.
    """

    def __init__(self, path: Path, caps: Caps) -> None:
        self.path = path
        self.caps = caps
        self._read_bytes = 0
        self._open: dict[str, TokenBound] = {}
        self._done = Spent()

    @property
    def spent(self) -> Spent:
        """What all calls took, as of the last look; those under way at their most."""
        total = self._done
        for bound in self._open.values():
            total = total.plus(bound)
        return total

    def begin(self, bound: TokenBound) -> Entered:
        """Write a call down, unless that could break a cap.

        Raises:
            RunError: When the file cannot be written.
        """
        with self._held() as descriptor:
            self._look(descriptor)
            reached = self.caps.reached(self.spent.plus(bound, calls=1))
            if reached is not None:
                return Entered("", reached)
            name = secrets.token_hex(8)
            self._write(descriptor, {"call": name, "bound": list(bound)})
            self._look(descriptor)
        return Entered(name, None)

    def end(self, name: str, took: TokenBound) -> None:
        """Write down what a call took.

        Raises:
            RunError: When the file cannot be written.
        """
        with self._held() as descriptor:
            self._write(descriptor, {"ended": name, "took": list(took)})
            self._look(descriptor)

    @contextmanager
    def _held(self) -> Iterator[int]:
        """The file, which no other process looks into or writes meanwhile."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        except OSError as error:
            raise self._unwritten(error.strerror) from error
        try:
            # Some network file systems have no locks, and work there is better than none.
            with suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield descriptor
        finally:
            os.close(descriptor)

    def _look(self, descriptor: int) -> None:
        """Take what others have written since."""
        size = os.fstat(descriptor).st_size
        data = os.pread(descriptor, size - self._read_bytes, self._read_bytes)
        whole = data.rfind(b"\n") + 1
        self._read_bytes += whole
        for line in data[:whole].splitlines():
            # A line that was torn and ended by the next: its call stays at its most.
            with suppress(ValueError, KeyError, TypeError):
                self._take(json.loads(line))

    def _take(self, row: Mapping[str, Any]) -> None:
        if "call" in row:
            self._open[row["call"]] = TokenBound(*map(int, row["bound"]))
            self._done = self._done.plus(TokenBound(0, 0), calls=1)
        else:
            took = TokenBound(*map(int, row["took"]))
            if self._open.pop(row["ended"], None) is not None:
                self._done = self._done.plus(took)

    def _write(self, descriptor: int, row: Mapping[str, Any]) -> None:
        """Append a line in one piece, apart from one that was torn."""
        size = os.fstat(descriptor).st_size
        is_torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
        line = (b"\n" if is_torn else b"") + json.dumps(row).encode() + b"\n"
        try:
            written = os.write(descriptor, line)
        except OSError as error:
            raise self._unwritten(error.strerror) from error
        if written < len(line):
            raise self._unwritten("the disk is full")

    def _unwritten(self, why: str | None) -> RunError:
        return RunError(
            f"cannot write {self.path}: {why}. Answers so far are kept: mend the place and run "
            "the same command again."
        )
