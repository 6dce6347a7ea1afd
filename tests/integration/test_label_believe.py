# SPDX-License-Identifier: Apache-2.0
"""The verb `label believe`: files and stores in; soft labels, annotators and a page out."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from integration.commands import Finished
from metarm.data.preferences import load_preferences
from metarm.labels.events import VoteEvent
from metarm.labels.store import LabelStore
from metarm.labels.votes import LabelPair
from metarm.storage import read_json_lines
from unit.annotators.crowds import KINDS, write_crowd


def result(done: Finished) -> dict[str, Any]:
    assert done.code == 0, done.err
    document: dict[str, Any] = json.loads(done.out)
    return document


def test_from_files_to_soft_labels_and_a_page(
    tmp_path: Path, metarm: Callable[..., Finished]
) -> None:
    write_crowd(tmp_path)
    words = ["label", "believe", "votes.jsonl", "--output", "out", "--pairs", "pairs.jsonl"]
    document = result(metarm(*words, "--features", "features.jsonl", "--next", "5", "--json"))
    named = {one["name"]: one["kind"] for one in document["suspects"]}
    assert named.keys() == {"w6", "w7", "w8", "w9"}
    assert (named["w8"], named["w9"]) == ("always-left", "adversarial")
    assert document["model"] == "joint"
    assert len(document["next_votes"]) == 5
    people = Counter(
        row["pair"]
        for row in read_json_lines(tmp_path / "votes.jsonl")
        if row["choice"] != "skip" and KINDS.get(row["annotator"], "person") == "person"
    )
    assert list(read_json_lines(tmp_path / "out" / "next_votes.jsonl")) == [
        {**one, "wanted": people[one["pair"]] + 1} for one in document["next_votes"]
    ]
    (against,) = document["comparisons"]
    assert (against["first_kind"], against["second_kind"]) == ("model", "person")
    labels = load_preferences(tmp_path / "out" / "soft_labels.jsonl").pairs
    assert len(labels) == document["pairs"]
    assert all(pair.p is not None and 0.5 <= pair.p <= 1.0 for pair in labels)
    written = list(read_json_lines(tmp_path / "out" / "annotators.jsonl"))
    assert written == document["annotators"]
    page = (tmp_path / "out" / "believe.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "default-src 'none'" in page

    told = metarm(*words)
    assert told.code == 0, told.err
    assert "model: dawid-skene" in told.out
    assert "always-left" in told.out


def test_from_a_store(tmp_path: Path, metarm: Callable[..., Finished]) -> None:
    votes = write_crowd(tmp_path)
    rows = list(read_json_lines(tmp_path / "pairs.jsonl"))
    with LabelStore(tmp_path / "labels.db") as store:
        store.add_pairs([LabelPair.from_json(row) for row in rows])
        for name in dict.fromkeys(vote.annotator for vote in votes):
            store.add_annotator(name, KINDS.get(name, "person"))
        store.record_all(
            VoteEvent(
                key=f"{place}",
                annotator=vote.annotator,
                choice=vote.choice,
                pair=vote.pair,
                is_turned=vote.is_turned,
            )
            for place, vote in enumerate(votes)
        )
    stored = result(metarm("label", "believe", "labels.db", "--output", "out", "--json"))
    words = ["label", "believe", "votes.jsonl", "--output", "again", "--pairs", "pairs.jsonl"]
    filed = result(metarm(*words, "--json"))
    for one, other in zip(stored["suspects"], filed["suspects"], strict=True):
        assert (one["name"], one["kind"]) == (other["name"], other["kind"])
        assert one["p_value"] == pytest.approx(other["p_value"], rel=1e-3)
    assert [one["name"] for one in stored["annotators"]] == [
        one["name"] for one in filed["annotators"]
    ]
    assert stored["agreement"]["alpha"] == filed["agreement"]["alpha"]


def test_what_another_wrote_or_somebody_changed_is_kept(
    tmp_path: Path, metarm: Callable[..., Finished]
) -> None:
    write_crowd(tmp_path)
    words = ["label", "believe", "votes.jsonl", "--pairs", "pairs.jsonl", "--model", "majority"]
    mine = tmp_path / "mine" / "soft_labels.jsonl"
    mine.parent.mkdir()
    mine.write_text("mine", "utf-8")
    error = metarm(*words, "--output", "mine").error
    assert f"{mine.relative_to(tmp_path)} exists, and `metarm label believe` did not" in error
    assert [path.name for path in mine.parent.iterdir()] == [mine.name]
    assert mine.read_text("utf-8") == "mine"

    assert metarm(*words, "--output", "out").code == 0
    page = tmp_path / "out" / "believe.html"
    page.write_text("changed", "utf-8")
    before = {path.name: path.read_bytes() for path in page.parent.iterdir()}
    # It is told before votes are read.
    error = metarm(*words[:2], "none.jsonl", "--output", "out").error
    assert "was changed since `metarm label believe` wrote it: move it away" in error
    assert {path.name: path.read_bytes() for path in page.parent.iterdir()} == before
    page.rename(tmp_path / "kept.html")
    assert metarm(*words, "--output", "out", "--alpha", "0.01").code == 0


def test_what_is_missing_is_said(tmp_path: Path, metarm: Callable[..., Finished]) -> None:
    write_crowd(tmp_path)
    words = ["label", "believe", "votes.jsonl", "--output", "out"]
    done = metarm(*words, "--model", "majority")
    assert done.code == 0, done.err
    assert "240 pairs have votes but no text" in done.err
    assert "got both" in metarm(*words, "--features", "f", "--backbone", "m").error
    # Before the votes are read, let alone hidden states.
    nothing = ["label", "believe", "none.jsonl", "--output", "other"]
    assert "joint" in metarm(*nothing, "--model", "jiont").error
    assert "alpha above 0" in metarm(*nothing, "--alpha", "1").error
    assert "needs the text" in metarm(*words, "--backbone", "m").error
    assert "no such file" in metarm("label", "believe", "votes.json", "--output", "o").error
    assert not (tmp_path / "o").exists()
