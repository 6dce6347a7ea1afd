# SPDX-License-Identifier: Apache-2.0
"""`metarm reward` under a launcher: all processes train, the first one writes and prints."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from metarm.cli.app import run_command
from patience import PATIENCE_SECONDS
from tiny_models import save_reward_model
from unit.reward_problem import distance, group_rows, pair_rows

WORDS = (
    *("reward", "--model", "model", "--preferences", "pairs.jsonl", "--meta-set", "groups.jsonl"),
    *("--json", "max_length=24", "max_steps=3", "learning_rate=0.001", "meta_batch_size=5"),
    *("meta_mode=descent", "meta_step_length=0.05", "meta_group_size=3"),
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model and its data."""
    save_reward_model(tmp_path / "model")
    pairs = pair_rows(60)
    for name, rows in (("pairs", pairs[:40]), ("other", pairs[40:]), ("groups", group_rows())):
        lines = (json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    return tmp_path


def launch(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run metarm in two processes, from the command line."""
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    return subprocess.run(
        [sys.executable, *launcher, "-m", "metarm", *words],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )


@pytest.mark.slow
def test_two_processes_make_the_folder_that_one_makes(folder: Path, metarm) -> None:
    words = (*WORDS, "--task", "other=other.jsonl", "--task-repeat", "2")
    two = (*words, "--output", "two", "per_device_train_batch_size=2")
    done = launch(folder, *two)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)  # one document: the other process prints nothing
    one = metarm(*words, "--output", "one", "per_device_train_batch_size=4")
    assert one.code == 0, one.err
    assert said["accuracy"] == json.loads(one.out)["accuracy"]
    assert said["tasks"] == json.loads(one.out)["tasks"]
    names = [sorted(p.name for p in (folder / place).iterdir()) for place in ("one", "two")]
    assert names[0] == names[1]
    weights = [load_file(folder / place / "model.safetensors") for place in ("model", "one", "two")]
    assert distance(weights[1], weights[2]) < 1e-4
    assert distance(weights[0], weights[2]) > 1e-3
    others = [
        load_file(folder / place / "tasks" / "other" / "model.safetensors")
        for place in ("one", "two")
    ]
    assert distance(*others) < 1e-4
    assert distance({"score.weight": others[1]["score.weight"]}, weights[2]) > 1e-4
    assert not list(folder.glob(".*.partial"))
    assert done.stderr.count("pairs.jsonl: ") == 1

    again = launch(folder, *two)
    assert (again.returncode, json.loads(again.stdout)) == (0, said)
    assert "two is finished; nothing is done again" in again.stderr


@pytest.mark.slow
def test_what_is_wrong_ends_all_processes(folder: Path) -> None:
    (folder / "pairs.jsonl").write_text('{"prompt": 3}\n', encoding="utf-8")
    done = launch(folder, *WORDS, "--output", "two")
    assert done.returncode != 0
    assert done.stdout == ""
    # Whichever process reads the row first says it; the launcher then ends the other.
    assert re.search(r"^(process 1 of 2: )?error: pairs\.jsonl:1", done.stderr, re.MULTILINE)
    assert not (folder / "two").exists()


@pytest.mark.parametrize("verb", ["sample", "run", "optimize", "sft"])
@pytest.mark.parametrize("rank", ["0", "1"])
def test_other_verbs_say_that_they_are_one_process(monkeypatch, capsys, verb, rank) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", rank)
    assert run_command([verb]) == 2
    expected = f"error: metarm {verb} is one process, got WORLD_SIZE=2"
    assert (expected in capsys.readouterr().err) == (rank == "0")
