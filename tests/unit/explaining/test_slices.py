# SPDX-License-Identifier: Apache-2.0
"""Slices, their tests and the length figures, against counts by hand and laws of chance."""

import numpy as np
import pytest
from scipy import stats
from scipy.special import expit

from metarm.errors import ShapeError
from metarm.explaining.length_bias import length_slope, measure_length_bias
from metarm.explaining.neighbours import nearest_pairs, similarities
from metarm.explaining.permuting import sign_test, slice_tests
from metarm.explaining.slices import (
    calibration_error,
    measure_slices,
    pair_slices,
    prompt_numbers,
)
from metarm.explaining.telling import tell_explanation
from metarm.explaining.topics import prompt_topics
from metarm.metrics import adjust_by_holm
from metarm.schema import Message, PreferencePair


def pairs_of(count: int = 80) -> list[PreferencePair]:
    """The first half has a list in the worse answer."""
    worse = "- one\n- two"
    return [
        PreferencePair(f"what is number {n}?", "plain text", worse if n < count // 2 else "other")
        for n in range(count)
    ]


def test_masks_are_those_that_are_counted_by_hand() -> None:
    pairs = [
        PreferencePair("What is the way to it?", "I'm sorry, I can't.", "Use `ls`."),
        PreferencePair("Где это?", "# Title\n1. a\n2. b", "- a\n- b"),
        PreferencePair((Message("user", "and what of the code in it"),), "short", "a longer one"),
    ]
    masks = pair_slices(pairs, num_topics=2, seed=0)
    told = {name: mask.tolist() for (_, name), mask in masks.items()}
    assert told["refusal in the better answer only"] == [True, False, False]
    assert told["code in the worse answer only"] == [True, False, False]
    assert told["list in both answers"] == [False, True, False]
    assert told["markdown in the better answer only"] == [False, True, False]
    assert told["better answer longer"] == [True, True, False]
    assert told["better answer shorter"] == [False, False, True]
    assert told["English"] == [True, False, True]
    assert told["Cyrillic"] == [False, True, False]
    assert "list in the better answer only" not in told


def test_figures_are_those_that_are_counted_by_hand() -> None:
    pairs = pairs_of(80)
    # Wrong on 30 of the 40 with a list, by far on 16 of these; right by little elsewhere.
    gaps = np.concatenate(
        [np.full(16, -3.0), np.full(14, -0.5), np.full(10, 1.0), np.full(40, 0.4)]
    )
    found = measure_slices(pairs, gaps, pair_slices(pairs, num_topics=0, seed=0), seed=0)
    everything = found[0]
    assert (everything.num_pairs, everything.accuracy.value) == (80, 50 / 80)
    assert everything.confident_wrong.value == 16 / 80
    own = next(one for one in found if one.name == "list in the worse answer only")
    assert (own.num_pairs, own.num_prompts, own.accuracy.value) == (40, 40, 10 / 40)
    assert own.confident_wrong.value == 16 / 40
    assert own.is_found
    assert own.p_holm <= 0.01
    sure = (16 * expit(3.0) + 14 * expit(0.5) + 10 * expit(1.0)) / 40
    assert own.confidence == pytest.approx(sure)
    assert own.overconfidence.value == pytest.approx(sure - 0.25)
    assert own.change is None


def test_two_models_are_compared_pair_by_pair() -> None:
    pairs = pairs_of(80)
    before = np.concatenate([np.full(40, -1.0), np.full(40, 1.0)])
    after = np.concatenate([np.full(30, 1.0), np.full(10, -1.0), np.full(40, 1.0)])
    masks = pair_slices(pairs, num_topics=0, seed=0)
    found = measure_slices(pairs, before, masks, seed=0, gaps_after=after)
    assert found[0].change.value == pytest.approx(30 / 80)
    own = next(one for one in found if one.name == "list in the worse answer only")
    assert own.change.value == pytest.approx(30 / 40)
    assert own.change_p_holm < 0.01
    other = next(one for one in found if one.name == "better answer longer")
    assert other.change.value == 0.0
    assert other.change_p_holm == 1.0
    told = " ".join(
        tell_explanation(found, measure_length_bias(pairs, before, prompt_numbers(pairs), seed=0))
    )
    assert "a gain" in told
    assert "+75.0" in told


def test_chance_is_not_told_as_a_finding() -> None:
    pairs = [
        PreferencePair(f"prompt {n // 2}", "a" * (1 + n % 7), "b" * (1 + n % 5)) for n in range(200)
    ]
    pairs = [p for p in pairs if p.chosen != p.rejected]
    masks = pair_slices(pairs, num_topics=3, seed=0)
    num_false = 0
    for seed in range(40):
        gaps = np.random.default_rng(seed).normal(size=len(pairs))
        found = slice_family(pairs, gaps, masks, seed)
        num_false += min(found) <= 0.05
    # 5 % of 40 are 2; above 6 has a chance of 0.003.
    assert num_false <= 6


def slice_family(pairs, gaps, masks, seed):
    wrong = ((np.abs(gaps) >= np.quantile(np.abs(gaps), 0.75)) & (gaps < 0)).astype(float)
    found = slice_tests(
        wrong, list(masks.values()), prompt_numbers(pairs), num_permutations=399, seed=seed
    )
    return adjust_by_holm(found)


def test_a_slices_p_value_is_fishers() -> None:
    outcomes = np.repeat([1.0, 0.0, 1.0, 0.0], [9, 11, 4, 36])
    mask = np.arange(60) < 20
    (found,) = slice_tests(outcomes, [mask], list(range(60)), num_permutations=20_000, seed=0)
    upper = stats.hypergeom(60, 13, 20).sf(8)
    assert found == pytest.approx(2 * upper, rel=0.15)


def test_prompts_change_places_as_a_whole() -> None:
    # Two prompts of ten pairs each: two labellings, so that nothing is beyond chance.
    outcomes = np.repeat([1.0, 0.0], 10)
    mask = np.repeat([True, False], 10)
    clusters = np.repeat([0, 1], 10).tolist()
    assert slice_tests(outcomes, [mask], clusters, num_permutations=499, seed=0)[0] > 0.9


def test_signs_of_three_prompts_by_hand() -> None:
    # Of 8 signs of three equal sums two are as extreme: 0.25.
    p_value = sign_test([1.0, 1.0, 1.0], [0, 1, 2], num_permutations=20_000, seed=0)
    assert p_value == pytest.approx(0.25, abs=0.02)
    assert sign_test([1.0] * 3, [0, 0, 0], num_permutations=99, seed=0) == 1.0


def test_masks_of_another_shape_are_refused() -> None:
    with pytest.raises(ShapeError):
        slice_tests([1.0, 0.0], [[True]], [0, 1], num_permutations=9, seed=0)
    with pytest.raises(ShapeError):
        measure_slices(pairs_of(4), np.zeros(3), {}, seed=0)


def test_calibration_error_by_hand() -> None:
    confidence = np.repeat([0.6, 0.9], 25)
    correct = np.concatenate([np.repeat([1.0, 0.0], [20, 5]), np.repeat([1.0, 0.0], [20, 5])])
    assert calibration_error(confidence, correct) == pytest.approx((0.2 + 0.1) / 2)
    assert calibration_error(confidence[:49], correct[:49]) is None


def test_a_slope_by_hand() -> None:
    found = length_slope([1.0, 2.0, 1.5], [1.0, 2.0, 2.0], [0, 1, 2])
    slope = (1 + 4 + 3) / 9
    residuals = np.array([1 - slope, 2 * (2 - 2 * slope), 2 * (1.5 - 2 * slope)])
    error = np.sqrt(3 / 2 * (residuals**2).sum()) / 9
    assert found.value == pytest.approx(slope)
    assert found.high - found.value == pytest.approx(stats.t.ppf(0.975, 2) * error)
    turned = length_slope([-1.0, 2.0, 1.5], [-1.0, 2.0, 2.0], [0, 1, 2])
    assert (turned.value, turned.low) == pytest.approx((found.value, found.low))
    assert length_slope([1.0], [0.0], [0]) is None


def test_a_score_that_counts_characters_is_found_out() -> None:
    draw = np.random.default_rng(0)
    pairs = [
        PreferencePair(f"p {n}", "a" * int(draw.integers(1, 90)), "b" * int(draw.integers(90, 200)))
        if n % 3 == 0
        else PreferencePair(
            f"p {n}", "a" * int(draw.integers(90, 200)), "b" * int(draw.integers(1, 90))
        )
        for n in range(90)
    ]
    gaps = np.array([(len(p.chosen) - len(p.rejected)) / 50 for p in pairs])
    found = measure_length_bias(pairs, gaps, prompt_numbers(pairs), seed=0)
    assert found.slope.value == pytest.approx(2.0)
    assert found.model_prefers_longer.value == 1.0
    assert found.labels_prefer_longer.value == pytest.approx(60 / 90)
    assert found.accuracy_balanced == 0.5
    assert found.accuracy_controlled.value < 60 / 90


def test_topics_are_told_apart_and_named() -> None:
    cooks = [f"how to cook chicken soup with rice {n}" for n in range(12)]
    cars = [f"why does engine of car stall at traffic lights {n}" for n in range(12)]
    others = [f"tell unique{n} about words{n}" for n in range(140)]
    topics = prompt_topics([*cooks, *cars, *others], 2, seed=0)
    assert len(set(topics[:12])) == len(set(topics[12:24])) == 1
    assert topics[0] != topics[12]
    assert "cook" in topics[0] or "chicken" in topics[0] or "soup" in topics[0]
    assert prompt_topics([*cooks, *cars, *others], 2, seed=0) == topics
    assert prompt_topics(["", "..."], 2, seed=0) == ["other", "other"]


def test_the_nearest_is_the_same_difference() -> None:
    labelled = np.random.default_rng(0).normal(size=(20, 4)) * [1, 100, 0.01, 1]
    found = similarities(np.stack([labelled[3], -labelled[7], 0 * labelled[0]]), labelled)
    assert nearest_pairs(found[0], 1)[0] == pytest.approx((3, 1.0))
    assert nearest_pairs(found[1], 1)[0] == pytest.approx((7, -1.0))
    assert not found[2].any()
    with pytest.raises(ShapeError):
        similarities([[1.0]], [[1.0, 2.0]])
