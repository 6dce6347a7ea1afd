# SPDX-License-Identifier: Apache-2.0
"""Advice: a probe decides where there is one, a rule where it may, and off where nothing speaks."""

import math
from dataclasses import asdict, fields, replace

import pytest
import torch

from metarm.bench.advice_rule import (
    CANDIDATES,
    INPUTS,
    AdviceRule,
    MethodRule,
    figure_inputs,
    rule_columns,
)
from metarm.bench.advise import (
    advise,
    choose_method,
    confidence_of,
    format_advice,
    lower_bound,
    trainer_settings,
)
from metarm.bench.foretell import Figures
from metarm.bench.problem import Problem
from metarm.bench.readings import Outcome, Reading, train_candidates
from metarm.bench.results import Tally
from metarm.bench.settings import HeadSettings
from metarm.metrics import mean_estimate
from metarm.schema import Estimate

FIGURES = Figures(**{field.name: 0.5 for field in fields(Figures)})
INSIDE = figure_inputs(FIGURES, 0.5)
LOW, HIGH = tuple(INSIDE - 1), tuple(INSIDE + 1)


def as_method(name: str) -> str:
    """`joint_0_3` is a keyword, `joint-0.3` a method."""
    return name.replace("_", "-", 1).replace("_", ".")


def constant_rule(**helps: float) -> AdviceRule:
    """Says with which probability a method helps by two points, whatever the figures are."""
    zeros = (0.0,) * rule_columns(INSIDE, LOW, HIGH).size
    methods = {}
    for name, chance in helps.items():
        odds = (math.log(chance / (1 - chance)), *zeros)
        against = (-odds[0], *zeros)
        error = (math.log(0.01), *zeros)
        methods[as_method(name)] = MethodRule((0.02, *zeros), error, odds, against, 3.0)
    return AdviceRule(LOW, HIGH, methods, {})


def tally(correct: list[float]) -> Tally:
    return Tally(tuple(f"p{n}" for n in range(len(correct))), (1,) * len(correct), tuple(correct))


def reading(seed: int = 0, probe: bool = True, **right: float) -> Reading:
    """Splits of 100 probe pairs, of which a method has so many right; plain has 60."""
    outcomes = {}
    for name, share in {"plain": 60, **right}.items():
        answers = [1.0] * int(share) + [0.0] * (100 - int(share))
        outcomes[as_method(name)] = Outcome(
            tally([1.0, 0.0, 1.0]), tally(answers) if probe else None, 0.9
        )
    return Reading(seed, FIGURES, outcomes)


def test_bounds_are_students() -> None:
    change = mean_estimate([0.0, 1.0, 2.0, 1.0])
    error = (2 / 3 / 4) ** 0.5
    assert lower_bound(change, 0.5) == pytest.approx(1.0)
    assert lower_bound(change, 0.95) == pytest.approx(1.0 - 2.3534 * error, abs=1e-4)
    assert lower_bound(change, 0.975) == pytest.approx(change.low)
    assert confidence_of(replace(change, value=0.0, low=-1.0, high=1.0)) == pytest.approx(0.5)
    assert confidence_of(change) > 0.95
    alone = Estimate(0.5, 0.5, 0.5, 1)
    assert confidence_of(alone) == 0.5
    assert choose_method({"one": alone}, 0.8) is None


def test_the_highest_lower_bound_is_chosen_not_the_highest_mean() -> None:
    changes = {
        "sure": Estimate(0.02, 0.01, 0.03, 50),
        "wild": Estimate(0.04, -0.10, 0.18, 50),
        "harmful": Estimate(-0.05, -0.06, -0.04, 50),
    }
    assert choose_method(changes, 0.8) == "sure"
    assert choose_method(changes, 0.5) == "wild"
    assert choose_method({"harmful": changes["harmful"]}, 0.5) is None


def test_a_probe_decides_against_the_rule() -> None:
    rule = constant_rule(descent_half=0.9, joint_1=0.9)
    readings = [reading(seed, descent_half=75, joint_1=40) for seed in range(3)]
    found = advise(readings, rule, 0.8)
    assert found.choice == "descent-half"
    assert found.confidence is not None
    assert found.confidence > 0.95
    by_name = {own.method: own for own in found.methods}
    assert by_name["descent-half"].probe_change.value == pytest.approx(0.15)
    assert by_name["joint-1"].probe_change.value == pytest.approx(-0.2)
    hurt = advise([reading(seed, joint_1=40) for seed in range(3)], rule, 0.8)
    assert hurt.choice == "off"
    assert hurt.confidence > 0.95
    assert hurt.num_probe == 100
    text = format_advice(found)
    assert "Use: descent-half (meta_mode=descent meta_strength=auto), confidence" in text
    assert "+15.0 [" in text
    assert "Use: off, confidence" in format_advice(hurt)


def test_without_a_probe_the_rule_decides_where_it_has_seen_such_a_case() -> None:
    sure, vague = constant_rule(descent_half=0.9), constant_rule(descent_half=0.7)
    readings = [reading(seed, probe=False, descent_half=0) for seed in range(2)]
    found = advise(readings, sure, 0.8)
    assert (found.choice, found.confidence) == ("descent-half", pytest.approx(0.9))
    forecast = found.methods[0].forecast
    assert (forecast.change, forecast.low, forecast.high) == pytest.approx((0.02, -0.01, 0.05))
    assert forecast.hurts == pytest.approx(0.1)
    unsure = advise(readings, vague, 0.8)
    assert (unsure.choice, unsure.confidence) == ("off", pytest.approx(0.3))
    assert "That is below 80%" in format_advice(unsure)
    assert advise(readings, vague, 0.6).choice == "descent-half"
    strange = replace(FIGURES, axis_share=9.0)
    unseen = advise([replace(own, figures=strange) for own in readings], sure, 0.8)
    assert (unseen.choice, unseen.outside) == ("off", ("axis_share",))
    assert "Outside the map: axis_share" in format_advice(unseen)
    assert "preferences_shifted" in format_advice(unseen)


def test_readings_survive_the_disk() -> None:
    for own in (reading(joint_1=3), reading(probe=False, joint_1=3)):
        assert Reading.from_json(own.to_json()) == own


def test_each_candidate_has_settings_of_the_trainer() -> None:
    found = {name: trainer_settings(name) for name in CANDIDATES}
    assert found["joint-0.3"] == "meta_mode=joint meta_strength=auto"
    assert found["joint-1"] == "meta_mode=joint meta_weight=1"
    assert found["descent-half"] == "meta_mode=descent meta_strength=auto"
    assert found["descent-whole"] == "meta_mode=descent meta_reward_fraction=1"
    assert not any("meta_learning_rate" in settings for settings in found.values())


def space(cosine: float, seed: int) -> Problem:
    """Shifted responses vary along one axis above all; it is the true reward's, or across it.

    Labels of the shifted side are those of the true reward, without noise.
    """
    size, draw = 40, torch.Generator().manual_seed(seed)
    axis, truth = torch.zeros(size), torch.zeros(size)
    axis[0] = 1.0
    truth[0], truth[1] = cosine, (1 - cosine**2) ** 0.5
    original = torch.randn(400, size, generator=draw)
    shifted = 0.5 * torch.randn(1200, size, generator=draw)
    shifted += 4.0 * torch.randn(1200, 1, generator=draw) * axis
    features = torch.cat([original, shifted])
    gold = features @ truth
    noisy = gold + 1.0 * torch.randn(1600, generator=draw)
    pairs = torch.arange(400).reshape(-1, 2)
    own = torch.arange(1000, 1600).reshape(-1, 2)
    pairs = torch.where((noisy[pairs[:, 0]] > noisy[pairs[:, 1]])[:, None], pairs, pairs.flip(1))
    own = torch.where((gold[own[:, 0]] > gold[own[:, 1]])[:, None], own, own.flip(1))
    groups = torch.arange(400, 1000).reshape(-1, 5)
    return Problem(features, pairs[40:], pairs[:40], groups[20:], groups[:20], own)


@pytest.mark.parametrize(("cosine", "choice"), [(0.6, "joint-0.3"), (0.0, "off")])
def test_a_probe_tells_a_shift_where_the_step_helps_from_one_where_it_hurts(cosine, choice) -> None:
    settings = HeadSettings(hidden=[16], num_steps=150, measure_every=30, learning_rate=3e-3)
    readings = []
    for seed in range(4):
        problem = space(cosine, seed)
        figures, trained = train_candidates(problem, ["joint-0.3"], settings, seed)
        outcomes = {}
        for name, own in trained.items():
            rows = problem.own_labels
            right = (own.scores[rows[:, 0]] > own.scores[rows[:, 1]]).double().tolist()
            outcomes[name] = Outcome(tally([1.0, 0.0]), tally(right), own.rank_correlation)
        readings.append(Reading(seed, figures, outcomes))
    found = advise(readings, constant_rule(joint_0_3=0.5), 0.8)
    own = found.methods[0]
    assert own.probe_change is not None
    assert found.choice == choice, own.probe_change
    assert (own.probe_change.value > 0) == (choice != "off")
    assert found.figures.axis_share > 0.5
    assert asdict(found)["num_probe"] == 300


def test_ranges_are_shown_in_the_figures_own_unit() -> None:
    rule = constant_rule(joint_1=0.5)
    low, high = rule.range_of("spread_ratio")
    assert low == pytest.approx(0.5 / 2.718281828)
    assert high == pytest.approx(0.5 * 2.718281828)
    assert rule.range_of("axis_share") == (pytest.approx(-0.5), pytest.approx(1.5))
    assert rule.outside(FIGURES) == []
    assert INPUTS[-1] == "rank_correlation"
