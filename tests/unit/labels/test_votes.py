# SPDX-License-Identifier: Apache-2.0
"""Pairs and votes: what they are known by, and what they refuse to be."""

import pytest

from metarm.errors import FormatError
from metarm.labels.votes import LabelPair, Vote
from metarm.schema import Message


def test_a_pair_is_known_by_its_texts_alone() -> None:
    pair = LabelPair("q", "a", "b", source="round_1", chosen_by="random")
    assert pair.id == LabelPair("q", "a", "b").id
    others = [LabelPair("q", "b", "a"), LabelPair("p", "a", "b"), LabelPair("q", "a", "c")]
    assert len({pair.id, *(other.id for other in others)}) == 4


@pytest.mark.parametrize("prompt", ["q", (Message("user", "q"), Message("assistant", "r"))])
def test_a_pair_comes_back_from_json(prompt) -> None:
    pair = LabelPair(prompt, "a", "b", source="round_1", chosen_by="mix")
    assert LabelPair.from_json(pair.to_json()) == pair
    assert "source" not in LabelPair(prompt, "a", "b").to_json()


@pytest.mark.parametrize(
    ("choice", "is_turned", "left"),
    [
        ("first", False, True),
        ("first", True, False),
        ("second", True, True),
        ("second", False, False),
        ("tie", False, None),
        ("skip", True, None),
        ("first", None, None),
    ],
)
def test_which_side_won(choice, is_turned, left) -> None:
    assert Vote("p", "ann", choice, is_turned=is_turned).chose_left is left


@pytest.mark.parametrize(
    "wrong", [{"choice": "left"}, {"strength": 3}, {"seconds": -1.0}, {"seconds": float("nan")}]
)
def test_what_is_no_vote(wrong) -> None:
    with pytest.raises(FormatError, match="expected"):
        Vote(**{"pair": "p", "annotator": "ann", "choice": "first", **wrong})
