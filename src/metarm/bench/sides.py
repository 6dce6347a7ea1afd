# SPDX-License-Identifier: Apache-2.0
"""Original against shifted: how likely a text is on either side, how far states lie apart.

What importance weights (OCRM) and domain-invariant training (DIAL) need.
"""

from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from metarm.bench.problem import Problem

__all__ = ["Critic", "density_ratios"]

CRITIC_STEPS: Final = 3
GRADIENT_PENALTY: Final = 10.0
RATIO_LIMITS: Final = (0.1, 10.0)


def density_ratios(problem: Problem, pairs: Tensor) -> Tensor:
    """How much likelier each pair's texts are among the shifted ones; mean 1.

    The odds of a logistic classifier between the two sides, cut to `RATIO_LIMITS`.
    """
    shifted = problem.groups[problem.groups >= 0]
    rows = torch.cat([pairs.reshape(-1), shifted])
    is_shifted = torch.cat([torch.zeros(pairs.numel()), torch.ones(len(shifted))])
    weight = torch.zeros(problem.features.shape[1], requires_grad=True)
    bias = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=50, line_search_fn="strong_wolfe")
    inputs = problem.features[rows]

    def closure() -> Tensor:
        optimizer.zero_grad()
        logits = inputs @ weight + bias
        loss = functional.binary_cross_entropy_with_logits(logits, is_shifted)
        loss = loss + 1e-2 * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    with torch.no_grad():
        ratios = (problem.features[pairs] @ weight + bias).exp().mean(1)
        ratios = (ratios / ratios.mean()).clamp(*RATIO_LIMITS)
    return ratios / ratios.mean()


class Critic:
    """A Wasserstein critic with gradient penalty (Gulrajani et al. 2017) on the head's trunk."""

    def __init__(self, size: int, seed: int) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed + 1)
            self.net = nn.Sequential(nn.Linear(size, 32), nn.ReLU(), nn.Linear(32, 1))
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=1e-3)

    def distance(self, original: Tensor, shifted: Tensor) -> Tensor:
        """The distance of two sets of hidden states, after a few steps of the critic's own."""
        self.net.to(original.device)
        count = min(len(original), len(shifted))
        for _ in range(CRITIC_STEPS):
            one, two = original[:count].detach(), shifted[:count].detach()
            middle = ((one + two) / 2).requires_grad_()
            (slope,) = torch.autograd.grad(self.net(middle).sum(), middle, create_graph=True)
            penalty = (slope.norm(dim=1) - 1).square().mean()
            loss = self.net(two).mean() - self.net(one).mean() + GRADIENT_PENALTY * penalty
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
        gap: Tensor = self.net(original).mean() - self.net(shifted).mean()
        return gap
