# SPDX-License-Identifier: Apache-2.0
"""Means over the processes of a distributed training."""

from typing import Any

import torch

from metarm.meta_step import Direction, gradient_norm

__all__ = ["direction_over_processes", "mean_over_processes"]


def mean_over_processes(accelerator: Any, value: float) -> float:
    """The mean of a number over all processes; accelerate's `accelerator` knows them."""
    if accelerator.num_processes == 1:
        return value
    local = torch.tensor(value, dtype=torch.float32, device=accelerator.device)
    return float(accelerator.reduce(local, reduction="mean").item())


def direction_over_processes(accelerator: Any, local: Direction) -> Direction:
    """The direction of the J of all groups, of which each process has measured its share."""
    if accelerator.num_processes == 1:
        return local
    gradients = tuple(
        None if g is None else accelerator.reduce(g, reduction="mean") for g in local.gradients
    )
    difference = mean_over_processes(accelerator, local.difference)
    return Direction(difference, gradients, gradient_norm(gradients))
