# SPDX-License-Identifier: Apache-2.0
"""What an import does to votes that a store has already."""

from pathlib import Path

from metarm.labels.events import VoteEvent
from metarm.labels.exchange.formats import export_labels, import_labels, read_labels
from metarm.labels.store import LabelStore
from metarm.labels.votes import Choice, LabelPair

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
