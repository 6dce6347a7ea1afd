# SPDX-License-Identifier: Apache-2.0
"""Whom to believe: simulated crowds, symmetries, the one-annotator case, and the front door."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.special import expit

from metarm.annotators.fitting import LEAST_SHARED, MODELS, fit_annotators
from metarm.errors import ConfigError, DataError, EmptySetError, ShapeError
from metarm.labels.votes import Vote
from unit.annotators.crowds import draw_crowd, exchange, turn_sides

SEVERAL = draw_crowd(num_pairs=160, votes_per_pair=4, tie=0.4)
SINGLE = draw_crowd(num_pairs=700, votes_per_pair=1)


def reliabilities(belief):
    return {one.name: one.reliability.value for one in belief.annotators}


def side_biases(belief):
    return {one.name: one.side_bias.value for one in belief.annotators}


def labels(belief):
    return dict(zip(belief.table.pairs, belief.labels.tolist(), strict=True))


def told(model, crowd=SEVERAL, votes=None):
    features = crowd.features if model == "joint" else None
    return fit_annotators(crowd.votes if votes is None else votes, features, model=model)


@pytest.fixture(scope="module")
def straight():
    return {model: told(model) for model in MODELS}


def test_one_vote_a_pair_is_enough_where_there_are_features():
    belief = fit_annotators(SINGLE.votes, SINGLE.features)
    assert belief.model == "joint"
    found, biases = reliabilities(belief), side_biases(belief)
    assert min(found[f"w{good}"] for good in range(6)) > 0.6
    assert max(abs(found[name]) for name in ("w6", "w7", "w8")) < 0.4
    assert found["w9"] < -0.6
    assert biases["w8"] > 0.7 > 0.35 > max(abs(biases[f"w{w}"]) for w in (*range(8), 9))
    truth = expit(np.array([SINGLE.differences[pair] for pair in belief.table.pairs]))
    assert np.abs(belief.labels - truth).mean() < 0.1
    theta = belief.weights_of_features
    gaps = np.array([SINGLE.features[pair] @ theta for pair in belief.table.pairs])
    assert ((gaps > 0) == (truth > 0.5)).mean() > 0.9


@pytest.mark.parametrize("model", ["dawid-skene", "joint"])
def test_several_votes_a_pair_are_enough_without_features(model):
    belief = fit_annotators(SEVERAL.votes, model=model)
    found = reliabilities(belief)
    good = [found[f"w{w}"] for w in range(6)]
    assert min(good) > 0.4 > max(abs(found[name]) for name in ("w6", "w7", "w8"))
    assert found["w9"] < -0.3
    truth = np.array([SEVERAL.differences[pair] for pair in belief.table.pairs])
    told_apart = np.abs(truth) > 1.0
    majority = fit_annotators(SEVERAL.votes, model="majority")

    def accuracy(fit):
        return ((fit.labels > 0.5) == (truth > 0))[told_apart].mean()

    assert accuracy(belief) > 0.85 > accuracy(majority) - 0.05


@pytest.mark.parametrize("model", MODELS)
def test_showing_all_pairs_the_other_way_round_mirrors_the_bias_alone(straight, model):
    turned = told(model, votes=turn_sides(SEVERAL.votes))
    one, other = straight[model], turned
    assert reliabilities(other) == pytest.approx(reliabilities(one), abs=2e-3)
    expected = {name: -bias for name, bias in side_biases(one).items()}
    assert side_biases(other) == pytest.approx(expected, abs=2e-3)
    assert labels(other) == pytest.approx(labels(one), abs=2e-3)


@pytest.mark.parametrize("model", MODELS)
def test_exchanging_first_and_second_turns_the_labels_alone(straight, model):
    votes = exchange(SEVERAL.votes)
    features = {pair: -row for pair, row in SEVERAL.features.items()} if model == "joint" else None
    other = fit_annotators(votes, features, model=model)
    one = straight[model]
    assert reliabilities(other) == pytest.approx(reliabilities(one), abs=2e-3)
    assert side_biases(other) == pytest.approx(side_biases(one), abs=2e-3)
    expected = {pair: 1.0 - label for pair, label in labels(one).items()}
    assert labels(other) == pytest.approx(expected, abs=2e-3)


@pytest.mark.parametrize("model", MODELS)
def test_the_order_of_votes_and_annotators_does_not_matter(straight, model):
    draw = np.random.default_rng(1)
    votes = [SEVERAL.votes[place] for place in draw.permutation(len(SEVERAL.votes))]
    other, one = told(model, votes=votes), straight[model]
    assert other.table.annotators != one.table.annotators
    assert reliabilities(other) == pytest.approx(reliabilities(one), abs=2e-3)
    assert labels(other) == pytest.approx(labels(one), abs=2e-3)


@pytest.mark.parametrize("model", MODELS)
def test_one_annotator_is_taken_at_the_word(model):
    crowd = draw_crowd(("good",), num_pairs=150, votes_per_pair=1)
    belief = told(model, crowd)
    assert len(belief.annotators) == 1
    said = {vote.pair: float(vote.choice == "first") for vote in crowd.votes}
    agrees = [(label > 0.5) == (said[pair] > 0.5) for pair, label in labels(belief).items()]
    assert np.mean(agrees) > 0.75
    assert belief.annotators[0].reliability.low <= belief.annotators[0].reliability.value


@pytest.mark.parametrize("model", MODELS)
def test_skips_are_missing_values(straight, model):
    skips = [Vote(vote.pair, "w0", "skip") for vote in SEVERAL.votes[::3]]
    other = told(model, votes=[*skips, *SEVERAL.votes])
    assert labels(other) == pytest.approx(labels(straight[model]), abs=1e-9)


@pytest.mark.parametrize("model", MODELS)
def test_pairs_without_votes_are_labelled_by_what_is_known_of_them(model):
    features = SEVERAL.features | {"new": 3.0 * next(iter(SEVERAL.features.values()))}
    given = features if model == "joint" else None
    belief = fit_annotators(SEVERAL.votes, given, pairs=["new"], model=model)
    like = belief.label_of(next(iter(SEVERAL.features)))
    if model == "joint":
        assert abs(belief.label_of("new") - 0.5) > abs(like - 0.5) - 0.05
    else:
        assert belief.label_of("new") == pytest.approx(0.5, abs=1e-6)


@pytest.mark.parametrize("model", MODELS)
def test_known_answers_outweigh_what_a_crowd_says(model):
    """Where everybody else is wrong, who is right is found by the known answers."""
    draw = np.random.default_rng(0)
    votes, gold = [], {}
    for pair in range(60):
        truth = ("first", "second")[draw.integers(2)]
        lie = "second" if truth == "first" else "first"
        votes += [Vote(str(pair), "honest", truth), Vote(str(pair), "liar", lie)]
        votes += [Vote(str(pair), "other", lie)]
        if pair < 40:
            gold[str(pair)] = truth
    blind = fit_annotators(votes, model=model)
    belief = fit_annotators(votes, gold=gold, model=model)
    assert blind.annotator("honest").reliability.value < blind.annotator("liar").reliability.value
    if model != "majority":
        assert belief.annotator("honest").reliability.value > 0.8
        assert belief.annotator("liar").reliability.value < -0.5
        honest = {vote.pair: vote.choice for vote in votes if vote.annotator == "honest"}
        found = labels(belief)
        assert all((found[p] > 0.5) == (c == "first") for p, c in honest.items())


def test_ties_pull_labels_to_the_middle(straight):
    ties = [Vote("p0", f"w{w}", "tie", is_turned=False) for w in range(6)]
    for model in ("joint", "dawid-skene"):
        label = told(model, votes=[*ties, *SEVERAL.votes]).label_of("p0")
        before = straight[model].label_of("p0")
        assert abs(label - 0.5) < 0.25
        assert abs(label - 0.5) <= abs(before - 0.5)


def test_more_features_than_pairs_are_turned_to_their_directions():
    crowd = draw_crowd(num_pairs=80, votes_per_pair=3)
    draw = np.random.default_rng(0)
    turn = np.linalg.qr(draw.normal(size=(300, 6)))[0]
    wide = {pair: turn @ row * 50.0 for pair, row in crowd.features.items()}
    one, other = fit_annotators(crowd.votes, crowd.features), fit_annotators(crowd.votes, wide)
    assert other.weights_of_features.shape == (300,)
    # The unit of features is their mean square, over all of them.
    assert reliabilities(other) == pytest.approx(reliabilities(one), abs=0.1)
    assert labels(other) == pytest.approx(labels(one), abs=0.1)


def test_intervals_cover():
    """90 % intervals of reliability, over crowds of all grades."""
    grades = (0.9, 0.8, 0.7, 0.5, 0.3)
    covered = []
    for seed in range(10):
        crowd = draw_crowd(grades, num_pairs=300, votes_per_pair=1, seed=seed)
        for one in fit_annotators(crowd.votes, crowd.features).annotators:
            truth = grades[int(one.name[1:])]
            covered.append(one.reliability.low <= truth <= one.reliability.high)
    assert 0.75 <= np.mean(covered) <= 1.0


def test_the_model_follows_what_is_there():
    single = [Vote("a", "w", "first"), Vote("b", "w", "second")]
    assert fit_annotators(single).model == "majority"
    assert fit_annotators([*single, Vote("a", "v", "first")]).model == "majority"
    shared = [Vote(f"p{n}", name, "first") for n in range(LEAST_SHARED) for name in "vw"]
    assert fit_annotators(shared).model == "dawid-skene"
    assert fit_annotators(shared[1:]).model == "majority"
    assert fit_annotators(single, {"a": [1.0], "b": [-1.0]}).model == "joint"


def _with_repeats(votes):
    """Everybody answers every pair again, mirrored, as people do: as they did before."""
    again = [replace(vote, is_turned=not vote.is_turned) for vote in votes]
    return [*votes, *again]


@pytest.mark.parametrize("model", [*MODELS, None])
def test_who_agrees_with_oneself_says_nothing_more_of_the_pair(model):
    features = SINGLE.features if model in ("joint", None) else None
    once = fit_annotators(SINGLE.votes, features, model=model)
    again = fit_annotators(_with_repeats(SINGLE.votes), features, model=model)
    assert again.labels.tolist() == once.labels.tolist()
    assert reliabilities(again) == reliabilities(once)


def test_repeats_do_not_make_strangers_judges_of_each_other():
    """One vote a pair and no features: nothing tells, and an adversary is not the best of all."""
    belief = fit_annotators(_with_repeats(SINGLE.votes))
    assert belief.model == "majority"
    assert {str(one.reliability) for one in belief.annotators} == {"cannot be told"}
    assert not any(one.reliability.is_told for one in belief.annotators)


def _with_a_stranger():
    """Four who answer the same pairs, and an adversary who answers others, alone."""
    crowd = draw_crowd(("good",) * 4, num_pairs=160, votes_per_pair=4)
    alone = draw_crowd(("adversarial",), num_pairs=160, votes_per_pair=1)
    turned = [replace(vote, pair=f"x{vote.pair}", annotator="alone") for vote in alone.votes]
    truth = {f"x{pair}": "first" if d > 0 else "second" for pair, d in alone.differences.items()}
    return [*crowd.votes, *turned], truth


@pytest.mark.parametrize("model", MODELS)
def test_one_who_shares_no_pair_is_not_told_by_the_prior(model):
    votes, truth = _with_a_stranger()
    belief = fit_annotators(votes, model=model)
    assert str(belief.annotator("alone").reliability) == "cannot be told"
    assert belief.annotator("alone").to_json()["reliability"] is None
    assert all(one.reliability.is_told for one in belief.annotators if one.name != "alone")
    # What tells is known answers, here of a quarter of the pairs.
    gold = dict(list(truth.items())[:40])
    found = fit_annotators(votes, gold=gold, model=model).annotator("alone").reliability
    assert found.high < 0


def test_features_tell_of_one_who_shares_no_pair():
    belief = fit_annotators(SINGLE.votes, SINGLE.features)
    assert all(one.reliability.is_told for one in belief.annotators)
    assert belief.annotator("w9").reliability.high < 0


def test_an_adversary_among_strangers_is_never_the_most_reliable():
    """The page's default: one vote a pair, 5 % repeats answered as before, no known answers."""
    for seed in range(4):
        crowd = draw_crowd(("good",) * 3 + ("adversarial", "random"), votes_per_pair=1, seed=seed)
        draw = np.random.default_rng(seed)
        again = [replace(v, is_turned=not v.is_turned) for v in crowd.votes if draw.random() < 0.05]
        assert again
        belief = fit_annotators([*crowd.votes, *again])
        assert {str(one.reliability) for one in belief.annotators} == {"cannot be told"}


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"votes": []}, EmptySetError, "at least one vote"),
        ({"votes": [Vote("a", "w", "skip")]}, EmptySetError, "not a skip"),
        ({"model": "jont"}, ConfigError, "joint"),
        ({"features": {"b": [1.0]}}, DataError, "got none of 1"),
        ({"features": {"a": [1.0], "b": [1.0, 2.0]}}, ShapeError, "one length"),
        ({"features": {"a": []}}, ShapeError, "one length"),
        ({"features": {"a": [float("nan")]}}, DataError, "finite"),
    ],
)
def test_what_cannot_be_fitted_is_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        fit_annotators(**({"votes": [Vote("a", "w", "first")]} | arguments))


@pytest.mark.parametrize("model", ["dawid-skene", "joint"])
def test_side_bias_is_of_all_votes_also_of_ties(model):
    """Left in half of all votes whatever is true, and else a tie: half of the votes go left."""
    votes = list(SEVERAL.votes)
    for place, pair in enumerate(SEVERAL.differences):
        turned = place % 4 < 2
        choice = "tie" if place % 2 else ("second" if turned else "first")
        votes.append(Vote(pair, "lefty", choice, is_turned=turned))
    found = next(
        one for one in fit_annotators(votes, model=model).annotators if one.name == "lefty"
    )
    assert found.side_bias.value == pytest.approx(0.5, abs=0.06)
    assert found.side_bias.low < 0.5 < found.side_bias.high
