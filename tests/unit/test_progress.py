# SPDX-License-Identifier: Apache-2.0
"""Progress through queues: what a worker reports is what its parent shows."""

import multiprocessing
import pickle
import queue
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from metarm.progress import ProgressEvent, QueueProgress, SilentProgress, drain, forward
from metarm.protocols import ProgressReporter, StageProgress


class Recorder:
    """Writes down every call, in order."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    @contextmanager
    def stage(self, name: str, total: int) -> Iterator[StageProgress]:
        self.calls.append(("begin", name, total))
        recorder = self

        class Stage:
            def advance(self, steps: int = 1, note: str = "") -> None:
                recorder.calls.append(("advance", name, steps, note))

        try:
            yield Stage()
        except BaseException:
            self.calls.append(("fail", name))
            raise
        self.calls.append(("end", name))


def work(progress: ProgressReporter) -> None:
    with progress.stage("outer", 2) as outer:
        outer.advance()
        with progress.stage("inner", 3) as inner:
            inner.advance(3, "loss 0.5")
        outer.advance(note="done")


EXPECTED = [
    ("begin", "outer", 2),
    ("advance", "outer", 1, ""),
    ("begin", "inner", 3),
    ("advance", "inner", 3, "loss 0.5"),
    ("end", "inner"),
    ("advance", "outer", 1, "done"),
    ("end", "outer"),
]


def test_a_queue_carries_every_call_in_order() -> None:
    direct, through = Recorder(), Recorder()
    work(direct)
    channel: queue.Queue[Any] = queue.Queue()
    with forward(channel, through):
        work(QueueProgress(channel))
    assert direct.calls == EXPECTED
    assert through.calls == EXPECTED


def test_workers_in_other_processes_report_here() -> None:
    context = multiprocessing.get_context("spawn")
    recorder = Recorder()
    with context.Manager() as manager:
        channel = manager.Queue()
        with forward(channel, recorder):
            workers = [
                context.Process(target=work, args=(QueueProgress(channel, f"seed {n}: "),))
                for n in range(2)
            ]
            for worker in workers:
                worker.start()
            for worker in workers:
                worker.join()
    for n in range(2):
        label = f"seed {n}: "
        mine = [call for call in recorder.calls if call[1].startswith(label)]
        assert mine == [(call[0], label + call[1], *call[2:]) for call in EXPECTED]


def test_a_stage_ends_when_its_work_fails() -> None:
    channel: queue.Queue[Any] = queue.Queue()
    recorder = Recorder()
    with (
        pytest.raises(ZeroDivisionError),
        forward(channel, recorder),
        QueueProgress(channel).stage("bad", 1),
    ):
        raise ZeroDivisionError
    assert recorder.calls == [("begin", "bad", 1), ("fail", "bad")]


def test_a_dead_workers_stage_is_closed_and_stray_events_are_dropped() -> None:
    channel: queue.Queue[Any] = queue.Queue()
    for event in (
        ProgressEvent("1", steps=4),
        ProgressEvent("2", is_end=True),
        ProgressEvent("3", name="cut", total=9),
        None,
    ):
        channel.put(event)
    recorder = Recorder()
    drain(channel, recorder)
    assert recorder.calls == [("begin", "cut", 9), ("fail", "cut")]


def test_a_queue_reporter_can_be_pickled_and_silence_is_silent(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with multiprocessing.get_context("spawn").Manager() as manager:
        progress = QueueProgress(manager.Queue(), "seed 1: ")
        again = pickle.loads(pickle.dumps(progress))
    assert again.label == "seed 1: "
    work(SilentProgress())
    assert capsys.readouterr() == ("", "")


def test_a_queue_that_dies_hides_no_error() -> None:
    recorder = Recorder()
    manager = multiprocessing.get_context("spawn").Manager()
    channel = manager.Queue()
    with pytest.raises(ZeroDivisionError), forward(channel, recorder):  # noqa: PT012 - the block is it
        channel.put(ProgressEvent("1", name="cut", total=9))
        while not recorder.calls:
            time.sleep(0.01)
        manager.shutdown()
        raise ZeroDivisionError
    assert recorder.calls == [("begin", "cut", 9), ("fail", "cut")]
