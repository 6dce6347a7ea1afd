# SPDX-License-Identifier: Apache-2.0
"""A run stopped at any moment, in any way, goes on to the same end; nothing outlives it."""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from integration.commands import Command, inodes, scorecards
from patience import PATIENCE_SECONDS, TRIES, frozen, wait_until

pytestmark = pytest.mark.slow
STAGES = ("world", "sft", "reward", "evaluation", "policy", "samples")


def unfinished(run: Path, since: float = 0.0) -> list[Path]:
    """The stages begun after `since` that are being built, or were when their process died."""
    found = []
    for parent, names, _ in os.walk(run):
        for path in (Path(parent, name) for name in names if name.endswith(".partial")):
            with contextlib.suppress(FileNotFoundError):
                found += [path] * (path.stat().st_ctime >= since)
    return found


def test_killed_in_every_kind_of_stage_it_ends_bit_for_bit_the_same(
    finished_run: Path, launch, metarm, tmp_path: Path, smoke: list[str]
) -> None:
    run = tmp_path / "run"
    draw = random.Random(0)
    before: dict[str, tuple[int, int]] = {}

    def is_killed_in(stage: str, delay: float) -> bool:
        nonlocal before
        started = time.time()
        command = launch(*smoke, run)

        def is_there() -> bool:
            names = {path.name for path in unfinished(run, started)}
            return f".{stage}.partial" in names or not command.process.is_alive()

        wait_until(is_there, pause=0.002)
        time.sleep(delay)
        command.kill()
        assert inodes(run).items() >= before.items(), "a finished stage was made again"
        before = inodes(run)
        return f".{stage}.partial" in {path.name for path in unfinished(run, started)}

    for stage in STAGES:
        for attempt in range(TRIES):
            if is_killed_in(stage, draw.uniform(0, 0.15) / 2**attempt):
                break
            # The stage was too short this time, and may not come again.
            shutil.rmtree(run)
            before = {}
        else:
            pytest.fail(f"no kill inside {stage}")
    for stage in draw.choices(STAGES[2:], k=8):
        is_killed_in(stage, draw.uniform(0, 0.15))
    done = metarm(*smoke, run)
    assert done.code == 0, done.err
    assert unfinished(run) == []
    assert inodes(run).items() >= before.items()
    assert scorecards(run) == scorecards(finished_run)


def test_two_processes_cannot_have_one_folder(
    launch, metarm, tmp_path: Path, smoke: list[str]
) -> None:
    run = tmp_path / "run"
    first = launch(*smoke, run)
    wait_until(lambda: bool(unfinished(run)))
    config = (run / "config.yaml").read_bytes()
    with frozen(first.process.pid):
        error = metarm(*smoke, run, "rounds=1").error
    first.kill()
    assert error == (
        f"error: {run} is in use by another process: wait for it, stop it, or choose another "
        "output_dir"
    )
    assert (run / "config.yaml").read_bytes() == config


@pytest.fixture
def shell(tmp_path: Path, smoke: list[str]) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start a run as a shell does, in a process group of its own; nothing of it stays."""
    started = []

    def start(*more: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "metarm", *smoke, "run", *more],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def group_of(pid: int) -> list[psutil.Process]:
    """Every process of the run's group that is still there."""
    found = []
    for one in psutil.process_iter():
        try:
            if os.getpgid(one.pid) == pid and one.status() != psutil.STATUS_ZOMBIE:
                found.append(one)
        except (psutil.NoSuchProcess, ProcessLookupError):
            continue
    return found


def workers_of(pid: int) -> list[psutil.Process]:
    """The processes that train: they have torch in memory."""
    return [
        one
        for one in psutil.Process(pid).children()
        if any("libtorch" in area.path for area in one.memory_maps())
    ]


def is_said_once(err: str) -> bool:
    lines = [line for line in err.splitlines() if line.startswith(("stopped: ", "error: "))]
    return len(lines) == 1 and "Traceback" not in err and err.endswith(f"{lines[0]}\n")


TWO = ("seeds=[0, 1]", "workers=2", "rounds=1", "arms=[frozen, meta]")


def test_two_workers_stopped_in_every_way(
    finished_run: Path, launch, shell, metarm, tmp_path: Path, smoke: list[str]
) -> None:
    run = tmp_path / "run"

    def both(since: float) -> bool:
        return len({path.relative_to(run).parts[0] for path in unfinished(run, since)}) == 2

    def begin(
        start: Callable[[], Any], is_over: Callable[[Any], bool]
    ) -> tuple[Any, dict[str, tuple[int, int]]]:
        """A command whose two workers are at work, and the stages that were there before it."""
        for _ in range(TRIES):
            before, started = inodes(run), time.time()
            command = start()

            wait_until(lambda at=started, it=command: both(at) or is_over(it), pause=0.002)
            if both(started):
                return command, before
            shutil.rmtree(run)  # one was done before the other began
        raise AssertionError

    def launched() -> tuple[Command, dict[str, tuple[int, int]]]:
        return begin(lambda: launch(*smoke, run, *TWO), lambda it: not it.process.is_alive())

    command, _ = launched()
    workers_of(command.process.pid)[0].kill()
    error = command.finish().error
    assert "a worker process was killed by SIGKILL (SIGKILL: often for want of memory" in error
    assert "Finished stages are kept; the same command goes on from there." in error
    assert group_of(command.process.pid) == []

    command, _ = launched()
    assert len(workers_of(command.process.pid)) == 2
    command.kill()
    wait_until(lambda: not group_of(command.process.pid))

    process, before = begin(lambda: shell(*TWO), lambda it: it.poll() is not None)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=PATIENCE_SECONDS)
    assert (process.returncode, out) == (130, "")
    assert is_said_once(err), err
    assert "stopped: finished stages and checkpoints are kept; the same command" in err
    wait_until(lambda: not group_of(process.pid))
    assert inodes(run).items() >= before.items()

    done = metarm(*smoke, run, *TWO)
    assert done.code == 0, done.err
    cards = scorecards(run)
    assert len(cards) == 6
    seed_0 = {place: text for place, text in cards.items() if place.startswith("seed_0/")}
    assert seed_0.items() <= scorecards(finished_run).items()


@pytest.mark.parametrize("library", ["pydantic_core", "libtorch_cpu"])
def test_ctrl_c_while_packages_are_imported(shell, library: str) -> None:
    process = shell("rounds=1")
    maps = Path(f"/proc/{process.pid}/maps")
    if not maps.exists():
        pytest.skip("needs /proc to see what a process has loaded")
    wait_until(lambda: library in maps.read_text("utf-8"))
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=PATIENCE_SECONDS)
    assert (process.returncode, out) == (130, ""), err
    assert is_said_once(err), err
    assert group_of(process.pid) == []


def test_ctrl_c_before_there_is_a_command(shell, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "typer.py").write_text(
        "import pathlib, time; pathlib.Path('here').touch(); time.sleep(600)", "utf-8"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    process = shell()
    wait_until((tmp_path / "here").exists)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=PATIENCE_SECONDS)
    assert (process.returncode, out, err) == (130, "", "stopped: nothing has begun\n")


def test_ctrl_c_in_a_stage(shell, metarm, tmp_path: Path, smoke: list[str]) -> None:
    run = tmp_path / "run"
    process = shell("arms=[sft]")
    wait_until(lambda: (run / "seed_0" / ".sft.partial").exists())
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=PATIENCE_SECONDS)
    assert (process.returncode, out) == (130, "")
    assert is_said_once(err), err
    assert group_of(process.pid) == []
    before = inodes(run)
    assert list(before) == ["seed_0/world/stage.json"]
    done = metarm(*smoke, run, "arms=[sft]")
    assert done.code == 0, done.err
    assert inodes(run).items() >= before.items()
