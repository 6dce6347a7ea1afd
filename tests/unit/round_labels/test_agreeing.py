# SPDX-License-Identifier: Apache-2.0
"""A reward model against single votes: what counts, what is a half, what it is not held against."""

from dataclasses import replace

import numpy as np
import pytest

from metarm.labels.votes import LabelPair, Vote
from metarm.metrics import mean_estimate
from metarm.round_labels.agreeing import agreement_with_votes
from metarm.round_labels.soft import soft_labels

PAIRS = [LabelPair(f"p{n // 2}", f" {n}", f" -{n + 1}", chosen_by="random") for n in range(8)]


def value(prompts, responses):
    return [float(response) for response in responses]


def test_every_vote_counts_and_ties_of_either_side_are_halves() -> None:
    a, b, c, tied = (*PAIRS[:3], LabelPair("p9", " 1", " 1.0", chosen_by="random"))
    votes = [
        Vote(a.id, "ann", "first"),
        Vote(a.id, "bob", "second"),
        Vote(a.id, "bob", "first", is_turned=True),
        Vote(b.id, "ann", "tie"),
        Vote(b.id, "bob", "skip"),
        Vote(c.id, "cid", "second"),
        Vote(tied.id, "cid", "second"),
    ]
    told = agreement_with_votes([*PAIRS, tied], votes, value)
    assert told is not None
    values = [1, 0, 1, 0.5, 0, 0.5]
    assert (told.num_votes, told.num_pairs) == (6, 4), "the skip is none of them"
    assert told.share.value == pytest.approx(np.mean(values), rel=1e-15)
    # a and b are of one prompt: three prompts, whose votes stand together.
    expected = mean_estimate(values, [0, 0, 0, 0, 1, 2])
    assert told.share.count == 3
    assert (told.share.low, told.share.high) == (max(0.0, expected.low), min(1.0, expected.high))


def test_pairs_that_were_chosen_and_skips_tell_nothing_and_are_not_scored() -> None:
    chosen = [replace(pair, chosen_by="d-optimal") for pair in PAIRS[:4]]

    def unasked(prompts, responses):
        raise AssertionError

    votes = [Vote(pair.id, "ann", "first") for pair in chosen]
    assert agreement_with_votes(chosen, votes, unasked) is None
    assert agreement_with_votes(PAIRS, [Vote(PAIRS[0].id, "ann", "skip")], unasked) is None
    told = agreement_with_votes(
        [*chosen, *PAIRS[4:]], [*votes, Vote(PAIRS[4].id, "x", "second")], value
    )
    assert told is not None
    assert (told.share.value, told.num_votes, told.num_pairs) == (0.0, 1, 1)


def test_votes_never_flatter_a_model_and_what_a_joint_model_makes_of_them_does() -> None:
    """Annotators err in 3 of 10; the truth has as much in it that the features do not know.

    Where two votes disagree, the joint model goes by the features, as the reward model does.
    """
    draw = np.random.default_rng(0)
    pairs = [LabelPair(f"q{n}", f" a{n}", f" b{n}", chosen_by="random") for n in range(400)]
    known, unknown = draw.normal(size=(2, len(pairs)))
    truth = known + unknown > 0
    votes = [
        Vote(pair.id, name, "first" if better == (draw.random() < 0.7) else "second")
        for pair, better in zip(pairs, truth, strict=True)
        for name in ("ann", "bob")
    ]
    believed = soft_labels(
        pairs, votes, lambda: {pair.id: [one] for pair, one in zip(pairs, known, strict=True)}
    )

    def score(prompts, responses):
        return [known[int(text[2:])] * (text[1] == "a") for text in responses]

    told = agreement_with_votes(pairs, votes, score)
    assert told is not None
    accuracy = np.mean(truth == (known > 0))
    by_belief = np.mean(
        [(believed[p.id] > 0.5) == (k > 0) for p, k in zip(pairs, known, strict=True)]
    )
    assert told.share.high < accuracy < by_belief - 0.05
    expected = 0.7 * accuracy + 0.3 * (1 - accuracy)
    assert told.share.low < expected < told.share.high
