# SPDX-License-Identifier: Apache-2.0
"""The page on annotators: its commands run, its figures are those of the benchmark's result."""

import json
import re
import shlex
from pathlib import Path

import pytest

from docs.pages import REPOSITORY, fenced_blocks
from docs.typed import type_out
from integration.commands import start
from metarm.annotators.fitting import MODELS
from metarm.annotators.label_data import read_label_data
from metarm.labels.events import VoteEvent
from metarm.labels.store import LabelStore
from metarm.storage import read_json_lines
from unit.annotators.crowds import write_crowd

PAGE = (REPOSITORY / "docs" / "annotators.md").read_text(encoding="utf-8")
RESULT = json.loads((REPOSITORY / "benchmarks/results/crowd.json").read_text(encoding="utf-8"))


def _cells(first: str) -> list[list[str]]:
    rows = [line.strip("| ").split(" | ") for line in PAGE.splitlines() if line.startswith("| ")]
    return [row for row in rows if row[0] == first and "[" in row[-1]]


def test_every_model_is_told() -> None:
    body = PAGE.split("| `--model` |")[1].split("\n\n")[0]
    assert re.findall(r"^\| `([^`]+)` \|", body, re.MULTILINE) == list(MODELS)


@pytest.mark.parametrize("count", RESULT["accuracy"])
def test_accuracies_are_the_results(count: str) -> None:
    ways = ["plain", "majority", "dawid-skene", "joint without inverted votes", "joint", "oracle"]
    told = next(row for row in _cells(count) if len(row) == len(ways) + 1)
    for way, text in zip(ways, told[1:], strict=True):
        figure = RESULT["accuracy"][count][way]["accuracy"]
        low, high = figure["interval"]
        assert text == f"{figure['value']:.3f} [{low:.3f}, {high:.3f}]"


@pytest.mark.parametrize("way", [way for way, of in RESULT["repeats"].items() if "bad_named" in of])
def test_repeats_are_the_results(way: str) -> None:
    [told] = _cells(way)
    names = {"accuracy": 3, "labels_right": 3, "bad_named": 2, "good_named": 2}
    for (name, digits), text in zip(names.items(), told[1:], strict=True):
        figure = RESULT["repeats"][way][name]
        value, *ends = (f"{one:.{digits}f}" for one in (figure["value"], *figure["interval"]))
        assert text == f"{value} [{ends[0]}, {ends[1]}]"


def test_training_on_the_labels_is_a_command_that_is_there(tmp_path: Path) -> None:
    """It is not run, for it trains; but it gets as far as asking for more than one prompt."""
    [block] = [block.text for block in fenced_blocks(PAGE) if "no-run" in block.info]
    words = shlex.split(block)
    path = tmp_path / words[words.index("--preferences") + 1]
    path.parent.mkdir(parents=True)
    path.write_text('{"prompt": "q", "chosen": "a", "rejected": "b", "p": 0.8}\n')
    done = start(words[1:], tmp_path, tmp_path).finish()
    assert "expected pairs of at least 2 prompts" in done.error


@pytest.mark.slow
def test_the_page_can_be_typed(tmp_path: Path) -> None:
    """Beside a store and files of votes."""
    write_crowd(tmp_path)
    data = read_label_data(tmp_path / "votes.jsonl", tmp_path / "pairs.jsonl")
    with LabelStore(tmp_path / "labels.db") as store:
        store.add_pairs(data.pairs.values())
        for name, kind in data.kinds.items():
            store.add_annotator(name, kind)
        store.record_all(
            VoteEvent(f"{place}", v.annotator, v.choice, pair=v.pair, is_turned=v.is_turned)
            for place, v in enumerate(data.votes)
        )
    blocks = [
        block.text
        for block in fenced_blocks(PAGE)
        if block.language == "sh" and "no-run" not in block.info
    ]
    type_out("\n".join(blocks), tmp_path)
    for folder in ("believed", "believed-joint"):
        written = {path.name for path in (tmp_path / "runs" / folder).iterdir()}
        table = PAGE.split("| file |")[1].split("\n\n")[0]
        assert set(re.findall(r"^\| `([^`]+)` \|", table, re.MULTILINE)) == written
    # What the store was given is asked next, and nothing else is left.
    rows = list(read_json_lines(tmp_path / "runs/believed/next_votes.jsonl"))
    with LabelStore(tmp_path / "labels.db") as store:
        store.add_annotator("somebody new")
        asked: dict[str, str] = {}
        while (item := store.next_item("somebody new", besides=list(asked))) is not None:
            asked[item.id] = item.pair.id
    assert set(asked.values()) == {row["pair"] for row in rows}
    assert rows
