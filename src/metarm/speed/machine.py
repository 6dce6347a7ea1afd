# SPDX-License-Identifier: Apache-2.0
"""The machine that is measured on: what it is, how busy, how fast it multiplies and copies."""

import os
import platform
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

import torch

from metarm import __version__
from metarm.models.loading import pick_device
from metarm.speed.shapes import ModelShape

__all__ = [
    "BUSY_LOAD",
    "Rates",
    "describe_machine",
    "load_per_core",
    "measure_bf16_gain",
    "measure_rates",
    "now",
    "usable_cores",
]

BUSY_LOAD: Final = 0.5
"""Load per core above which other work is in the figures."""
PACKAGES: Final = ("torch", "transformers", "trl", "accelerate", "torchopt", "learn2learn")
COPIED_BYTES: Final = 1 << 28
MAX_PRODUCT_ROWS: Final = 8192


@dataclass(frozen=True, slots=True)
class Rates:
    """The best of many repeats: what a floor is built on."""

    flops_per_second: float
    bytes_per_second: float
    """Read and written."""


def describe_machine() -> dict[str, Any]:
    """Processor, cores, threads, accelerator and versions, as JSON values."""
    device = pick_device()
    return {
        "processor": _processor(),
        "cores": usable_cores(),
        "threads": torch.get_num_threads(),
        "accelerator": torch.cuda.get_device_name() if device.type == "cuda" else device.type,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "metarm": __version__,
        **{name: _version(name) for name in PACKAGES},
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    text = info.read_text(encoding="utf-8") if info.exists() else ""
    name = re.search(r"^model name\s*: (.+)$", text, re.MULTILINE)
    return name.group(1).strip() if name else platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def usable_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def load_per_core() -> float:
    """Processes that wanted to run in the last minute, for each core; our own count too."""
    return os.getloadavg()[0] / (os.cpu_count() or 1)


def now() -> float:
    """Seconds on a clock that only goes forward, when the accelerator has done all it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def measure_rates(
    shape: ModelShape, tokens: int, *, bf16: bool = False, repeats: int = 30
) -> Rates:
    """The rate of matrix products in a model's own shapes, and of copies; the best of each.

    Args:
        shape: Of the model.
        tokens: Of a pass: the rows of its products.
        bf16: The type of the products; the weights that are copied stay fp32.
        repeats: Of each product and of the copy.
    """
    device = pick_device()
    dtype = torch.bfloat16 if bf16 else torch.float32
    rows = max(16, min(tokens, MAX_PRODUCT_ROWS))
    best = 0.0
    for inner, outer in (
        (shape.hidden, shape.intermediate),
        (shape.intermediate, shape.hidden),
        (shape.hidden, shape.hidden),
    ):
        inputs = torch.randn(rows, inner, device=device, dtype=dtype)
        weight = torch.randn(outer, inner, device=device, dtype=dtype)
        found = torch.empty(rows, outer, device=device, dtype=dtype)
        gradient = torch.empty(outer, inner, device=device, dtype=dtype)
        forward = _least(lambda: torch.mm(inputs, weight.T, out=found), repeats)  # noqa: B023
        backward = _least(lambda: torch.mm(found.T, inputs, out=gradient), repeats)  # noqa: B023
        best = max(best, 2 * rows * inner * outer / min(forward, backward))
    source = torch.ones(COPIED_BYTES // 4, device=device)
    target = torch.empty_like(source)
    copied = _least(lambda: target.copy_(source), repeats)
    return Rates(best, 2 * COPIED_BYTES / copied)


def measure_bf16_gain(side: int = 512, repeats: int = 3) -> float:
    """How many times as fast bf16 products of square matrices are as fp32 ones, timed.

    A flag of the processor does not tell: without the right instructions bf16 is some 80 times as
    slow. 512 is large enough to tell and small enough to wait for there.
    """
    device = pick_device()
    seconds = []
    for dtype in (torch.float32, torch.bfloat16):
        one = torch.randn(side, side, device=device).to(dtype)
        seconds.append(_least(lambda: one @ one, repeats))  # noqa: B023
    return seconds[0] / seconds[1]


def _least(work: Callable[[], Any], repeats: int) -> float:
    """Seconds of the fastest repeat."""
    work()
    found = []
    for _ in range(repeats):
        started = now()
        work()
        found.append(now() - started)
    return min(found)
