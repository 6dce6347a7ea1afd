# SPDX-License-Identifier: Apache-2.0
"""Methods x shifts x seeds: every cell a file, done once; then who differs from plain by how much.

A split belongs to its seed and shift alone, so every method sees the same one.
"""

import hashlib
import inspect
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from metarm.bench.features import frozen_features
from metarm.bench.heads import Cost, Trajectory, mean_rank_correlation, train_recipe
from metarm.bench.problem import Problem, build_problem
from metarm.bench.recipes import read_recipe
from metarm.bench.results import Cell, Tally
from metarm.bench.shifts import SHIFTS, Shift
from metarm.bench.summary import REFERENCE
from metarm.config import CompareSettings, SourceSettings
from metarm.errors import ConfigError, DataError, EmptySetError, nearest_names
from metarm.metrics import length_balanced_accuracy
from metarm.objectives import difference_loss
from metarm.progress import SilentProgress
from metarm.protocols import ProgressReporter
from metarm.resolve import resolve_name
from metarm.schema import PreferencePair, prompt_text
from metarm.storage import build_stage, content_digest, read_json, write_json
from metarm.workers import run_in_processes

__all__ = ["compare_methods", "tally_pairs"]

VERSION: Final = 1
"""Of the training loop: another number, and no finished cell is taken for a new one."""


def compare_methods(settings: CompareSettings, *, progress: ProgressReporter) -> list[Cell]:
    """Every cell of methods x shifts x seeds; finished ones are read, the others made.

    Args:
        settings: What to compare.
        progress: Gets a bar for the features of each shift and one for the splits.

    Returns:
        All cells, in the order of shifts, methods, seeds.

    Raises:
        ConfigError: When a method or shift is unknown, or budgets differ and nobody said so.
        FingerprintError: When a finished cell was made with other settings.

    Writes:
        `output_dir/SHIFT/seed_N/METHOD/cell.json`, and frozen features in `output_dir/features`.
    """
    recipes = {name: read_recipe(name) for name in settings.methods if ":" not in name}
    _refuse_unequal_budgets(settings, {name: r.num_heads for name, r in recipes.items()})
    for name in settings.methods:
        if ":" in name:
            resolve_name(name, {}, what="methods")
    for name in settings.shifts:
        if name not in SHIFTS:
            raise ConfigError(f"unknown shift {name!r}: {nearest_names(name, SHIFTS)}")
        _methods_on(settings, _read_shift(settings, name, settings.seeds[0]))
        _cache_features(settings, name, progress)
    jobs = {
        f"{shift}, seed {seed}": partial(_run_split, settings, shift, seed)
        for shift in settings.shifts
        for seed in settings.seeds
    }
    if settings.workers > 1 and len(jobs) > 1:
        run_in_processes(jobs, workers=settings.workers, progress=progress)
    else:
        with progress.stage("splits", len(jobs)) as bar:
            for name, job in jobs.items():
                job(progress=SilentProgress())
                bar.advance(1, name)
    return [
        Cell.from_json(read_json(_cell_folder(settings, shift, seed, method) / "cell.json"))
        for shift in settings.shifts
        for method in _methods_on(settings, _read_shift(settings, shift, settings.seeds[0]))
        for seed in settings.seeds
    ]


def _methods_on(settings: CompareSettings, shift: Shift) -> list[str]:
    """The methods asked for, and plain training, which all are compared with.

    Where nobody has labelled shifted pairs, methods of the default list that use some are left out.

    Raises:
        EmptySetError: When a method that was asked for by name uses labels that are not there.
    """
    methods = list(dict.fromkeys([REFERENCE, *settings.methods]))
    if shift.shifted_labels:
        return methods
    users = [name for name in methods if ":" not in name and read_recipe(name).uses_labels]
    if users and "methods" in settings.model_fields_set:
        raise EmptySetError(
            f"{users[0]} on the shift {shift.name!r} uses labelled shifted pairs, and there are "
            "none: give some, or leave the method out"
        )
    return [name for name in methods if name not in users]


def _refuse_unequal_budgets(settings: CompareSettings, members: Mapping[str, int]) -> None:
    """Several heads cost several times as much: comparing them with one must be asked for.

    Heads that only teach or guard another one count too.
    """
    sizes = {1, *members.values()}
    if len(sizes) > 1 and not settings.allow_unequal_budgets:
        dear = {name: count for name, count in members.items() if count > 1}
        raise ConfigError(
            f"these methods train several heads: {dear}; beside methods that train one their "
            "budgets differ. Set allow_unequal_budgets=true, or leave them out"
        )


def _cell_folder(settings: CompareSettings, shift: str, seed: int, method: str) -> Path:
    return settings.output_dir / shift / f"seed_{seed}" / method.replace("/", "_")


def _source(settings: CompareSettings, name: str) -> SourceSettings:
    return settings.sources.get(name, SourceSettings())


def _read_shift(settings: CompareSettings, name: str, seed: int) -> Shift:
    return SHIFTS[name](_source(settings, name), seed)


def _features(
    settings: CompareSettings, texts: Sequence[Any], progress: ProgressReporter
) -> Tensor:
    return frozen_features(
        settings.backbone,
        texts,
        max_length=settings.max_length,
        cache=settings.features_dir or settings.output_dir / "features",
        progress=progress,
    )


def _cache_features(settings: CompareSettings, name: str, progress: ProgressReporter) -> None:
    """All texts of all seeds at once, before any worker starts."""
    texts = [text for seed in settings.seeds for text in _read_shift(settings, name, seed).texts()]
    _features(settings, list(dict.fromkeys(texts)), progress)


def _run_split(
    settings: CompareSettings, name: str, seed: int, *, progress: ProgressReporter
) -> None:
    """Every method on one split."""
    if settings.workers > 1:
        torch.set_num_threads(1)
    shift = _read_shift(settings, name, seed)
    methods = _methods_on(settings, shift)
    features = _features(settings, shift.texts(), progress)
    problem = build_problem(shift, features, seed)
    plain = train_recipe(problem, read_recipe(REFERENCE), settings.head, seed)
    source = {
        key: path and content_digest(path)
        for key, path in _source(settings, name).model_dump().items()
    }
    with progress.stage("methods", len(methods)) as bar:
        for method in methods:
            record = {
                "backbone": content_digest(settings.backbone),
                "max_length": settings.max_length,
                "head": settings.head.model_dump(mode="json"),
                "source": source,
                "shift": name,
                "seed": seed,
                "method": method,
                "recipe": _describe_method(method),
                "version": VERSION,
            }

            def build(folder: Path, method: str = method) -> dict[str, Any]:
                started = time.monotonic()
                found = _train(problem, method, settings, seed)
                seconds = time.monotonic() - started
                cell = _measure(shift, problem, method, seed, found, plain, seconds)
                write_json(folder / "cell.json", cell.to_json())
                return {}

            build_stage(_cell_folder(settings, name, seed, method), record, [], build)
            bar.advance(1, method)


def _describe_method(method: str) -> Any:
    """What a method is, so that a cell of its name that was made otherwise is not taken for it."""
    if ":" not in method:
        return asdict(read_recipe(method))
    file = inspect.getsourcefile(resolve_name(method, {}, what="methods"))
    return file and content_digest(file)


def _train(problem: Problem, method: str, settings: CompareSettings, seed: int) -> Trajectory:
    """A method of the table, or the user's own, which gives one score for each text."""
    if ":" not in method:
        return train_recipe(problem, read_recipe(method), settings.head, seed)
    given = resolve_name(method, {}, what="methods")(problem, seed)
    scores = torch.as_tensor(given, dtype=torch.float32).reshape(1, -1)
    if scores.shape[1] != len(problem.features) or not scores.isfinite().all():
        raise DataError(
            f"{method}: expected {len(problem.features)} finite scores, one for each row of "
            f"problem.features, got {tuple(scores.shape)}. Mend the function."
        )
    return Trajectory((0,), scores, (0.0,), Cost())


def _measure(
    shift: Shift,
    problem: Problem,
    method: str,
    seed: int,
    found: Trajectory,
    plain: Trajectory,
    seconds: float,
) -> Cell:
    place = {text: index for index, text in enumerate(shift.texts())}
    best = found.scores[found.best]
    unit = best[problem.pairs.unique()].std().clamp(min=1e-6)
    watched = problem.watched_groups
    original, shifted = (
        [tally_pairs(pairs, scores, place) for scores in found.scores] if pairs else None
        for pairs in (shift.test_original, shift.test_shifted)
    )
    assert original is not None
    return Cell(
        shift=shift.name,
        method=method,
        seed=seed,
        best_step=found.steps[found.best],
        original=original[found.best],
        shifted=shifted[found.best] if shifted else None,
        length_balanced=_length_balanced(shift.test_shifted, best, place),
        rank_correlation=mean_rank_correlation(watched, best, plain.at(found.steps[found.best])),
        difference=difference_loss(best[watched.clamp(min=0)] / unit, watched >= 0).item(),
        curve=tuple(
            (
                step,
                found.validation[point],
                original[point].accuracy,
                shifted[point].accuracy if shifted else None,
            )
            for point, step in enumerate(found.steps)
        ),
        forward=found.cost.forward,
        backward=found.cost.backward,
        seconds=seconds,
    )


def _gaps(pairs: Sequence[PreferencePair], scores: Tensor, place: Mapping[Any, int]) -> Tensor:
    rows = torch.tensor([[place[p.prompt, p.chosen], place[p.prompt, p.rejected]] for p in pairs])
    return scores[rows[:, 0]] - scores[rows[:, 1]]


def tally_pairs(pairs: Sequence[PreferencePair], scores: Tensor, place: Mapping[Any, int]) -> Tally:
    """Which pairs the scores, shape (texts,), order as labelled; `place` is the row of a text."""
    correct = ((1 + _gaps(pairs, scores, place).sign()) / 2).tolist()
    counts: dict[str, int] = {}
    sums: dict[str, float] = {}
    for pair, value in zip(pairs, correct, strict=True):
        prompt = hashlib.sha256(prompt_text(pair.prompt).encode()).hexdigest()[:12]
        counts[prompt] = counts.get(prompt, 0) + 1
        sums[prompt] = sums.get(prompt, 0.0) + value
    return Tally(tuple(counts), tuple(counts.values()), tuple(sums.values()))


def _length_balanced(
    pairs: Sequence[PreferencePair], scores: Tensor, place: Mapping[Any, int]
) -> float | None:
    if not pairs:
        return None
    correct = ((1 + _gaps(pairs, scores, place).sign()) / 2).numpy()
    lengths = [[len(pair.chosen), len(pair.rejected)] for pair in pairs]
    better, worse = np.array(lengths).T
    return length_balanced_accuracy(correct, better, worse)
