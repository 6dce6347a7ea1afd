# SPDX-License-Identifier: Apache-2.0
"""PPO's mathematics in float64: advantages, shaped rewards, clipped losses, running moments."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metarm.config_optimize import OptimizeSettings
from metarm.policy.control import adapted_kl_coef, learning_rate_factor
from metarm.policy.ppo_losses import (
    clipped_policy_loss,
    clipped_value_loss,
    estimate_advantages,
    shape_rewards,
    token_loss_sum,
    whiten,
)
from metarm.policy.score_scale import RunningMoments, ScoreScale, reward_responses


def draw_rows(seed, rows=5, tokens=7):
    """Rewards and values of ragged responses; what lies outside the mask is nonsense."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, tokens + 1, (rows,), generator=generator)
    mask = torch.arange(tokens) < lengths[:, None]
    rewards = torch.randn(rows, tokens, generator=generator, dtype=torch.float64)
    values = torch.randn(rows, tokens, generator=generator, dtype=torch.float64)
    return rewards * mask, values.masked_fill(~mask, 99.0), mask


def naive_advantages(rewards, values, mask, gamma, lam):
    """sum over l >= t of (gamma lam)^(l-t) delta_l, each delta written out: O(T^2)."""
    advantages = torch.zeros_like(rewards)
    for row in range(len(rewards)):
        length = int(mask[row].sum())
        for t in range(length):
            for step in range(t, length):
                following = values[row, step + 1] if step + 1 < length else 0.0
                delta = rewards[row, step] + gamma * following - values[row, step]
                advantages[row, t] += (gamma * lam) ** (step - t) * delta
    return advantages


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    gamma=st.sampled_from([0.0, 0.5, 0.99, 1.0]),
    lam=st.sampled_from([0.0, 0.3, 0.95, 1.0]),
)
def test_advantages_equal_the_naive_double_sum(seed, gamma, lam):
    rewards, values, mask = draw_rows(seed)
    ours = estimate_advantages(rewards, values, mask, gamma=gamma, lam=lam)
    expected = naive_advantages(rewards, values, mask, gamma, lam)
    torch.testing.assert_close(ours.advantages, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(
        ours.returns, (expected + values) * mask, rtol=0, atol=1e-12, msg="outside the mask: 0"
    )


@pytest.mark.parametrize("gamma", [0.9, 1.0])
def test_lambda_one_gives_monte_carlo_returns(gamma):
    rewards, values, mask = draw_rows(1)
    returns = estimate_advantages(rewards, values, mask, gamma=gamma, lam=1.0).returns
    for row in range(len(rewards)):
        for t in range(int(mask[row].sum())):
            later = rewards[row, t:]
            expected = (later * gamma ** torch.arange(len(later)).double()).sum()
            assert returns[row, t].item() == pytest.approx(expected.item(), abs=1e-12)


def test_lambda_zero_gives_the_one_step_difference():
    rewards, values, mask = draw_rows(2)
    ours = estimate_advantages(rewards, values, mask, gamma=0.9, lam=0.0).advantages
    inside = values * mask
    following = torch.cat([inside[:, 1:], torch.zeros(len(inside), 1, dtype=torch.float64)], dim=1)
    torch.testing.assert_close(ours, (rewards + 0.9 * following - inside) * mask)


def test_exact_values_leave_no_advantage():
    rewards, _, mask = draw_rows(3)
    values = rewards.flip(1).cumsum(1).flip(1)
    ours = estimate_advantages(rewards, values, mask, gamma=1.0, lam=0.4)
    torch.testing.assert_close(ours.advantages, torch.zeros_like(rewards), atol=1e-12, rtol=0)


def test_shaped_rewards_by_hand():
    scores = torch.tensor([2.0, -1.0])
    log_ratios = torch.tensor([[0.5, -0.25, 1.0], [0.5, 7.0, 7.0]])
    mask = torch.tensor([[True, True, True], [True, False, False]])
    ours = shape_rewards(scores, log_ratios, mask, 0.1)
    assert torch.allclose(ours, torch.tensor([[-0.05, 0.025, 1.9], [-1.05, 0.0, 0.0]]))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_shaped_rewards_sum_to_the_score_less_the_penalty(seed):
    log_ratios, scores, mask = draw_rows(seed)
    sums = shape_rewards(scores[:, 0], log_ratios, mask, 0.3).sum(dim=1)
    torch.testing.assert_close(sums, scores[:, 0] - 0.3 * (log_ratios * mask).sum(dim=1))


# Ratio, advantage -> loss and its derivative by the new log-probability, at a clip of 0.2.
POLICY_CASES = [
    (1.0, 2.0, -2.0, -2.0),
    (1.1, 2.0, -2.2, -2.2),
    (1.3, 2.0, -2.4, 0.0),  # gained enough: no further push
    (0.7, 2.0, -1.4, -1.4),  # lost: pulled back without bound
    (1.0, -2.0, 2.0, 2.0),
    (0.9, -2.0, 1.8, 1.8),
    (0.7, -2.0, 1.6, 0.0),  # fell enough
    (1.3, -2.0, 2.6, 2.6),  # rose although bad: pushed down without bound
]


@pytest.mark.parametrize(("ratio", "advantage", "loss", "slope"), POLICY_CASES)
def test_policy_loss_by_hand(ratio, advantage, loss, slope):
    old = torch.tensor([[-1.5]], dtype=torch.float64)
    new = (old + math.log(ratio)).requires_grad_()
    ours = clipped_policy_loss(
        new, old, torch.tensor([[advantage]], dtype=torch.float64), torch.tensor([[True]]), 0.2
    )
    (gradient,) = torch.autograd.grad(ours.loss, new)
    assert ours.loss.item() == pytest.approx(loss, abs=1e-12)
    assert gradient.item() == pytest.approx(slope, abs=1e-12)
    assert ours.clip_fraction.item() == (slope == 0.0)
    assert ours.approx_kl.item() == pytest.approx(ratio - 1 - math.log(ratio), abs=1e-12)


@pytest.mark.parametrize("edge", [0.8, 1.2])
@pytest.mark.parametrize("advantage", [3.0, -3.0])
def test_policy_loss_is_continuous_where_the_clip_begins(edge, advantage):
    def loss(ratio):
        return clipped_policy_loss(
            torch.tensor([[math.log(ratio)]], dtype=torch.float64),
            torch.zeros(1, 1, dtype=torch.float64),
            torch.tensor([[advantage]], dtype=torch.float64),
            torch.tensor([[True]]),
            0.2,
        ).loss.item()

    assert loss(edge) == pytest.approx(-advantage * edge, abs=1e-12)
    assert abs(loss(edge + 1e-9) - loss(edge - 1e-9)) < 1e-8


def test_policy_loss_is_a_mean_over_tokens_of_the_mask():
    mask = torch.tensor([[True, True, True], [True, False, False]])
    log_probs = torch.tensor([[0.0, 0.1, -0.1], [0.2, 50.0, -50.0]], requires_grad=True)
    advantages = torch.tensor([[1.0, -1.0, 2.0], [0.5, 9.0, 9.0]])
    ours = clipped_policy_loss(log_probs, torch.zeros(2, 3), advantages, mask, 0.5)
    expected = -(1.0 - math.exp(0.1) + 2.0 * math.exp(-0.1) + 0.5 * math.exp(0.2)) / 4
    assert ours.loss.item() == pytest.approx(expected, rel=1e-6)
    (gradient,) = torch.autograd.grad(ours.loss, log_probs)
    assert torch.isfinite(gradient).all()
    assert (gradient[~mask] == 0).all()
    assert ours.clip_fraction.item() == 0.0


def test_clip_fraction_counts_tokens():
    mask = torch.tensor([[True, True, True, True, False]])
    ratios = torch.tensor([[1.5, 1.5, 0.5, 1.0, 3.0]])
    advantages = torch.tensor([[1.0, -1.0, -1.0, 1.0, 1.0]])
    ours = clipped_policy_loss(ratios.log(), torch.zeros(1, 5), advantages, mask, 0.2)
    assert ours.clip_fraction.item() == 0.5


# Old value 1, clip 0.2: value, return -> loss and its derivative by the value.
VALUE_CASES = [
    (1.1, 2.0, 0.5 * 0.9**2, -0.9),
    (1.5, 2.0, 0.5 * 0.8**2, 0.0),  # has moved enough towards the return
    (0.5, 2.0, 0.5 * 1.5**2, -1.5),  # moved away: the full error
    (0.5, 0.0, 0.5 * 0.8**2, 0.0),
    (1.5, 0.0, 0.5 * 1.5**2, 1.5),
    (1.1, 1.1, 0.0, 0.0),
]


@pytest.mark.parametrize(("value", "target", "loss", "slope"), VALUE_CASES)
def test_value_loss_by_hand(value, target, loss, slope):
    new = torch.tensor([[value]], dtype=torch.float64, requires_grad=True)
    old = torch.tensor([[1.0]], dtype=torch.float64)
    targets = torch.tensor([[target]], dtype=torch.float64)
    ours = clipped_value_loss(new, old, targets, torch.tensor([[True]]), 0.2)
    (gradient,) = torch.autograd.grad(ours, new)
    assert ours.item() == pytest.approx(loss, abs=1e-12)
    assert gradient.item() == pytest.approx(slope, abs=1e-12)


def test_value_loss_is_a_mean_over_tokens_of_the_mask():
    mask = torch.tensor([[True, True], [True, False]])
    values, returns = torch.zeros(2, 2), torch.tensor([[1.0, 2.0], [3.0, 1e6]])
    ours = clipped_value_loss(values, values, returns, mask, 0.2)
    assert ours.item() == pytest.approx(0.5 * (1 + 4 + 9) / 3)


def test_whiten_gives_mean_0_and_variance_1_inside_the_mask():
    values, _, mask = draw_rows(4)
    white = whiten(values * 5 + 3, mask)
    inside = white[mask].numpy()
    assert inside.mean() == pytest.approx(0.0, abs=1e-12)
    assert inside.var() == pytest.approx(1.0, abs=1e-6)
    assert (white[~mask] == 0).all()
    # Order and relative distances stay.
    assert np.corrcoef(inside, values[mask].numpy())[0, 1] == pytest.approx(1.0)


def test_whitening_a_single_token_is_finite():
    assert whiten(torch.tensor([[3.0, 7.0]]), torch.tensor([[True, False]])).tolist() == [[0, 0]]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(-999, 999), min_size=1, max_size=6), min_size=1, max_size=6))
def test_running_moments_are_those_of_all_batches_together(batches):
    moments = RunningMoments()
    for batch in batches:
        moments.update([number / 8 for number in batch])
    together = np.concatenate(batches) / 8
    assert moments.count == together.size
    assert moments.mean == pytest.approx(together.mean(), abs=1e-9)
    expected = together.std(ddof=1) if np.ptp(together) > 0 else 1.0
    assert moments.standard_deviation == pytest.approx(expected, rel=1e-9)


def test_running_moments_do_not_lose_a_small_spread_on_a_large_mean():
    moments = RunningMoments()
    for batch in ([10_000.0, 10_001.0], [10_002.0], [10_003.0, 10_004.0]):
        moments.update(batch)
    assert moments.standard_deviation == pytest.approx(math.sqrt(2.5), rel=1e-9)


@pytest.mark.parametrize("scores", [[0.1], [0.1] * 3, [0.1, 0.1 + 1e-9, 0.1 - 1e-9], [0.0, 0.0]])
def test_scores_that_differ_by_rounding_have_no_spread(scores):
    moments = RunningMoments()
    moments.update(scores)
    assert moments.standard_deviation == 1.0


def test_another_reward_model_begins_its_moments_anew():
    """Scores of a second model, a thousand times as large: after the exchange only they count."""
    small, large = [0.0, 1.0, 2.0], [5000.0, 6000.0, 7000.0, 9000.0]
    scale = ScoreScale()
    scale.take(small, of="first")
    scale.take(small, of="first")
    assert scale.moments.count == 6
    scale.take(large, of="second")
    fresh = ScoreScale()
    fresh.take(large, of="second")
    assert scale == fresh
    assert scale.normalise(large, clip=None).tolist() == pytest.approx(
        ((np.array(large) - np.mean(large)) / np.std(large, ddof=1)).tolist(), abs=1e-6
    )
    # Carried over, the first model's scores would have been part of mean and deviation.
    mixed = np.array([*small, *small, *large])
    assert abs((large[0] - mixed.mean()) / mixed.std(ddof=1)) < 0.8
    assert scale.normalise(large, clip=None)[0].item() < -0.9


def test_a_score_scale_comes_back_from_json():
    scale = ScoreScale()
    scale.take([0.25, 1.5, -3.0], of="one")
    back = ScoreScale.from_json(scale.to_json())
    assert back == scale
    back.take([8.0], of="one")
    scale.take([8.0], of="one")
    assert back.to_json() == scale.to_json()


def test_rewards_of_responses_by_hand():
    """Mean 2, deviation 2: -1, 0 and 1; clipped at 0.5, and 0.75 off what did not end."""
    scores, finished = [0.0, 2.0, 4.0], [True, False, True]
    asked = OptimizeSettings(reward_clip=0.5, missing_eos_penalty=0.75)
    ours = reward_responses(ScoreScale(), scores, finished, asked, of="one")
    assert ours.tolist() == pytest.approx([-0.5, -0.75, 0.5])
    raw = OptimizeSettings(normalize_scores=False, reward_clip=3.0, missing_eos_penalty=0.0)
    assert reward_responses(ScoreScale(), scores, finished, raw, of="one").tolist() == [0, 2, 3]
    free = OptimizeSettings(normalize_scores=False, reward_clip=None, missing_eos_penalty=0.0)
    assert reward_responses(ScoreScale(), scores, finished, free, of="one").tolist() == scores


# Weight 0.1, batch 500, target 4, horizon 1000: KL -> the next weight.
CONTROLLER_CASES = [
    (4.0, 0.1),
    (4.4, 0.1 * (1 + 0.1 * 0.5)),
    (3.6, 0.1 * (1 - 0.1 * 0.5)),
    (400.0, 0.1 * (1 + 0.2 * 0.5)),  # never by more than a fifth of n / horizon
    (0.0, 0.1 * (1 - 0.2 * 0.5)),
    (-1.0, 0.1 * (1 - 0.2 * 0.5)),  # an estimate can be below 0
]


@pytest.mark.parametrize(("kl", "expected"), CONTROLLER_CASES)
def test_the_adaptive_controller_by_hand(kl, expected):
    assert adapted_kl_coef(0.1, kl, 500, target=4.0, horizon=1000) == pytest.approx(expected)


def test_the_controller_brings_a_policy_to_its_target():
    """A policy whose KL is 1 / weight: the weight settles where KL is the target."""
    weight = 10.0
    for _ in range(2000):
        weight = adapted_kl_coef(weight, 1.0 / weight, 100, target=2.0, horizon=1000)
    assert 1.0 / weight == pytest.approx(2.0, rel=1e-3)


@pytest.mark.parametrize("kind", ["constant", "linear", "inverse_sqrt"])
@pytest.mark.parametrize("warmup_fraction", [0.0, 0.25])
def test_learning_rates_rise_to_their_peak_and_never_reach_zero(kind, warmup_fraction):
    asked = OptimizeSettings(
        lr_scheduler_type=kind, warmup_fraction=warmup_fraction, num_iterations=40
    )
    factors = [learning_rate_factor(iteration, asked) for iteration in range(40)]
    rise = round(40 * warmup_fraction)
    assert all(0 < factor <= 1 for factor in factors)
    assert factors[rise] == 1.0
    assert factors[: rise + 1] == sorted(factors[: rise + 1])
    assert factors[rise:] == sorted(factors[rise:], reverse=True)
    expected = {
        "constant": 1.0,
        "linear": 1 / (40 - rise),
        "inverse_sqrt": math.sqrt(max(rise, 1) / 39),
    }
    assert factors[-1] == pytest.approx(expected[kind])


def test_token_loss_is_the_negative_log_likelihood_of_the_labelled_tokens():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 4, 5, generator=generator, dtype=torch.float64)
    labels = torch.tensor([[3, -100, 2, 1], [-100, 4, -100, -100]])
    log_probs = torch.log_softmax(logits, dim=-1)
    # The token at a place is predicted from the place before; the first by nothing.
    expected = -(log_probs[0, 1, 2] + log_probs[0, 2, 1] + log_probs[1, 0, 4])
    assert token_loss_sum(logits, labels).item() == pytest.approx(expected.item(), rel=1e-6)
