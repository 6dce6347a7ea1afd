# SPDX-License-Identifier: Apache-2.0
"""The page of `metarm label believe`: disputed is what people dispute."""

from metarm.annotators.label_data import LabelData
from metarm.annotators.report import build_report
from metarm.labels.votes import LabelPair, Vote
from metarm.reports.believe_page import draw_believe_page
from metarm.schema import Message

NAMES = ("ann", "bob", "cem")
NONE = "None that can be shown"


def page_of(num_split: int) -> str:
    """The page of ten pairs with three votes each, the first of which are not unanimous."""
    pairs = [LabelPair((Message("user", f"ask {n}"),), f"one {n}", f"two {n}") for n in range(10)]
    votes = [
        Vote(pair.id, name, "second" if n < num_split and name == "cem" else "first")
        for n, pair in enumerate(pairs)
        for name in NAMES
    ]
    kinds = dict.fromkeys(NAMES, "person")
    data = LabelData(tuple(votes), {pair.id: pair for pair in pairs}, {}, kinds)
    report = build_report(data, num_next=0)
    return draw_believe_page(report, data, {})


def test_strangers_are_not_told_to_be_reliable() -> None:
    """A vote a pair: neither who is reliable nor how certain a label is can be said."""
    pairs = [LabelPair(f"ask {n}", f"one {n}", f"two {n}") for n in range(9)]
    votes = tuple(Vote(pair.id, NAMES[n % 3], "first") for n, pair in enumerate(pairs))
    data = LabelData(votes, {pair.id: pair for pair in pairs}, {}, dict.fromkeys(NAMES, "person"))
    page = draw_believe_page(build_report(data, num_next=0), data, {})
    assert "Who is reliable cannot be told" in page
    assert "how certain they are is not told" in page
    assert page.count("cannot be told</td>") == len(NAMES)
    assert "shown to be less" not in page


def test_unanimous_pairs_are_not_disputed() -> None:
    page = page_of(num_split=0)
    assert NONE in page
    assert 'class="sample"' not in page


def test_pairs_whose_votes_differ_are_disputed() -> None:
    page = page_of(num_split=2)
    assert NONE not in page
    assert page.count('class="sample"') == 2
    assert "ask 0" in page
    assert "ask 1" in page
