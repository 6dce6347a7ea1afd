# SPDX-License-Identifier: Apache-2.0
"""Gold labels, and gold functions of one's own."""

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metarm.errors import ConfigError, DataError
from metarm.gold_labels import label_groups, relabel_pairs
from metarm.resolve import load_gold
from metarm.schema import PreferencePair, ResponseGroup
from strategies import groups


def length(prompts, responses):
    return [len(response) for response in responses]


def group(prompt: str, *responses: str) -> ResponseGroup:
    return ResponseGroup(prompt, responses)


GROUPS = [group(f"p{n}", *(" x" * (n + k) for k in range(1, 4))) for n in range(5)]


def test_one_pair_of_each_group_before_a_second_of_any() -> None:
    for count in range(1, 16):
        labels = label_groups(GROUPS, length, count, seed=0)
        assert len(labels) == len(set(labels)) == count
        per_group = [sum(pair.prompt == f"p{n}" for pair in labels) for n in range(5)]
        assert max(per_group) - min(per_group) <= 1
        assert all(len(pair.chosen) > len(pair.rejected) for pair in labels)
        assert label_groups(GROUPS, length, count, seed=0) == labels
    assert len(label_groups(GROUPS, length, 16, seed=0)) == 15, "3 pairs of each of 5 groups"


def test_the_seed_draws_groups_and_pairs() -> None:
    drawn = {tuple(label_groups(GROUPS, length, 2, seed=seed)) for seed in range(20)}
    assert len(drawn) > 10
    prompts = {pair.prompt for labels in drawn for pair in labels}
    assert prompts == {f"p{n}" for n in range(5)}


def test_ties_and_repeats_are_passed_over_and_blanks_are_not() -> None:
    rows = [group("a", " xx", " yy"), group("b", " x", " x"), group("c", " x", " xx", " x")]
    assert label_groups(rows, length, 9, seed=0) == [PreferencePair("c", " xx", " x")]
    assert label_groups([group("d", "", " x")], length, 9, seed=0) == [
        PreferencePair("d", " x", "")
    ]
    assert label_groups([], length, 3, seed=0) == []


def test_gold_is_asked_no_more_than_needed() -> None:
    asked = []

    def counting(prompts, responses):
        asked.append(len(responses))
        return length(prompts, responses)

    label_groups(GROUPS, counting, 4, seed=0)
    assert asked == [8]


@settings(max_examples=50)
@given(rows=st.lists(groups(), max_size=5), count=st.integers(0, 30), seed=st.integers(0, 99))
def test_labels_are_of_the_groups_and_as_gold_says(rows, count, seed) -> None:
    labels = label_groups(rows, length, count, seed=seed)
    possible = {
        (row.prompt, *sorted(pair, key=len))
        for row in rows
        for pair in itertools.combinations(row.responses, 2)
        if len(pair[0]) != len(pair[1])
    }
    found = [(pair.prompt, pair.rejected, pair.chosen) for pair in labels]
    assert set(found) <= possible
    assert len(found) == len(set(found)) <= count
    if len(found) < count:
        assert set(found) == possible


def test_gold_orders_original_pairs_anew() -> None:
    pairs = [
        PreferencePair("p", " long one", " x", margin=2.0),
        PreferencePair("p", " x", " longer"),
        PreferencePair("p", " ab", " cd"),
    ]
    assert relabel_pairs(pairs, length) == (
        PreferencePair("p", " long one", " x"),
        PreferencePair("p", " longer", " x"),
    )


def test_a_gold_function_gives_plain_numbers() -> None:
    gold = load_gold("fractions:Fraction", what="--gold")
    # One that takes two arguments and gives something else.
    with pytest.raises(
        DataError, match=r"^fractions:Fraction: expected 1 finite numbers.*TypeError"
    ):
        gold(["a"], [" b"])
    with pytest.raises(ConfigError, match="--gold"):
        load_gold("fractions:Fractoin", what="--gold")


def test_a_gold_function_is_given_lists_and_may_give_any_numbers(tmp_path, monkeypatch) -> None:
    (tmp_path / "numbers_of_mine.py").write_text(
        "import torch\n"
        "def score(prompts, responses):\n"
        "    assert type(prompts) is type(responses) is list\n"
        "    return torch.tensor([float(len(text)) for text in responses])\n",
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(tmp_path)
    scores = load_gold("numbers_of_mine:score", what="gold")(("a", "b"), (" x", " xx"))
    assert scores == [2.0, 3.0]
    assert all(type(score) is float and math.isfinite(score) for score in scores)
