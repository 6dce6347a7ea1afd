# SPDX-License-Identifier: Apache-2.0
"""Splits of a shift read for advice: the figures of each, and plain and each mode trained on it.

No label of the shifted side is trained on: labelled shifted pairs are the probe.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from torch import Tensor

from metarm.bench.advice_rule import CANDIDATES
from metarm.bench.features import features_of
from metarm.bench.foretell import Figures, foretell
from metarm.bench.held_out import PairRows
from metarm.bench.problem import Problem, build_problem
from metarm.bench.recipes import Recipe
from metarm.bench.results import Tally
from metarm.bench.settings import AdviseSettings, HeadSettings
from metarm.bench.shifts import SHIFTS, Shift, digest_source
from metarm.bench.stacked_heads import train_stacked
from metarm.errors import ConfigError, nearest_names
from metarm.protocols import ProgressReporter
from metarm.run_folder import hold_folder
from metarm.storage import build_stage, check_writable, content_digest, read_json, write_json
from metarm.strength import mean_rank_correlation

__all__ = ["PLAIN", "Outcome", "Reading", "Trained", "read_splits", "train_candidates"]

PLAIN: Final = "plain"
VERSION: Final = 1
"""Of the figures and the training: another number, and no finished split is taken for a new one."""


class Trained(NamedTuple):
    """A method's head at its best step."""

    scores: Tensor
    """Of all texts, shape (texts,)."""
    rank_correlation: float
    """Within shifted groups that were not trained on, with plain at the same step."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One method on one split."""

    original: Tally
    """On held-out original pairs."""
    probe: Tally | None
    """On labelled shifted pairs, where there are any."""
    rank_correlation: float


@dataclass(frozen=True, slots=True)
class Reading:
    """One split: its figures, and each method on it, `plain` first."""

    seed: int
    figures: Figures
    outcomes: Mapping[str, Outcome]

    def to_json(self) -> dict[str, Any]:
        """Nested plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> "Reading":
        """The inverse of `to_json`."""

        def tally(values: Mapping[str, Any]) -> Tally:
            return Tally(**{key: tuple(value) for key, value in values.items()})

        outcomes = {
            name: Outcome(
                tally(own["original"]),
                tally(own["probe"]) if own["probe"] else None,
                own["rank_correlation"],
            )
            for name, own in row["outcomes"].items()
        }
        return cls(row["seed"], Figures(**row["figures"]), outcomes)


def train_candidates(
    problem: Problem, methods: Sequence[str], settings: HeadSettings, seed: int
) -> tuple[Figures, dict[str, Trained]]:
    """The figures of a problem, and `plain` and each of some CANDIDATES trained on it."""
    recipes = [Recipe(), *(CANDIDATES[name] for name in methods)]
    ((plain, *others),) = train_stacked([problem], recipes, settings, [seed])
    trained = {PLAIN: Trained(plain.scores[plain.best], 1.0)}
    for name, found in zip(methods, others, strict=True):
        scores = found.scores[found.best]
        beside = plain.at(found.steps[found.best])
        rank = mean_rank_correlation(problem.watched_groups, scores, beside)
        trained[name] = Trained(scores, rank if rank is not None else 0.0)
    return foretell(problem, trained[PLAIN].scores, settings, seed), trained


def read_splits(settings: AdviseSettings, *, progress: ProgressReporter) -> list[Reading]:
    """The reading of every split; finished ones are read from disk, the others made.

    Raises:
        ConfigError: When the shift or a method is unknown.
        FingerprintError: When a finished split was made with other settings.
        RunError: When the folder is in use by another process.

    Writes:
        `output_dir/seed_N/reading.json`, and frozen features in `output_dir/features`.
    """
    if settings.shift not in SHIFTS:
        raise ConfigError(
            f"unknown shift {settings.shift!r}: {nearest_names(settings.shift, SHIFTS)}"
        )
    for name in settings.methods or ():
        if name not in CANDIDATES:
            raise ConfigError(f"unknown method {name!r}: {nearest_names(name, CANDIDATES)}")
    check_writable(settings.output_dir)
    with hold_folder(settings.output_dir):
        return _read_all(settings, progress)


def _read_all(settings: AdviseSettings, progress: ProgressReporter) -> list[Reading]:
    splits = [SHIFTS[settings.shift](settings.source, seed) for seed in settings.seeds]
    features_of(settings, list(dict.fromkeys(t for s in splits for t in s.texts)), progress)
    readings = []
    with progress.stage("splits", len(splits)) as bar:
        for seed, shift in zip(settings.seeds, splits, strict=True):
            readings.append(_read_split(settings, shift, seed, progress))
            bar.advance(1, f"seed {seed}")
    return readings


def _read_split(
    settings: AdviseSettings, shift: Shift, seed: int, progress: ProgressReporter
) -> Reading:
    methods = list(CANDIDATES if settings.methods is None else settings.methods)
    record = {
        "backbone": content_digest(settings.backbone),
        "max_length": settings.max_length,
        "head": settings.head.model_dump(mode="json"),
        "source": digest_source(settings.source),
        "shift": shift.name,
        "seed": seed,
        "methods": {name: asdict(CANDIDATES[name]) for name in methods},
        "version": VERSION,
    }

    def build(folder: Path) -> dict[str, Any]:
        problem = build_problem(shift, features_of(settings, shift.texts, progress), seed)
        figures, trained = train_candidates(problem, methods, settings.head, seed)
        place = {text: row for row, text in enumerate(shift.texts)}
        probe = (*shift.shifted_labels, *shift.test_shifted)
        outcomes = {
            name: Outcome(
                PairRows.of(shift.test_original, place).tally(found.scores),
                PairRows.of(probe, place).tally(found.scores) if probe else None,
                found.rank_correlation,
            )
            for name, found in trained.items()
        }
        write_json(folder / "reading.json", Reading(seed, figures, outcomes).to_json())
        return {}

    folder = settings.output_dir / f"seed_{seed}"
    build_stage(folder, record, [], build)
    return Reading.from_json(read_json(folder / "reading.json"))
