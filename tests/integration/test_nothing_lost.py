# SPDX-License-Identifier: Apache-2.0
"""Runs that are killed, stopped and short of room: nothing that was done is lost."""

import contextlib
import json
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

from crashes import flip_bit
from integration.commands import has_kept, inodes, scorecards
from integration.test_stopping import group_of, is_said_once
from patience import PATIENCE_SECONDS, frozen, wait_until

pytestmark = pytest.mark.slow
OFTEN = ("checkpoint_steps=1", "rounds=1", "arms=[meta]")


def script(repository: Path, name: str, *words: str) -> dict[str, Any]:
    """What a script of `benchmarks` has counted."""
    output = Path(words[-1])
    done = subprocess.run(
        [
            sys.executable,
            str(repository / "benchmarks" / name),
            "--output",
            str(output),
            *words[:-1],
        ],
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(output.read_text("utf-8"))


def test_killed_at_random_moments_it_ends_the_same(repository: Path, tmp_path: Path) -> None:
    result = script(
        repository, "kill_and_resume.py", "--kills", "20", str(tmp_path / "result.json")
    )
    assert result["kills"] == 20
    assert result["runs_identical"] == result["runs"] >= 2
    assert result["kills_with_something_to_go_on_from"] >= 1


def test_malformed_inputs_end_in_one_clear_error(repository: Path, tmp_path: Path) -> None:
    result = script(
        repository, "malformed_inputs.py", "--cases", "600", str(tmp_path / "result.json")
    )
    assert (result["cases"], result["failures"]) == (600, 0)


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start a command in a process group of its own; nothing of it stays."""
    started = []

    def start(*words: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "metarm", *map(str, words)],
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


def kept_in(run: Path, stage: str) -> list[Path]:
    """Checkpoints, half-written ones too; not the note, or its draft, of what they belong to."""
    return [
        Path(parent, name)
        for parent, names, _ in os.walk(run)  # unlike rglob, it outlives folders that vanish
        if Path(parent).name == f".{stage}.checkpoints"
        for name in names
    ]


def has_begun(seed: Path, stage: str) -> bool:
    """Whether a stage has kept something, or is over: one seed may be faster than another."""
    return bool(kept_in(seed, stage)) or (seed / stage / "stage.json").exists()


@pytest.mark.parametrize("stage", ["sft", "reward"])
def test_sigterm_ends_a_run_at_its_next_step(
    finished_run: Path, shell, metarm, tmp_path: Path, smoke: list[str], stage: str
) -> None:
    run = tmp_path / "run"
    process = shell(*smoke, run, *OFTEN)
    wait_until(lambda: bool(kept_in(run, stage)) or process.poll() is not None)
    os.kill(process.pid, signal.SIGTERM)
    out, err = process.communicate(timeout=PATIENCE_SECONDS)
    assert (process.returncode, out) == (143, ""), err
    assert is_said_once(err), err
    assert "stopped: finished stages and checkpoints are kept; the same command goes on" in err
    is_over = (run / "seed_0" / stage / "stage.json").exists()
    assert is_over or any((path / "MANIFEST.json").is_file() for path in kept_in(run, stage))
    before = inodes(run)
    done = metarm(*smoke, run, *OFTEN)
    assert done.code == 0, done.err
    assert inodes(run).items() >= before.items()
    assert list(run.rglob(".*.checkpoints")) == []
    here = scorecards(run)
    assert len(here) == 2
    assert here.items() <= scorecards(finished_run).items()


def test_sigterm_to_a_job_of_two_workers(
    finished_run: Path, shell, metarm, tmp_path: Path, smoke: list[str]
) -> None:
    """As a scheduler sends it: to every process of the job, its queue's too."""
    run = tmp_path / "run"
    words = (*OFTEN, "seeds=[0, 1]", "workers=2")
    process = shell(*smoke, run, *words)
    wait_until(lambda: all(has_begun(run / f"seed_{seed}", "sft") for seed in (0, 1)))
    for one in [process.pid, *(p.pid for p in psutil.Process(process.pid).children())]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(one, signal.SIGTERM)
    out, err = process.communicate(timeout=PATIENCE_SECONDS)
    assert (process.returncode, out) == (143, ""), err
    assert is_said_once(err), err
    wait_until(lambda: not group_of(process.pid))
    done = metarm(*smoke, run, *words)
    assert done.code == 0, done.err
    seed_0 = {k: v for k, v in scorecards(run).items() if k.startswith("seed_0/")}
    assert seed_0.items() <= scorecards(finished_run).items()


def test_a_damaged_stage_is_one_error(
    finished_run: Path, metarm, tmp_path: Path, smoke: list[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    shutil.rmtree(run / "seed_0" / "arms" / "meta" / "round_02")
    weights = run / "seed_0" / "arms" / "meta" / "round_01" / "policy" / "model.safetensors"
    flip_bit(weights, random.Random(0))
    error = metarm(*smoke, run).error
    assert "round_01/policy/model.safetensors: expected the bytes that the stage was" in error
    assert f"Remove {weights.parent} to do the stage again." in error
    for place in ("policy", "evaluation"):
        shutil.rmtree(weights.parent.parent / place)
    done = metarm(*smoke, run)
    assert done.code == 0, done.err
    assert scorecards(run) == scorecards(finished_run)


def test_a_verb_has_its_output_to_itself_and_goes_on(
    finished_run: Path, shell, metarm, tmp_path: Path
) -> None:
    seed = finished_run / "seed_0"
    words = (
        *("reward", "--model", seed / "sft", "--preferences", seed / "world/preferences.jsonl"),
        *("--preferences-test", seed / "world/preferences_test.jsonl", "--checkpoint-steps", "1"),
        *("per_device_train_batch_size=2", "max_length=64"),
    )
    whole = metarm(*words, "--output", "whole")
    assert whole.code == 0, whole.err
    process = shell(*words, "--output", "out")
    kept = tmp_path / ".out.checkpoints"
    wait_until(lambda: has_kept(kept, 2) or process.poll() is not None)
    with frozen(process.pid):
        error = metarm(*words, "--output", "out").error
    assert "out is in use by another process" in error
    os.kill(process.pid, signal.SIGTERM)
    _, err = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 143, err
    assert "checkpoints are kept beside --output; the same command goes on from the last" in err
    assert not (tmp_path / "out").exists()
    done = metarm(*words, "--output", "out")
    assert done.code == 0, done.err
    first, second = (
        (tmp_path / place / "model.safetensors").read_bytes() for place in ("whole", "out")
    )
    assert first == second
    assert [path.name for path in tmp_path.glob(".*")] == []


def test_a_full_disk_loses_no_stage_and_no_checkpoint(
    finished_run: Path, metarm, tmp_path: Path, smoke: list[str]
) -> None:
    """A file system of a few megabytes, where one may be mounted."""
    place = tmp_path / "small"
    place.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1500k", "tmpfs", str(place)], capture_output=True
    )
    if mount.returncode:
        pytest.skip("needs the right to mount a small file system")
    try:
        run = place / "run"
        error = metarm(*smoke, run, *OFTEN).error
        assert "The disk is full" in error
        before = inodes(run)
        assert before, "it was too small for a single stage"
        room = ["mount", "-o", "remount,size=200m", str(place)]
        assert subprocess.run(room, capture_output=True).returncode == 0
        done = metarm(*smoke, run, *OFTEN)
        assert done.code == 0, done.err
        assert inodes(run).items() >= before.items()
        assert scorecards(run).items() <= scorecards(finished_run).items()
    finally:
        time.sleep(0.1)
        subprocess.run(["umount", "-l", str(place)], capture_output=True)
