# SPDX-License-Identifier: Apache-2.0
"""What plain training from the same weights gave, on disk while a guarded training runs.

A checkpoint cannot hold it twice: it is written once, and a training that goes on from a checkpoint
reads it instead of training plainly again. Of a sharded model each process keeps its own shards.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from metarm.placement import named_shards

__all__ = [
    "PLAIN_FILE",
    "PlainTraining",
    "copy_weights",
    "noise_put_back",
    "plain_file_name",
    "put_weights",
]

PLAIN_FILE: Final = "plain_training.safetensors"
"""In the trainer's output folder, until its training has ended."""

_WEIGHTS, _SCORES = "weights/", "scores/"


@dataclass(frozen=True, slots=True, eq=False)
class PlainTraining:
    """What a guard compares with, and what is kept where it fails."""

    weights: Mapping[str, Tensor]
    """The trainable weights by name, on the CPU."""
    scores: Mapping[int, Tensor]
    """Of the watched groups, shape (groups, k), by optimiser step."""
    num_steps: int
    """Optimiser steps of the whole training."""

    def save(self, path: Path) -> None:
        """Write it; what is at `path` is whole at any moment."""
        tensors = {_WEIGHTS + name: weight for name, weight in self.weights.items()}
        tensors |= {f"{_SCORES}{step}": scores for step, scores in self.scores.items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        save_file(tensors, partial, metadata={"num_steps": str(self.num_steps)})
        partial.replace(path)

    @classmethod
    def read(cls, path: Path) -> "PlainTraining":
        """What `save` wrote."""
        with safe_open(path, framework="pt") as file:
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            num_steps = int(file.metadata()["num_steps"])
        weights = {
            name.removeprefix(_WEIGHTS): tensor
            for name, tensor in found.items()
            if name.startswith(_WEIGHTS)
        }
        scores = {
            int(name.removeprefix(_SCORES)): tensor
            for name, tensor in found.items()
            if name.startswith(_SCORES)
        }
        return cls(weights, scores, num_steps)


def plain_file_name(process: int, num_processes: int, *, is_sharded: bool) -> str:
    """Its file; of shards one a process, which another number of processes cannot read.

    Example:
        >>> plain_file_name(1, 8, is_sharded=True)
        'plain_training.1-of-8.safetensors'
    """
    if not is_sharded:
        return PLAIN_FILE
    stem, dot, kind = PLAIN_FILE.rpartition(".")
    return f"{stem}.{process}-of-{num_processes}{dot}{kind}"


def copy_weights(model: nn.Module) -> dict[str, Tensor]:
    """The trainable weights by name, on the CPU: all of each, or this process's shard."""
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    return {
        name: shard.to("cpu", copy=True) for name, shard in named_shards(model) if name in trainable
    }


@torch.no_grad()
def put_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """The reverse; weights that are not named stay."""
    for name, shard in named_shards(model):
        if name in weights:
            shard.copy_(weights[name])


def noise_put_back(device: torch.device) -> AbstractContextManager[None]:
    """A context after which random numbers go on as if nothing had been drawn in it."""
    if device.type == "cpu":
        return torch.random.fork_rng(devices=[])
    return torch.random.fork_rng(devices=[device.index or 0], device_type=device.type)
