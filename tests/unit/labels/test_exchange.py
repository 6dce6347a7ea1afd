# SPDX-License-Identifier: Apache-2.0
"""Formats of labels: what goes out comes in again, and a file that is wrong is one clear error."""

import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from label_contents import contents
from metarm.errors import EmptySetError, MetarmError
from metarm.labels.events import LabelContent
from metarm.labels.exchange.formats import FORMATS, export_labels, import_labels, read_labels
from metarm.labels.store import LabelStore

WITH_NAMES = [name for name, known in FORMATS.items() if known.read is not None]


def _bytes(place: Path) -> dict[str, bytes]:
    files = sorted(place.rglob("*")) if place.is_dir() else [place]
    return {file.name: file.read_bytes() for file in files}


def _stored(content: LabelContent, folder: Path) -> LabelContent:
    with LabelStore(folder / "labels.db") as store:
        import_labels(store, content)
        return store.content()


def _round_trip(content: LabelContent, name: str) -> tuple[LabelContent, LabelContent]:
    """What was stored, and what is stored after an export and an import; exports are the same."""
    annotator = None if name in WITH_NAMES else "ann"
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        before = _stored(content, folder / "before")
        export_labels(before, name, folder / "one")
        again = read_labels(folder / "one", name, annotator=annotator)
        after = _stored(again, folder / "after")
        export_labels(after, name, folder / "other" / "one")
        assert _bytes(folder / "one") == _bytes(folder / "other" / "one")
        return before, after


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


@pytest.mark.parametrize("name", ["trl-jsonl", "votes-jsonl", "votes-csv", "argilla", "label-studio"])
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_an_export_comes_in_and_goes_out_the_same(name: str, data: st.DataObject) -> None:
    _round_trip(data.draw(contents().filter(lambda one: _has_rows(one, name))), name)


@settings(max_examples=15, deadline=None)
@given(data=st.data(), is_text=st.booleans())
def test_parquet_comes_in_and_goes_out_the_same(data: st.DataObject, is_text: bool) -> None:
    drawn = contents(is_text=is_text).filter(lambda one: _has_rows(one, "trl-parquet"))
    _round_trip(data.draw(drawn), "trl-parquet")


@pytest.mark.parametrize("name", ["votes-jsonl", "votes-csv"])
@settings(max_examples=15, deadline=None)
@given(content=contents().filter(lambda one: _has_rows(one, "votes-csv")))
def test_raw_votes_lose_nothing(name: str, content: LabelContent) -> None:
    before, after = _round_trip(content, name)
    voted = {vote.pair for vote in before.votes}
    assert after.votes == before.votes
    assert after.annotators == before.annotators
    assert after.pairs == tuple(pair for pair in before.pairs if pair.id in voted)
    assert after.gold == {pair: told for pair, told in before.gold.items() if pair in voted}
