# SPDX-License-Identifier: Apache-2.0
"""The files of `--task`: tasks out of them, and what is told of each."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from metarm.cli.options import note

if TYPE_CHECKING:
    from metarm.data.tasks import TaskPairs
    from metarm.training.tasks import TaskReport

__all__ = ["load_tasks", "task_facts"]


def load_tasks(
    files: "Mapping[str, str]", data_format: str | None, repeat: int, fraction: float, seed: int
) -> "list[TaskPairs]":
    """Tasks beside the main one, each with a share of its prompts held out."""
    from metarm.data.derived import split_labelled
    from metarm.data.preferences import load_preferences
    from metarm.data.tasks import TaskPairs
    from metarm.errors import EmptySetError

    tasks = []
    for name, file in files.items():
        loaded = load_preferences(file, data_format)
        note(f"{file}: {loaded.report.summary()}")
        try:
            train, test = split_labelled(loaded.pairs, fraction, seed)
        except EmptySetError as error:
            raise EmptySetError(
                f"task {name!r} ({file}): expected labelled pairs of two prompts at least, some to "
                "train on and some to hold out; give more of them"
            ) from error
        tasks.append(TaskPairs(name, train, test, repeat))
    return tasks


def task_facts(
    tasks: "Sequence[TaskPairs]", reports: "Mapping[str, TaskReport]"
) -> dict[str, dict[str, Any]]:
    """Of each task: its pairs, and how often its own layer and the main one are right."""
    return {
        task.name: {
            "num_pairs": len(task.pairs),
            "num_test_pairs": len(task.test_pairs),
            "num_test_too_long": reports[task.name].num_test_too_long,
            "encoding": reports[task.name].encoding.summary(),
            "accuracy": asdict(reports[task.name].accuracy),
            "accuracy_of_main": asdict(reports[task.name].accuracy_of_main),
        }
        for task in tasks
    }
