# SPDX-License-Identifier: Apache-2.0
"""Progress on stderr: bars on a terminal, plain lines everywhere else."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

from metarm.launched import is_first
from metarm.progress import SilentProgress
from metarm.protocols import ProgressReporter, StageProgress

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

__all__ = ["PlainProgress", "RichProgress", "choose_progress"]


def choose_progress(stream: TextIO | None = None) -> ProgressReporter:
    """Bars where `stream` (default: stderr) is a terminal, plain lines where it is not.

    Of several processes that train together the first one shows it.
    """
    if not is_first():
        return SilentProgress()
    stream = sys.stderr if stream is None else stream
    return RichProgress(stream) if stream.isatty() else PlainProgress(stream)


def _clock(seconds: float) -> str:
    """A duration as `h:mm:ss`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"


class RichProgress:
    """A bar per open stage, with elapsed and remaining time; a line for each finished one."""

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left", style="dim"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", style="dim", markup=False),
            console=Console(file=stream),
        )
        self._num_open = 0

    @contextmanager
    def stage(self, name: str, total: int) -> Iterator[StageProgress]:
        """A bar below those that are open already."""
        if not self._num_open:
            self._progress.start()
        task = self._progress.add_task("  " * self._num_open + name, total=total, note="")
        self._num_open += 1
        started = time.monotonic()
        is_done = False
        try:
            yield _RichStage(self._progress, task)
            is_done = True
        finally:
            self._num_open -= 1
            self._progress.remove_task(task)
            state = "done in" if is_done else "stopped after"
            self._progress.console.print(
                f"{name}: {state} {_clock(time.monotonic() - started)}",
                markup=False,
                highlight=False,
            )
            if not self._num_open:
                self._progress.stop()


@dataclass(slots=True)
class _RichStage:
    progress: "Progress"
    task: "TaskID"

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Move the bar; an empty note leaves the last one."""
        if note:
            self.progress.update(self.task, advance=steps, note=note)
        else:
            self.progress.update(self.task, advance=steps)


class PlainProgress:
    """A line when a stage begins and ends, and about one every `interval_seconds` between."""

    def __init__(
        self,
        stream: TextIO,
        *,
        interval_seconds: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stream = stream
        self._interval = interval_seconds
        self._clock = clock
        self._num_open = 0

    @contextmanager
    def stage(self, name: str, total: int) -> Iterator[StageProgress]:
        """A stage whose lines are indented below those that are open already."""
        stage = _PlainStage(self, "  " * self._num_open + name, total, self._clock())
        stage.say(f"{total} step{'' if total == 1 else 's'}")
        self._num_open += 1
        is_done = False
        try:
            yield stage
            is_done = True
        finally:
            self._num_open -= 1
            stage.say(f"{'done in' if is_done else 'stopped after'} {_clock(stage.elapsed())}")

    def write(self, line: str) -> None:
        """One line, at once."""
        print(line, file=self._stream, flush=True)


class _PlainStage:
    def __init__(self, reporter: PlainProgress, name: str, total: int, started: float) -> None:
        self._reporter = reporter
        self._name = name
        self._total = total
        self._started = self._last = started
        self._steps = 0

    def elapsed(self) -> float:
        """Seconds since the stage began."""
        return self._reporter._clock() - self._started

    def say(self, text: str) -> None:
        """A line with the stage's name."""
        self._reporter.write(f"{self._name}: {text}")

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Count the steps; say so where the last line is old enough."""
        self._steps += steps
        now = self._reporter._clock()
        if now - self._last < self._reporter._interval or self._steps >= self._total:
            return
        self._last = now
        elapsed = self.elapsed()
        left = elapsed / self._steps * (self._total - self._steps) if self._steps else 0.0
        tail = f", {note}" if note else ""
        self.say(
            f"{self._steps} of {self._total}, {_clock(elapsed)} gone, {_clock(left)} left{tail}"
        )
