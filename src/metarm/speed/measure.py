# SPDX-License-Identifier: Apache-2.0
"""All measurements of `metarm bench`, in alternating order; each is kept as soon as it is made."""

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Final

import torch

from metarm.errors import ConfigError, MetarmError, nearest_names
from metarm.meta_step import place_ahead
from metarm.placement import standing_at
from metarm.protocols import ProgressReporter
from metarm.run_folder import hold_folder
from metarm.speed.cases import plan_cases
from metarm.speed.counting import counting_tokens, peak_bytes
from metarm.speed.equivalence import measure_equivalence
from metarm.speed.inference import NUM_SAMPLED, NUM_SCORED, prepare_sampling, prepare_scoring, timed
from metarm.speed.machine import describe_machine, measure_rates
from metarm.speed.methods import METHODS
from metarm.speed.peers import STEP_SIZE
from metarm.speed.problem import Problem
from metarm.speed.results import Case, Measurement
from metarm.speed.settings import BenchSettings
from metarm.speed.shapes import SHAPES
from metarm.storage import check_writable, fingerprint, read_json, write_json

__all__ = ["measure_speed"]

VERSION: Final = 1
"""Of how things are timed: another number, and no kept figure is taken for a new one."""

NOT_INSTALLED: Final = "not installed"
PEER_STEPS: Final = 3
"""At most: their steps are alike, without a log."""


@dataclass(frozen=True, slots=True)
class _Job:
    """One piece of work that ends with a file on disk."""

    name: str
    run: Callable[[], None]


def measure_speed(settings: BenchSettings, *, progress: ProgressReporter) -> dict[str, Any]:
    """Measure whatever is not in the folder yet.

    Args:
        settings: What to measure.
        progress: Gets one bar over all measurements.

    Returns:
        All that was measured, as JSON values: `machine`, and for each case its measurements by
        method, the machine's rates and the equivalence error; `scoring` and `sampling` by case.

    Raises:
        ConfigError: When a size, a method or lengths are unknown.
        RunError: When the folder is in use by another process.

    Writes:
        `output_dir/measured/CASE/*.json`.
    """
    for name in settings.methods or ():
        if name not in METHODS:
            raise ConfigError(f"unknown method {name!r}: {nearest_names(name, METHODS)}")
    cases = plan_cases(settings)
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    check_writable(settings.output_dir)
    machine = describe_machine()
    with hold_folder(settings.output_dir):
        kept = [
            _Kept(case, settings.output_dir / "measured" / _key(case, machine)) for case in cases
        ]
        jobs = [job for one in kept for job in one.jobs(settings.inference)]
        with progress.stage("measure", len(jobs)) as bar:
            for job in jobs:
                job.run()
                bar.advance(1, job.name)
        return {"machine": machine, "cases": [one.read() for one in kept]}


def _key(case: Case, machine: Mapping[str, Any]) -> str:
    """A folder's name: another machine, package or case has another one."""
    shared = case.to_json()
    # Methods and repeats can be added to what is there, and sweeps meet in the same case.
    del shared["methods"], shared["repeats"], shared["kind"]
    name = case.name.replace("/", "-").replace(" ", "_")
    return f"{name}_{fingerprint(VERSION, shared, machine)}"


class _Kept:
    """The measurements of one case and their files."""

    def __init__(self, case: Case, folder: Path) -> None:
        self.case, self.folder = case, folder
        self.problem = Problem(SHAPES[case.size], case.workload, case.seed, case.bf16)

    def jobs(self, inference: bool) -> Iterator[_Job]:
        """Counts first, then repeat by repeat all methods, every other time backwards."""
        name, case = self.case.name, self.case
        for method in case.methods:
            # It may have been installed since.
            if self._measurement(method).failure.startswith(NOT_INSTALLED):
                self._path(method).unlink()
        yield _Job(f"{name}: rates", self._once("rates", self._rates))
        yield _Job(f"{name}: move", self._once("move", self._move))
        yield _Job(f"{name}: equivalence", self._once("equivalence", self._equivalence))
        for method in case.methods:
            yield _Job(f"{name}: {method}, counts", partial(self._count, method))
        for repeat in range(case.repeats):
            for method in case.methods[:: -1 if repeat % 2 else 1]:
                yield _Job(
                    f"{name}: {method}, {repeat + 1} of {case.repeats}",
                    partial(self._time, method, repeat),
                )
        if inference and case.kind == "lengths":
            yield _Job(f"{name}: scoring", self._once("scoring", self._scoring))
            yield _Job(f"{name}: sampling", self._once("sampling", self._sampling))

    def read(self) -> dict[str, Any]:
        """All of it, as JSON values."""
        others = ("rates", "move", "equivalence", "scoring", "sampling")
        found = {name: self.folder / f"{name}.json" for name in others}
        return {
            "case": self.case.to_json(),
            "methods": {name: self._measurement(name).to_json() for name in self.case.methods},
            **{name: read_json(path) for name, path in found.items() if path.is_file()},
        }

    def _once(self, name: str, make: Callable[[], Any]) -> Callable[[], None]:
        path = self.folder / f"{name}.json"

        def run() -> None:
            if not path.is_file():
                write_json(path, make())

        return run

    def _rates(self) -> dict[str, float]:
        rows = sum(len(lengths.responses) for lengths in self.problem.pair_lengths)
        tokens = rows * self.problem.context
        return asdict(measure_rates(self.problem.shape, tokens, bf16=self.case.bf16))

    def _move(self) -> dict[str, float]:
        """Seconds of the look-ahead and the way back, with nothing between."""
        weights = list(self.problem.build_model().parameters())
        direction = [torch.full_like(weight, 1e-6) for weight in weights]

        def move() -> None:
            places, _ = place_ahead(weights, direction, -STEP_SIZE, spend=True)
            with standing_at(weights, places):
                pass

        return {"seconds": median(timed(move) for _ in range(10))}

    def _equivalence(self) -> dict[str, float]:
        return asdict(measure_equivalence(self.problem))

    def _path(self, method: str) -> Path:
        return self.folder / f"method_{method}.json"

    def _measurement(self, method: str) -> Measurement:
        path = self._path(method)
        return Measurement.from_json(read_json(path)) if path.is_file() else Measurement()

    def _count(self, name: str) -> None:
        kept = self._measurement(name)
        if kept.tokens is not None or kept.failure:
            return

        def count() -> Measurement:
            method = METHODS[name]
            with peak_bytes() as peak:
                model = self.problem.build_model(method.attention)
                with counting_tokens(model) as tokens:
                    method.run(self.problem, model, 0, method.cycle, tokens.end_step)
            return replace(kept, tokens=tokens.per_step, peak_bytes=peak[0])

        self._keep(name, count)

    def _time(self, name: str, repeat: int) -> None:
        kept = self._measurement(name)
        if len(kept.blocks) > repeat or kept.failure:
            return

        def time() -> Measurement:
            method = METHODS[name]
            model = self.problem.build_model(method.attention)
            steps = -(-self.case.steps // method.cycle) * method.cycle
            if method.is_peer:
                steps = min(steps, PEER_STEPS)
            first = method.first_step
            block = method.run(self.problem, model, first, steps, lambda: None)
            return kept.with_block(block)

        self._keep(name, time)

    def _keep(self, name: str, measure: Callable[[], Measurement]) -> None:
        """Of a method of another package, also that it fails."""
        gc.collect()
        try:
            found = measure()
        except MetarmError:
            raise
        except Exception as error:  # that a package fails is a result
            if not METHODS[name].is_peer:
                raise
            found = Measurement(failure=_describe(error))
        write_json(self._path(name), found.to_json())

    def _scoring(self) -> dict[str, list[float]]:
        workload = replace(self.case.workload, group_size=NUM_SCORED, num_groups=1)
        return self._alternate(prepare_scoring(replace(self.problem, workload=workload)))

    def _sampling(self) -> dict[str, list[float]]:
        workload = replace(self.case.workload, group_size=NUM_SAMPLED, num_groups=1)
        return self._alternate(prepare_sampling(replace(self.problem, workload=workload)))

    def _alternate(self, contestants: Mapping[str, Callable[[], Any]]) -> dict[str, list[float]]:
        """Seconds of each repeat of each contestant; the first repeat is not kept."""
        seconds: dict[str, list[float]] = {name: [] for name in contestants}
        for _ in range(1 + self.case.repeats):
            for name, work in contestants.items():
                seconds[name].append(timed(work))
        return {name: values[1:] for name, values in seconds.items()}


def _describe(error: Exception) -> str:
    """Why a method has no figures, in a line."""
    if isinstance(error, ModuleNotFoundError):
        return f"{NOT_INSTALLED} ({error.name})"
    lines: Sequence[str] = str(error).strip().splitlines() or [""]
    return f"fails: {type(error).__name__}: {lines[0][:160]}"
