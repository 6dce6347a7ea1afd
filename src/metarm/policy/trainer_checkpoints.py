# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of TRL's trainers of policies: an optimisation that ends anywhere goes on from there.

What a trainer of TRL does not keep itself (verified on trl 1.16): the batch of responses that it is
in the middle of learning from, without which it writes another one.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from metarm.models.safe_checkpoints import SafeCheckpoints
from metarm.policy.trainer_watch import Watch

__all__ = ["GroupCheckpoints", "PolicyCheckpoints"]


class PolicyCheckpoints(SafeCheckpoints):
    """To stand before TRL's `DPOTrainer` among the bases of a class, which is then given a watch.

    Overrides, and why:
        `own_state`, `take_own_state`: what the watch has seen goes on too.
        `_run_epoch`: beyond the KL budget nothing is left to do.
        `create_model_card`: nobody reads the card of a checkpoint.
    """

    watch: Watch

    def own_state(self) -> dict[str, Any]:
        """What was seen so far."""
        return {"watch": self.watch.to_values()}

    def take_own_state(self, state: Mapping[str, Any]) -> None:
        """The reverse; the log is written again up to here."""
        self.watch.take_values(state["watch"])

    def _run_epoch(self, *arguments: Any, **options: Any) -> None:
        if self.watch.is_beyond:
            self.control.should_training_stop = True
            return
        super()._run_epoch(*arguments, **options)

    def create_model_card(self, *arguments: Any, **options: Any) -> None:
        """None."""


class GroupCheckpoints(PolicyCheckpoints):
    """The same before `RLOOTrainer` or `GRPOTrainer`, which learn from a batch in several steps."""

    num_iterations: int
    _step: int
    _buffered_inputs: list[dict[str, Any]] | None

    def own_state(self) -> dict[str, Any]:
        """What was seen so far, and the responses that are still to be learnt from."""
        is_between = self._step % (self.args.steps_per_generation * self.num_iterations) == 0
        batch = None if is_between else self._buffered_inputs
        return super().own_state() | {"step": self._step, "batch": batch}

    def take_own_state(self, state: Mapping[str, Any]) -> None:
        """The reverse."""
        super().take_own_state(state)
        self._step = state["step"]
        if state["batch"] is not None:
            self._buffered_inputs = [_put(part, self.args.device) for part in state["batch"]]


def _put(part: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """A part of a batch on a device."""
    return {name: x.to(device) if isinstance(x, Tensor) else x for name, x in part.items()}
