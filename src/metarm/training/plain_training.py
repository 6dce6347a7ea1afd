# SPDX-License-Identifier: Apache-2.0
"""What plain training from the same weights gave, on disk while a guarded training runs.

A checkpoint cannot hold it twice: it is written once, and a training that goes on from a checkpoint
reads it instead of training plainly again. Of a sharded model each process keeps its own shards.
"""

import hashlib
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from metarm.errors import CheckpointError
from metarm.placement import named_shards
from metarm.storage import sync

__all__ = [
    "PLAIN_FOLDER",
    "PlainTraining",
    "copy_weights",
    "noise_put_back",
    "plain_file_name",
    "put_weights",
]

PLAIN_FILE: Final = "plain_training.safetensors"
"""In the trainer's output folder, until its training has ended."""
PLAIN_FOLDER: Final = "plain"
"""In the same: checkpoints of a plain training that has not ended."""

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
        """Write it; what is at `path` is whole at any moment, and synced."""
        tensors = {_WEIGHTS + name: weight for name, weight in self.weights.items()}
        tensors |= {f"{_SCORES}{step}": scores for step, scores in self.scores.items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        told = {"num_steps": str(self.num_steps), "sha256": _digest(tensors, self.num_steps)}
        save_file(tensors, partial, metadata=told)
        sync(partial)
        partial.replace(path)
        sync(path.parent)

    @classmethod
    def read(cls, path: Path) -> "PlainTraining":
        """What `save` wrote.

        Raises:
            CheckpointError: When it is something else now.
        """
        try:
            with safe_open(path, framework="pt") as file:
                found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                told = file.metadata()
            num_steps = int(told["num_steps"])
            is_exact = told["sha256"] == _digest(found, num_steps)
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise CheckpointError(f"{path}: cannot be read: {error}. Remove it.") from error
        if not is_exact:
            raise CheckpointError(
                f"{path}: expected the values that were written, got others: the file is damaged. "
                "Remove it."
            )
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


def _digest(tensors: Mapping[str, Tensor], num_steps: int) -> str:
    """SHA-256 over names and bytes."""
    digest = hashlib.sha256(str(num_steps).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        if tensor.numel():
            digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


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
