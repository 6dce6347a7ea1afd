# SPDX-License-Identifier: Apache-2.0
"""What changes along an optimisation, and what ends it: rate, weight of KL, budget, divergence."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor, nn

from metarm.config_optimize import OptimizeSettings
from metarm.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = [
    "DIVERGED_REMEDY",
    "KlBudget",
    "adapted_kl_coef",
    "learning_rate_factor",
    "refuse_diverged",
    "weights_length",
]

DIVERGED_REMEDY: Final = (
    "the policy diverged. Lower optimize.learning_rate or raise optimize.kl_coef and run the same "
    "command again; finished stages are kept."
)
# Training never makes all weights together this many times as long; a broken step size does.
DIVERGED: Final = 100.0
# Ziegler et al. 1909.08593: no batch moves the weight of KL by more than this share of itself.
LARGEST_ERROR: Final = 0.2


def learning_rate_factor(iteration: int, settings: OptimizeSettings) -> float:
    """The share of its peak that the learning rate has: a function of the iteration alone.

    Rises on a straight line over the first `warmup_fraction`; then stays (`constant`), falls on a
    straight line to 0 after the last iteration (`linear`), or falls as 1 / sqrt(iterations)
    (`inverse_sqrt`, the published PPO-max script's).

    Args:
        iteration: From 0.
        settings: `lr_scheduler_type`, `warmup_fraction`, `num_iterations`.

    Returns:
        In (0, 1]: 0.5 half way through a `linear` run without a rise.

    Example:
        >>> linear = OptimizeSettings(lr_scheduler_type="linear", num_iterations=10)
        >>> [learning_rate_factor(place, linear) for place in (0, 5, 9)]
        [1.0, 0.5, 0.1]
    """
    total = settings.num_iterations
    rise = round(settings.warmup_fraction * total)
    if iteration < rise:
        return (iteration + 1) / (rise + 1)
    if settings.lr_scheduler_type == "linear":
        return (total - iteration) / (total - rise)
    if settings.lr_scheduler_type == "inverse_sqrt":
        return math.sqrt(max(rise, 1) / max(iteration, 1))
    return 1.0


def adapted_kl_coef(
    kl_coef: float, kl: float, num_responses: int, *, target: float, horizon: int
) -> float:
    """The next weight of KL: larger where KL is above its target, smaller where it is below.

    kl_coef * (1 + clip(kl / target - 1, +-0.2) * num_responses / horizon)

    Args:
        kl_coef: The weight that the batch was rewarded with.
        kl: Mean KL of the batch's responses to SFT, in nats.
        num_responses: Size of the batch.
        target: In nats; 6 in the paper.
        horizon: Responses over which a lasting error of 20 % changes the weight by a fifth.

    Source:
        Ziegler et al. 1909.08593, section 2.2.

    Example:
        >>> round(adapted_kl_coef(0.1, 12.0, 100, target=6.0, horizon=1000), 6)
        0.102
    """
    error = min(max(kl / target - 1.0, -LARGEST_ERROR), LARGEST_ERROR)
    return kl_coef * (1.0 + error * num_responses / horizon)


@dataclass(eq=False)
class KlBudget:
    """How far from SFT a policy may go, and the last weights that were seen within it.

    KL is that of the responses of a batch, so what is kept is the policy that wrote them.
    """

    limit: float | None
    """In nats a response; None: no end."""
    kept: dict[str, Tensor] = field(default_factory=dict)
    """Copies on the CPU of the weights that are trained."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Of the batch that the kept weights wrote."""

    def allows(self, model: nn.Module, metrics: Mapping[str, float]) -> bool:
        """Whether the policy that wrote this batch is within the budget; if so it is kept.

        Raises:
            ConfigError: When no policy has been within it, not even the one that it began from.
        """
        if self.limit is None:
            return True
        kl = metrics["objective/kl"]
        if kl <= self.limit:
            self.kept = {name: w.detach().cpu().clone() for name, w in _trained(model)}
            self.metrics = dict(metrics)
            return True
        if not self.kept:
            raise ConfigError(
                f"optimize.kl_budget is {self.limit:g} nats, but the policy is {kl:.2f} nats from "
                "SFT before its first update: raise it, or set policy_start: sft"
            )
        return False

    @torch.no_grad()
    def restore(self, model: nn.Module) -> dict[str, float]:
        """Put the kept weights back; returns what was measured of them."""
        for name, weight in _trained(model):
            weight.copy_(self.kept[name])
        return dict(self.metrics)


def _trained(model: nn.Module) -> Iterable[tuple[str, nn.Parameter]]:
    return ((name, w) for name, w in model.named_parameters() if w.requires_grad)


def weights_length(model: "PreTrainedModel") -> float:
    """Euclidean length of all weights together."""
    with torch.no_grad():
        return torch.stack([weight.norm() for weight in model.parameters()]).norm().item()


def refuse_diverged(policy: "PreTrainedModel", length_at_start: float) -> None:
    """Weights may be finite and yet worthless: norm layers overflow and every token is alike.

    Raises:
        ModelError: When they are a hundred times as long as they were.
    """
    length = weights_length(policy)
    if not length <= DIVERGED * length_at_start:
        raise ModelError(
            f"the policy's weights are {length / length_at_start:.0f} times as long as before: "
            f"{DIVERGED_REMEDY}"
        )
