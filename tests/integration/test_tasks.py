# SPDX-License-Identifier: Apache-2.0
"""`metarm reward --task` from the command line on tiny models: trained, killed, gone on from."""

import json
import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from integration.commands import Command, Finished
from metarm.data.derived import split_labelled
from metarm.data.preferences import load_preferences, save_preferences
from metarm.schema import PreferencePair
from tiny_models import WORDS, folder_digest, save_reward_model

WORDS_OF_ALL = (
    *("reward", "--model", "model", "--preferences", "main.jsonl", "--task", "other=other.jsonl"),
    *("--task", "third=third.jsonl", "--task-repeat", "2", "max_length=24"),
    *("per_device_train_batch_size=2", "learning_rate=1e-2"),
)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A model, and pairs of three tasks of which some prompts are the same."""
    draw = random.Random(0)

    def text() -> str:
        return "".join(f" {word}" for word in draw.choices(WORDS, k=draw.randint(3, 6)))

    prompts = list(dict.fromkeys(text().strip() for _ in range(60)))
    for name, own in (("main", prompts[:40]), ("other", prompts[:20]), ("third", prompts[40:])):
        rows = [PreferencePair(prompt, text() + " a", text() + " b b") for prompt in own]
        save_preferences(tmp_path / f"{name}.jsonl", rows)
    save_reward_model(tmp_path / "model")
    return tmp_path


def document(done: Finished) -> dict:
    assert done.code == 0, done.err
    return json.loads(done.out)


def test_every_task_gets_a_reward_model_that_verbs_take(
    data: Path, metarm: Callable[..., Finished]
) -> None:
    found = document(metarm(*WORDS_OF_ALL, "--output", "rm", "--json"))
    assert set(found["tasks"]) == {"other", "third"}
    other = found["tasks"]["other"]
    assert 0 < other["num_pairs"] < 20 - other["num_test_pairs"] + 1
    assert 0 <= other["accuracy"]["low"] <= other["accuracy"]["value"] <= 1
    assert other["accuracy_of_main"]["count"] == other["accuracy"]["count"]
    # Hashes hold out the main task's prompts: `other` has some of them, and must not train on them.
    assert found["num_pairs"] + found["num_test_pairs"] <= 40
    measured = document(
        metarm("evaluate", "--reward-model", "rm/tasks/other", "--preferences", "other.jsonl",
               "--json")
    )  # fmt: skip
    assert "accuracy" in json.dumps(measured)
    again = metarm(*WORDS_OF_ALL, "--output", "rm", "--json")
    assert "is finished; nothing is done again" in again.err
    table = metarm(*WORDS_OF_ALL, "--output", "rm")
    assert "held-out accuracy, third" in table.out
    # A task's model is a model to go on from.
    on = document(
        metarm("reward", "--model", "rm/tasks/third", "--preferences", "third.jsonl", "--output",
               "on", "--json", "max_steps=1", "max_length=24")
    )  # fmt: skip
    assert "tasks" not in on
    assert not (data / "on" / "tasks").exists()


def test_a_killed_training_of_tasks_goes_on_bit_for_bit(
    data: Path, metarm: Callable[..., Finished], launch: Callable[..., Command]
) -> None:
    words = (*WORDS_OF_ALL, "--checkpoint-steps", "1", "max_steps=6")
    document(metarm(*words, "--output", "whole", "--json"))
    running = launch(*words, "--output", "again", "--json")
    kept = data / ".again.checkpoints"
    for _ in range(3000):
        if list(kept.glob("checkpoint-*")) or not running.process.is_alive():
            break
        time.sleep(0.02)
    assert running.process.is_alive(), "it ended before it was killed"
    os.kill(running.process.pid, signal.SIGKILL)
    running.process.join()
    assert list(kept.glob("checkpoint-*"))
    document(metarm(*words, "--output", "again", "--json"))
    assert kept.exists() is False
    for place in ("", "tasks/other", "tasks/third"):
        first, second = (
            (data / name / place / "model.safetensors").read_bytes() for name in ("whole", "again")
        )
        assert first == second, place
    assert len({folder_digest(data / "whole/tasks" / name) for name in ("other", "third")}) == 2


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (("--task", "other"), "--task takes NAME=FILE, got 'other'"),
        (("--task", "main=other.jsonl"), "expected a task's name"),
        (("--task", "b=other.jsonl", "--task", "b=third.jsonl"), "given twice"),
        (("--task-repeat", "3"), "--task-repeat is about the pairs of --task"),
        (("--task", "few=few.jsonl"), "task 'few' (few.jsonl): expected labelled pairs of two"),
        (
            ("--task", "other=other.jsonl", "batch_sum_coefficient=0.1"),
            "several tasks on one trunk do not go along with batch_sum_coefficient",
        ),
    ],
)
def test_what_cannot_be_is_one_error(
    data: Path, metarm: Callable[..., Finished], words: tuple[str, ...], error: str
) -> None:
    few = (data / "other.jsonl").read_text("utf-8").splitlines(keepends=True)[:1]
    (data / "few.jsonl").write_text("".join(few), "utf-8")
    refused = metarm(
        "reward", "--model", "model", "--preferences", "main.jsonl", "--output", "rm",
        "max_length=24", *words,
    )  # fmt: skip
    assert error in refused.error
    assert "train the reward model" not in refused.err, "nothing is begun that cannot end"
    assert not (data / "rm").exists()


def test_held_out_pairs_that_nothing_can_score_are_told_before_a_training(
    data: Path, metarm: Callable[..., Finished]
) -> None:
    long = [PreferencePair(f"l {number}", " a" * 40, " b") for number in range(3)]
    save_preferences(data / "long.jsonl", long)
    done = metarm(*WORDS_OF_ALL, "--output", "rm", "--preferences-test", "long.jsonl")
    assert "the pairs: none of 3 held-out pairs fits the model's context of 24" in done.error
    assert "encode the pairs" not in done.err
    third = load_preferences(data / "third.jsonl").pairs
    _, held_out = split_labelled(third, 0.1, 0)
    prompts = {pair.prompt for pair in held_out}
    lengthened = [replace(p, chosen=" a" * 40) if p.prompt in prompts else p for p in third]
    save_preferences(data / "third.jsonl", lengthened)
    done = metarm(*WORDS_OF_ALL, "--output", "rm")
    assert f"task 'third': none of {len(held_out)} held-out pairs fits" in done.error
    assert "encode the pairs" not in done.err
    assert not list(data.glob(".rm*"))
