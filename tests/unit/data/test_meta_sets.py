# SPDX-License-Identifier: Apache-2.0
import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metarm.data.meta_sets import load_demonstrations, load_groups, load_prompts, save_groups
from metarm.errors import DataError, EmptySetError, FormatError
from metarm.schema import Message, ResponseGroup
from strategies import groups

USER = {"role": "user", "content": "Hi"}
REPLY = {"role": "assistant", "content": "Hello"}
HI = (Message("user", "Hi"),)


@pytest.fixture
def write(tmp_path):
    def write_rows(*rows, name="rows.jsonl"):
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    return write_rows


@settings(max_examples=60, deadline=None)
@given(st.lists(groups(), min_size=1, max_size=4))
def test_saved_groups_load_the_same(saved):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "groups.jsonl"
        save_groups(path, saved)
        assert load_groups(path) == saved


def test_groups_come_in_text_and_in_messages(write):
    path = write(
        {"prompt": "p", "responses": ["a", "b"], "finished": [True, False]},
        {"prompt": [USER], "completions": [[REPLY], "b", ""], "policy": "extra"},
        {"prompt": "p", "responses": ["a", "b"], "finished": None, "source": "maths"},
        {"prompt": "p", "responses": ["a", "b"], "source": None},
    )
    assert load_groups(path) == [
        ResponseGroup("p", ("a", "b"), (True, False)),
        ResponseGroup(HI, ("Hello", "b", "")),
        ResponseGroup("p", ("a", "b"), source="maths"),
        ResponseGroup("p", ("a", "b")),
    ]


@pytest.mark.parametrize(
    ("row", "fragment"),
    [
        ({"responses": ["a"]}, r"field `responses`: expected at least 2 .* k = 1\. .*num_gen"),
        ({"completions": []}, r"field `completions`: expected at least 2 .* k = 0"),
        ({"responses": "ab"}, r"field `responses`: expected a list, got 'ab'"),
        ({}, r"field `responses`: expected a value, got none"),
        ({"responses": ["a", None]}, r"field `responses\[1\]`: expected text, got null"),
        ({"responses": ["a", [USER]]}, r"field `responses\[1\]\[0\]\.role`: expected 'assistant'"),
        ({"responses": ["a", [REPLY, REPLY]]}, r"field `responses\[1\]`: expected one message"),
        ({"responses": ["a", "b"], "finished": [True]}, r"field `finished`: expected 2 times"),
        ({"responses": ["a", "b"], "finished": [1, 0]}, r"field `finished`: expected 2 times"),
        (
            {"responses": ["a", "b"], "source": 3},
            r"field `source`: expected text, got the number 3",
        ),
        ({"responses": ["a", "b"], "prompt": " "}, r"field `prompt`: expected a prompt"),
        ({"responses": ["a", "b"], "prompt": 1}, r"field `prompt`: expected text"),
    ],
)
def test_a_bad_group_is_named(write, row, fragment):
    path = write({"prompt": "p", "responses": ["a", "b"]}, {"prompt": "p", **row})
    with pytest.raises(FormatError, match=r"rows\.jsonl:2: " + fragment):
        load_groups(path)


def test_prompts_of_rows_stand_once_each_in_order(write):
    path = write({"prompt": "b", "chosen": 1}, {"prompt": "a"}, {"prompt": "b"}, {"prompt": [USER]})
    assert load_prompts(path) == ["b", "a", HI]


@pytest.mark.parametrize("name", ["prompts.txt", "prompts", "prompts.md"])
def test_prompts_of_plain_lines(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"\xef\xbb\xbfTell me, please\r\n\n  Why?\nTell me, please\n")
    assert load_prompts(path) == ["Tell me, please", "  Why?"]


def test_a_text_file_may_begin_with_a_bracket(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("[INST] Why? [/INST]\n")
    assert load_prompts(path) == ["[INST] Why? [/INST]"]


def test_prompts_of_csv(tmp_path):
    path = tmp_path / "prompts.csv"
    path.write_text('id,prompt\n1,"Why,\nthen?"\n')
    assert load_prompts(path) == ["Why,\nthen?"]


def test_prompts_that_are_missing_or_blank_are_named(write, tmp_path):
    with pytest.raises(FormatError, match=r"rows\.jsonl:2: field `prompt`: expected a value"):
        load_prompts(write({"prompt": "a"}, {"text": "b"}))
    with pytest.raises(FormatError, match=r"rows\.jsonl:1: field `prompt`: expected a prompt"):
        load_prompts(write({"prompt": ""}))
    with pytest.raises(DataError, match="no such file"):
        load_prompts(tmp_path / "none.jsonl")
    (tmp_path / "blank.txt").write_text("\n \n")
    with pytest.raises(EmptySetError, match=r"blank\.txt:1: expected prompts"):
        load_prompts(tmp_path / "blank.txt")


def test_demonstrations_in_each_shape(write):
    path = write(
        {"prompt": "p", "response": "r"},
        {"prompt": "p", "completion": "c"},
        {"prompt": [USER], "completion": [REPLY]},
        {"messages": [USER, REPLY]},
        {"messages": [USER, REPLY, USER, REPLY]},
    )
    assert load_demonstrations(path) == [
        ("p", "r"),
        ("p", "c"),
        (HI, "Hello"),
        (HI, "Hello"),
        ((*HI, Message("assistant", "Hello"), *HI), "Hello"),
    ]


@pytest.mark.parametrize(
    ("row", "fragment"),
    [
        ({"prompt": "p"}, r"field `response`: expected a value"),
        ({"prompt": "p", "completion": " "}, r"field `completion`: expected a response"),
        ({"prompt": "", "response": "r"}, r"field `prompt`: expected a prompt"),
        ({"messages": [REPLY]}, r"field `messages`: expected a prompt and a response"),
        ({"messages": [REPLY, USER]}, r"field `messages\[1\]\.role`: expected 'assistant'"),
    ],
)
def test_a_bad_demonstration_is_named(write, row, fragment):
    with pytest.raises(FormatError, match=r"rows\.jsonl:2: " + fragment):
        load_demonstrations(write({"prompt": "p", "response": "r"}, row))
