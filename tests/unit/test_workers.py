# SPDX-License-Identifier: Apache-2.0
"""Workers: so many at a time, one failure ends all, and their words reach the parent."""

import threading
import time
import traceback
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import psutil
import pytest

from integration import jobs
from metarm.errors import DataError, RunError
from metarm.progress import SilentProgress
from metarm.workers import run_in_processes
from patience import PATIENCE_SECONDS


class Recorder:
    def __init__(self):
        self.events = []

    @contextmanager
    def stage(self, name, total):
        self.events.append((name, total))
        yield self
        self.events.append((name, "end"))

    def advance(self, steps=1, note=""):
        self.events.append((steps, note))


def test_all_jobs_run_a_few_at_a_time_in_their_order(tmp_path: Path, capfd) -> None:
    files = [tmp_path / str(number) for number in range(4)]
    recorder = Recorder()
    work = {f"job {file.name}": partial(jobs.says_when, file) for file in files}
    run_in_processes(work, workers=2, progress=recorder)
    times = [tuple(map(float, file.read_text("utf-8").split())) for file in files]
    for began, _ in times:
        assert sum(start <= began < end for start, end in times) <= 2
    assert sorted(times[2:]) > sorted(times[:2])
    for name in work:
        assert [e for e in recorder.events if e[0] == f"{name}: work"] == [
            (f"{name}: work", 2),
            (f"{name}: work", "end"),
        ]
    assert recorder.events.count((2, "done")) == 4
    out, err = capfd.readouterr()
    assert out == "", "stdout is for the parent's answer"
    assert err.count("noise of a library") == 4


@pytest.mark.parametrize(
    ("job", "kind", "message"),
    [
        (jobs.fails, DataError, "^a row is wrong"),
        (jobs.breaks, RunError, r"^a worker process stopped: ZeroDivisionError: long long"),
        (jobs.ends_itself, RunError, "killed by SIGKILL .* the same command goes on"),
        (jobs.leaves, RunError, "ended with code 3: what happened stands above"),
    ],
)
def test_one_that_fails_ends_the_others(tmp_path: Path, job, kind, message: str) -> None:
    pid, never = tmp_path / "pid", tmp_path / "never"
    work = {
        "sleeps": partial(jobs.sleeps, pid),
        "fails": partial(job, pid),
        "waits": partial(jobs.says_when, never),
    }
    began = time.monotonic()
    with pytest.raises(kind, match=message) as caught:
        run_in_processes(work, workers=2, progress=SilentProgress())
    assert time.monotonic() - began < 300, "it waited for the sleeper"
    assert not psutil.pid_exists(int(pid.read_text("utf-8")))
    assert not never.exists(), "a job was begun after the failure"
    if kind is DataError:
        shown = "".join(traceback.format_exception(caught.value))
        assert "KeyError: 'the reason'" in shown, "--debug shows what happened in the worker"
        assert str(caught.value) == "a row is wrong"


def test_it_works_where_signals_cannot_be_set(tmp_path: Path) -> None:
    work = {"job": partial(jobs.says_when, tmp_path / "file")}
    thread = threading.Thread(
        target=run_in_processes, args=(work,), kwargs={"workers": 1, "progress": SilentProgress()}
    )
    thread.start()
    thread.join(PATIENCE_SECONDS)
    assert (tmp_path / "file").exists()
