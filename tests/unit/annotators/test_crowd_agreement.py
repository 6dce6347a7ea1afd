# SPDX-License-Identifier: Apache-2.0
"""Agreement of crowds, with intervals: against closed forms and each other."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metarm.annotators.agreement import alpha_estimate, krippendorffs_alpha
from metarm.annotators.crowd_agreement import measure_agreement
from metarm.errors import EmptySetError
from metarm.labels.votes import Vote
from metarm.metrics import accuracy_estimate


def test_alpha_of_two_answers_in_closed_form():
    """For two judges and two labels: 1 - (2n - 1) D / (2 n_0 n_1), D the share that disagree."""
    first, second = [0, 1, 1, 0, 1, 0, 0, 1], [0, 1, 0, 0, 1, 1, 0, 1]
    ones = sum(first) + sum(second)
    size = 2 * len(first)
    apart = sum(a != b for a, b in zip(first, second, strict=True))
    expected = 1 - (size - 1) * (2 * apart) / (2 * ones * (size - ones))
    found = alpha_estimate([first, second], num_resamples=200)
    assert found.value == pytest.approx(expected, abs=1e-12)
    assert found.low < found.value < found.high
    assert found.count == len(first)


@settings(deadline=None, derandomize=True, max_examples=30)
@given(
    st.lists(st.lists(st.sampled_from([None, "a", "b", "tie"]), min_size=5, max_size=5), min_size=2)
)
def test_the_estimate_is_alpha_itself(columns):
    try:
        expected = krippendorffs_alpha(columns)
    except EmptySetError:
        with pytest.raises(EmptySetError):
            alpha_estimate(columns, num_resamples=100)
        return
    found = alpha_estimate(columns, num_resamples=100)
    assert (found is None) == (expected is None)
    if found is not None:
        assert found.value == expected
        assert found.low <= found.high <= 1.0


def test_the_bootstrap_is_that_of_alpha_over_pairs():
    draw = np.random.default_rng(3)
    truth = draw.integers(2, size=40)
    ratings = [np.where(draw.random(40) < 0.8, truth, 1 - truth).tolist() for _ in range(3)]
    found = alpha_estimate(ratings, num_resamples=2000, seed=1)
    again = np.random.default_rng(7)
    values = []
    for _ in range(2000):
        at = again.integers(40, size=40)
        values.append(krippendorffs_alpha([[row[i] for i in at] for row in ratings]))
    low, high = np.percentile(values, [2.5, 97.5])
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.03)


def test_a_crowd_by_hand():
    votes = [
        Vote("p", "ann", "first", is_turned=False, seconds=4.0),
        Vote("p", "ann", "first", is_turned=True, seconds=2.0),
        Vote("q", "ann", "tie", is_turned=False),
        Vote("r", "ann", "skip"),
        Vote("p", "bob", "first", is_turned=True),
        Vote("q", "bob", "second", is_turned=True, seconds=9.0),
        Vote("q", "bob", "first", is_turned=False),
        # Not mirrored: the same answer again says nothing of a side.
        Vote("q", "bob", "first", is_turned=False),
    ]
    found = measure_agreement(votes, {"p": "first", "q": "second"}, num_resamples=100)
    ann, bob = found.annotators
    assert (ann.num_votes, ann.num_skips, bob.num_votes, bob.num_skips) == (3, 1, 4, 0)
    assert ann.tie_fraction == pytest.approx(1 / 3)
    assert (ann.seconds, bob.seconds) == (4.0, 9.0)
    assert ann.self_agreement == accuracy_estimate([1])
    assert bob.self_agreement == accuracy_estimate([0, 0])
    assert ann.gold_accuracy == accuracy_estimate([1, 1, 0])
    assert bob.gold_accuracy == accuracy_estimate([1, 1, 0, 0])
    assert ann.left_fraction == accuracy_estimate([1, 0])
    assert bob.left_fraction == accuracy_estimate([0, 1, 1, 1])
    assert found.alpha is None, "every pair that two voted on has a known answer"
    assert found.matrix == {}
    # Of several votes on a pair the first one counts.
    unknown = measure_agreement(votes, {}, num_resamples=100)
    assert unknown.matrix == {("ann", "bob"): accuracy_estimate([1, 0])}
    assert unknown.alpha.count == 2
    assert measure_agreement([Vote("p", "ann", "first")]).alpha is None


def test_alpha_of_people_is_that_of_their_votes_alone():
    draw = np.random.default_rng(4)
    votes = [
        Vote(f"p{n}", name, "first" if draw.random() < share else "second")
        for name, share in {"ann": 0.8, "bob": 0.7, "judge": 0.2}.items()
        for n in range(40)
    ]
    found = measure_agreement(votes, {}, {"judge": "model"}, num_resamples=100)
    alone = measure_agreement([v for v in votes if v.annotator != "judge"], num_resamples=100)
    assert found.alpha_of_people == alone.alpha == alone.alpha_of_people
    assert found.alpha.value < found.alpha_of_people.value
