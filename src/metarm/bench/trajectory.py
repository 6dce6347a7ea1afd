# SPDX-License-Identifier: Apache-2.0
"""Scores of a network along its training, what it cost, and the point its stopping rule takes."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

__all__ = ["Cost", "Trajectory", "accuracies"]


@dataclass(slots=True)
class Cost:
    """Responses sent through a network while training."""

    forward: int = 0
    backward: int = 0
    seconds: float = 0.0

    def plus(self, other: "Cost") -> "Cost":
        """Both together."""
        return Cost(
            self.forward + other.forward,
            self.backward + other.backward,
            self.seconds + other.seconds,
        )


@dataclass(frozen=True, slots=True, eq=False)
class Trajectory:
    """Scores along training, and which point the stopping rule takes."""

    steps: tuple[int, ...]
    scores: Tensor
    """Shape (points, texts), in logits; NaN where a text was not measured."""
    validation: tuple[float, ...]
    """Accuracy on original pairs of prompts that were not trained on, at each point."""
    cost: Cost
    weights: tuple[Tensor, ...] = ()
    """The trained weights at each point, as one vector each; only where a recipe averages them."""
    strength: tuple[float, ...] = ()
    """Share of its full strength that a guard has left the meta step, at each point."""
    held: tuple[bool, ...] = ()
    """Whether a guard held at each point; empty without one."""

    @property
    def best(self) -> int:
        """The point with the highest validation accuracy, mean of it and its two neighbours.

        A few hundred pairs measure an accuracy to 2 points: alone, the highest is chosen by luck.
        Where a guard did not hold, no point is taken.
        """
        known = torch.tensor(self.validation)
        smooth = torch.stack([known[max(i - 1, 0) : i + 2].mean() for i in range(len(known))])
        if self.held:
            smooth = smooth.masked_fill(~torch.tensor(self.held), -1.0)
        return int(smooth.argmax())

    def at(self, step: int) -> Tensor:
        """All texts' scores at a step, or at the last one where it was not measured."""
        return self.scores[self.steps.index(step) if step in self.steps else -1]

    def save(self, path: Path) -> None:
        """Write all of it but averaged weights."""
        facts = {
            "steps": self.steps,
            "validation": self.validation,
            "cost": asdict(self.cost),
            "strength": self.strength,
            "held": self.held,
        }
        save_file({"scores": self.scores}, path, metadata={"trajectory": json.dumps(facts)})

    @classmethod
    def read(cls, path: Path) -> "Trajectory":
        """What `save` wrote."""
        with safe_open(path, framework="pt") as file:
            facts = json.loads(file.metadata()["trajectory"])
            scores = file.get_tensor("scores")
        return cls(
            tuple(facts["steps"]),
            scores,
            tuple(facts["validation"]),
            Cost(**facts["cost"]),
            (),
            tuple(facts["strength"]),
            tuple(facts["held"]),
        )


def accuracies(scores: Tensor, pairs: Tensor) -> tuple[float, ...]:
    """Share of pairs that each row of scores orders as labelled; a tie counts one half."""
    gaps = scores[:, pairs[:, 0]] - scores[:, pairs[:, 1]]
    return tuple(((1 + gaps.sign()) / 2).mean(1).tolist())
