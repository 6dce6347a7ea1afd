# SPDX-License-Identifier: Apache-2.0
"""Methods x shifts x seeds: every cell a file, done once; then who differs from plain by how much.

A split belongs to its seed and shift alone, so every method sees the same one.
"""

import functools
import inspect
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from metarm.bench.features import features_of
from metarm.bench.held_out import HeldOut
from metarm.bench.linear_score import fit_linear_score
from metarm.bench.methods import train_recipe
from metarm.bench.networks import read_backbone
from metarm.bench.problem import Problem, build_problem
from metarm.bench.recipes import read_recipe
from metarm.bench.results import Cell
from metarm.bench.settings import CompareSettings, SourceSettings
from metarm.bench.shifts import SHIFTS, Shift, thin_shift
from metarm.bench.stretched import add_made_rows
from metarm.bench.summary import REFERENCE
from metarm.bench.trajectory import Cost, Trajectory
from metarm.errors import ConfigError, DataError, EmptySetError, nearest_names
from metarm.objectives import difference_loss
from metarm.progress import SilentProgress
from metarm.protocols import ProgressReporter
from metarm.resolve import resolve_name
from metarm.run_folder import hold_folder
from metarm.schema import Prompt
from metarm.storage import build_stage, check_writable, content_digest, read_json, write_json
from metarm.strength import mean_rank_correlation
from metarm.workers import run_in_processes

__all__ = ["VERSION", "compare_methods", "measure_cell"]

TRAINED_BY: Final = {"trained", "top_layers", "lora_r"}
VERSION: Final = 4
"""Of the training loop: another number, and no finished cell is taken for a new one."""


def compare_methods(settings: CompareSettings, *, progress: ProgressReporter) -> list[Cell]:
    """Every cell of methods x shifts x seeds; finished ones are read, the others made.

    Args:
        settings: What to compare.
        progress: Gets bars for reading the splits, for their features, and for what is trained.

    Returns:
        All cells, in the order of shifts, methods, seeds.

    Raises:
        ConfigError: When a method or shift is unknown, or budgets differ and nobody said so.
        FingerprintError: When a finished cell was made with other settings.
        RunError: When the folder is in use by another process.

    Writes:
        `output_dir/SHIFT/seed_N/METHOD/cell.json`, and frozen features in `output_dir/features`.
    """
    recipes = {name: read_recipe(name) for name in settings.methods if ":" not in name}
    _refuse_unequal_budgets(settings, {name: r.num_heads for name, r in recipes.items()})
    _refuse_exact(settings, [name for name, r in recipes.items() if r.order == "exact"])
    for name in settings.methods:
        if ":" in name:
            resolve_name(name, {}, what="methods")
    for name in settings.shifts:
        if name not in SHIFTS:
            raise ConfigError(f"unknown shift {name!r}: {nearest_names(name, SHIFTS)}")
    check_writable(settings.output_dir)
    with hold_folder(settings.output_dir):
        return _compare(settings, progress)


def _compare(settings: CompareSettings, progress: ProgressReporter) -> list[Cell]:
    texts, num_labels = _look_at_splits(settings, progress)
    methods = _methods_of_shifts(settings, num_labels)
    # All texts of all seeds at once, before any worker starts.
    _features(settings, texts, progress)
    jobs = {
        f"{shift}, seed {seed}": partial(_run_split, settings, shift, seed, methods[shift])
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
        for method in methods[shift]
        for seed in settings.seeds
    ]


def _look_at_splits(
    settings: CompareSettings, progress: ProgressReporter
) -> tuple[list[tuple[Prompt, str]], dict[str, int]]:
    """All texts of all splits, each once; of each shift, the fewest labels of any split."""
    texts: dict[tuple[Prompt, str], None] = {}
    num_labels: dict[str, int] = {}
    with progress.stage("read the splits", len(settings.shifts) * len(settings.seeds)) as bar:
        for name in settings.shifts:
            for seed in settings.seeds:
                shift = _read_shift(settings, name, seed)
                texts |= dict.fromkeys(shift.texts)
                fewest = num_labels.get(name, len(shift.shifted_labels))
                num_labels[name] = min(fewest, len(shift.shifted_labels))
                bar.advance(1, name)
    return list(texts), num_labels


def _methods_of_shifts(
    settings: CompareSettings, labels: Mapping[str, int]
) -> dict[str, list[str]]:
    """For each shift plain training, and the methods that use no more labels than there are.

    Raises:
        EmptySetError: When a method was asked for by name, and no shift has labels for it.
    """
    needed = {
        method: _labels_used(method) for method in dict.fromkeys([REFERENCE, *settings.methods])
    }
    for method, count in needed.items():
        if count > max(labels.values()) and "methods" in settings.model_fields_set:
            raise EmptySetError(
                f"{method} uses {count} labelled shifted pairs, and in the poorest split there "
                f"are {labels}: give some, or leave the method out"
            )
    return {
        name: [method for method, count in needed.items() if count <= labels[name]]
        for name in settings.shifts
    }


def _labels_used(method: str) -> int:
    """Labelled shifted pairs that a method needs at least."""
    if ":" in method:
        return 0
    recipe = read_recipe(method)
    return max(recipe.num_labels, int(recipe.uses_labels))


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


def _refuse_exact(settings: CompareSettings, exact: Sequence[str]) -> None:
    """Fast attention has no second derivative: of a pretrained model it would fail half way."""
    if exact and settings.trained != "head":
        raise ConfigError(
            f"{exact[0]} differentiates twice, which trained={settings.trained} does not support: "
            "use finite-difference in place of exact, or trained=head"
        )


def _cell_folder(settings: CompareSettings, shift: str, seed: int, method: str) -> Path:
    return settings.output_dir / shift / f"seed_{seed}" / method.replace("/", "_")


def _source(settings: CompareSettings, name: str) -> SourceSettings:
    return settings.sources.get(name, SourceSettings())


def _read_shift(settings: CompareSettings, name: str, seed: int) -> Shift:
    shift = SHIFTS[name](_source(settings, name), seed)
    shift = thin_shift(shift, settings.max_pairs, settings.max_test_pairs, seed)
    recipes = (read_recipe(method) for method in settings.methods if ":" not in method)
    return add_made_rows(shift, [kind for recipe in recipes for kind in recipe.augments])


def _features(
    settings: CompareSettings, texts: Sequence[Any], progress: ProgressReporter
) -> Tensor:
    """Frozen features, and none of any text where no method reads them."""
    reads = (
        settings.trained == "head"
        or settings.head.fit_score_first
        or any(":" in name or read_recipe(name).weighs_pairs for name in settings.methods)
    )
    if not reads:
        return torch.zeros(len(texts), 0)
    return features_of(settings, texts, progress)


def _run_split(
    settings: CompareSettings,
    name: str,
    seed: int,
    methods: Sequence[str],
    *,
    progress: ProgressReporter,
) -> None:
    """Every method on one split."""
    if settings.workers > 1:
        torch.set_num_threads(1)
    shift = _read_shift(settings, name, seed)
    problem = _build_problem(settings, shift, seed, progress)
    split = shift.digest()
    held_out = HeldOut.of(shift)
    kept = _cell_folder(settings, name, seed, REFERENCE) / "trajectory.safetensors"

    # Every cell is compared with it: trained where a cell is missing, once, and kept.
    @functools.cache
    def plain() -> Trajectory:
        if kept.is_file():
            return Trajectory.read(kept)
        return train_recipe(problem, read_recipe(REFERENCE), settings.head, seed)

    known: dict[Any, Trajectory] = {}
    with progress.stage("methods", len(methods)) as bar:
        for method in methods:
            record = {
                "backbone": content_digest(settings.backbone),
                "max_length": settings.max_length,
                "head": settings.head.model_dump(mode="json"),
                **settings.model_dump(mode="json", include=TRAINED_BY),
                "shift": name,
                "split": split,
                "seed": seed,
                "method": method,
                "recipe": _describe_method(method),
                "version": VERSION,
            }

            def build(folder: Path, method: str = method) -> dict[str, Any]:
                found = _train(problem, method, settings, seed, plain(), known)
                cell = measure_cell(held_out, problem, method, seed, found, plain())
                write_json(folder / "cell.json", cell.to_json())
                if method == REFERENCE:
                    found.save(folder / kept.name)
                return {}

            build_stage(_cell_folder(settings, name, seed, method), record, [], build)
            bar.advance(1, method)


def _build_problem(
    settings: CompareSettings, shift: Shift, seed: int, progress: ProgressReporter
) -> Problem:
    texts = shift.texts
    features = _features(settings, texts, progress)
    problem = build_problem(shift, features, seed)
    if settings.trained == "head":
        return problem
    place = {text: index for index, text in enumerate(texts)}
    tested = [
        place[pair.prompt, side]
        for pair in (*shift.test_original, *shift.test_shifted)
        for side in (pair.chosen, pair.rejected)
    ]
    watched = problem.watched_groups[problem.watched_groups >= 0]
    rows = [torch.tensor(tested, dtype=torch.long), problem.validation.reshape(-1), watched]
    backbone = read_backbone(
        settings.backbone,
        texts,
        max_length=settings.max_length,
        trained=settings.trained,
        top_layers=settings.top_layers,
        lora_r=settings.lora_r,
    )
    if settings.head.fit_score_first:
        last = features[:, features.shape[1] // 2 :]
        first_score = fit_linear_score(last, problem.pairs, problem.validation)
        backbone = replace(backbone, first_score=first_score)
    return replace(problem, backbone=backbone, measured=torch.cat(rows).unique())


def _describe_method(method: str) -> Any:
    """What a method is, so that a cell of its name that was made otherwise is not taken for it."""
    if ":" not in method:
        return asdict(read_recipe(method))
    file = inspect.getsourcefile(resolve_name(method, {}, what="methods"))
    return file and content_digest(file)


def _train(
    problem: Problem,
    method: str,
    settings: CompareSettings,
    seed: int,
    plain: Trajectory,
    known: dict[Any, Trajectory],
) -> Trajectory:
    """A method of the table, or the user's own, which gives one score for each text."""
    if method == REFERENCE:
        return plain
    if ":" not in method:
        recipe = read_recipe(method)
        return train_recipe(problem, recipe, settings.head, seed, plain=plain, known=known)
    started = time.monotonic()
    given = resolve_name(method, {}, what="methods")(problem, seed)
    scores = torch.as_tensor(given, dtype=torch.float32).reshape(1, -1)
    if scores.shape[1] != len(problem.features) or not scores.isfinite().all():
        raise DataError(
            f"{method}: expected {len(problem.features)} finite scores, one for each row of "
            f"problem.features, got {tuple(scores.shape)}. Mend the function."
        )
    cost = Cost(seconds=time.monotonic() - started)
    return Trajectory((0,), scores, (0.0,), cost)


def measure_cell(
    held_out: HeldOut,
    problem: Problem,
    method: str,
    seed: int,
    found: Trajectory,
    plain: Trajectory,
) -> Cell:
    """What a training is worth on the pairs that were held out of it.

    Args:
        held_out: Those pairs.
        problem: The split as tensors.
        method: Name to put on it.
        seed: Of the split.
        found: The training.
        plain: Plain training on the same split, whose order of responses it is compared with.
    """
    best = found.scores[found.best]
    unit = best[problem.unit_rows].std().clamp(min=1e-6)
    watched = problem.watched_groups
    original = [held_out.original.tally(scores) for scores in found.scores]
    shifted = held_out.shifted and [held_out.shifted.tally(scores) for scores in found.scores]
    return Cell(
        shift=held_out.shift,
        method=method,
        seed=seed,
        best_step=found.steps[found.best],
        original=original[found.best],
        shifted=shifted[found.best] if shifted else None,
        length_balanced=held_out.shifted.length_balanced(best) if held_out.shifted else None,
        rank_correlation=mean_rank_correlation(watched, best, plain.at(found.steps[found.best])),
        difference=difference_loss(best[watched.clamp(min=0)] / unit, watched >= 0).item(),
        strength=found.strength[found.best] if found.strength else 1.0,
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
        seconds=found.cost.seconds,
    )
