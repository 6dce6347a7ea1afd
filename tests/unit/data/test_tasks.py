# SPDX-License-Identifier: Apache-2.0
"""What one task holds out no task is trained on, and names are those of folders."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metarm.data.derived import pair_id
from metarm.data.preferences import prompt_key
from metarm.data.tasks import TaskPairs, check_tasks, hold_out_together, read_task_files
from metarm.errors import ConfigError, DataError, EmptySetError
from metarm.schema import PreferencePair


def pairs(*prompts: str) -> list[PreferencePair]:
    return [PreferencePair(prompt, " good", " bad") for prompt in prompts]


numbers = st.lists(st.integers(0, 30), min_size=1, max_size=12)


@given(
    main=numbers,
    tests=st.lists(numbers, min_size=3, max_size=3),
    others=st.tuples(numbers, numbers),
)
def test_no_task_trains_on_a_prompt_that_any_holds_out(main, tests, others) -> None:
    """Nothing that is held out changes, order stays, and no more than that is left out."""
    train = [pairs(*map(str, own)) for own in (main, *others)]
    held_out = [pairs(*map(str, own)) for own in tests]
    tasks = [
        TaskPairs(name, own, test)
        for name, own, test in zip(("b", "c"), train[1:], held_out[1:], strict=True)
    ]
    tested = {prompt_key(pair.prompt) for test in held_out for pair in test}
    expected = [[p for p in own if prompt_key(p.prompt) not in tested] for own in train]
    if not all(expected):
        with pytest.raises(EmptySetError):
            hold_out_together(train[0], held_out[0], tasks)
        return
    kept, apart = hold_out_together(train[0], held_out[0], tasks)
    assert [kept, *(task.pairs for task in apart)] == expected
    assert [task.test_pairs for task in apart] == held_out[1:]
    check_tasks(kept, held_out[0], apart)
    if expected != train:
        with pytest.raises(DataError, match="a prompt that is held out"):
            check_tasks(train[0], held_out[0], tasks)


def test_what_was_made_from_a_held_out_pair_trains_no_task() -> None:
    (parent,) = test = pairs("held out")
    made = replace(pairs("another")[0], source="neutral", parent_id=pair_id(parent))
    task = TaskPairs("other", [*pairs("x"), made], pairs("y"))
    _, (apart,) = hold_out_together(pairs("z"), test, [task])
    assert apart.pairs == pairs("x")
    with pytest.raises(DataError, match="a parent"):
        check_tasks(pairs("z"), test, [task])


@pytest.mark.parametrize("name", ["", "main", "../up", "a b", ".hidden", "a/b", "\u00e4", "x" * 65])
def test_a_name_that_is_no_folders_is_refused(name: str) -> None:
    task = TaskPairs(name, pairs("x"), pairs("y"))
    with pytest.raises(ConfigError, match="expected a task's name"):
        check_tasks(pairs("z"), pairs("t"), [task])
    with pytest.raises(ConfigError):
        read_task_files([f"{name}=file"])


def test_tasks_that_cannot_be_told_apart_or_measured_are_refused() -> None:
    task = TaskPairs("b", pairs("x"), pairs("y"))
    with pytest.raises(ConfigError, match="two tasks are called 'b'"):
        check_tasks(pairs("z"), pairs("t"), [task, task])
    for without in (replace(task, pairs=[]), replace(task, test_pairs=[])):
        with pytest.raises(DataError, match="expected pairs to train on and held-out ones"):
            check_tasks(pairs("z"), pairs("t"), [without])
    with pytest.raises(ConfigError, match="at least 1, got 0"):
        check_tasks(pairs("z"), pairs("t"), [replace(task, repeat=0)])


@pytest.mark.parametrize("options", [["b"], ["b="], ["b=x", "b=y"]])
def test_files_are_by_name(options: list[str]) -> None:
    with pytest.raises(ConfigError, match="--task"):
        read_task_files(options)
    assert read_task_files(["b=x=y", "c-1=z"]) == {"b": "x=y", "c-1": "z"}
