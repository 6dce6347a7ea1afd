# SPDX-License-Identifier: Apache-2.0
"""What an import does to votes that a store has already."""

import json
from pathlib import Path

from metarm.labels.events import VoteEvent
from metarm.labels.exchange.formats import export_labels, import_labels, read_labels
from metarm.labels.store import LabelStore
from metarm.labels.votes import Choice, LabelPair
from metarm.storage import read_json

PAIRS = [LabelPair(f"question {n}", "yes", "no") for n in range(3)]


def test_an_export_that_comes_back_takes_no_sides_and_times_away(tmp_path: Path) -> None:
    with LabelStore(tmp_path / "labels.db") as store:
        store.add_pairs(PAIRS)
        store.add_annotator("ann")
        choices: tuple[Choice, ...] = ("first", "tie", "skip")
        for number, choice in enumerate(choices):
            pair = PAIRS[number].id
            store.record(
                VoteEvent(f"k{number}", "ann", choice, pair=pair, is_turned=True, seconds=2.0)
            )
        before = store.events()
        for name in ("argilla", "label-studio", "votes-jsonl"):
            export_labels(store.content(), name, tmp_path / name)
            told = import_labels(store, read_labels(tmp_path / name, name))
            assert (told.num_votes, told.num_known) == (0, 3), name
        assert store.events() == before
        with LabelStore(tmp_path / "other.db") as other:
            import_labels(other, read_labels(tmp_path / "argilla", "argilla"))
            changed = VoteEvent("k3", "ann", "second", pair=PAIRS[0].id)
            other.record(changed)
            export_labels(other.content(), "argilla", tmp_path / "changed")
        told = import_labels(store, read_labels(tmp_path / "changed", "argilla"))
        assert (told.num_votes, told.num_known) == (1, 2)
        assert [vote.choice for vote in store.votes()] == ["tie", "skip", "second"]


def test_a_skip_stays_one_in_what_argilla_itself_writes(tmp_path: Path) -> None:
    """Its `Record.to_dict` (2.8.0) leaves `status` out; older exports of ours had a tie there."""
    with LabelStore(tmp_path / "labels.db") as store:
        store.add_pairs(PAIRS[:1])
        store.add_annotator("ann")
        store.record(VoteEvent("k", "ann", "skip", pair=PAIRS[0].id))
        export_labels(store.content(), "argilla", tmp_path / "argilla")
    records = read_json(tmp_path / "argilla/records.json")
    (answer,) = records[0]["responses"]["preference"]
    own = answer | {"status": "discarded"}
    for changed in ({"value": "skip", "user_id": own["user_id"]}, {**own, "value": "tie"}):
        records[0]["responses"]["preference"] = [changed]
        path = tmp_path / "theirs.json"
        path.write_text(json.dumps(records), "utf-8")
        assert [vote.choice for vote in read_labels(path, "argilla").votes] == ["skip"]


def test_nobody_signs_a_known_answer_for_label_studio(tmp_path: Path) -> None:
    """Label Studio 1.23.2 refuses addresses that it does not know; None is whoever imports."""
    with LabelStore(tmp_path / "labels.db") as store:
        store.add_pairs(PAIRS[:1], gold={PAIRS[0].id: "second"})
        store.add_annotator("ann@example.org")
        store.record(VoteEvent("k", "ann@example.org", "first", pair=PAIRS[0].id))
        content = store.content()
        export_labels(content, "label-studio", tmp_path / "out")
    known, vote = read_json(tmp_path / "out/tasks.json")[0]["annotations"]
    assert (known["ground_truth"], known.get("completed_by")) == (True, None)
    assert vote["completed_by"]["email"] == "ann@example.org"
    assert [result["to_name"] for result in (*known["result"], *vote["result"])] == [
        "preference",
        "preference",
    ]
    assert read_labels(tmp_path / "out", "label-studio").gold == content.gold
