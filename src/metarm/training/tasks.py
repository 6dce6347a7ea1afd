# SPDX-License-Identifier: Apache-2.0
"""Several tasks in a training: their rows, and in the end a reward model and an accuracy each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import datasets
from transformers import PreTrainedModel

from metarm.config import RewardSettings
from metarm.data.encoding import EncodedPair, Encoder, EncodingReport, encode_pairs
from metarm.data.tasks import MAIN, TaskPairs
from metarm.errors import EmptySetError
from metarm.models.pair_evaluation import evaluate_preferences
from metarm.models.reward_model import RewardModelScore, fits_context
from metarm.models.saving import save_reward_model
from metarm.models.task_heads import alone
from metarm.protocols import ProgressReporter
from metarm.schema import Estimate, PreferencePair
from metarm.training.task_trainer import TASK

__all__ = [
    "TASKS_FOLDER",
    "TaskReport",
    "check_held_out",
    "encode_tasks",
    "finish_tasks",
    "measure_pairs",
    "to_rows",
]

TASKS_FOLDER: Final = "tasks"
"""In the output's folder: the reward models of tasks beside the main one, by name."""


@dataclass(frozen=True, slots=True)
class TaskReport:
    """What became of a task beside the main one."""

    accuracy: Estimate
    """On its held-out pairs by its own last layer, with a 95 % interval, clustered by prompt."""
    accuracy_of_main: Estimate
    """On the same pairs by the main task's layer: what a layer of its own is worth."""
    encoding: EncodingReport
    """Of its training pairs."""
    num_test_too_long: int
    """Held-out pairs left out of the accuracy: longer than the model's context."""


def encode_tasks(
    encoder: Encoder, tasks: Sequence[TaskPairs], max_length: int
) -> tuple[list[tuple[int, EncodedPair]], dict[str, EncodingReport]]:
    """Training pairs with the number of their task, from 1, each as often as it is to stand there.

    Raises:
        EmptySetError: When nothing of a task fits.
    """
    rows: list[tuple[int, EncodedPair]] = []
    reports = {}
    for number, task in enumerate(tasks, start=1):
        encoded, reports[task.name] = encode_pairs(encoder, task.pairs, max_length)
        rows += [(number, pair) for pair in encoded for _ in range(task.repeat)]
    return rows, reports


def to_rows(
    encoded: Sequence[EncodedPair], others: Sequence[tuple[int, EncodedPair]] = ()
) -> datasets.Dataset:
    """What TRL reads, and `p` and `task` where there is any: the main task's pairs, and others'."""
    numbered = [*((0, pair) for pair in encoded), *others]
    has_margin = any(pair.margin is not None for _, pair in numbered)
    has_label = any(pair.p is not None for _, pair in numbered)
    return datasets.Dataset.from_list(
        [
            {"chosen_ids": pair.chosen_ids, "rejected_ids": pair.rejected_ids}
            | ({"margin": pair.margin or 0.0} if has_margin else {})
            | ({"p": 1.0 if pair.p is None else pair.p} if has_label else {})
            | ({TASK: number} if others else {})
            for number, pair in numbered
        ]
    )


def finish_tasks(
    trained: PreTrainedModel,
    encoder: Encoder,
    tasks: Sequence[TaskPairs],
    reports: dict[str, EncodingReport],
    settings: RewardSettings,
    output_dir: Path | None,
    progress: ProgressReporter,
) -> dict[str, TaskReport]:
    """Save each task's reward model, and measure it on what the task holds out.

    Args:
        trained: The whole model, with the layers of all tasks.
        encoder: Of the model.
        tasks: Those beside the main one, in the order of their layers.
        reports: Of their encoding.
        settings: Those that it was trained with.
        output_dir: The main model's folder; None where another process writes.
        progress: Gets a bar for each task.

    Writes:
        `output_dir/tasks/NAME` in Hugging Face format, with the main model's trunk.
    """
    found = {}
    for number, task in enumerate(tasks, start=1):
        with alone(trained, number):
            accuracy, num_too_long = measure_pairs(
                trained, encoder, task.test_pairs, progress, f"score held-out pairs of {task.name}"
            )
            if output_dir is not None:
                folder = output_dir / TASKS_FOLDER / task.name
                save_reward_model(trained, encoder, settings, folder)
        with alone(trained, 0):
            of_main, _ = measure_pairs(
                trained, encoder, task.test_pairs, progress, f"the same by the layer of {MAIN}"
            )
        found[task.name] = TaskReport(accuracy, of_main, reports[task.name], num_too_long)
    return found


def check_held_out(
    encoder: Encoder, context: int, held_out: Mapping[str, Sequence[PreferencePair]]
) -> None:
    """Refuse before a training held-out pairs of which `measure_pairs` could score none after it.

    Args:
        encoder: Of the model.
        context: Tokens that it can attend to.
        held_out: What they are called -> the pairs; none at all are somebody else's concern.

    Raises:
        EmptySetError: When none fits.
    """
    for what, pairs in held_out.items():
        if pairs and not any(fits_context(encoder, pair, context) for pair in pairs):
            raise EmptySetError(
                f"{what}: none of {len(pairs)} held-out pairs fits the model's context of "
                f"{context} tokens: give shorter ones, or train a model with a longer context"
            )


def measure_pairs(
    model: PreTrainedModel,
    encoder: Encoder,
    pairs: Sequence[PreferencePair],
    progress: ProgressReporter,
    stage: str,
) -> tuple[Estimate, int]:
    """Accuracy on labelled pairs, and how many were left out as longer than the model's context.

    Raises:
        EmptySetError: When none fits.
    """
    score = RewardModelScore(model.eval(), encoder)
    fitting = score.fitting_pairs(pairs)
    with progress.stage(stage, 2 * len(fitting)) as bar:
        accuracy = evaluate_preferences(score.reporting_to(bar), fitting).accuracy
    return accuracy, len(pairs) - len(fitting)
