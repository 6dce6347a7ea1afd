# SPDX-License-Identifier: Apache-2.0
"""Formats of labels: what goes out comes in again, and a file that is wrong is one clear error."""

import functools
import json
import random
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from label_contents import contents
from metarm.errors import EmptySetError, FormatError, MetarmError
from metarm.labels.events import LabelContent, VoteEvent
from metarm.labels.exchange.formats import (
    FORMATS,
    Imported,
    export_labels,
    import_labels,
    read_labels,
)
from metarm.labels.exchange.preferences import read_preferences
from metarm.labels.exchange.sealing import manifest_path
from metarm.labels.store import LabelStore
from metarm.labels.votes import LabelPair
from metarm.schema import Message

SINGLE = {"votes-csv": "labels.csv", "trl-parquet": "labels.parquet"}
"""Names of single files; the others are JSON lines."""


def _bytes(place: Path) -> dict[str, bytes]:
    """The files of an export, without its manifest, which counts the votes of the store."""
    files = sorted(place.rglob("*")) if place.is_dir() else [place]
    return {file.name: file.read_bytes() for file in files if file.name != "manifest.json"}


def _round_trip(content: LabelContent, name: str) -> LabelContent:
    """What an export of the content is read as; exporting that gives the same bytes."""
    read = FORMATS[name].read or functools.partial(read_preferences, annotator="ann")
    files = FORMATS[name].write(content)
    with tempfile.TemporaryDirectory() as place:
        for file, data in files.items():
            Path(place, file or SINGLE.get(name, "labels.jsonl")).write_bytes(data)
        again = read(Path(place, SINGLE.get(name, "labels.jsonl")) if "" in files else Path(place))
    assert FORMATS[name].write(again) == files
    return again


def _has_rows(content: LabelContent, name: str) -> bool:
    """Whether the format has anything to say of the content."""
    if name in ("votes-jsonl", "votes-csv", "label-studio"):
        return bool(content.votes)
    first = [vote for vote in content.votes if not vote.is_repeat]
    if name == "argilla":
        return bool(first)
    points = {"first": 1, "second": -1}
    return any(
        sum(points.get(vote.choice, 0) for vote in first if vote.pair == pair.id)
        for pair in content.pairs
        if pair.id not in content.gold
    )


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "trl-parquet"])
@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_an_export_comes_in_and_goes_out_the_same(name: str, data: st.DataObject) -> None:
    _round_trip(data.draw(contents().filter(lambda one: _has_rows(one, name))), name)


@settings(max_examples=12, deadline=None)
@given(data=st.data(), is_text=st.booleans())
def test_parquet_comes_in_and_goes_out_the_same(data: st.DataObject, is_text: bool) -> None:
    drawn = contents(is_text=is_text).filter(lambda one: _has_rows(one, "trl-parquet"))
    _round_trip(data.draw(drawn), "trl-parquet")


@pytest.mark.parametrize("name", ["votes-jsonl", "votes-csv"])
@settings(max_examples=12, deadline=None)
@given(before=contents().filter(lambda one: _has_rows(one, "votes-csv")))
def test_raw_votes_lose_nothing(name: str, before: LabelContent) -> None:
    after = _round_trip(before, name)
    voted = {vote.pair for vote in before.votes}
    assert [replace(vote, at=0.0) for vote in after.votes] == [
        replace(vote, at=0.0) for vote in before.votes
    ]
    assert after.annotators == before.annotators
    assert after.pairs == tuple(pair for pair in before.pairs if pair.id in voted)
    assert after.gold == {pair: told for pair, told in before.gold.items() if pair in voted}


def test_pairs_of_known_answers_are_no_preference_rows() -> None:
    """The owner knows better: a wrong vote on one would be trained on as a label."""
    content = _example()
    rows = FORMATS["trl-jsonl"].write(content)[""].splitlines()
    told = {vote.pair for vote in content.votes if vote.pair not in content.gold}
    known = replace(content, gold=content.gold | dict.fromkeys(told, "first"))
    assert len(rows) > 0
    assert FORMATS["trl-jsonl"].write(known)[""] == b""


@pytest.mark.parametrize("name", ["trl-jsonl", "trl-parquet"])
def test_preference_rows_say_which_strategy_chose_them(name: str) -> None:
    """Estimates are made of random rows alone, after an export and an import too."""
    by = {"q0": "random", "q1": "d-optimal", "q2": ""}
    pairs = tuple(LabelPair(prompt, "a", "b", chosen_by=own) for prompt, own in by.items())
    votes = tuple(VoteEvent(f"k{n}", "ann", "first", pair=pair.id) for n, pair in enumerate(pairs))
    content = LabelContent(pairs, {}, {"ann": "person"}, votes)
    assert {pair.prompt: pair.chosen_by for pair in _round_trip(content, name).pairs} == by
    if name == "trl-jsonl":
        rows = map(json.loads, FORMATS[name].write(content)[""].splitlines())
        assert [row.get("chosen_by") for row in rows] == ["random", "d-optimal", None]


def _example() -> LabelContent:
    """A little of everything."""
    pairs = (
        LabelPair("=1+1", "a", "b", "round_1", "random"),
        LabelPair((Message("user", "hi\r\n"), Message("assistant", "'x")), "", "\u202e"),
        LabelPair("q", "c", "d"),
    )
    votes = [
        VoteEvent("k1", "ann", "first", pair=pairs[0].id, strength=2, is_turned=True, seconds=1.5),
        VoteEvent("k2", "ann", "second", pair=pairs[0].id, is_turned=False, is_repeat=True),
        VoteEvent("k3", "bob", "tie", pair=pairs[0].id, note="@both", flag=True),
        VoteEvent("k4", "ann", "second", pair=pairs[1].id),
        VoteEvent("k5", "bob", "skip", pair=pairs[1].id),
        VoteEvent("k6", "ann", "tie", pair=pairs[2].id),
    ]
    stamped = tuple(replace(vote, at=round(1e9 + place / 7, 6)) for place, vote in enumerate(votes))
    return LabelContent(pairs, {pairs[0].id: "first"}, {"ann": "person", "bob": "rule"}, stamped)


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "trl-parquet"])
def test_from_store_to_store(name: str, tmp_path: Path) -> None:
    """Byte for byte, with the manifest; a second import of the same file adds nothing."""
    content = _example()
    with LabelStore(tmp_path / "one.db") as store:
        assert import_labels(store, content) == Imported(3, 6, 0)
        assert store.content().votes == content.votes
        export_labels(store.content(), name, tmp_path / "one")
    annotator = None if FORMATS[name].read else "ann"
    with LabelStore(tmp_path / "other.db") as store:
        read = read_labels(tmp_path / "one", name, annotator=annotator)
        first = import_labels(store, read)
        assert import_labels(store, read) == Imported(0, 0, first.num_votes)
        export_labels(store.content(), name, tmp_path / "other" / "one")
    assert _bytes(tmp_path / "one") == _bytes(tmp_path / "other" / "one")
    one, other = manifest_path(tmp_path / "one"), manifest_path(tmp_path / "other" / "one")
    digests = [json.loads(place.read_text())["sha256"] for place in (one, other)]
    assert digests[0] == digests[1]


def test_preference_rows_have_shares_and_leave_out_what_is_undecided() -> None:
    pairs = (LabelPair("q", "a", "b"), LabelPair("p", "c", "d"))
    votes = [
        VoteEvent(f"k{place}", f"ann {place}", choice, pair=pairs[0].id, strength=strength)
        for place, (choice, strength) in enumerate(
            [("second", 2), ("second", 1), ("tie", 1), ("first", 1), ("skip", 1)]
        )
    ]
    votes.append(VoteEvent("t", "ann 1", "tie", pair=pairs[1].id))
    kinds = dict.fromkeys(sorted({vote.annotator for vote in votes}), "person")
    (data,) = FORMATS["trl-jsonl"].write(LabelContent(pairs, {}, kinds, tuple(votes))).values()
    (row,) = [json.loads(line) for line in data.splitlines()]
    assert row == {
        "prompt": "q",
        "chosen": "b",
        "rejected": "a",
        "p": 2.5 / 4,
        "margin": 1 / 4,
        "n_votes": 4,
    }


def test_a_pair_that_is_there_the_other_way_round_is_the_same_pair(tmp_path: Path) -> None:
    pair = LabelPair("q", "worse", "better")
    path = tmp_path / "old.jsonl"
    path.write_text('{"prompt": "q", "chosen": "better", "rejected": "worse"}\n')
    with LabelStore(tmp_path / "labels.db") as store:
        store.add_pairs([pair])
        content = read_labels(path, "preferences", annotator="ann")
        assert import_labels(store, content) == Imported(0, 1, 0)
        assert [(vote.pair, vote.choice) for vote in store.votes()] == [(pair.id, "second")]


def test_an_export_that_was_changed_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "votes.jsonl"
    export_labels(_example(), "votes-jsonl", path)
    path.write_text(path.read_text().replace("first", "second", 1))
    with pytest.raises(FormatError, match="remove the manifest"):
        read_labels(path, "votes-jsonl")


def test_nothing_is_exported_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(EmptySetError, match="nobody has voted"):
        export_labels(LabelContent((), {}, {}, ()), "votes-csv", tmp_path / "out")


def _broken(text: bytes, draw: random.Random) -> bytes:
    """The text with a stretch left out, doubled, or written over."""
    begin = draw.randrange(len(text))
    end = min(len(text), begin + draw.choice([1, 1, 3, 40]))
    junk = draw.choice([b"", b'"', b"null", b"[]", b"{}", b"-1e999", b"\xff", b"\0", b"1", b","])
    return text[:begin] + draw.choice([junk, text[begin:end] * 2]) + text[end:]


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "trl-parquet"])
def test_a_file_that_is_wrong_is_one_clear_error(name: str, tmp_path: Path) -> None:
    """Or it is still labels: nothing else ever comes of one that was changed anywhere."""
    draw, num_refused = random.Random(name), 0
    annotator = None if FORMATS[name].read else "ann"
    files = FORMATS[name].write(_example())
    with LabelStore(tmp_path / "labels.db") as store:
        for turn in range(150):
            place = tmp_path / f"{turn}.{'csv' if name == 'votes-csv' else 'json'}"
            changed = {file: data for file, data in files.items() if file != "config.xml"}
            target = draw.choice(sorted(changed))
            changed[target] = _broken(changed[target], draw)
            for file, data in changed.items():
                path = place / file if file else place
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(data)
            try:
                import_labels(store, read_labels(place, name, annotator=annotator))
            except MetarmError:
                num_refused += 1
    assert num_refused > 20


@pytest.mark.parametrize("name", list(FORMATS))
@settings(max_examples=25, deadline=None)
@given(data=st.binary(max_size=80) | st.text(max_size=40).map(str.encode))
def test_any_bytes_at_all(name: str, data: bytes) -> None:
    annotator = None if FORMATS[name].read else "ann"
    with tempfile.TemporaryDirectory() as place:
        path = Path(place, "file")
        path.write_bytes(data)
        with pytest.raises(MetarmError):
            read_labels(path, name, annotator=annotator)
