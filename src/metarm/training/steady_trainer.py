# SPDX-License-Identifier: Apache-2.0
"""TRL's `RewardTrainer` with shared prompts, safe checkpoints, and steps that outlive a bad moment.

Verified on trl 1.16, transformers 5.23.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from metarm.models.safe_checkpoints import SafeCheckpoints
from metarm.models.steady_steps import SteadySteps
from metarm.training.shared_trainer import SharedPromptTrainer

__all__ = ["SteadyTrainer"]


class SteadyTrainer(SteadySteps, SafeCheckpoints, SharedPromptTrainer):
    """`SharedPromptTrainer` whose micro-batches may be taken apart by pairs."""

    def count_rows(self, inputs: Mapping[str, Any]) -> int:
        """Pairs of TRL's batch."""
        return len(inputs["input_ids"]) // 2

    def split_rows(
        self, inputs: Mapping[str, Any], most: int
    ) -> Iterator[tuple[dict[str, Any], float]]:
        """Both sides of some pairs, as TRL lays them out; the loss is a mean over pairs."""
        count = self.count_rows(inputs)
        for start in range(0, count, most):
            size = min(most, count - start)
            rows = torch.cat([torch.arange(size) + start, torch.arange(size) + start + count])
            part = {name: _some(value, rows, count) for name, value in inputs.items()}
            yield part, size / count

    def own_state(self) -> dict[str, Any]:
        """The size of a micro-batch."""
        return self.steady_state()

    def take_own_state(self, state: Mapping[str, Any]) -> None:
        """The reverse."""
        self.take_steady_state(state)


def _some(value: Any, rows: torch.Tensor, count: int) -> Any:
    """Rows of a tensor of both sides, or of one with a number a pair; what else there is, whole."""
    if not isinstance(value, torch.Tensor):
        return value
    places = rows if len(value) == 2 * count else rows[: len(rows) // 2]
    return value[places.to(value.device)]
