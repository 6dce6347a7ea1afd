# SPDX-License-Identifier: Apache-2.0
"""Jobs in processes of their own, a few at a time; the first failure stops all."""

import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout, suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.managers import SyncManager
from typing import Any, Protocol

from metarm.errors import MetarmError, RunError
from metarm.interrupts import GRACE_SECONDS, Stopped, stop_on_signals
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

    No process outlives this one, however it ends; those that are ended keep what they have first.

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
        manager.start(initializer=_serve_to_the_end)
    waiting = list(jobs.items())
    running: dict[Connection, Any] = {}
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
                            running[receiver] = process
                        sender.close()
                    # A pipe can be read when its worker has failed, and when it is no more.
                    readable = wait(list(running))
                    for receiver in [r for r in running if r in readable]:
                        _raise_from(running.pop(receiver), receiver)
        finally:
            for process in running.values():
                process.terminate()
            # They keep what they have at their next step boundary; then nothing may outlive this.
            end = time.monotonic() + GRACE_SECONDS + 5
            for process in running.values():
                process.join(max(0.0, end - time.monotonic()))
            for process in running.values():
                process.kill()
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


def _serve_to_the_end() -> None:
    """For the queue's process: SIGTERM goes to a whole job, and workers have last words."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _end_with_parent()


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
        with stop_on_signals(), redirect_stdout(sys.stderr):
            job(progress=progress)
    except Stopped as stop:
        sys.exit(stop.exit_code)
    except Exception as error:  # noqa: BLE001 - the parent raises it
        # Pickling drops the traceback and the cause: a note keeps them for --debug.
        told = error if isinstance(error, MetarmError) else RunError(_describe(error))
        told.add_note("".join(traceback.format_exception(error)))
        sender.send(told)
        sys.exit(2)


def _describe(error: Exception) -> str:
    """An error that metarm did not foresee: its kind and what it says, on one line."""
    said = " ".join(str(error).split())
    return f"a worker process stopped: {type(error).__name__}{': ' if said else ''}{said}"


def _raise_from(process: Any, receiver: Connection) -> None:
    """Raise what ended a worker, if anything did."""
    try:
        # Before the join: a long message is not sent before it is read.
        with suppress(EOFError):
            raise receiver.recv()
    finally:
        process.join()
    if process.exitcode == 0:
        return
    if process.exitcode in (128 + signal.SIGINT, 128 + signal.SIGTERM):
        raise RunError(
            f"a worker process was stopped by {signal.Signals(process.exitcode - 128).name}. What "
            "it had done is kept; the same command goes on from there."
        )
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
