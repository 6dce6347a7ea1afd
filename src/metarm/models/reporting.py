# SPDX-License-Identifier: Apache-2.0
"""A Hugging Face trainer's steps: their count, a bar for them, what they logged."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import TrainerCallback

from metarm.config import RewardSettings
from metarm.protocols import StageProgress

__all__ = ["StepReporter", "count_steps", "last_metrics"]


class StepReporter(TrainerCallback):
    """Advances a bar by one with every optimiser step and shows the newest loss."""

    def __init__(self, bar: StageProgress) -> None:
        self.bar = bar

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A training that goes on has some steps behind it."""
        if state.global_step:
            self.bar.advance(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """One step is done."""
        logged = next((entry for entry in reversed(state.log_history) if "loss" in entry), None)
        self.bar.advance(1, f"loss {logged['loss']:.3f}" if logged else "")


def count_steps(settings: RewardSettings, num_pairs: int, num_processes: int = 1) -> int:
    """Optimiser steps of a training by epochs."""
    batches = -(-num_pairs // (num_processes * settings.per_device_train_batch_size))
    per_epoch = -(-batches // settings.gradient_accumulation_steps)
    return math.ceil(settings.num_train_epochs * per_epoch)


def last_metrics(history: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The newest value of every number that was logged."""
    metrics: dict[str, float] = {}
    for entry in history:
        metrics |= {
            key: float(value) for key, value in entry.items() if isinstance(value, (int, float))
        }
    return metrics
