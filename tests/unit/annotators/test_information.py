# SPDX-License-Identifier: Apache-2.0
"""A second vote or a new pair: information in closed form, and who tells most of what."""

import math

import numpy as np
import pytest

from metarm.annotators.fitting import fit_annotators
from metarm.annotators.information import (
    expected_information,
    mutual_information,
    rank_next_votes,
)
from metarm.errors import DataError, ShapeError
from metarm.labels.votes import Vote
from unit.annotators.crowds import draw_crowd


def entropy(*shares):
    return -sum(p * math.log(p) for p in shares if p)


@pytest.mark.parametrize("right", [0.5, 0.7, 0.9, 1.0])
def test_a_coin_that_is_right_so_often_tells_so_much(right):
    chances = np.array([[[right, 1 - right]], [[1 - right, right]]])
    found = mutual_information(np.array([[0.5, 0.5]]), chances)
    assert found.item() == pytest.approx(math.log(2) - entropy(right, 1 - right), abs=1e-12)


def test_what_is_known_already_leaves_nothing_to_tell():
    chances = np.array([[[0.9, 0.1]], [[0.1, 0.9]]])
    assert mutual_information(np.array([[1.0, 0.0]]), chances).item() == pytest.approx(0.0)
    with pytest.raises(ShapeError):
        mutual_information(np.array([1.0]), chances)


@pytest.mark.parametrize("model", ["joint", "dawid-skene"])
def test_a_new_pair_tells_more_than_a_second_vote_and_a_good_one_more_than_a_bad(model):
    crowd = draw_crowd(num_pairs=120, votes_per_pair=5)
    belief = fit_annotators(crowd.votes, pairs=["new"], model=model)
    names = [f"w{w}" for w in range(10)]
    nats = dict(zip(names, expected_information(belief, names).T, strict=True))
    assert all((own >= 0).all() and (own <= math.log(3)).all() for own in nats.values())
    old, new = nats["w0"][:-1], nats["w0"][-1]
    assert new > old.mean()
    good = np.mean([nats[f"w{w}"].mean() for w in range(6)])
    assert good > 3 * max(nats[name].mean() for name in ("w6", "w7", "w8"))
    # Who always says the reverse tells as much as who says the truth.
    assert nats["w9"].mean() > good / 3


def test_a_dawid_skene_vote_in_closed_form():
    """A pair without votes and annotators whose coins are known."""
    votes = [Vote(str(p), name, "first", is_turned=False) for p in range(9) for name in "ab"]
    votes += [Vote(str(p), name, "second", is_turned=False) for p in range(9, 18) for name in "ab"]
    belief = fit_annotators(votes, pairs=["new"], model="dawid-skene")
    right = belief.answers.matrices[0, 0, 0]
    found = expected_information(belief, ["a"], ["new"]).item()
    assert found == pytest.approx(math.log(2) - entropy(right, 1 - right), abs=1e-9)


def test_next_votes_are_each_pairs_best_and_not_those_that_are_there():
    crowd = draw_crowd(num_pairs=60, votes_per_pair=3)
    belief = fit_annotators(crowd.votes, crowd.features)
    done = {(vote.pair, vote.annotator) for vote in crowd.votes}
    ranked = rank_next_votes(belief, done=done, limit=10)
    assert len(ranked) == len({one.pair for one in ranked}) == 10
    assert not done & {(one.pair, one.annotator) for one in ranked}
    assert [one.nats for one in ranked] == sorted((one.nats for one in ranked), reverse=True)
    assert {one.votes_so_far for one in ranked} == {3}
    only = rank_next_votes(belief, annotators=["w6"], pairs=["p1"], limit=5)
    assert [(one.pair, one.annotator) for one in only] == [("p1", "w6")]
    with pytest.raises(DataError, match="'nobody'"):
        expected_information(belief, ["nobody"])
