# SPDX-License-Identifier: Apache-2.0
"""Votes out of files and stores, and soft labels that training reads back."""

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metarm.annotators.label_data import read_features, read_label_data
from metarm.annotators.report import build_report, label_rows, soft_pairs
from metarm.data.preferences import load_preferences
from metarm.errors import DataError, FormatError
from metarm.labels.events import VoteEvent
from metarm.labels.exchange.formats import export_labels
from metarm.labels.store import LabelStore
from metarm.labels.votes import CHOICES, LabelPair, Vote
from metarm.storage import write_json_lines

PAIRS = [
    LabelPair(f"q{n}", f"yes {n}", f"no {n}", source="round 1", chosen_by="random" * (n % 2))
    for n in range(4)
]


def lines(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@settings(deadline=None, derandomize=True, max_examples=40)
@given(
    st.lists(
        st.builds(
            Vote,
            st.sampled_from([pair.id for pair in PAIRS]),
            st.sampled_from(["ann", "bob; c", 'd"e']),
            st.sampled_from(CHOICES),
            st.sampled_from([1, 2]),
            st.sampled_from([None, True, False]),
            st.none() | st.floats(0, 1e6),
        ),
        min_size=1,
        max_size=6,
    )
)
def test_votes_come_back_as_they_were(tmp_path_factory, votes):
    folder = tmp_path_factory.mktemp("votes")
    rows = [
        {name: getattr(vote, name) for name in Vote.__dataclass_fields__} | {"kind": "model"}
        for vote in votes
    ]
    data = read_label_data(lines(folder / "votes.jsonl", *rows))
    assert data.votes == tuple(votes)
    assert set(data.kinds.values()) == {"model"}
    assert data.pairs == {}


def test_pairs_may_stand_in_the_votes_or_in_a_file_of_their_own(tmp_path):
    held = PAIRS[0].to_json() | {"annotator": "ann", "choice": "first"}
    data = read_label_data(lines(tmp_path / "held.jsonl", held))
    assert data.pairs == {PAIRS[0].id: PAIRS[0]}
    assert data.votes == (Vote(PAIRS[0].id, "ann", "first"),)
    pairs = [
        pair.to_json() | {"id": f"own {n}", "known_answer": "tie"} for n, pair in enumerate(PAIRS)
    ]
    votes = tmp_path / "votes.csv"
    votes.write_text("pair,annotator,choice,is_turned,seconds\nown 2,ann,second,true,\n")
    data = read_label_data(votes, lines(tmp_path / "pairs.jsonl", *pairs))
    assert data.votes == (Vote(PAIRS[2].id, "ann", "second", is_turned=True),)
    assert data.gold == dict.fromkeys((pair.id for pair in PAIRS), "tie")
    assert list(data.pairs.values()) == PAIRS


@pytest.mark.parametrize("name", ["votes-jsonl", "votes-csv"])
def test_an_export_of_raw_votes_says_the_same_as_its_store(tmp_path, name):
    with LabelStore(tmp_path / "labels.db") as store:
        store.add_pairs(PAIRS[:2], gold={PAIRS[1].id: "second"})
        for annotator, kind in (("ann", "person"), ("judge", "model")):
            store.add_annotator(annotator, kind)
            for pair, choice in zip(PAIRS[:2], ("first", "tie"), strict=True):
                key = f"{annotator} {pair.id}"
                store.record(
                    VoteEvent(key, annotator, choice, pair=pair.id, is_turned=True, seconds=1.5)
                )
        export_labels(store.content(), name, tmp_path / "votes")
    exported = read_label_data(tmp_path / "votes")
    kept = read_label_data(tmp_path / "labels.db")
    assert sorted(exported.votes, key=repr) == sorted(kept.votes, key=repr)
    assert (exported.pairs, exported.gold) == (kept.pairs, kept.gold)
    assert exported.kinds == kept.kinds == {"ann": "person", "judge": "model"}


GOOD = {"pair": "p", "annotator": "ann", "choice": "first"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"choice": "left"}, r":2: field `choice`: expected one of first, second, tie, skip"),
        ({"choice": 1}, ":2: field `choice`: expected text"),
        ({"annotator": None}, ":2: field `annotator`"),
        ({"strength": 3}, ":2: expected a strength of 1 or 2"),
        ({"seconds": -1}, ":2: expected seconds of 0 or more"),
        ({"is_turned": "left"}, ":2: field `is_turned`: expected true or false"),
        ({"kind": "robot"}, ":2: field `kind`: expected one of person"),
        ({"kind": "model"}, ":2: field `kind`: expected person, got model"),
        ({"pair": None}, ":2: field `prompt`"),
    ],
)
def test_a_bad_row_is_named(tmp_path, change, message):
    path = lines(tmp_path / "votes.jsonl", GOOD, GOOD | change)
    with pytest.raises(FormatError, match=message):
        read_label_data(path)


def test_features_are_told_by_pair(tmp_path):
    path = lines(tmp_path / "f.jsonl", {"pair": "p", "features": [1, 2.5]})
    assert read_features(path, {}) == {"p": [1.0, 2.5]}
    with pytest.raises(DataError, match="of others"):
        read_features(path, {"q": PAIRS[0]})
    with pytest.raises(FormatError, match="features"):
        read_features(lines(tmp_path / "g.jsonl", {"pair": "p", "features": ["x"]}), {})


def test_soft_labels_are_pairs_that_training_reads(tmp_path):
    votes = [
        *(Vote(PAIRS[0].id, name, "first") for name in "abc"),
        *(Vote(PAIRS[1].id, name, "second") for name in "abc"),
        Vote(PAIRS[2].id, "a", "first"),
        Vote(PAIRS[2].id, "b", "second"),
        Vote("not in the file", "a", "first"),
    ]
    rows = [
        {name: getattr(vote, name) for name in ("pair", "annotator", "choice")} for vote in votes
    ]
    data = read_label_data(
        lines(tmp_path / "votes.jsonl", *rows),
        lines(tmp_path / "pairs.jsonl", *(pair.to_json() for pair in PAIRS)),
    )
    report = build_report(data)
    labels = label_rows(report.belief, data)
    assert [row["pair"] for row in labels] == [pair.id for pair in PAIRS[:3]]
    assert [row["votes"] for row in labels] == [3, 3, 2]
    assert {row["source"] for row in labels} == {"round 1"}
    assert [row.get("chosen_by", "") for row in labels] == [pair.chosen_by for pair in PAIRS[:3]]
    write_json_lines(tmp_path / "soft.jsonl", labels)
    loaded = load_preferences(tmp_path / "soft.jsonl").pairs
    assert list(loaded) == soft_pairs(report.belief, data)
    assert [pair.chosen for pair in loaded[:2]] == [PAIRS[0].first, PAIRS[1].second]
    assert all(0.5 <= pair.p <= 1.0 for pair in loaded)
    assert min(loaded[0].p, loaded[1].p) > 0.85
    assert loaded[2].p == pytest.approx(0.5, abs=0.05)
    # Who was not asked yet, and a pair without a vote, are among what to ask next.
    assert {one.pair for one in report.next_votes} >= {PAIRS[3].id}
    assert all(math.isfinite(one) for one in report.nats_per_vote)
