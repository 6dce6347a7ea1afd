# SPDX-License-Identifier: Apache-2.0
"""PPO's mathematics: shaped rewards, advantages, clipped losses; tensors in, tensors out.

`rows` are responses, `tokens` their tokens, EOS included; masks are True on the response's own.
"""

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = [
    "Advantages",
    "PolicyLoss",
    "clipped_policy_loss",
    "clipped_value_loss",
    "estimate_advantages",
    "shape_rewards",
    "token_loss_sum",
    "whiten",
]

IGNORED = -100


class Advantages(NamedTuple):
    """How much better each token was than expected, and what its value should have been."""

    advantages: Tensor
    returns: Tensor


class PolicyLoss(NamedTuple):
    """The surrogate loss, and how far this step has gone."""

    loss: Tensor
    clip_fraction: Tensor
    approx_kl: Tensor


def shape_rewards(
    scores: Tensor, log_ratios: Tensor, response_mask: Tensor, kl_coef: float
) -> Tensor:
    """Per-token rewards: -kl_coef * log(pi / reference) everywhere, plus the score at the end.

    Args:
        scores: Shape (rows,), in normalised units.
        log_ratios: Shape (rows, tokens), log pi - log reference of the sampled tokens.
        response_mask: Shape (rows, tokens), True on response tokens, at least one a row.
        kl_coef: beta.

    Returns:
        Shape (rows, tokens), 0 outside the mask; a row sums to score - beta * sum of log ratios.
    """
    rewards = (-kl_coef * log_ratios).masked_fill(~response_mask, 0.0)
    last = response_mask.sum(dim=1) - 1
    rewards[torch.arange(len(scores), device=scores.device), last] += scores
    return rewards


def estimate_advantages(
    rewards: Tensor, values: Tensor, response_mask: Tensor, *, gamma: float, lam: float
) -> Advantages:
    """Generalised advantage estimation along each response, which ends in a state of value 0.

    delta_t = r_t + gamma * v_{t+1} - v_t;  A_t = delta_t + gamma * lam * A_{t+1};  return = A + v

    Args:
        rewards: Shape (rows, tokens).
        values: Shape (rows, tokens), expected return before each token.
        response_mask: Shape (rows, tokens).
        gamma: Discount per token, in [0, 1].
        lam: 0 trusts the values (one step), 1 the rewards (to the end).

    Source:
        Schulman et al. 1506.02438, eq. 16.
    """
    mask = response_mask.to(rewards.dtype)
    values = values * mask
    advantages = torch.zeros_like(rewards)
    following = torch.zeros_like(rewards[:, 0])
    for t in reversed(range(rewards.shape[1])):
        next_value = values[:, t + 1] if t + 1 < rewards.shape[1] else torch.zeros_like(following)
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        following = (delta + gamma * lam * following) * mask[:, t]
        advantages[:, t] = following
    return Advantages(advantages, advantages + values)


def whiten(values: Tensor, mask: Tensor) -> Tensor:
    """Values with mean 0 and variance 1 over the mask; 0 outside it."""
    inside = values[mask]
    spread = inside.std(unbiased=False)
    return ((values - inside.mean()) / (spread + 1e-8)).masked_fill(~mask, 0.0)


def clipped_policy_loss(
    log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, mask: Tensor, cliprange: float
) -> PolicyLoss:
    """PPO's surrogate: the worse of the plain and the clipped ratio, averaged over tokens.

    Source:
        Schulman et al. 1707.06347, eq. 7. `approx_kl` is the k3 estimator, >= 0.
    """
    log_ratio = (log_probs - old_log_probs).masked_fill(~mask, 0.0)
    ratio = log_ratio.exp()
    plain = -advantages * ratio
    clipped = -advantages * ratio.clamp(1.0 - cliprange, 1.0 + cliprange)
    count = mask.sum()
    with torch.no_grad():
        clip_fraction = ((clipped > plain) & mask).sum() / count
        approx_kl = ((log_ratio.expm1() - log_ratio) * mask).sum() / count
    return PolicyLoss(
        (torch.maximum(plain, clipped) * mask).sum() / count, clip_fraction, approx_kl
    )


def clipped_value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, cliprange: float
) -> Tensor:
    """Half the squared error of values, the worse of plain and clipped, averaged over tokens."""
    clipped = torch.clamp(values, old_values - cliprange, old_values + cliprange)
    worse = torch.maximum((values - returns).square(), (clipped - returns).square())
    return 0.5 * (worse * mask).sum() / mask.sum()


def token_loss_sum(logits: Tensor, labels: Tensor) -> Tensor:
    """Negative log-likelihood of the labelled tokens, summed: nats; a fair coin's toss is 0.69.

    Args:
        logits: Shape (rows, tokens, vocabulary), of whole texts.
        labels: Shape (rows, tokens), the texts' own ids, -100 where nothing is to be learnt.
    """
    return torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1).float(),
        labels[:, 1:].flatten(),
        ignore_index=IGNORED,
        reduction="sum",
    )
