# SPDX-License-Identifier: Apache-2.0
"""The verb `doctor`: whether this machine and its packages can run metarm."""

import os
import platform
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Final, Literal

import typer

from metarm.cli.options import AsJson, answer, print_json

__all__ = [
    "PACKAGES",
    "Finding",
    "Supported",
    "check_package",
    "doctor",
    "examine",
]

GIB: Final = 1 << 30
LOW_MEMORY_GIB: Final = 4
LOW_DISK_GIB: Final = 5
LEAST_BF16_GAIN: Final = 1.3
"""Of matrix products; below it the rest of a step, and its casts, eat the gain."""


@dataclass(frozen=True, slots=True)
class Supported:
    """Versions that metarm works with: from `low` on, below `high`."""

    low: str
    high: str | None = None
    needed_for: str = ""
    """What an optional package is for."""

    def __str__(self) -> str:
        return f">={self.low}" + (f",<{self.high}" if self.high else "")


PACKAGES: Final[Mapping[str, Supported]] = {
    "torch": Supported("2.7"),
    "transformers": Supported("5.8", "6"),
    "trl": Supported("1.16", "2"),
    "accelerate": Supported("1.10"),
    "datasets": Supported("4.0"),
    "peft": Supported("0.18", needed_for="use_peft"),
    "optuna": Supported("5", "6", needed_for="metarm tune"),
    "fastapi": Supported("0.120", needed_for="metarm serve"),
    "uvicorn": Supported("0.34", needed_for="metarm serve"),
}
"""As in pyproject.toml; a test holds the two together."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One row of the answer."""

    name: str
    state: Literal["ok", "warn", "fail"]
    found: str
    advice: str = ""


def doctor(as_json: AsJson = False) -> None:
    """Look whether this machine and its packages can run metarm.

    Python, package versions, memory, threads, accelerator, disk; no network is asked.

    Exit code 1 when something must be mended first.
    """
    findings = list(examine())
    has_failed = any(finding.state == "fail" for finding in findings)
    if as_json:
        print_json({"ok": not has_failed, "findings": [asdict(f) for f in findings]})
    else:
        width = max(len(finding.name) for finding in findings)
        for finding in findings:
            advice = f"  -> {finding.advice}" if finding.advice else ""
            answer(f"{finding.state:<4}  {finding.name:<{width}}  {finding.found}{advice}")
    raise typer.Exit(int(has_failed))


def examine() -> Iterator[Finding]:
    """Every finding, in the order they are shown."""
    yield _python()
    for name, supported in PACKAGES.items():
        yield check_package(name, supported, _installed_version(name))
    yield from (check() for check in _MACHINE_CHECKS)
    yield from _torch_findings()


def _python() -> Finding:
    # An older one cannot even read these files: `requires-python` is the check.
    return Finding("python", "ok", f"{platform.python_version()} ({sys.executable})")


def _installed_version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def check_package(name: str, supported: Supported, version: str | None) -> Finding:
    """Whether an installed version (None: not installed) is in the supported range."""
    if version is None:
        if supported.needed_for:
            advice = f"needed for {supported.needed_for} only"
            return Finding(name, "ok", "not installed (optional)", advice)
        return Finding(name, "fail", "not installed", f"pip install '{name}{supported}'")
    is_supported = _release(version) >= _release(supported.low) and (
        supported.high is None or _release(version) < _release(supported.high)
    )
    if is_supported:
        return Finding(name, "ok", version)
    return Finding(name, "fail", version, f"pip install '{name}{supported}'")


def _release(version: str) -> tuple[int, ...]:
    """The numbers of a version, so that 2.13.0+cpu counts as (2, 13)."""
    leading = re.match(r"\d+(\.\d+)*", version)
    numbers = [int(part) for part in leading.group().split(".")] if leading else [0]
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


def _cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _check_cores() -> Finding:
    return Finding("cores", "ok", f"{_cores()} usable of {os.cpu_count()}")


def _check_memory() -> Finding:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    info = Path("/proc/meminfo")
    text = info.read_text(encoding="utf-8") if info.exists() else ""
    line = re.search(r"^MemAvailable:\s+(\d+) kB", text, re.MULTILINE)
    free = int(line.group(1)) * 1024 / GIB if line else total
    found = f"{free:.1f} GiB available of {total:.1f}"
    if free < LOW_MEMORY_GIB:
        return Finding("memory", "warn", found, "use small models, or free some memory")
    return Finding("memory", "ok", found)


def _check_disk() -> Finding:
    free = shutil.disk_usage(Path.cwd()).free / GIB
    found = f"{free:.1f} GiB free in {Path.cwd()}"
    if free < LOW_DISK_GIB:
        return Finding("disk", "warn", found, "free space, or put --output elsewhere")
    return Finding("disk", "ok", found)


_MACHINE_CHECKS: Final[tuple[Callable[[], Finding], ...]] = (
    _check_cores,
    _check_memory,
    _check_disk,
)


def _check_bf16() -> Finding:
    from metarm.speed.machine import measure_bf16_gain

    gain = measure_bf16_gain()
    found = f"matrix products {gain:.2g} times as fast as in fp32 (timed)"
    advice = "train with bf16=true" if gain > LEAST_BF16_GAIN else "leave bf16=false"
    return Finding("bf16", "ok", found, advice)


def _torch_findings() -> Iterator[Finding]:
    """What only torch itself can tell."""
    try:
        import torch
    except (ImportError, OSError) as error:
        yield Finding("torch starts", "fail", str(error), "install torch again")
        return
    threads, cores = torch.get_num_threads(), _cores()
    advice = f"set OMP_NUM_THREADS={cores}" if threads > cores else ""
    yield Finding("threads", "warn" if advice else "ok", f"{threads} for torch", advice)
    yield _check_bf16()
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())]
        yield Finding("accelerator", "ok", f"{len(names)} x {names[0]}")
    elif torch.backends.mps.is_available():
        yield Finding("accelerator", "ok", "Apple GPU (mps)")
    else:
        yield Finding("accelerator", "ok", "none: models run on the CPU")
