# SPDX-License-Identifier: Apache-2.0
"""Scores as an optimiser uses them: in standard deviations of what one reward model has given."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor

from metarm.config_optimize import OptimizeSettings

__all__ = ["RunningMoments", "ScoreScale", "reward_responses"]

# Scores whose spread is this much smaller than their mean differ by rounding only.
ROUNDING: Final = 1e-6


@dataclass
class RunningMoments:
    """Mean and spread of all scores seen so far, merged batch by batch (Chan et al. 1979)."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0
    """Sum of squared deviations from the mean."""

    def update(self, values: Sequence[float]) -> None:
        """Take in a batch."""
        batch = torch.tensor(values, dtype=torch.float64)
        size, mean = len(values), batch.mean().item()
        total = self.count + size
        shift = mean - self.mean
        self.squares += (batch - mean).square().sum().item()
        self.squares += shift * shift * self.count * size / total
        self.mean += shift * size / total
        self.count = total

    @property
    def standard_deviation(self) -> float:
        """Sample standard deviation; 1 before there are two values that truly differ."""
        spread = math.sqrt(self.squares / max(self.count - 1, 1))
        return spread if spread > ROUNDING * abs(self.mean) else 1.0


@dataclass
class ScoreScale:
    """The moments of one reward model's scores: another model has another scale and begins anew.

    An average that lives on while the reward model is exchanged under it (as in the published
    PPO-max code) mixes two units, and takes rounds to forget the first.
    """

    reward_model: str = ""
    """Whose scores the moments are of: any text that tells models apart, such as a digest."""
    moments: RunningMoments = field(default_factory=RunningMoments)

    def take(self, scores: Sequence[float], *, of: str) -> None:
        """Take in a batch of scores of the reward model called `of`."""
        if of != self.reward_model:
            self.reward_model, self.moments = of, RunningMoments()
        self.moments.update(scores)

    def normalise(self, scores: Sequence[float], *, clip: float | None) -> Tensor:
        """(score - mean) / standard deviation of all scores taken in, clipped to +-`clip`.

        Returns:
            Shape (scores,), fp32: 1 is one standard deviation above this model's mean.
        """
        scaled = (torch.tensor(scores) - self.moments.mean) / self.moments.standard_deviation
        return scaled if clip is None else scaled.clamp(-clip, clip)

    def to_json(self) -> dict[str, Any]:
        """What a checkpoint holds; `ScoreScale.from_json` gives it back the same."""
        moments = self.moments
        return {
            "reward_model": self.reward_model,
            "count": moments.count,
            "mean": moments.mean,
            "squares": moments.squares,
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "ScoreScale":
        """The inverse of `to_json`."""
        moments = RunningMoments(value["count"], value["mean"], value["squares"])
        return cls(value["reward_model"], moments)


def reward_responses(
    scale: ScoreScale,
    scores: Sequence[float],
    finished: Sequence[bool],
    settings: OptimizeSettings,
    *,
    of: str,
) -> Tensor:
    """What every optimiser is paid for a response: its normalised score, less what EOS is worth.

    Args:
        scale: Takes the scores in first, so that a batch is part of its own mean.
        scores: Raw, one a response.
        finished: Whether each response ended by itself.
        settings: `normalize_scores`, `reward_clip`, `missing_eos_penalty`.
        of: The reward model that gave the scores.

    Returns:
        Shape (scores,), fp32, on the CPU.
    """
    scale.take(scores, of=of)
    clip = settings.reward_clip
    if settings.normalize_scores:
        rewards = scale.normalise(scores, clip=clip)
    else:
        rewards = torch.tensor(scores)
        rewards = rewards if clip is None else rewards.clamp(-clip, clip)
    return rewards - settings.missing_eos_penalty * ~torch.tensor(finished)
