# SPDX-License-Identifier: Apache-2.0
"""`metarm select`: pairs and reasons on disk, made once, and one-line errors."""

import json
from pathlib import Path

import pytest

from integration.made_up_shift import save_shift
from metarm.labels.votes import LabelPair
from metarm.storage import read_json, read_json_lines, write_json_lines
from tiny_models import save_reward_model

SELECT = ["select", "--groups", "groups.jsonl", "--reward-model", "reward", "--output"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_shift(tmp_path)
    save_reward_model(tmp_path / "reward")
    return tmp_path


def test_pairs_are_chosen_written_and_explained(folder: Path, metarm) -> None:
    words = [*SELECT, "chosen", "--count", "12", "--labelled", "pairs.jsonl"]
    done = metarm(*words, "--cost-per-label", "0.3")
    assert done.code == 0, done.err
    assert "6 random, 6 d-optimal" in done.out
    assert "at a cost of 3.6" in done.out
    assert "... and 2 more" in done.out
    pairs = [LabelPair.from_json(row) for row in read_json_lines(folder / "chosen/pairs.jsonl")]
    assert [pair.chosen_by for pair in pairs] == ["random"] * 6 + ["d-optimal"] * 6
    selection = read_json(folder / "chosen/selection.json")
    assert [row["pair"] for row in selection["pairs"]] == [pair.id for pair in pairs]
    assert all(row["reason"] for row in selection["pairs"])
    assert selection["forecast"]["sentence"] in done.out
    hint = "with --labelled, the pairs that it was trained on"
    assert hint not in done.out
    assert hint in metarm(*SELECT, "unaware", "count=3").out
    before = (folder / "chosen/pairs.jsonl").read_bytes()
    again = metarm(*words, "--cost-per-label", "0.3")
    assert again.code == 0, again.err
    assert "nothing is done again" in again.err
    assert again.out == done.out
    assert "other settings" in metarm(*words).error or "settings" in metarm(*words).error
    assert (folder / "chosen/pairs.jsonl").read_bytes() == before


def test_a_strategy_of_ones_own_and_json(folder: Path, metarm) -> None:
    (folder / "mine.py").write_text(
        "def last(pool, count, generator):\n    return list(range(len(pool)))[::-1]\n", "utf-8"
    )
    done = metarm(*SELECT, "own", "--strategy", "mine:last", "--json", "count=3")
    assert done.code == 0, done.err
    document = json.loads(done.out)
    assert document["chosen_by"] == {"mine:last": 3}
    rows = list(read_json_lines(folder / "own/pairs.jsonl"))
    assert {row["chosen_by"] for row in rows} == {"mine:last"}


def test_soft_labels_are_learnt_from(folder: Path, metarm) -> None:
    rows = list(read_json_lines(folder / "pairs.jsonl"))
    for name, p in (("ones", 1.0), ("ties", 0.5)):
        write_json_lines(folder / f"{name}.jsonl", [{**row, "p": p} for row in rows])
    words = ["--strategy", "disagreement", "--count", "5"]
    found = {}
    for name in ("pairs", "ones", "ties"):
        done = metarm(*SELECT, f"by_{name}", *words, "--labelled", f"{name}.jsonl")
        assert done.code == 0, done.err
        found[name] = read_json(folder / f"by_{name}/selection.json")["pairs"]
    assert found["ones"] == found["pairs"] != found["ties"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--strategy", "d-optmal"], "did you mean 'd-optimal'"),
        (["--strategy", "mix+d-optmal"], "did you mean 'd-optimal'"),
        (["--strategy", "mine:last"], "mine"),
        (["--count", "100000"], "the pairs there are to choose from"),
        (["--strategy", "mix+disagreement"], "needs an ensemble of reward models"),
    ],
)
def test_what_cannot_be_chosen_is_told_before_any_model_is_read(
    folder: Path, metarm, words: list[str], message: str
) -> None:
    words = ["select", "--groups", "groups.jsonl", "--reward-model", "nowhere", *words]
    assert message in metarm(*words, "--output", "out").error
    done = metarm("select", *words[1:5], "--output", "out")
    assert "nowhere" in done.error


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--count", "0"], "count"),
        (["--strategy", "disagreement"], "needs an ensemble of reward models"),
        (["worth_per_point=2"], "give cost_per_label too"),
        (["--labelled", "none.jsonl"], "none.jsonl"),
    ],
)
def test_errors_say_what_to_do(folder: Path, metarm, words: list[str], message: str) -> None:
    assert message in metarm(*SELECT, "out", *words).error
    assert not (folder / "out").exists()
