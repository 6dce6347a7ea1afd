# SPDX-License-Identifier: Apache-2.0
"""Jobs in processes of their own, a few at a time; the first failure stops all."""

import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout, suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.managers import SyncManager
from typing import Any, Protocol

from metarm.errors import MetarmError, RunError
from metarm.progress import QueueProgress, forward
from metarm.protocols import ProgressReporter

__all__ = ["Job", "run_in_processes"]


class Job(Protocol):
    """Work that can be pickled: a module's own function, or a `functools.partial` of one."""

    def __call__(self, *, progress: ProgressReporter) -> None:
        """Do the work."""
        ...


def run_in_processes(jobs: Mapping[str, Job], *, workers: int, progress: ProgressReporter) -> None:
    """Run each job in a new process, at most `workers` at the same time, in their order.

    No process outlives this one, however it ends.

    Args:
        jobs: Work by its name, which stands before the names of its progress bars.
        workers: How many at a time.
        progress: Gets the bars of all jobs.

    Raises:
        MetarmError: As the first failing job raised it; the others are ended.
        RunError: When a worker died.
    """
    context = multiprocessing.get_context("spawn")
    manager = SyncManager(ctx=context)
    with _deaf_to_interrupts():
        manager.start(initializer=_end_with_parent)
    waiting = list(jobs.items())
    running: dict[Any, tuple[Any, Connection]] = {}
    with manager:
        queue = manager.Queue()
        try:
            with forward(queue, progress):
                while waiting or running:
                    while waiting and len(running) < workers:
                        name, job = waiting.pop(0)
                        receiver, sender = context.Pipe(duplex=False)
                        arguments = (job, QueueProgress(queue, label=f"{name}: "), sender)
                        process = context.Process(target=_work, args=arguments)
                        with _deaf_to_interrupts():
                            process.start()
                            running[process.sentinel] = (process, receiver)
                        sender.close()
                    for sentinel in wait(list(running)):
                        process, receiver = running.pop(sentinel)
                        process.join()
                        _raise_from(process, receiver)
        finally:
            for process, _ in running.values():
                process.terminate()
            for process, _ in running.values():
                process.join()


@contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """A block whose new processes ignore Ctrl-C from their first instruction on.

    It goes to the whole terminal group: the parent decides, and ends its workers.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _end_with_parent() -> None:
    """End this process when its parent dies: an orphan would go on writing into the folder."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    sentinel = parent.sentinel

    def watch() -> None:
        wait([sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _work(job: Job, progress: ProgressReporter, sender: Connection) -> None:
    _end_with_parent()
    try:
        # stdout is for the parent's answer alone.
        with redirect_stdout(sys.stderr):
            job(progress=progress)
    except MetarmError as error:
        # Pickling drops the traceback and the cause: a note keeps them for --debug.
        error.add_note("".join(traceback.format_exception(error)))
        sender.send(error)
        sys.exit(2)


def _raise_from(process: Any, receiver: Connection) -> None:
    if process.exitcode == 0:
        return
    # A dead worker's end of the pipe is closed, which counts as something to read.
    with suppress(EOFError):
        raise receiver.recv()
    if process.exitcode > 0:
        raise RunError(
            f"a worker process ended with code {process.exitcode}: what happened stands above. "
            "Finished stages are kept; the same command goes on from there."
        )
    name = signal.Signals(-process.exitcode).name
    raise RunError(
        f"a worker process was killed by {name} (SIGKILL: often for want of memory; then set "
        "workers=1). Finished stages are kept; the same command goes on from there."
    )
