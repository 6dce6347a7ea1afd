# SPDX-License-Identifier: Apache-2.0
"""What is compared: the prompts that all arms share, each with each or all with one."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metarm.data.meta_sets import save_groups
from metarm.errors import ConfigError, DataError, EmptySetError, FingerprintError, FormatError
from metarm.judging.comparisons import (
    Comparison,
    Judgement,
    JudgementSet,
    compare_arms,
    keep_comparisons,
    load_arm,
    load_comparisons,
    load_judgements,
    load_run_arms,
    save_judgements,
)
from metarm.schema import VERDICTS, Message, ResponseGroup
from strategies import prompts, texts

ARMS = {
    "a": {("", "p"): ["a1", "a2"], ("", "q"): ["a3"], ("", "only a"): ["a4"]},
    "b": {("", "q"): ["b3"], ("", "p"): ["b1", "b2"]},
    "c": {("", "p"): ["c1"], ("", "q"): ["c3"]},
}
ALL = {"against": None, "num_prompts": None, "num_responses": 9}


def test_every_two_arms_on_the_prompts_of_all() -> None:
    found = compare_arms(ARMS, **ALL)
    assert [(c.prompt, c.first, c.second) for c in found] == [
        ("p", "a1", "b1"),
        ("p", "a2", "b2"),
        ("p", "a1", "c1"),
        ("p", "b1", "c1"),
        ("q", "a3", "b3"),
        ("q", "a3", "c3"),
        ("q", "b3", "c3"),
    ]
    assert [c.number for c in found[:2]] == [0, 1]


def test_all_arms_with_one() -> None:
    found = compare_arms(ARMS, against="b", num_prompts=1, num_responses=1)
    assert [(c.first_arm, c.second_arm, c.first) for c in found] == [
        ("a", "b", "a1"),
        ("c", "b", "c1"),
    ]


def test_arms_that_cannot_be_compared() -> None:
    with pytest.raises(ConfigError, match="two or more arms"):
        compare_arms({"a": ARMS["a"]}, **ALL)
    with pytest.raises(ConfigError, match="no such arm, there is a, b, c"):
        compare_arms(ARMS, against="d", num_prompts=None, num_responses=1)
    with pytest.raises(EmptySetError, match="share no prompt"):
        compare_arms({"a": {("", "p"): ["x"]}, "b": {("", "q"): ["y"]}}, **ALL)


def test_files_of_responses_in_their_forms(tmp_path: Path) -> None:
    path = tmp_path / "arm.jsonl"
    rows = [
        {"prompt": "p", "response": "one"},
        {"prompt": "q", "responses": ["two", "three"]},
        {"prompt": "p", "completion": "four"},
        {"prompt": [{"role": "user", "content": "hi"}], "response": ""},
    ]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    assert load_arm(path) == {
        ("", "p"): ["one", "four"],
        ("", "q"): ["two", "three"],
        ("", (Message("user", "hi"),)): [""],
    }
    path.write_text('{"prompt": "p", "answer": "x"}', encoding="utf-8")
    with pytest.raises(FormatError, match="`response`"):
        load_arm(path)


def run_with(folder: Path, places: dict[str, str]) -> Path:
    for place, word in places.items():
        seed, arm, number = place.split()
        path = folder / f"seed_{seed}/arms/{arm}/round_{number}/evaluation/groups.jsonl"
        path.parent.mkdir(parents=True)
        save_groups(path, [ResponseGroup("p", (word, "second"))])
    return folder


def test_arms_of_a_run_after_the_last_round_of_all(tmp_path: Path) -> None:
    run = run_with(
        tmp_path,
        {
            "0 sft 00": "s0",
            "1 sft 00": "s1",
            "0 meta 01": "m01",
            "0 meta 02": "m02",
            "1 meta 01": "m11",
        },
    )
    arms = load_run_arms(run, None)
    assert arms["sft"] == {("seed_0", "p"): ["s0", "second"], ("seed_1", "p"): ["s1", "second"]}
    assert arms["meta"] == {("seed_0", "p"): ["m01", "second"], ("seed_1", "p"): ["m11", "second"]}
    assert load_run_arms(run, 2)["meta"] == {("seed_0", "p"): ["m02", "second"]}
    assert len(compare_arms(arms, **{**ALL, "num_responses": 1})) == 2
    with pytest.raises(EmptySetError, match="found none"):
        load_run_arms(tmp_path / "nothing", None)


sides = st.builds(
    Comparison, prompts(), texts(), texts(), texts(), texts(), texts(), st.integers(0, 3)
)


@given(st.lists(sides, min_size=1, max_size=3))
def test_comparisons_come_back_as_they_were(tmp_path_factory, asked) -> None:
    folder = tmp_path_factory.mktemp("judging")
    keep_comparisons(folder, asked)
    assert load_comparisons(folder) == asked
    keep_comparisons(folder, asked)
    with pytest.raises(FingerprintError, match="other comparisons"):
        keep_comparisons(folder, [*asked, asked[0]])


@given(st.lists(st.tuples(st.sampled_from([*VERDICTS, None]), st.sampled_from([*VERDICTS, None]))))
def test_verdicts_come_back_as_they_were(tmp_path_factory, rows) -> None:
    folder = tmp_path_factory.mktemp("judging")
    judged = JudgementSet("j", {"kind": "test"}, tuple(Judgement(*row) for row in rows))
    save_judgements(folder, judged)
    assert load_judgements(folder, len(rows)) == [judged]
    with pytest.raises(DataError, match=f"expected {len(rows) + 1} verdicts"):
        load_judgements(folder, len(rows) + 1)


@pytest.mark.parametrize("text", ["{}", "[]", '{"facts": {}, "verdicts": [["best", null]]}', "3"])
def test_broken_verdicts_are_said(tmp_path: Path, text: str) -> None:
    (tmp_path / "verdicts").mkdir()
    (tmp_path / "verdicts" / "j.json").write_text(text, encoding="utf-8")
    with pytest.raises(FormatError, match="expected the verdicts of a judge"):
        load_judgements(tmp_path, 1)
