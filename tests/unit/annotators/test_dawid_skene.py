# SPDX-License-Identifier: Apache-2.0
"""Dawid and Skene's model against EM written out by hand, and its own symmetries."""

import numpy as np
import pytest

from metarm.annotators.curvature import laplace_covariance
from metarm.annotators.dawid_skene import _Model
from metarm.annotators.fitting import fit_annotators
from metarm.annotators.vote_table import build_table
from metarm.labels.votes import Vote
from unit.annotators.crowds import draw_crowd


def em_by_hand(votes, steps=200):
    """Two coins, all pairs shown straight, plain Python."""
    pairs = sorted({v.pair for v in votes})
    names = sorted({v.annotator for v in votes})
    truth = {}
    for pair in pairs:
        own = [v.choice == "first" for v in votes if v.pair == pair]
        truth[pair] = (sum(own) + 0.5) / (len(own) + 1.0)
    for _ in range(steps):
        coins = {}
        for name in names:
            own = [v for v in votes if v.annotator == name]
            yes = sum(truth[v.pair] for v in own)
            hits = sum(truth[v.pair] for v in own if v.choice == "first")
            rejected = sum(1 - truth[v.pair] for v in own if v.choice == "second")
            coins[name] = (hits + 2) / (yes + 3), (rejected + 2) / (len(own) - yes + 3)
        for pair in pairs:
            up = down = 0.5
            for v in votes:
                if v.pair == pair:
                    sens, spec = coins[v.annotator]
                    up *= sens if v.choice == "first" else 1 - sens
                    down *= 1 - spec if v.choice == "first" else spec
            truth[pair] = up / (up + down)
    return truth, coins


def test_parity_with_em_written_out():
    draw = np.random.default_rng(0)
    votes = [
        Vote(
            str(pair), str(who), "first" if draw.random() < 0.3 + 0.1 * who else "second", 1, False
        )
        for pair in range(25)
        for who in draw.choice(5, size=3, replace=False).tolist()
    ]
    truth, coins = em_by_hand(votes)
    belief = fit_annotators(votes, model="dawid-skene")
    found = dict(zip(belief.table.pairs, belief.labels.tolist(), strict=True))
    assert found == pytest.approx(truth, abs=1e-5)
    for one in belief.annotators:
        sens, spec = coins[one.name]
        assert one.reliability.value == pytest.approx(sens + spec - 1, abs=1e-5)
        assert one.side_bias.value == pytest.approx(sens - spec, abs=1e-5)


@pytest.mark.parametrize("tie", [0.0, 0.6], ids=["two answers", "three answers"])
def test_gradient_is_that_of_the_likelihood(tie):
    """By Fisher's identity, against differences of the likelihood itself; some sides unknown."""
    crowd = draw_crowd((0.9, 0.5, "random"), num_pairs=20, votes_per_pair=2, tie=tie)
    votes = [
        Vote(v.pair, v.annotator, v.choice, 1, v.is_turned if place % 3 else None)
        for place, v in enumerate(crowd.votes)
    ]
    table = build_table(votes)
    model = _Model(table, {table.pairs[0]: 1})
    prior = model.prior(model.first_guess())
    size = model.classes
    beforehand = np.ones((size, size)) + np.eye(size)

    def loss(logits):
        full = np.concatenate([logits.reshape(-1, size, size - 1), np.zeros((3, size, 1))], axis=2)
        matrices = np.exp(full) / np.exp(full).sum(axis=2, keepdims=True)
        straight, turned = model._chances(matrices)
        side = table.side[:, None]
        chance = np.where(side > 0, straight, np.where(side < 0, turned, (straight + turned) / 2))
        value = -(beforehand * np.log(matrices)).sum()
        for place in range(len(table.pairs)):
            terms = prior * chance[table.pair == place].prod(axis=0)
            value -= np.log(terms[0] if place == 0 else terms.sum())
        return value

    at = np.random.default_rng(0).normal(size=3 * size * (size - 1))
    steps = 1e-6 * np.eye(len(at))
    numeric = [(loss(at + step) - loss(at - step)) / 2e-6 for step in steps]
    assert model.gradient(at, prior) == pytest.approx(np.array(numeric), abs=1e-6)


def test_pairs_whose_winner_always_stands_first_in_a_file_make_no_bias():
    """Imported labels: no side is known, and `first` is the chosen one."""
    votes = [Vote(str(pair), name, "first") for pair in range(30) for name in "abc"]
    belief = fit_annotators(votes, model="dawid-skene")
    assert belief.labels.min() > 0.95
    for one in belief.annotators:
        assert one.reliability.value > 0.85
        assert one.side_bias.value == pytest.approx(0.0, abs=1e-9)


def test_covariance_of_a_quadratic_is_its_inverse():
    draw = np.random.default_rng(0)
    root = draw.normal(size=(5, 5))
    hessian = root @ root.T + np.eye(5)
    found = laplace_covariance(lambda at: hessian @ at, draw.normal(size=5))
    assert found == pytest.approx(np.linalg.inv(hessian), abs=1e-6)


def test_a_habit_of_the_left_is_found_where_half_of_the_sides_are_unknown():
    draw = np.random.default_rng(0)
    votes = []
    for pair in map(str, range(300)):
        best, other = ("first", "second") if draw.random() < 0.5 else ("second", "first")
        for name in "abc":
            choice = best if draw.random() < 0.85 else other
            votes.append(Vote(pair, name, choice, is_turned=bool(draw.random() < 0.5)))
        is_turned = bool(draw.random() < 0.5)
        choice = "first" if is_turned == (draw.random() < 0.1) else "second"
        known = is_turned if int(pair) % 2 else None
        votes.append(Vote(pair, "left", choice, is_turned=known))
    belief = fit_annotators(votes, model="dawid-skene")
    found = belief.annotator("left").side_bias
    assert found.low < 0.8 < found.high
    # A maximum of the likelihood, which the intervals are made at.
    model = _Model(belief.table, {})
    slope = model.gradient(model.to_logits(belief.answers.matrices), np.array([0.5, 0.5]))
    assert np.abs(slope).max() < 1e-3
