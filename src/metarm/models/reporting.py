# SPDX-License-Identifier: Apache-2.0
"""A Hugging Face trainer's steps, shown on a progress bar."""

from typing import Any

from transformers import TrainerCallback

from metarm.protocols import StageProgress

__all__ = ["StepReporter"]


class StepReporter(TrainerCallback):
    """Advances a bar by one with every optimiser step and shows the newest loss."""

    def __init__(self, bar: StageProgress) -> None:
        self.bar = bar

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """One step is done."""
        logged = next((entry for entry in reversed(state.log_history) if "loss" in entry), None)
        self.bar.advance(1, f"loss {logged['loss']:.3f}" if logged else "")
