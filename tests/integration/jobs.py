# SPDX-License-Identifier: Apache-2.0
"""Jobs for worker processes, which have to find them by name."""

import os
import signal
import sys
import time
from pathlib import Path

from metarm.errors import DataError
from metarm.protocols import ProgressReporter

__all__ = ["breaks", "ends_itself", "fails", "leaves", "says_when", "sleeps"]


def says_when(file: Path, *, progress: ProgressReporter) -> None:
    """Write down when it began and ended."""
    began = time.time()
    sys.stdout.write("noise of a library\n")
    with progress.stage("work", 2) as bar:
        bar.advance(2, "done")
        time.sleep(0.2)
    file.write_text(f"{began} {time.time()}", encoding="utf-8")


def sleeps(file: Path, *, progress: ProgressReporter) -> None:
    """Write down its process and never end."""
    draft = file.with_name("draft")  # whoever sees the file may end this process at once
    draft.write_text(str(os.getpid()), encoding="utf-8")
    draft.replace(file)
    time.sleep(600)


def fails(after: Path, *, progress: ProgressReporter) -> None:
    """Raise one of our errors, for a reason, once a file is there."""
    _wait(after)
    try:
        raise KeyError("the reason")
    except KeyError as error:
        raise DataError("a row is wrong") from error


def breaks(after: Path, *, progress: ProgressReporter) -> None:
    """Fail as nobody foresaw, with more to say than a pipe holds."""
    _wait(after)
    raise ZeroDivisionError("long\n" * 100_000)


def ends_itself(after: Path, *, progress: ProgressReporter) -> None:
    """Die as for want of memory."""
    _wait(after)
    os.kill(os.getpid(), signal.SIGKILL)


def leaves(after: Path, *, progress: ProgressReporter) -> None:
    """End with a code of its own."""
    _wait(after)
    sys.exit(3)


def _wait(file: Path) -> None:
    while not file.exists():
        time.sleep(0.01)
