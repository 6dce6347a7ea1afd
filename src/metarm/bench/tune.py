# SPDX-License-Identifier: Apache-2.0
"""A search over a method's few settings on paired splits, and its best on splits of its own.

The objective reads original validation pairs, or labelled shifted pairs of training prompts where
the user gives some; held-out pairs are looked at when the search is over.
"""

import functools
import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch

from metarm.bench.compare import VERSION, measure_cell
from metarm.bench.features import features_of
from metarm.bench.held_out import HeldOut
from metarm.bench.methods import train_recipe
from metarm.bench.problem import Problem, build_problem
from metarm.bench.recipes import Recipe, read_recipe
from metarm.bench.results import Cell
from metarm.bench.settings import TuneSettings
from metarm.bench.shifts import SHIFTS, Shift, digest_source
from metarm.bench.space import apply_settings, search_space
from metarm.bench.study import measure_importances, open_study, read_trials, run_trials
from metarm.bench.summary import REFERENCE
from metarm.bench.trajectory import Trajectory
from metarm.bench.tuning_results import FreshResult, Trial, Tuning, measure_flatness
from metarm.errors import ConfigError, EmptySetError, RunError, nearest_names
from metarm.progress import SilentProgress
from metarm.protocols import ProgressReporter
from metarm.run_folder import hold_folder
from metarm.schema import RANDOM
from metarm.storage import (
    build_stage,
    check_writable,
    content_digest,
    fingerprint,
    read_json,
    write_json,
)
from metarm.workers import run_in_processes

__all__ = ["objective_value", "tune_method"]

STUDY_FILE: Final = "tune.sqlite3"


def tune_method(settings: TuneSettings, *, progress: ProgressReporter) -> Tuning:
    """Finish the trials that are wanted, and try the best one on fresh splits beside the default.

    Args:
        settings: What to tune, where, and how long.
        progress: Gets a bar for the features, one for the trials, one for the fresh splits.

    Returns:
        The search as far as it went.

    Raises:
        ConfigError: When a method, shift or setting is unknown or has nothing to tune.
        EmptySetError: When there are fewer labels than are asked for.
        FingerprintError: When the folder holds a search with other settings.
        RunError: When the folder is in use, or no trial was finished in the time given.

    Writes:
        `output_dir/tune.sqlite3`, `output_dir/fresh/SETTINGS/seed_N/`, frozen features.
    """
    recipe = _check(settings)
    space = search_space(recipe, settings.head, settings.space)
    check_writable(settings.output_dir)
    with hold_folder(settings.output_dir) as is_held:
        study = open_study(_file(settings), _record(settings), space, is_held=is_held)
        _cache_features(settings, progress)
        _finish_trials(settings, len(read_trials(study)), progress)
        trials = read_trials(study)
        if not any(trial.is_default for trial in trials):
            raise RunError(
                f"max_minutes={settings.max_minutes} is over before the default setting was "
                "measured: give it more time; the same command goes on"
            )
        tuning = Tuning(
            shift=settings.shift,
            method=settings.method,
            objective=_objective_in_words(settings),
            seeds=tuple(settings.seeds),
            num_trials=settings.num_trials,
            space=space,
            trials=tuple(trials),
            importances=measure_importances(study, list(space)),
            flatness=None,
            fresh_default=(),
            fresh_best=(),
        )
        return _with_fresh(tuning, settings, progress)


def objective_value(problem: Problem, recipe: Recipe, found: Trajectory, num_labels: int) -> float:
    """What a training is judged by in a search; no pair that is tested on is in it.

    Args:
        problem: The split.
        recipe: Labels that it trains on are not judged by.
        found: The training; the point that its stopping rule takes counts.
        num_labels: Labelled shifted pairs to judge by; 0: the original validation pairs.

    Returns:
        Accuracy, 0 to 1; one half where the training diverged, as scores that order nothing have.
    """
    if num_labels:
        first = recipe.num_labels
        pairs = problem.own_labels[first : first + num_labels]
        scores = found.scores[found.best]
        gaps = scores[pairs[:, 0]] - scores[pairs[:, 1]]
        value = ((1 + gaps.sign()) / 2).mean().item()
    else:
        value = found.validation[found.best]
    return value if math.isfinite(value) else 0.5


def _objective_in_words(settings: TuneSettings) -> str:
    if settings.use_labels:
        return f"accuracy on {settings.use_labels} labelled shifted pairs of training prompts"
    return "accuracy on original validation pairs"


def _check(settings: TuneSettings) -> Recipe:
    """The recipe to tune.

    Raises:
        ConfigError: When it or the shift is unknown, or it has all labels or the best already.
    """
    if settings.shift not in SHIFTS:
        raise ConfigError(
            f"unknown shift {settings.shift!r}: {nearest_names(settings.shift, SHIFTS)}"
        )
    if ":" in settings.method:
        raise ConfigError(
            f"method {settings.method!r}: only methods of the table have settings to tune"
        )
    recipe = read_recipe(settings.method)
    if recipe.is_oracle and settings.use_labels:
        raise ConfigError(
            "the oracle trains on all labelled shifted pairs, and none is left to judge by: leave "
            "use_labels out, or tune N-labels"
        )
    if recipe.label_choice != RANDOM and settings.use_labels:
        raise ConfigError(
            f"{settings.method} chooses its labels, and use_labels judges by those that it leaves, "
            "which are no fair sample: leave one of the two out"
        )
    return recipe


def _file(settings: TuneSettings) -> Path:
    return settings.output_dir / STUDY_FILE


def _record(settings: TuneSettings) -> dict[str, Any]:
    """Whatever decides a trial, as JSON values; how many are wanted does not."""
    return {
        "backbone": content_digest(settings.backbone),
        "max_length": settings.max_length,
        "head": settings.head.model_dump(mode="json"),
        "source": digest_source(settings.source),
        "shift": settings.shift,
        "method": settings.method,
        "recipe": asdict(read_recipe(settings.method)),
        "space": {
            name: {"low": given.low, "high": given.high} for name, given in settings.space.items()
        },
        "seeds": settings.seeds,
        "seed": settings.seed,
        "use_labels": settings.use_labels,
        "prune": settings.prune,
        "version": VERSION,
    }


def _read_split(settings: TuneSettings, seed: int) -> tuple[Shift, Problem]:
    """One split; its features have been computed before.

    Raises:
        EmptySetError: When it has fewer labels than are asked for.
    """
    shift = SHIFTS[settings.shift](settings.source, seed)
    problem = build_problem(shift, features_of(settings, shift.texts, SilentProgress()), seed)
    wanted = settings.use_labels and read_recipe(settings.method).num_labels + settings.use_labels
    if wanted > len(problem.own_labels):
        raise EmptySetError(
            f"use_labels={settings.use_labels}: expected {wanted} labelled shifted pairs of "
            f"training prompts with those that {settings.method} trains on, got "
            f"{len(problem.own_labels)} on seed {seed}; lower it, or give more"
        )
    return shift, problem


def _cache_features(settings: TuneSettings, progress: ProgressReporter) -> None:
    """All texts of all seeds at once, before any worker starts."""
    texts = [
        text
        for seed in (*settings.seeds, *settings.fresh_seeds)
        for text in SHIFTS[settings.shift](settings.source, seed).texts
    ]
    features_of(settings, list(dict.fromkeys(texts)), progress)


@dataclass(frozen=True, slots=True)
class _Objective:
    """Settings and the place of a seed -> the objective there."""

    settings: TuneSettings
    problems: tuple[Problem, ...]

    def __call__(self, values: Mapping[str, float], place: int) -> float:
        recipe, head = apply_settings(read_recipe(self.settings.method), self.settings.head, values)
        problem = self.problems[place]
        found = train_recipe(problem, recipe, head, self.settings.seeds[place])
        return objective_value(problem, recipe, found, self.settings.use_labels)


def _finish_trials(settings: TuneSettings, num_done: int, progress: ProgressReporter) -> None:
    """Divide what is left of the budget among the workers, so that it is kept to the trial."""
    left = max(0, settings.num_trials - num_done)
    deadline = settings.max_minutes and time.time() + 60 * settings.max_minutes
    workers = min(settings.workers, left)
    shares = [left // workers + (place < left % workers) for place in range(workers)]
    jobs = {
        f"worker {place}": partial(_run_share, settings, place, count, deadline)
        for place, count in enumerate(shares)
    }
    if workers > 1:
        run_in_processes(jobs, workers=workers, progress=progress)
    else:
        for job in jobs.values():
            job(progress=progress)


def _run_share(
    settings: TuneSettings,
    worker: int,
    count: int,
    deadline: float | None,
    *,
    progress: ProgressReporter,
) -> None:
    """One worker's trials."""
    if settings.workers > 1:
        torch.set_num_threads(1)
    space = search_space(read_recipe(settings.method), settings.head, settings.space)
    # Not held: the trials that run are those of the other workers.
    study = open_study(_file(settings), _record(settings), space, is_held=False)
    problems = tuple(_read_split(settings, seed)[1] for seed in settings.seeds)
    with progress.stage("trials", count) as bar:
        run_trials(
            study,
            _Objective(settings, problems),
            space,
            num_seeds=len(problems),
            count=count,
            seed=settings.seed,
            worker=worker,
            prune=settings.prune,
            deadline=deadline,
            bar=bar,
        )


def _with_fresh(tuning: Tuning, settings: TuneSettings, progress: ProgressReporter) -> Tuning:
    """The search with its best and its default on splits that no trial saw."""
    candidates = {trial.number: trial for trial in (tuning.default, tuning.best)}
    jobs = {
        f"fresh split {seed}": partial(_run_fresh, settings, list(candidates.values()), seed)
        for seed in settings.fresh_seeds
    }
    if settings.workers > 1:
        run_in_processes(jobs, workers=settings.workers, progress=progress)
    else:
        with progress.stage("fresh splits", len(jobs)) as bar:
            for name, job in jobs.items():
                job(progress=SilentProgress())
                bar.advance(1, name)
    fresh = {
        number: tuple(_read_fresh(settings, trial, seed) for seed in settings.fresh_seeds)
        for number, trial in candidates.items()
    }
    return replace(
        tuning,
        flatness=measure_flatness(tuning.trials, tuning.best, tuning.space),
        fresh_default=fresh[tuning.default.number],
        fresh_best=fresh[tuning.best.number],
    )


def _fresh_folder(settings: TuneSettings, trial: Trial, seed: int) -> Path:
    """By what the setting is, not by its number: that of a search with several workers may move."""
    return settings.output_dir / "fresh" / fingerprint(dict(trial.settings)) / f"seed_{seed}"


def _read_fresh(settings: TuneSettings, trial: Trial, seed: int) -> FreshResult:
    row = read_json(_fresh_folder(settings, trial, seed) / "fresh.json")
    return FreshResult(seed, row["value"], Cell.from_json(row["cell"]))


def _run_fresh(
    settings: TuneSettings, trials: list[Trial], seed: int, *, progress: ProgressReporter
) -> None:
    """Each setting on one split, what is finished not again."""
    if settings.workers > 1:
        torch.set_num_threads(1)

    @functools.cache
    def split() -> tuple[Shift, Problem, Trajectory]:
        shift, problem = _read_split(settings, seed)
        plain = train_recipe(problem, read_recipe(REFERENCE), settings.head, seed)
        return shift, problem, plain

    with progress.stage("settings", len(trials)) as bar:
        for trial in trials:
            values = dict(trial.settings)

            def build(folder: Path, values: dict[str, float] = values) -> dict[str, Any]:
                shift, problem, plain = split()
                recipe, head = apply_settings(read_recipe(settings.method), settings.head, values)
                found = train_recipe(problem, recipe, head, seed)
                cell = measure_cell(HeldOut.of(shift), problem, settings.method, seed, found, plain)
                value = objective_value(problem, recipe, found, settings.use_labels)
                write_json(folder / "fresh.json", {"value": value, "cell": cell.to_json()})
                return {}

            record = {**_record(settings), "settings": values, "fresh_seed": seed}
            build_stage(_fresh_folder(settings, trial, seed), record, [], build)
            bar.advance(1)
