# SPDX-License-Identifier: Apache-2.0
"""What the processes of a distributed training agree on: means, the direction, numbers of passes.

Of a whole parameter each process has the gradient of its own groups, and it is averaged here, by
hand: whatever averages the preference gradient (DDP's reducer, a hook of transformers on adapters
beside a sharded model) does so at the last micro-batch alone. Shards come averaged, by FSDP2.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from metarm.meta_step import Direction, gradient_norm
from metarm.placement import is_sharded

__all__ = ["direction_over_processes", "mean_over_processes", "most_over_processes"]


def mean_over_processes(accelerator: Any, value: float) -> float:
    """The mean of a number over all processes; accelerate's `accelerator` knows them."""
    if accelerator.num_processes == 1:
        return value
    local = torch.tensor(value, dtype=torch.float32, device=accelerator.device)
    return float(accelerator.reduce(local, reduction="mean").item())


def most_over_processes(accelerator: Any, counts: Sequence[int]) -> list[int]:
    """The largest of each count over all processes, whose lists may be of any lengths.

    Example: [1, 1, 2] here and [3] there are [3, 1, 2] everywhere.
    """
    if accelerator.num_processes == 1:
        return list(counts)
    length = torch.tensor([len(counts)], device=accelerator.device)
    filled = torch.zeros(int(accelerator.gather(length).max()), dtype=torch.int64)
    filled[: len(counts)] = torch.tensor(counts, dtype=torch.int64)
    rows = accelerator.gather(filled.to(accelerator.device).unsqueeze(0))
    found: list[int] = rows.max(dim=0).values.tolist()
    return found


def direction_over_processes(accelerator: Any, local: Direction) -> Direction:
    """The direction of the J of all groups, of which each process has measured its share."""
    if accelerator.num_processes == 1:
        return local

    def average(gradient: Tensor | None) -> Tensor | None:
        if gradient is None or is_sharded(gradient):
            return gradient
        averaged: Tensor = accelerator.reduce(gradient, reduction="mean")
        return averaged

    gradients = tuple(map(average, local.gradients))
    difference = mean_over_processes(accelerator, local.difference)
    return Direction(difference, gradients, gradient_norm(gradients))
