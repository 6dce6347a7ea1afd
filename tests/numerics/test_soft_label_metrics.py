# SPDX-License-Identifier: Apache-2.0
"""A soft label is a pair in both orders, weighted p and 1 - p: in loss, accuracy and gate."""

import numpy as np
import pytest
import torch

from metarm.errors import DataError
from metarm.evaluation.champion import compare_champion, non_inferiority
from metarm.metrics import attainable_accuracy, expected_correct, length_balanced_accuracy
from metarm.models.pair_evaluation import evaluate_preferences
from metarm.objectives import bradley_terry_loss
from metarm.schema import PreferencePair

SCORES = {"aaa": 2.0, "b": 0.5, "cc": -1.0, "dddd": -1.0, "ee": 3.0}


def score(prompts, responses):
    return [SCORES[response] for response in responses]


def pairs_of(*rows):
    return [PreferencePair(f"prompt {i}", *row[:2], p=row[2]) for i, row in enumerate(rows)]


SOFT = pairs_of(("aaa", "b", 0.7), ("cc", "ee", 0.7), ("cc", "dddd", 0.2), ("b", "dddd", 1.0))


def duplicated(pairs):
    """Ten times each: 10 p as it stands, the others the other way round, all hard."""
    rows = []
    for pair in pairs:
        right = round(10 * pair.p)
        rows += [PreferencePair(pair.prompt, pair.chosen, pair.rejected)] * right
        rows += [PreferencePair(pair.prompt, pair.rejected, pair.chosen)] * (10 - right)
    return rows


def test_a_soft_label_is_weighted_duplication_in_the_loss():
    def loss(pairs):
        chosen, rejected = (
            torch.tensor([SCORES[text] for text in side], dtype=torch.float64)
            for side in ([p.chosen for p in pairs], [p.rejected for p in pairs])
        )
        label = torch.tensor([1.0 if p.p is None else p.p for p in pairs], dtype=torch.float64)
        return bradley_terry_loss(chosen, rejected, label=label).item()

    assert loss(SOFT) == pytest.approx(loss(duplicated(SOFT)), abs=1e-14)


def test_a_soft_label_is_weighted_duplication_in_accuracy():
    soft, hard = (evaluate_preferences(score, pairs) for pairs in (SOFT, duplicated(SOFT)))
    assert soft.accuracy.value == pytest.approx((0.7 + 0.3 + 0.5 + 1.0) / 4, abs=1e-14)
    assert soft.accuracy.value == pytest.approx(hard.accuracy.value, abs=1e-14)
    assert soft.accuracy_length_balanced == pytest.approx(hard.accuracy_length_balanced, abs=1e-14)
    assert soft.accuracy_attainable == pytest.approx((0.7 + 0.7 + 0.8 + 1.0) / 4, abs=1e-14)


def test_hard_labels_give_the_same_figures_to_the_bit():
    rows = [("aaa", "b"), ("cc", "ee"), ("cc", "dddd"), ("b", "dddd")]
    without, with_one = (
        evaluate_preferences(score, pairs_of(*((*row, p) for row in rows))) for p in (None, 1.0)
    )
    assert without == with_one
    assert without.accuracy_attainable is None
    correct = np.array([1.0, 0.0, 0.5, 1.0])
    assert expected_correct(correct, np.ones(4)).tolist() == correct.tolist()


def test_a_certain_label_for_the_other_side_is_the_pair_turned_round():
    turned = evaluate_preferences(score, pairs_of(("b", "aaa", 0.0), ("ee", "cc", 0.0)))
    plain = evaluate_preferences(score, pairs_of(("aaa", "b", 1.0), ("cc", "ee", 1.0)))
    assert turned.accuracy == plain.accuracy
    assert turned.accuracy_length_balanced == plain.accuracy_length_balanced
    assert turned.accuracy_attainable == 1.0


def test_the_best_order_attains_the_ceiling_and_no_more():
    p = np.array([0.9, 0.4, 0.5, 1.0])
    best = expected_correct((p >= 0.5).astype(float), p).mean()
    assert best == pytest.approx(attainable_accuracy(p), abs=1e-15)


def test_the_gate_weighs_a_difference_by_what_the_label_says():
    new, old = np.array([1.0, 0.0, 1.0, 1.0] * 60), np.array([1.0, 1.0, 0.0, 1.0] * 60)
    p = np.array([1.0, 0.6, 0.9, 0.7] * 60)
    found = non_inferiority(new, old, range(240), margin=0.03, alpha=0.05, p=p)
    assert found.difference == pytest.approx((-0.2 + 0.8) / 4, abs=1e-14)
    assert found.discordant_share == 0.5
    hard = non_inferiority(new, old, range(240), margin=0.03, alpha=0.05)
    assert hard == non_inferiority(new, old, range(240), margin=0.03, alpha=0.05, p=np.ones(240))


def test_the_gate_bears_labels_that_hardly_say_anything():
    lost, won = np.zeros(200), np.ones(200)
    found = non_inferiority(lost, won, range(200), margin=0.03, alpha=0.05, p=np.full(200, 0.6))
    assert found.difference == pytest.approx(-0.2, abs=1e-14)
    assert not found.holds


def test_the_champions_accuracy_is_the_expected_one():
    decision = compare_champion(score, lambda p, r: [-s for s in score(p, r)], SOFT)
    assert decision.accuracy_challenger == pytest.approx(0.625, abs=1e-14)
    assert decision.accuracy_champion == pytest.approx(0.375, abs=1e-14)
    assert decision.test is not None
    assert decision.test.difference == pytest.approx(0.25, abs=1e-14)


@pytest.mark.parametrize("p", [-0.1, 1.1])
def test_what_is_no_chance_is_refused(p):
    with pytest.raises(DataError):
        expected_correct([1.0], [p])
    with pytest.raises(DataError):
        attainable_accuracy([p])
    with pytest.raises(DataError):
        length_balanced_accuracy([1.0], [2], [1], [p])
    with pytest.raises(DataError):
        non_inferiority([1.0], [1.0], [0], margin=0.03, alpha=0.05, p=[p])
