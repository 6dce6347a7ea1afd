# SPDX-License-Identifier: Apache-2.0
"""Stopping on request: at the next step boundary where work has one, at once everywhere else.

Ctrl-C (SIGINT) and SIGTERM ask for the same. Inside `at_boundaries` the work is told and has a few
seconds to keep what it has; a second signal, or the end of those seconds, ends it at once.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

__all__ = [
    "GRACE_SECONDS",
    "Stopped",
    "at_boundaries",
    "stop_if_asked",
    "stop_is_asked",
    "stop_on_signals",
]

GRACE_SECONDS: Final = 20.0
"""From the signal to the end of the work, at most; schedulers usually give 30 before SIGKILL."""

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


class Stopped(KeyboardInterrupt):
    """A signal asked this process to end."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number

    @property
    def exit_code(self) -> int:
        """As a shell has it: 130 after Ctrl-C, 143 after SIGTERM."""
        return 128 + self.number


@dataclass(slots=True)
class _Request:
    """Signals are a process's own, and so is what is known of them."""

    depth: int = 0
    number: int | None = None


_request = _Request()


@contextmanager
def stop_on_signals() -> Iterator[None]:
    """A block that Ctrl-C and SIGTERM end by `Stopped`; a signal that is ignored stays ignored.

    Only a process's main thread can do this; elsewhere the block is as without it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (*_SIGNALS, signal.SIGALRM)}
    for number in _SIGNALS:
        if before[number] is not signal.SIG_IGN:
            signal.signal(number, _on_signal)
    signal.signal(signal.SIGALRM, _on_alarm)
    try:
        yield
    finally:
        _forget()
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)


def _on_signal(number: int, frame: Any) -> None:
    if _request.depth and _request.number is None:
        _request.number = number
        signal.setitimer(signal.ITIMER_REAL, GRACE_SECONDS)
        return
    _end(number)


def _on_alarm(number: int, frame: Any) -> None:
    if _request.number is not None:
        _end(_request.number)


def _end(number: int) -> None:
    _forget()
    raise Stopped(number)


def _forget() -> None:
    if _request.number is not None:
        signal.setitimer(signal.ITIMER_REAL, 0)
    _request.number = None


@contextmanager
def at_boundaries() -> Iterator[None]:
    """A block that calls `stop_if_asked` wherever all it has done is kept.

    A request that came too late for that ends the block.

    Raises:
        Stopped: At the end of the block.
    """
    _request.depth += 1
    try:
        yield
    finally:
        _request.depth -= 1
    if not _request.depth:
        stop_if_asked()


def stop_is_asked() -> bool:
    """Whether a signal waits for the next boundary."""
    return _request.number is not None


def stop_if_asked() -> None:
    """End the work here, where a signal has asked for it.

    Raises:
        Stopped: Where it has.
    """
    if _request.number is not None:
        _end(_request.number)
