# SPDX-License-Identifier: Apache-2.0
"""Judges as annotators: asked once for each pair, with sides where they matter."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from metarm.errors import ConfigError
from metarm.labels.asking import Asked, ask_judge
from metarm.labels.journal import journal_path
from metarm.labels.store import LabelStore
from metarm.labels.votes import LabelPair
from metarm.schema import Prompt, Verdict

PAIRS = [LabelPair(f"q{number}", "long" * number, "short") for number in range(100)]


class AlwaysLeft:
    """A judge that says `first` whatever it is asked, and counts."""

    def __init__(self, dies_after: int = 10**9) -> None:
        self.num_asked = 0
        self.dies_after = dies_after

    def __call__(
        self, prompts: Sequence[Prompt], first: Sequence[str], second: Sequence[str]
    ) -> list[Verdict]:
        self.num_asked += len(prompts)
        if self.num_asked > self.dies_after:
            raise KeyboardInterrupt
        return ["first"] * len(prompts)


def test_it_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    with LabelStore(tmp_path / "labels.db") as store:
        store.add_pairs(PAIRS)
        with pytest.raises(KeyboardInterrupt):
            ask_judge(store, AlwaysLeft(dies_after=64), "judge", "model")
        assert len(store.votes()) == 64
        assert ask_judge(store, AlwaysLeft(), "judge", "model") == Asked(36, 36, 0)
        judge = AlwaysLeft()
        assert ask_judge(store, judge, "judge", "model") == Asked(0, 0, 0)
        assert judge.num_asked == 0
        assert {vote.is_turned for vote in store.votes()} == {None}
        with pytest.raises(ConfigError, match="of the kind model"):
            ask_judge(store, judge, "judge", "rule")


def silent(prompts: Sequence[Prompt], first: Sequence[str], second: Sequence[str]) -> list[Verdict]:
    """A judge that answers nothing."""
    return ["unjudged"] * len(prompts)


def test_who_never_answered_is_no_annotator(tmp_path: Path) -> None:
    path = tmp_path / "labels.db"
    with LabelStore(path) as store:
        store.add_pairs(PAIRS)
        before = journal_path(path).read_bytes()
        with pytest.raises(KeyboardInterrupt):
            ask_judge(store, AlwaysLeft(dies_after=0), "dead", "model")
        assert ask_judge(store, silent, "silent", "model") == Asked(100, 0, 100)
        with pytest.raises(ConfigError, match="visible characters"):
            ask_judge(store, AlwaysLeft(), "", "model")
        assert store.annotators() == []
        assert journal_path(path).read_bytes() == before
        # With the first votes it is one, and stays one when it is stopped then.
        with pytest.raises(KeyboardInterrupt):
            ask_judge(store, AlwaysLeft(dies_after=64), "dead", "model")
        assert [(one.name, one.num_votes) for one in store.annotators()] == [("dead", 64)]


def test_a_judge_with_a_side_bias_is_seen_to_have_one(tmp_path: Path) -> None:
    with LabelStore(tmp_path / "labels.db") as store:
        store.add_pairs(PAIRS)
        ask_judge(store, AlwaysLeft(), "judge", "model", has_sides=True, has_repeats=True)
        votes = store.votes()
        assert len(votes) == 200
        assert all(vote.chose_left for vote in votes)
        for pair in PAIRS:
            assert {vote.choice for vote in votes if vote.pair == pair.id} == {"first", "second"}


def test_answers_that_are_none_are_asked_again(tmp_path: Path) -> None:
    def unsure(
        prompts: Sequence[Prompt], first: Sequence[str], second: Sequence[str]
    ) -> list[Verdict]:
        return [
            "tie" if len(one) == len(other) else "malformed"
            for one, other in zip(first, second, strict=True)
        ]

    with LabelStore(tmp_path / "labels.db") as store:
        store.add_pairs([LabelPair("q", "a", "b"), LabelPair("q", "a", "bb")])
        assert ask_judge(store, unsure, "judge", "model") == Asked(2, 1, 1)
        assert ask_judge(store, unsure, "judge", "model") == Asked(1, 0, 1)
        assert [vote.choice for vote in store.votes()] == ["tie"]
