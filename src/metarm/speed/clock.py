# SPDX-License-Identifier: Apache-2.0
"""When each part of a trainer's steps was done."""

from typing import Any

from transformers import TrainerCallback

from metarm.speed.machine import now
from metarm.speed.results import PARTS, Block

__all__ = ["StepClock"]


class StepClock(TrainerCallback):
    """Notes the moments of every step; the first step of a block is not timed.

    Stands in a trainer's callbacks twice: as `first`, before all others, and as itself after them,
    so that what a callback does when a step begins lies between the two.
    """

    def __init__(self) -> None:
        self.moments: list[list[float]] = []
        self.first = _First(self)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """After what other callbacks do."""
        self.moments[-1].append(now())

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Gradients are there, and clipped."""
        self.moments[-1].append(now())

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Weights have moved and gradients are gone."""
        self.moments[-1].append(now())

    def block(self) -> Block:
        """All steps but the first."""
        rows = []
        for before, moments in zip(self.moments, self.moments[1:], strict=False):
            starts = [before[-1], *moments]
            rows.append([end - start for start, end in zip(starts, moments, strict=False)])
        parts = {name: tuple(row[place] for row in rows) for place, name in enumerate(PARTS)}
        return Block(tuple(map(sum, rows)), parts)


class _First(TrainerCallback):
    def __init__(self, clock: StepClock) -> None:
        self.clock = clock

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Before what other callbacks do."""
        self.clock.moments.append([now()])
