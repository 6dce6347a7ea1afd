# SPDX-License-Identifier: Apache-2.0
"""Whether a launcher started this process beside others, and which of them it is; no torch."""

import os
from typing import Final

__all__ = ["is_first", "is_sharded_launch", "local_index", "num_processes", "process_index"]

_TRUE: Final = ("1", "true", "yes", "y", "on", "t")


def num_processes() -> int:
    """As `torchrun` and `accelerate launch` tell it; 1 without them."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


def process_index() -> int:
    """From 0 to `num_processes() - 1`, over all nodes."""
    return int(os.environ["RANK"]) if num_processes() > 1 else 0


def local_index() -> int:
    """Of the processes of this node: the number of its accelerator."""
    return int(os.environ.get("LOCAL_RANK", "0")) if num_processes() > 1 else 0


def is_first() -> bool:
    """Whether this is the process that writes and prints."""
    return process_index() == 0


def is_sharded_launch() -> bool:
    """Whether accelerate was told to shard the weights, so that no device need hold them all."""
    return num_processes() > 1 and os.environ.get("ACCELERATE_USE_FSDP", "").lower() in _TRUE
