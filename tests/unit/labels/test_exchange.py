# SPDX-License-Identifier: Apache-2.0
"""Formats of labels: what goes out comes in again, and a file that is wrong is one clear error."""

import functools
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from label_contents import contents
from metarm.labels.events import LabelContent
from metarm.labels.exchange.formats import FORMATS
from metarm.labels.exchange.preferences import read_preferences

SINGLE = {"votes-csv": "labels.csv", "trl-parquet": "labels.parquet"}
"""Names of single files; the others are JSON lines."""


def _bytes(place: Path) -> dict[str, bytes]:
    files = sorted(place.rglob("*")) if place.is_dir() else [place]
    return {file.name: file.read_bytes() for file in files}


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
