# SPDX-License-Identifier: Apache-2.0
"""A folder that several processes make together: the first one writes it, the others take part."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import PartialState

from metarm.launched import is_first, local_index
from metarm.models.loading import pick_device

__all__ = ["join_processes", "make_together"]

Made = TypeVar("Made")

BUILD, DONE = 1, 0


def join_processes() -> None:
    """Meet the other processes, each with an accelerator of its own where there are any.

    The launcher's variables name the meeting place; a process that does not come is an error of
    torch's after its time-out.
    """
    on_cpu = pick_device().type == "cpu"
    if not on_cpu:
        torch.accelerator.set_device_index(local_index())
    PartialState(cpu=on_cpu, **({"backend": "gloo"} if on_cpu else {}))


def make_together(
    make: Callable[[Callable[[Path], Any]], Made], build: Callable[[Path], Any], beside: Path
) -> Made | None:
    """Call `make` on the first process alone, and what it builds with on all of them.

    Args:
        make: Makes the folder by calling what it is given once, or not where the folder is there.
        build: Fills a folder; every process is in it at the same time.
        beside: The folder that the others are given, which they must not write into.

    Returns:
        What `make` returned; None on the other processes.
    """
    if not is_first():
        if _heard() == BUILD:
            build(beside)
        torch.distributed.destroy_process_group()
        return None
    told = False

    def build_with_others(folder: Path) -> Any:
        nonlocal told
        told = True
        _say(BUILD)
        return build(folder)

    try:
        made = make(build_with_others)
    finally:
        # Also where there is nothing to do, or it cannot be done: they wait for a word.
        if not told:
            _say(DONE)
    torch.distributed.destroy_process_group()
    return made


def _say(word: int) -> None:
    torch.distributed.broadcast(_message(word), src=0)


def _heard() -> int:
    message = _message(DONE)
    torch.distributed.broadcast(message, src=0)
    return int(message.item())


def _message(word: int) -> torch.Tensor:
    return torch.tensor([word], device=PartialState().device)
