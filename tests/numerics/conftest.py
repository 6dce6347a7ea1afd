# SPDX-License-Identifier: Apache-2.0
"""A small smooth reward model with a preference batch and a meta batch, made from a seed."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from metarm.objectives import bradley_terry_loss, difference_loss


@dataclass(frozen=True)
class Problem:
    model: nn.Module
    groups: Tensor
    chosen: Tensor
    rejected: Tensor

    @property
    def parameters(self):
        return list(self.model.parameters())

    def difference(self, rows=slice(None)):
        return difference_loss(self.model(self.groups[rows]).squeeze(-1))

    def preference(self, rows=slice(None)):
        chosen, rejected = self.chosen[rows], self.rejected[rows]
        return bradley_terry_loss(self.model(chosen).squeeze(-1), self.model(rejected).squeeze(-1))

    def weights(self):
        """Copies of the parameters and buffers as they are now."""
        return {name: value.detach().clone() for name, value in self.model.state_dict().items()}

    def gradients(self):
        """Copies of `.grad`, None where there is none."""
        return [None if p.grad is None else p.grad.clone() for p in self.parameters]

    def is_at(self, weights):
        """Whether the model's state is `weights`, bit for bit."""
        now = self.model.state_dict()
        return all(torch.equal(now[name], value) for name, value in weights.items())


@pytest.fixture
def make_problem() -> Callable[..., Problem]:
    def make(seed=0, *, dtype=torch.float64, groups=4, k=3, pairs=6, features=4, hidden=5):
        generator = torch.Generator().manual_seed(seed)

        def draw(*shape):
            return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

        model = nn.Sequential(nn.Linear(features, hidden), nn.Tanh(), nn.Linear(hidden, 1))
        model.register_buffer("running", torch.zeros(1))
        model.to(dtype)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(draw(*parameter.shape))
        return Problem(
            model, draw(groups, k, features), draw(pairs, features), draw(pairs, features)
        )

    return make


@pytest.fixture
def problem(make_problem) -> Problem:
    return make_problem()
