# SPDX-License-Identifier: Apache-2.0
"""Progress without a screen: silent, or sent through a queue to the process that has one.

The parent says `with forward(queue, reporter):` and starts its workers inside; each worker is given
`QueueProgress(queue)`, an ordinary reporter.
"""

import threading
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Protocol

from metarm.protocols import ProgressReporter, StageProgress

__all__ = [
    "ProgressEvent",
    "ProgressQueue",
    "QueueProgress",
    "SilentProgress",
    "drain",
    "forward",
]


class ProgressQueue(Protocol):
    """The part of a `multiprocessing` queue that is used here."""

    def put(self, item: Any) -> None:
        """Send one event."""
        ...

    def get(self) -> Any:
        """Wait for one event."""
        ...


@dataclass(frozen=True, slots=True)
class ProgressEvent:
    """One thing that happened to one stage: it began (`total`), moved (`steps`) or ended."""

    stage: str
    """Unique in all processes that share the queue."""
    name: str = ""
    total: int | None = None
    steps: int = 0
    note: str = ""
    is_end: bool = False
    is_failed: bool = False
    """Whether the stage ended by an error."""


class _SilentStage:
    def advance(self, steps: int = 1, note: str = "") -> None:
        """Nothing is shown."""


class SilentProgress:
    """A reporter that shows nothing."""

    @contextmanager
    def stage(self, name: str, total: int) -> Iterator[StageProgress]:
        """A stage that shows nothing."""
        yield _SilentStage()


@dataclass(slots=True)
class _QueueStage:
    queue: ProgressQueue
    key: str

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Send the steps to whoever drains the queue."""
        self.queue.put(ProgressEvent(self.key, steps=steps, note=note))


@dataclass
class QueueProgress:
    """A reporter that sends its events to a queue; picklable wherever the queue is.

    Args:
        queue: Of `multiprocessing`; a manager's queue also survives pickling into a pool.
        label: Put before each stage's name, to tell the workers apart ("seed 1: ").
    """

    queue: ProgressQueue
    label: str = ""

    @contextmanager
    def stage(self, name: str, total: int) -> Iterator[StageProgress]:
        """Open a stage on the other side of the queue."""
        key = uuid.uuid4().hex
        self.queue.put(ProgressEvent(key, name=f"{self.label}{name}", total=total))
        is_failed = True
        try:
            yield _QueueStage(self.queue, key)
            is_failed = False
        finally:
            self.queue.put(ProgressEvent(key, is_end=True, is_failed=is_failed))


def drain(queue: ProgressQueue, reporter: ProgressReporter) -> None:
    """Replay events into `reporter` until None comes out of the queue, or the queue is gone.

    A stage whose worker died is closed at the end, as one that failed; an event of a stage that is
    not open is dropped.
    """
    managers: dict[str, AbstractContextManager[StageProgress]] = {}
    stages: dict[str, StageProgress] = {}
    try:
        while (event := _next_event(queue)) is not None:
            if event.total is not None:
                managers[event.stage] = reporter.stage(event.name, event.total)
                stages[event.stage] = managers[event.stage].__enter__()
            elif event.stage not in stages:
                continue
            elif event.is_end:
                del stages[event.stage]
                _close(managers.pop(event.stage), is_failed=event.is_failed)
            else:
                stages[event.stage].advance(event.steps, event.note)
    finally:
        for manager in managers.values():
            _close(manager, is_failed=True)


def _close(manager: AbstractContextManager[StageProgress], *, is_failed: bool) -> None:
    """End a stage as its worker did: the reporter sees an error where there was one."""
    if is_failed:
        manager.__exit__(InterruptedError, InterruptedError("the stage's worker stopped"), None)
    else:
        manager.__exit__(None, None, None)


def _next_event(queue: ProgressQueue) -> ProgressEvent | None:
    """The next event; None at the end, also where the queue's process has died."""
    try:
        event: ProgressEvent | None = queue.get()
    except (EOFError, OSError):
        return None
    return event


@contextmanager
def forward(queue: ProgressQueue, reporter: ProgressReporter) -> Iterator[None]:
    """Run `drain` in a thread for as long as the block lasts, then show what is left and stop.

    Leave the block only after the workers are done: later events stay in the queue.
    """
    thread = threading.Thread(target=drain, args=(queue, reporter), daemon=True)
    thread.start()
    try:
        yield
    finally:
        # A queue that died with its process must not hide the error that ended the block.
        with suppress(EOFError, OSError):
            queue.put(None)
        thread.join()
