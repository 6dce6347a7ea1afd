# SPDX-License-Identifier: Apache-2.0
"""How strong a meta step is, set by the data: bounded in reward units, guarded by rank correlation.

Weights have no scale that means anything: a head of 1e4 and a model of 1e9 of them change their
rewards by very different amounts for the same eta. Rewards have one, their spread over original
responses. And where the step has turned the order of the shifted responses far from the order that
plain training gives them, it is halved, then left out.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from scipy.optimize import minimize_scalar
from torch import Tensor
from torch.nn import functional

from metarm.meta_step import (
    TINY_NORM,
    Direction,
    gradient_norm,
    look_ahead,
    weights_norm,
)
from metarm.meta_strength import LEAST_RANK_CORRELATION
from metarm.metrics import mean_group_spearman
from metarm.placement import widest

__all__ = [
    "LONGEST_FRACTION",
    "NUM_REFERENCE_PAIRS",
    "PROBE_EVERY",
    "PROBE_FRACTION",
    "RewardUnits",
    "StrengthGuard",
    "choose_by_probe",
    "mean_rank_correlation",
]

MOST_HALVINGS: Final = 3
PROBE_EVERY: Final = 10
NUM_REFERENCE_PAIRS: Final = 32
SAME_LIKELIHOOD: Final = 1e-6
# Of the weights' own length: far above fp32's rounding, far below where scores bend.
PROBE_FRACTION: Final = 1e-4
LONGEST_FRACTION: Final = 1.0


@dataclass(slots=True)
class StrengthGuard:
    """Halves the meta step while its rewards order responses unlike plain training's, then stops.

    Source:
        Not in the paper. On AlpacaEval every split that stayed above .7 gained, and the one whose
        rewards turned round fell to .63 and .03 before its accuracy on original pairs changed.
    """

    least: float = LEAST_RANK_CORRELATION
    """Mean within-group rank correlation with plain rewards, in [-1, 1]; below it, half."""
    factor: float = 1.0
    """What is left of the full strength: 1, 0.5, 0.25, 0.125, then 0."""
    lowest: float = field(default=1.0, init=False)
    """The smallest correlation seen."""
    newest: float | None = field(default=None, init=False)
    """The last one seen; None before the first."""

    def observe(self, correlation: float | None) -> None:
        """Take in one measurement; None (no group has an order) changes nothing."""
        if correlation is None:
            return
        self.newest = correlation
        self.lowest = min(self.lowest, correlation)
        if correlation < self.least:
            self.factor = self.factor / 2 if self.factor > 0.5**MOST_HALVINGS else 0.0

    @property
    def holds(self) -> bool:
        """Whether the last measurement is as close to plain as it has to be."""
        return self.newest is None or self.newest >= self.least


def mean_rank_correlation(groups: Tensor, scores: Tensor, reference: Tensor) -> float | None:
    """Mean within-group Spearman correlation, groups of any sizes; None where none has an order.

    Args:
        groups: Shape (groups, k), rows of the scores; -1 where a group is smaller.
        scores: Shape (texts,).
        reference: Shape (texts,).
    """
    sizes = (groups >= 0).sum(1)
    found = []
    for size in sorted(set(sizes.tolist())):
        rows = groups[sizes == size][:, :size]
        value = mean_group_spearman(scores[rows].numpy(), reference[rows].numpy())
        if value is not None:
            found.append((value, len(rows)))
    total = sum(count for _, count in found)
    return sum(value * count for value, count in found) / total if total else None


def choose_by_probe(gaps: Sequence[Tensor]) -> int:
    """Which of several reward models orders a few labelled pairs best.

    By the likelihood of the labels, each model at the scale of its rewards that suits them best:
    it uses how far apart rewards are and so needs fewer pairs than counting right answers does. The
    first model stands unless another one is better.

    Args:
        gaps: For each model, rewards of chosen minus those of rejected responses, shape (pairs,),
            the same pairs; the first is the one to fall back on.

    Returns:
        Index of the best, the first of equals.
    """
    found = [_best_log_likelihood(gap) for gap in gaps]
    # Scales are found to a few digits: what differs by less is equal.
    return next(i for i, value in enumerate(found) if value >= max(found) - SAME_LIKELIHOOD)


def _best_log_likelihood(gaps: Tensor) -> float:
    """Max over scales s >= 0 of the mean of log sigmoid(s * gap); log 1/2 at s = 0."""
    unit = gaps.abs().mean().item()
    if unit == 0.0:
        return -math.log(2.0)
    scaled = gaps.double() / unit

    def loss(log_scale: float) -> float:
        return -functional.logsigmoid(math.exp(log_scale) * scaled).mean().item()

    best = minimize_scalar(loss, bounds=(-5.0, 3.0), method="bounded")
    return max(-float(best.fun), -math.log(2.0))


class RewardUnits:
    """Turns a share of the rewards' spread into a step, and a rate of change into a weight of J.

    Two points tell how fast the scores of a few original responses change along a gradient. A
    change that all of them share does not count: no comparison sees it. Speeds change slowly, so
    they are measured at the first calls and then now and then; the gradients' lengths, which do
    not, are those of each call.

    Args:
        scores: Evaluates the scores of some original responses, shape (n,), without a graph.
        every: Calls between two measurements after the first `every`; 1 measures at each.
    """

    def __init__(self, scores: Callable[[], Tensor], *, every: int = PROBE_EVERY) -> None:
        self._scores = scores
        self._every = every
        self._calls = 0
        self._spread = 0.0
        self._speeds: list[float] = []

    def look_ahead_step(
        self, parameters: Sequence[Tensor], direction: Direction, fraction: float
    ) -> float:
        """The step along the direction that changes rewards by `fraction` of their spread.

        So the size of a step means the same for a head, an adapter and a whole model, whatever
        the scale of its rewards.

        Args:
            parameters: As in `direction`.
            direction: Where J rises.
            fraction: Standard deviation of the change over that of the scores; 0.5 is strong.

        Returns:
            A step >= 0 for `look_ahead`, never longer than the weights; 0 where the scores are all
            alike or do not change.
        """
        if direction.norm <= TINY_NORM:
            return 0.0
        self._measure(parameters, [(direction.gradients, direction.norm)])
        wanted = fraction * self._spread / speed if (speed := self._speeds[0]) > 0 else 0.0
        # Where J hardly changes these scores, their unit would ask for a leap.
        return min(wanted, LONGEST_FRACTION * weights_norm(parameters)) / direction.norm

    def joint_weight(
        self,
        parameters: Sequence[Tensor],
        direction: Direction,
        preference_gradients: Sequence[Tensor | None],
        fraction: float,
    ) -> float:
        """The weight at which J moves rewards `fraction` times as fast as the preference loss.

        Where the preference loss has come to rest, J would go on alone: this bounds it. The speeds
        are those of plain gradient steps; AdamW, which scales each weight's own, keeps them only
        roughly, and the guard is the firmer bound.

        Args:
            parameters: As in `direction`.
            direction: Where J rises.
            preference_gradients: Of the preference loss, one tensor a parameter or None.
            fraction: Of the standard deviations of the scores' changes, for the same short step.

        Returns:
            A weight >= 0 for `add_gradients`; 0 where either gradient vanishes or moves no score.
        """
        norm = gradient_norm(preference_gradients)
        if direction.norm <= TINY_NORM or norm <= TINY_NORM:
            return 0.0
        self._measure(
            parameters, [(direction.gradients, direction.norm), (preference_gradients, norm)]
        )
        of_difference, of_preferences = self._speeds
        if of_difference == 0.0:
            return 0.0
        return fraction * of_preferences * norm / (of_difference * direction.norm)

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, as JSON values."""
        return {"calls": self._calls, "spread": self._spread, "speeds": self._speeds}

    def restore(self, saved: Mapping[str, Any] | None) -> None:
        """At the begin of a training: take up what a checkpoint has kept; None begins anew."""
        told = saved or {"calls": 0, "spread": 0.0, "speeds": []}
        self._calls, self._spread = told["calls"], told["spread"]
        self._speeds = list(told["speeds"])

    def _measure(
        self,
        parameters: Sequence[Tensor],
        gradients: Sequence[tuple[Sequence[Tensor | None], float]],
    ) -> None:
        """Spread of the scores, and how fast they change per unit of length along each gradient."""
        due = self._calls < self._every or self._calls % self._every == 0
        self._calls += 1
        if not due:
            return
        before = widest(self._scores())
        probe = PROBE_FRACTION * weights_norm(parameters)
        self._spread = before.std().item()
        self._speeds = []
        for gradient, norm in gradients:
            with look_ahead(parameters, gradient, probe / norm):
                after = widest(self._scores())
            self._speeds.append((after - before).std().item() / probe)
