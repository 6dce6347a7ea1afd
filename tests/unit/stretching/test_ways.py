# SPDX-License-Identifier: Apache-2.0
"""The choice among ways to adapt: its criterion, its guard, and how often it is right."""

import json
import math

import numpy as np
import pytest
from adapting_rules import BEFORE, TAKEN, WORLDS, judge_rules
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import optimize, stats

from metarm.errors import EmptySetError
from metarm.stretching.settings import AdaptSettings
from metarm.stretching.ways import (
    Evidence,
    WayGaps,
    calibrated_losses,
    choose_adaptation,
    judge_ways,
)

Floats = NDArray[np.float64]
NAMES = ("none", "head", "lora", "full")


def evidence(few: dict[str, Floats], original: dict[str, Floats]) -> Evidence:
    """Each label and pair of a prompt of its own."""
    counts = [len(next(iter(columns.values()))) for columns in (few, original)]
    return Evidence(
        {name: WayGaps(few[name], original[name]) for name in few},
        np.ones(counts[0]),
        *(tuple(map(str, range(count))) for count in counts),
    )


@given(st.integers(1, 40), st.integers(0, 40), st.floats(0.01, 100.0))
def test_losses_of_gaps_of_one_size_are_those_of_their_smoothed_share(right, wrong, size) -> None:
    """The slope is zero where sigmoid(a g) n = right t + wrong (1 - t), t = (n + 1) / (n + 2)."""
    count = right + wrong
    target = (count + 1) / (count + 2)
    share = max((right * target + wrong * (1 - target)) / count, 0.5)
    gaps = size * np.repeat([1.0, -1.0], [right, wrong])
    losses, inverse = calibrated_losses(gaps, np.ones(count))
    expected = np.repeat([-math.log(share), -math.log(1 - share)], [right, wrong])
    np.testing.assert_allclose(losses, expected, rtol=1e-8)
    assert inverse * size == pytest.approx(math.log(share / (1 - share)), abs=1e-8)


@pytest.mark.parametrize("seed", range(5))
def test_losses_are_those_of_the_best_temperature_whatever_the_unit(seed: int) -> None:
    draw = np.random.default_rng(seed)
    gaps, labels = draw.normal(0.4, 1.0, 30), draw.uniform(0.4, 1.0, 30)

    def mean_loss(inverse: float, targets: Floats) -> float:
        log_chances = stats.logistic.logcdf(inverse * gaps), stats.logistic.logsf(inverse * gaps)
        return float(-(targets * log_chances[0] + (1 - targets) * log_chances[1]).mean())

    smoothed = (labels * 31 + 1 - labels) / 32
    best = optimize.minimize_scalar(
        mean_loss, args=(smoothed,), bounds=(0.0, 50.0), method="bounded", options={"xatol": 1e-10}
    )
    losses, inverse = calibrated_losses(gaps, labels)
    assert inverse == pytest.approx(best.x, abs=1e-5)
    assert losses.mean() == pytest.approx(mean_loss(best.x, labels), abs=1e-7)
    np.testing.assert_allclose(calibrated_losses(700.0 * gaps, labels)[0], losses, rtol=1e-8)


TABLES = st.integers(2, 12).flatmap(
    lambda count: st.lists(
        st.lists(st.integers(0, 3).map(float), min_size=count, max_size=count),
        min_size=1,
        max_size=4,
    )
)


@given(TABLES)
def test_at_one_half_the_least_mean_is_taken_the_simplest_of_equals(table) -> None:
    losses = {name: np.array(row) for name, row in zip(NAMES, table, strict=False)}
    prompts = [str(number) for number in range(len(table[0]))]
    expected = NAMES[int(np.argmin([sum(row) for row in table]))]
    assert choose_adaptation(losses, prompts, 0.5) == expected


@pytest.mark.parametrize("seed", range(20))
def test_below_one_half_it_must_be_shown_by_a_paired_test(seed: int) -> None:
    draw = np.random.default_rng(seed)
    none = draw.exponential(0.7, 25)
    full = none - draw.normal(0.05, 0.15, 25)
    p_value = stats.ttest_rel(full, none, alternative="less").pvalue
    prompts = [str(number) for number in range(25)]
    for level in (0.01, 0.1, 0.2, 0.4):
        taken = choose_adaptation({"none": none, "full": full}, prompts, level)
        assert taken == ("full" if p_value <= level else "none")
    # One label of each prompt twice says no more.
    twice = {"none": np.tile(none, 2), "full": np.tile(full, 2)}
    for level in (p_value * 0.99, p_value * 1.01):
        if level <= 0.5:
            expected = choose_adaptation({"none": none, "full": full}, prompts, level)
            assert choose_adaptation(twice, prompts * 2, level) == expected


@given(st.integers(0, 100), st.integers(0, 100), st.sampled_from([6, 16]))
def test_at_one_half_a_way_passes_that_by_the_best_estimate_loses_no_more(
    wins, losses, most
) -> None:
    """Up to the half prompt by which the test is corrected."""
    few = {"none": np.array([-1.0, -1.0]), "full": np.array([1.0, 1.0])}
    none = np.repeat([-1.0, 1.0], [wins, 200 - wins])
    full = np.repeat([1.0, -1.0, 1.0], [wins, losses, 200 - wins - losses])
    found = evidence(few, {"none": none, "full": full})
    taken, reason, (_, judged) = judge_ways(found, AdaptSettings(margin=most / 200))
    # In halves of a pair, so that nothing is rounded.
    passes = 2 * (wins - losses) + 2 * most - 1 >= 0
    assert judged.original.holds == passes
    assert taken == ("full" if passes else "none")
    assert ("full is refused" in reason) == (not passes)
    assert judged.change_original.value == pytest.approx((wins - losses) / 200)


def test_alpha_goes_from_proof_of_holding_to_proof_of_losing() -> None:
    few = {"none": np.array([-1.0, -1.0]), "full": np.array([1.0, 1.0])}
    none = np.repeat([-1.0, 1.0], [60, 100])
    verdicts = {}
    for wins, losses in ((20, 20), (20, 28)):
        turned = np.repeat([1.0, -1.0, -1.0, 1.0], [wins, 60 - wins, losses, 100 - losses])
        found = evidence(few, {"none": none, "full": turned})
        verdicts[wins - losses] = [
            judge_ways(found, AdaptSettings(alpha=alpha))[0] for alpha in (0.05, 0.5, 0.8)
        ]
    assert verdicts == {0: ["none", "full", "full"], -8: ["none", "none", "full"]}


def test_levels_of_gain_and_of_holding_are_two() -> None:
    """A gain that no test shows, by a way that surely holds on original pairs."""
    few = {"none": np.full(4, -1.0), "full": np.array([-0.5, 0.9, 0.8, 1.0])}
    found = evidence(few, {"none": np.ones(400), "full": np.ones(400)})
    for level, expected in ((0.05, "none"), (0.5, "full")):
        taken, _, (_, full) = judge_ways(found, AdaptSettings(alpha=0.05, gain_alpha=level))
        assert taken == expected
        assert 0.05 < full.log_loss_change.p_value < 0.5


def test_few_original_pairs_tell_nothing_and_the_reason_says_so() -> None:
    few = {"none": np.array([-1.0, -1.0]), "full": np.array([1.0, 1.0])}
    found = evidence(few, {"none": np.ones(10), "full": np.ones(10)})
    taken, reason, judged = judge_ways(found, AdaptSettings())
    assert taken == "none"
    least = judged[1].original.fewest_prompts
    assert reason == (
        "no way passes on original pairs; full is refused: original pairs of 10 prompts tell "
        f"nothing, of {least} might"
    )
    assert math.ceil(math.log(0.5) / math.log(0.97)) == least


def test_figures_are_those_of_the_gaps_and_stand_in_a_file() -> None:
    draw = np.random.default_rng(0)
    few = {name: draw.normal(0.3, 1.0, 20) for name in NAMES}
    original = {name: draw.normal(0.5, 1.0, 30) for name in NAMES}
    found = evidence(few, original)
    taken, reason, judged = judge_ways(found, AdaptSettings(margin=0.4))
    assert [one.name for one in judged] == list(NAMES)
    none = judged[0]
    assert none.log_loss_change.change.value == none.gain.change.value == 0.0
    for one in judged:
        assert one.accuracy.value == (few[one.name] > 0).mean()
        assert one.accuracy_original.value == (original[one.name] > 0).mean()
        change = one.log_loss.value - none.log_loss.value
        assert one.log_loss_change.change.value == pytest.approx(change, abs=1e-12)
    assert taken == min(judged, key=lambda one: one.log_loss.value).name
    read = Evidence.from_json(json.loads(json.dumps(found.to_json())))
    assert judge_ways(read, AdaptSettings(margin=0.4)) == (taken, reason, judged)
    alone = evidence({"none": few["none"]}, {"none": original["none"]})
    assert judge_ways(alone, AdaptSettings())[:2] == ("none", "no other way was tried")
    with pytest.raises(EmptySetError, match="ways of adapting"):
        judge_ways(Evidence({}, np.ones(0), (), ()), AdaptSettings())


def test_soft_labels_count_as_they_are_soft() -> None:
    """Right by far on pairs that are a coin's toss is no merit."""
    gaps = {"none": np.array([1.0, 1.0, 1.0, 1.0]), "full": np.array([1.0, 1.0, -1.0, 1.0])}
    original = {name: np.ones(40) for name in gaps}
    hard = evidence(gaps, original)
    labels = np.array([1.0, 0.9, 0.1, 0.9])
    soft = Evidence(hard.ways, labels, hard.prompts, hard.original_prompts)
    assert judge_ways(hard, AdaptSettings())[0] == "none"
    assert judge_ways(soft, AdaptSettings())[0] == "full"


def test_the_best_way_is_taken_more_often_than_by_proof_and_the_worst_hardly_ever() -> None:
    """In a known model, of which docs/stretching.md has more draws."""
    gain, _, loss, traded = WORLDS
    both = judge_rules(gain, 100, num_draws=40)
    taken, before = both[TAKEN]["taken"], both[BEFORE]["taken"]
    assert taken["full"] >= before["full"] + 8, "of 40 draws, a fifth"
    assert taken["none"] <= before["none"] - 8
    assert both[TAKEN]["shifted"]["value"] == pytest.approx(
        (0.02 * taken["lora"] + 0.06 * taken["full"]) / 40, abs=1e-5
    )
    # One way loses on the few, one .10 on the old, where .03 may be lost.
    for world, most in ((loss, 2), (traded, 8)):
        found = judge_rules(world, 100, num_draws=40, rules=[TAKEN])
        assert found[TAKEN]["taken"]["full"] <= most < taken["full"]
