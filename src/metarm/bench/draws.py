# SPDX-License-Identifier: Apache-2.0
"""What a training draws: batches, random directions, dropout; each a stream of its own."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from metarm.meta_step import Direction
from metarm.streams import draw_seed

__all__ = ["dropout_noise", "endless_batches", "random_direction"]


@contextmanager
def dropout_noise(share: float, seed: int, step: int) -> Iterator[None]:
    """A context in which dropout is drawn by the seed and the step, where there is any."""
    if not share:
        yield
        return
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(draw_seed(seed, "dropout", step))
        yield


def endless_batches(size: int, batch: int, draw: torch.Generator) -> Iterator[Tensor]:
    """Batches of row numbers; each comes once before any comes again."""
    waiting = torch.empty(0, dtype=torch.long)
    while True:
        while len(waiting) < batch:
            waiting = torch.cat([waiting, torch.randperm(size, generator=draw)])
        yield waiting[:batch]
        waiting = waiting[batch:]


def random_direction(direction: Direction, draw: torch.Generator) -> Direction:
    """Another direction of the same length: what moving the weights anywhere would do."""
    noise = [
        None if g is None else torch.randn(g.shape, generator=draw).to(g.device)
        for g in direction.gradients
    ]
    length = sum(float(n.square().sum()) for n in noise if n is not None) ** 0.5
    scale = direction.norm / max(length, 1e-12)
    return Direction(
        direction.difference,
        tuple(None if n is None else n * scale for n in noise),
        direction.norm,
    )
