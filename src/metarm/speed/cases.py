# SPDX-License-Identifier: Apache-2.0
"""What is measured: the lengths asked for, and sweeps that change one thing at a time."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from metarm.errors import ConfigError, nearest_names
from metarm.speed.methods import METHODS
from metarm.speed.results import Case
from metarm.speed.settings import BenchSettings
from metarm.speed.shapes import SHAPES
from metarm.speed.workload import Workload, read_workload

__all__ = ["SWEEPS", "plan_cases"]

SWEEP_METHODS: Final = ("trl", "plain", "meta", "meta-naive")
SWEEP_STEPS: Final = 2
SWEEP_SIZES: Final = ("4m", "30m", "120m")
BASE: Final = Workload(128, 64, 5, 4, 4)
"""What a sweep changes one thing of."""

SWEEPS: Final = {
    "k": [replace(BASE, group_size=k) for k in (2, 4, 5, 8, 16)],
    "ratio": [replace(BASE, prompt_tokens=p) for p in (16, 32, 64, 128, 256, 512)],
    "spread": [replace(BASE, length_spread=spread) for spread in (0.0, 0.25, 0.5, 0.75)],
    "size": [BASE],
}
"""Workloads by the name of what they change; `size` changes the model."""


def plan_cases(settings: BenchSettings) -> list[Case]:
    """Every case that the settings ask for, each once.

    Raises:
        ConfigError: When a size or lengths are unknown.
    """
    for size in (*settings.sizes, settings.sweep_size):
        if size not in SHAPES:
            raise ConfigError(f"unknown size {size!r}: {nearest_names(size, SHAPES)}")
    return [*_asked_for(settings), *_sweeps(settings)]


def _asked_for(settings: BenchSettings) -> Iterator[Case]:
    methods = tuple(settings.methods or METHODS)
    for size in settings.sizes:
        for lengths in settings.lengths:
            workload = read_workload(
                lengths,
                num_pairs=settings.num_pairs,
                num_groups=settings.num_groups,
                length_spread=settings.length_spread,
            )
            yield _case(settings, "lengths", size, workload, methods, settings.steps)


def _sweeps(settings: BenchSettings) -> Iterator[Case]:
    methods = tuple(
        name for name in SWEEP_METHODS if settings.methods is None or name in settings.methods
    )
    for sweep in settings.sweeps:
        sizes = SWEEP_SIZES if sweep == "size" else [settings.sweep_size]
        for size in sizes:
            for workload in SWEEPS[sweep]:
                yield _case(settings, sweep, size, workload, methods, SWEEP_STEPS)


def _case(
    settings: BenchSettings,
    kind: str,
    size: str,
    workload: Workload,
    methods: tuple[str, ...],
    steps: int,
) -> Case:
    return Case(
        kind=kind,
        size=size,
        workload=workload,
        methods=methods,
        repeats=settings.repeats,
        steps=steps,
        bf16=settings.bf16,
        seed=settings.seed,
    )
