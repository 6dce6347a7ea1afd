# SPDX-License-Identifier: Apache-2.0
"""Answers of a model behind a URL on disk: each is paid for once, whatever ends the process.

A file of JSON lines that only grows. A line says that a call begins, how it ended, or what came
back; so what was spent can be told after any end, calls that were under way when the process died
among it. Each line has a check sum: one that was cut or damaged is no answer, and is asked again.
"""

import errno
import fcntl
import hashlib
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from metarm.errors import DataError, RunError

__all__ = ["Answer", "AnswerFile", "Spent", "TokenBound"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model wrote."""

    text: str
    is_finished: bool
    """Whether it ended by itself, not at the longest length."""
    prompt_tokens: int | None
    answer_tokens: int | None
    """As the server counts them; None where it does not say."""
    model: str
    """Its name as the server gives it."""


class TokenBound(NamedTuple):
    """The most tokens that a call can take."""

    prompt: int
    answer: int


@dataclass(frozen=True, slots=True)
class Spent:
    """What the calls of all starts took."""

    calls: int = 0
    prompt_tokens: int = 0
    answer_tokens: int = 0
    """Of calls that never came back, the most that they can have taken."""

    def plus(self, bound: TokenBound, calls: int = 0) -> "Spent":
        """With so much more."""
        return Spent(
            self.calls + calls,
            self.prompt_tokens + bound.prompt,
            self.answer_tokens + bound.answer,
        )

    def to_json(self) -> dict[str, int]:
        """Plain values."""
        return asdict(self)


class AnswerFile:
    """The answers in a file, and what they took. A context: the file is held while it is open.

    Attributes:
        answers: By the key of what was asked.
        num_damaged: Lines that were cut or changed, and do not count.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.answers: dict[str, Answer] = {}
        self.num_damaged = 0
        self._open: dict[int, TokenBound] = {}
        self._next = 0
        self._done = Spent()
        self._descriptor: int | None = None

    def __enter__(self) -> "AnswerFile":
        """Open the file and read what is there.

        Raises:
            RunError: When the file is in use by another process, or cannot be written.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND
            self._descriptor = os.open(self.path, flags, 0o666)
            self._hold()
            data = self.path.read_bytes()
            if data and not data.endswith(b"\n"):
                os.write(self._descriptor, b"\n")
        except OSError as error:
            raise RunError(
                f"cannot write {self.path}: {error.strerror}. Mend the place or choose another one."
            ) from error
        for line in data.splitlines():
            self._read(line)
        if self.num_damaged:
            logger.warning(
                "%s: %d damaged lines are left out and asked again", self.path, self.num_damaged
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Make everything survive a loss of power, and let the file go."""
        if self._descriptor is not None:
            os.fsync(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = None

    def _hold(self) -> None:
        assert self._descriptor is not None
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunError(
                f"{self.path} is in use by another process: wait for it, stop it, or choose "
                "another output"
            ) from error
        except OSError as error:
            # Some network file systems have no locks, and work there is better than none.
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                raise

    @property
    def spent(self) -> Spent:
        """What all calls took so far, those under way at their most."""
        total = self._done
        for bound in self._open.values():
            total = total.plus(bound)
        return total

    @property
    def num_calls(self) -> int:
        """Calls begun so far, over all starts."""
        return self._done.calls

    def begin(self, key: str, bound: TokenBound) -> int:
        """Note that a call for `key` begins; gives its number."""
        number = self._next
        self._write({"call": number, "key": key, "bound": list(bound)})
        return number

    def keep(self, number: int, key: str, answer: Answer) -> TokenBound:
        """Keep what a call brought back; what it took."""
        return self._write({"ended": number, "key": key, "answer": asdict(answer)})

    def fail(self, number: int, reason: str, *, may_be_billed: bool) -> TokenBound:
        """Note that a call brought nothing, and whether the server may count it; what it took."""
        return self._write({"ended": number, "failed": reason, "may_be_billed": may_be_billed})

    def _write(self, row: Mapping[str, Any]) -> TokenBound:
        """Append a line in one piece: a kill tears none. Gives what it means for what was spent."""
        assert self._descriptor is not None, "the file is not open"
        text = json.dumps(row, ensure_ascii=True, allow_nan=False)
        line = f'{text[:-1]}, "sum": "{_check_sum(text)}"}}\n'.encode()
        try:
            written = os.write(self._descriptor, line)
        except OSError as error:
            raise RunError(
                f"cannot write {self.path}: {error.strerror}. Answers so far are kept: free space "
                "and run the same command again."
            ) from error
        if written < len(line):
            raise RunError(f"cannot write {self.path}: the disk is full. Answers so far are kept.")
        return self._take(row)

    def _read(self, line: bytes) -> None:
        """Take one line of an earlier start, if it is whole."""
        if not line.strip():
            return
        try:
            row = json.loads(line)
            told = row.pop("sum")
            if told != _check_sum(json.dumps(row, ensure_ascii=True, allow_nan=False)):
                raise DataError("another check sum")
            self._take(row)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            self.num_damaged += 1

    def _take(self, row: Mapping[str, Any]) -> TokenBound:
        """What a line means for the answers and for what was spent."""
        if "call" in row:
            self._open[row["call"]] = TokenBound(*row["bound"])
            self._done = self._done.plus(TokenBound(0, 0), calls=1)
            self._next = max(self._next, row["call"] + 1)
            return TokenBound(0, 0)
        bound = self._open.pop(row["ended"], TokenBound(0, 0))
        if "answer" in row:
            answer = Answer(**row["answer"])
            self.answers[row["key"]] = answer
            counted = (answer.prompt_tokens, answer.answer_tokens)
            bound = TokenBound(
                *(b if n is None else n for n, b in zip(counted, bound, strict=True))
            )
        elif not row["may_be_billed"]:
            return TokenBound(0, 0)
        self._done = self._done.plus(bound)
        return bound


def _check_sum(text: str) -> str:
    """Twelve hex digits of a line's own text."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]
