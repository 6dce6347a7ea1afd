# SPDX-License-Identifier: Apache-2.0
"""Strengths in reward units have closed forms; the guard and the probe decide as they say."""

import math

import pytest
import torch

from metarm.meta_step import Direction
from metarm.strength import (
    RewardUnits,
    StrengthGuard,
    choose_by_probe,
    mean_rank_correlation,
)


def linear_rewards(scale: float, offset: float):
    """Inputs, weights, a gradient, and scores whose offset moves with the weights alike."""
    generator = torch.Generator().manual_seed(0)
    inputs = scale * torch.randn(50, 6, generator=generator, dtype=torch.float64)
    weights = torch.randn(6, generator=generator, dtype=torch.float64)
    gradients = torch.randn(2, 6, generator=generator, dtype=torch.float64) / scale

    def scores() -> torch.Tensor:
        return inputs @ weights + offset * weights.sum()

    return inputs, weights, gradients, scores


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("offset", [0.0, 7.0])
def test_a_step_in_reward_units_is_the_closed_form(scale: float, offset: float) -> None:
    """Linear scores: std(s * X g) = fraction * std(X w), whatever their scale and offset."""
    inputs, weights, (gradient, _), scores = linear_rewards(scale, offset)
    direction = Direction(0.0, (gradient,), float(gradient.norm()))
    kept = weights.clone()
    step = RewardUnits(scores).look_ahead_step([weights], direction, 0.5)
    expected = 0.5 * (inputs @ kept).std() / (inputs @ gradient).std()
    longest = kept.norm() / gradient.norm()
    assert step == pytest.approx(float(min(expected, longest)), rel=1e-6)
    assert torch.equal(weights, kept)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_a_joint_weight_in_reward_units_is_the_closed_form(scale: float) -> None:
    """Linear scores: weight * std(X g_J) = fraction * std(X g_L)."""
    inputs, weights, (of_difference, of_preferences), scores = linear_rewards(scale, 7.0)
    direction = Direction(0.0, (of_difference,), float(of_difference.norm()))
    weight = RewardUnits(scores).joint_weight([weights], direction, [of_preferences], 0.25)
    expected = 0.25 * (inputs @ of_preferences).std() / (inputs @ of_difference).std()
    assert weight == pytest.approx(float(expected), rel=1e-5)


def test_strength_is_zero_where_nothing_changes() -> None:
    weights = torch.ones(3, dtype=torch.float64)
    still = Direction(0.0, (torch.zeros(3, dtype=torch.float64),), 0.0)
    along = Direction(0.0, (torch.ones(3, dtype=torch.float64),), 3**0.5)
    assert RewardUnits(lambda: weights).look_ahead_step([weights], still, 0.5) == 0.0
    alike = RewardUnits(lambda: torch.arange(3.0))
    assert alike.look_ahead_step([weights], along, 0.5) == 0.0
    assert alike.joint_weight([weights], along, [torch.ones(3)], 0.5) == 0.0
    assert alike.joint_weight([weights], along, [torch.zeros(3)], 0.5) == 0.0
    assert alike.joint_weight([weights], along, [None], 0.5) == 0.0


def test_speeds_are_measured_now_and_then_and_lengths_always() -> None:
    _, weights, (gradient, _), scores = linear_rewards(1.0, 0.0)
    calls = []

    def counted() -> torch.Tensor:
        calls.append(1)
        return scores()

    units = RewardUnits(counted, every=4)
    steps = []
    for number in range(1, 13):
        direction = Direction(0.0, (number * gradient,), number * float(gradient.norm()))
        steps.append(number * units.look_ahead_step([weights], direction, 0.1))
    assert steps == pytest.approx([steps[0]] * 12, rel=1e-6), "a longer gradient, a smaller step"
    # Two evaluations each at calls 0 to 3, 4 and 8.
    assert len(calls) == 2 * 6


def test_the_guard_halves_then_stops() -> None:
    guard = StrengthGuard(least=0.7)
    assert guard.holds
    assert guard.newest is None
    factors = []
    for value in (0.9, None, 0.69, 0.71, 0.5, 0.3, 0.1, 0.9):
        guard.observe(value)
        factors.append(guard.factor)
    assert factors == [1.0, 1.0, 0.5, 0.5, 0.25, 0.125, 0.0, 0.0]
    assert (guard.lowest, guard.newest, guard.holds) == (0.1, 0.9, True)
    guard.observe(0.2)
    assert not guard.holds


def test_rank_correlation_of_ragged_groups() -> None:
    groups = torch.tensor([[0, 1, 2], [3, 4, -1]])
    scores = torch.tensor([1.0, 2.0, 3.0, 1.0, 2.0])
    assert mean_rank_correlation(groups, scores, 2 * scores + 1) == pytest.approx(1.0)
    other = torch.tensor([1.0, 2.0, 3.0, 2.0, 1.0])
    assert mean_rank_correlation(groups, scores, other) == pytest.approx(0.0)
    assert mean_rank_correlation(groups, scores, torch.zeros(5)) is None


def test_a_probe_chooses_by_order_not_by_scale() -> None:
    draw = torch.Generator().manual_seed(0)
    good = torch.randn(200, generator=draw) + 1.0
    bad = torch.randn(200, generator=draw)
    assert choose_by_probe([bad, good]) == 1
    assert choose_by_probe([good, bad]) == 0
    assert choose_by_probe([bad, 1000 * good]) == 1
    assert choose_by_probe([good, 1e-3 * good]) == 0, "the same order: the first stands"
    assert choose_by_probe([torch.zeros(5), -torch.ones(5)]) == 0, "worse than a coin is no better"


def test_the_likelihood_of_a_probe_is_at_its_best_scale() -> None:
    """Two right by 1 and one wrong by 1: the best scale gives p = 2/3 to what is right."""
    from metarm.strength import _best_log_likelihood

    expected = (2 * math.log(2 / 3) + math.log(1 / 3)) / 3
    for unit in (1e-3, 1.0, 1e3):
        gaps = unit * torch.tensor([1.0, 1.0, -1.0])
        assert _best_log_likelihood(gaps) == pytest.approx(expected, abs=1e-6)
