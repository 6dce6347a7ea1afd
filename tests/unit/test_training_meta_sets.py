# SPDX-License-Identifier: Apache-2.0
"""Which groups a step uses, how they are batched, and what a meta data set may look like."""

import datasets
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from metarm.data.encoding import EncodedGroup
from metarm.data.meta_batches import (
    collate_groups,
    draw_group_indices,
    read_meta_dataset,
    thin_group,
)
from metarm.errors import DataError, EmptySetError
from metarm.schema import Message, ResponseGroup
from unit.reward_problem import make_trainer

QUESTION = [{"role": "user", "content": "a"}]


@given(
    num_groups=st.integers(1, 12),
    batch_size=st.integers(1, 9),
    seed=st.integers(0, 2**31),
    num_steps=st.integers(1, 8),
)
def test_each_pass_has_every_group_once(num_groups, batch_size, seed, num_steps):
    drawn = [
        index
        for step in range(num_steps)
        for index in draw_group_indices(num_groups, batch_size, step=step, seed=seed)
    ]
    assert len(drawn) == num_steps * batch_size
    for start in range(0, len(drawn) - num_groups + 1, num_groups):
        assert sorted(drawn[start : start + num_groups]) == list(range(num_groups))


def test_groups_are_a_function_of_seed_and_step():
    def draw(step, seed=0):
        return draw_group_indices(50, 10, step=step, seed=seed)

    torch.manual_seed(1)
    first = draw(7)
    torch.manual_seed(2)
    assert draw(7) == first
    assert draw(7, seed=1) != first
    assert draw(7 + 5) != first  # the same place of the next pass


def test_a_large_group_is_thinned_in_its_order():
    group = EncodedGroup(tuple([index] for index in range(8)), "maths")
    assert thin_group(group, 8, seed=0) is group
    thinned = [thin_group(group, 3, seed=seed).response_ids for seed in range(20)]
    for ids in thinned:
        assert len(ids) == 3
        assert list(ids) == sorted(ids)
    assert {row[0] for ids in thinned for row in ids} == set(range(8))
    assert thin_group(group, 3, seed=4) == thin_group(group, 3, seed=4)
    assert thin_group(group, 3, seed=4).source == "maths"


def test_groups_of_different_sizes_are_one_batch():
    groups = [EncodedGroup(([5, 6], [7]), "a"), EncodedGroup(([8], [9, 9, 9], [4]))]
    batch = collate_groups(groups, 0, torch.device("cpu"))
    rows = [[5, 6, 0], [7, 0, 0], [8, 0, 0], [9, 9, 9], [4, 0, 0]]
    assert batch.input_ids.tolist() == rows
    assert batch.attention_mask.tolist() == [[int(i > 0) for i in row] for row in rows]
    assert batch.mask.tolist() == [[True, True, False], [True, True, True]]
    assert batch.sources == ("a", "")


@pytest.mark.parametrize(
    ("row", "group"),
    [
        ({"prompt": "a", "responses": ["b", "c"]}, ResponseGroup("a", ("b", "c"))),
        ({"prompt": "a", "completions": ["b", "c"]}, ResponseGroup("a", ("b", "c"))),
        (
            {
                "prompt": QUESTION,
                "responses": [
                    [{"role": "assistant", "content": "b"}],
                    [{"role": "assistant", "content": "c"}],
                ],
            },
            ResponseGroup((Message("user", "a"),), ("b", "c")),
        ),
    ],
    ids=["text", "completions", "conversational"],
)
def test_rows_are_read_as_groups(row, group):
    assert read_meta_dataset([row]) == [group]
    assert read_meta_dataset(datasets.Dataset.from_list([row])) == [group]
    assert read_meta_dataset([group]) == [group]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"prompt": "a", "texts": ["b", "c"]}], ["row 0", "`responses`", "`texts`"]),
        ([{"responses": ["b", "c"]}], ["row 0", "`prompt`", "`responses`"]),
        ([{"prompt": "a", "responses": "b"}], ["row 0", "`responses`", "a list", "'b'"]),
        ([{"prompt": "a", "responses": ["b", 3]}], ["row 0", "responses[1]", "text", "3"]),
        ([{"prompt": "a", "responses": ["b"]}], ["row 0", "at least 2", "k = 1"]),
        (
            [{"prompt": "a", "responses": ["b", "c"]}, {"prompt": "a", "responses": [None, "b"]}],
            ["row 1", "responses[0]"],
        ),
        ({"train": []}, ["row 0", "'train'", "one split"]),
    ],
)
def test_a_bad_row_is_named(rows, words):
    with pytest.raises(DataError) as raised:
        read_meta_dataset(rows)
    assert len(str(raised.value).splitlines()) == 1
    for word in words:
        assert word in str(raised.value)


def test_what_is_left_out_of_the_meta_set_is_counted(reward_model_dir, tmp_path):
    rows = [
        {"prompt": "a", "responses": [" b", " c d"]},
        {"prompt": "a", "responses": [" b", " c" * 10]},
        {"prompt": "a" + " b" * 10, "responses": [" b", " c"]},
    ]
    trainer = make_trainer(
        reward_model_dir, tmp_path, given={"meta_dataset": rows}, meta_mode="ascent", max_length=9
    )
    report = trainer.meta_report
    assert (report.num_read, report.num_too_long, report.num_too_small) == (3, 1, 1)
    trainer.train()
    with pytest.raises(EmptySetError, match="max_length=3"):
        make_trainer(reward_model_dir, tmp_path, given={"meta_dataset": rows}, max_length=3)
