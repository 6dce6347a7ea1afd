# SPDX-License-Identifier: Apache-2.0
"""Labelled pairs of several tasks, and that what one task holds out no other is trained on."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from metarm.data.derived import check_apart, without_kin_of
from metarm.data.preferences import prompt_key, without_prompts_of
from metarm.errors import ConfigError, DataError, EmptySetError
from metarm.schema import PreferencePair, prompt_text

__all__ = ["MAIN", "TaskPairs", "check_tasks", "hold_out_together", "read_task_files"]

MAIN: Final = "main"
"""What the task of the preferences themselves is called; its model is the reward model."""

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True)
class TaskPairs:
    """The labels of a task beside the main one."""

    name: str
    """It names a folder."""
    pairs: Sequence[PreferencePair]
    """To train on."""
    test_pairs: Sequence[PreferencePair]
    """Held out; at least one."""
    repeat: int = 1
    """How often each pair stands in the training set."""


def read_task_files(options: Sequence[str]) -> dict[str, str]:
    """Files by the task's name, of `NAME=FILE` each.

    Raises:
        ConfigError: When one is something else, or two have one name.

    Example:
        >>> read_task_files(["helpful=a.jsonl", "harmless=owner/name:train"])
        {'helpful': 'a.jsonl', 'harmless': 'owner/name:train'}
    """
    files: dict[str, str] = {}
    for option in options:
        name, equals, file = option.partition("=")
        if not (equals and file):
            raise ConfigError(f"--task takes NAME=FILE, got {option!r}")
        if name in files:
            raise ConfigError(f"--task {name!r} is given twice: put its pairs in one file")
        _check_name(name)
        files[name] = file
    return files


def hold_out_together(
    pairs: Sequence[PreferencePair],
    test_pairs: Sequence[PreferencePair],
    tasks: Sequence[TaskPairs],
) -> tuple[list[PreferencePair], list[TaskPairs]]:
    """The main task's training pairs and the tasks, without what any of them holds out.

    A trunk that all tasks train would else have seen a held-out prompt's responses.

    Args:
        pairs: The main task's, to train on.
        test_pairs: The main task's, held out.
        tasks: The others.

    Returns:
        The same with fewer pairs to train on; nothing that is held out changes.

    Raises:
        EmptySetError: When a task has nothing left to train on.
    """
    held_out = _held_out(test_pairs, tasks)

    def rest(name: str, given: Sequence[PreferencePair]) -> list[PreferencePair]:
        try:
            return without_kin_of(without_prompts_of(given, held_out), held_out)
        except EmptySetError as error:
            raise EmptySetError(
                f"task {name!r}: expected pairs of prompts that no task holds out, got none of "
                f"{len(given)}; give it pairs of other prompts"
            ) from error

    return rest(MAIN, pairs), [replace(task, pairs=rest(task.name, task.pairs)) for task in tasks]


def check_tasks(
    pairs: Sequence[PreferencePair],
    test_pairs: Sequence[PreferencePair],
    tasks: Sequence[TaskPairs],
) -> None:
    """Refuse tasks that cannot be trained together with the main one, or measured apart.

    Raises:
        ConfigError: When a name is no folder's, stands twice or is the main task's.
        DataError: When a task has nothing to train on or nothing held out, or a training pair of
            one has a prompt that another holds out.
    """
    names = [task.name for task in tasks]
    for name in names:
        _check_name(name)
        if names.count(name) > 1:
            raise ConfigError(f"two tasks are called {name!r}: put their pairs together")
    for task in tasks:
        if not (task.pairs and task.test_pairs):
            raise DataError(
                f"task {task.name!r}: expected pairs to train on and held-out ones, got "
                f"{len(task.pairs)} and {len(task.test_pairs)}: give more pairs"
            )
        if task.repeat < 1:
            raise ConfigError(f"task {task.name!r}: repeat must be at least 1, got {task.repeat}")
    held_out = _held_out(test_pairs, tasks)
    tested = {prompt_key(pair.prompt) for pair in held_out} if tasks else set()
    training: Mapping[str, Sequence[PreferencePair]] = {MAIN: pairs} | {
        task.name: task.pairs for task in tasks
    }
    for name, own in training.items():
        if not tasks:
            return
        check_apart(own, held_out, "held-out pairs of the tasks")
        for pair in own:
            if prompt_key(pair.prompt) in tested:
                raise DataError(
                    f"task {name!r} trains on {prompt_text(pair.prompt)[:60]!r}..., a prompt that "
                    "is held out: leave it out with hold_out_together"
                )


def _held_out(
    test_pairs: Sequence[PreferencePair], tasks: Sequence[TaskPairs]
) -> list[PreferencePair]:
    return [*test_pairs, *(pair for task in tasks for pair in task.test_pairs)]


def _check_name(name: str) -> None:
    if name == MAIN or not _NAME.fullmatch(name):
        raise ConfigError(
            f"expected a task's name of letters, digits, '.', '_' and '-' other than {MAIN!r} (it "
            f"names a folder), got {name!r}"
        )
