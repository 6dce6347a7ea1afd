# SPDX-License-Identifier: Apache-2.0
"""What came out of a search: its trials, how flat the optimum is, best beside default."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from metarm.bench.results import Cell, clustered_difference
from metarm.bench.space import Dimension
from metarm.bench.summary import change_in_points
from metarm.metrics import paired_difference
from metarm.schema import Estimate

__all__ = [
    "Flatness",
    "FreshResult",
    "Trial",
    "Tuning",
    "behind",
    "format_tuning",
    "measure_flatness",
    "tell_best",
    "tuning_to_json",
]

NUM_POINTS: Final = 10_000
"""Points of the search box that are asked for their nearest trial."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One setting that was tried."""

    number: int
    settings: Mapping[str, float]
    values: tuple[float, ...]
    """The objective on each seed, in their order; a pruned trial has the first ones only."""
    is_pruned: bool
    is_default: bool

    @property
    def value(self) -> float:
        """Mean over the seeds that it has."""
        return fmean(self.values)


@dataclass(frozen=True, slots=True)
class Flatness:
    """How much of the search box does as well as the best, as far as its seeds can tell."""

    standard_error: float
    """Of the difference between a trial and the best, over seeds; the median trial's."""
    share: float
    """Of the search box, in log scale, whose nearest trial is within one standard error."""
    trials: tuple[int, ...]
    """Numbers of the trials within one standard error of the best."""
    ranges: Mapping[str, tuple[float, float]]
    """Of each setting, the lowest and highest value in those trials."""


@dataclass(frozen=True, slots=True)
class FreshResult:
    """A setting on a split that no trial saw."""

    seed: int
    value: float
    """The objective."""
    cell: Cell
    """What it is worth on held-out pairs."""


@dataclass(frozen=True, slots=True)
class Tuning:
    """A whole search."""

    shift: str
    method: str
    objective: str
    """What the objective is, in words."""
    seeds: tuple[int, ...]
    num_trials: int
    """Trials that were asked for."""
    space: Mapping[str, Dimension]
    trials: tuple[Trial, ...]
    """Those that are finished or pruned, by number."""
    importances: Mapping[str, float] | None
    flatness: Flatness | None
    fresh_default: tuple[FreshResult, ...]
    fresh_best: tuple[FreshResult, ...]
    """The same as `fresh_default` where no trial was better than the default."""

    @property
    def default(self) -> Trial:
        """The setting without tuning."""
        return next(trial for trial in self.trials if trial.is_default)

    @property
    def best(self) -> Trial:
        """The highest mean over all seeds; of equals the first, so that the default keeps."""
        finished = [trial for trial in self.trials if not trial.is_pruned]
        return max(finished, key=lambda trial: (trial.value, trial.is_default, -trial.number))

    def paired_value(self, trial: Trial) -> float:
        """A trial's mean, as if it had all seeds: the best's less what it is behind it by.

        Seeds differ in how hard they are: the plain mean of a pruned trial would show that.
        """
        return self.best.value - behind(trial, self.best)

    @property
    def fresh_change(self) -> Estimate:
        """Best minus default in the objective on fresh seeds, paired by seed."""
        ours, theirs = ([r.value for r in part] for part in (self.fresh_best, self.fresh_default))
        return paired_difference(ours, theirs)

    def tested_change(self, side: str) -> Estimate | None:
        """Best minus default on held-out pairs of fresh seeds, `original` or `shifted`.

        Clustered by prompt and by split; None where there are no labels.
        """
        ours, theirs = (
            [getattr(result.cell, side) for result in part]
            for part in (self.fresh_best, self.fresh_default)
        )
        return None if ours[0] is None else clustered_difference(ours, theirs)


def behind(trial: Trial, best: Trial) -> float:
    """How far a trial is behind another one, on the seeds that it has."""
    return fmean(best.values[: len(trial.values)]) - trial.value


def measure_flatness(
    trials: Sequence[Trial], best: Trial, space: Mapping[str, Dimension]
) -> Flatness | None:
    """How much of the box cannot be told from its best.

    A trial counts as within where the best is ahead of it by one standard error or less on the
    seeds that both have. A trial speaks for the points of the box (uniform in log scale) to which
    it is the nearest: shares of trials would count what the sampler likes, not the box.

    Returns:
        None from one seed, or from one finished trial: nothing tells a standard error.
    """
    num_seeds = len(best.values)
    others = [t for t in trials if not t.is_pruned and t.number != best.number]
    if num_seeds < 2 or not others:
        return None
    gaps = np.array([best.values], dtype=np.float64) - np.array([t.values for t in others])
    error = float(np.sqrt(np.median(gaps.var(axis=1, ddof=1)) / num_seeds))
    is_within = np.array([behind(trial, best) <= error for trial in trials])
    places = np.array([_place(trial, space) for trial in trials])
    points = np.random.default_rng(0).random((NUM_POINTS, len(space)))
    distances = ((points[:, None, :] - places[None, :, :]) ** 2).sum(axis=2)
    within = [trial for trial, counts in zip(trials, is_within, strict=True) if counts]
    return Flatness(
        standard_error=error,
        share=float(is_within[distances.argmin(axis=1)].mean()),
        trials=tuple(trial.number for trial in within),
        ranges={
            name: (min(t.settings[name] for t in within), max(t.settings[name] for t in within))
            for name in space
        },
    )


def _place(trial: Trial, space: Mapping[str, Dimension]) -> NDArray[np.float64]:
    """A trial's place in the box: 0 lowest to 1 highest of each setting, in log scale."""
    return np.array(
        [
            np.log(trial.settings[name] / dimension.low) / np.log(dimension.high / dimension.low)
            for name, dimension in space.items()
        ]
    )


def format_tuning(tuning: Tuning) -> str:
    """The answer for a terminal: settings, then what the best is worth on fresh seeds."""
    best, default, flat = tuning.best, tuning.default, tuning.flatness
    pruned = sum(trial.is_pruned for trial in tuning.trials)
    rows = [["setting", "default", "best", "searched", "within one s.e.", "importance"]]
    for name, dimension in tuning.space.items():
        rows.append(
            [
                name,
                f"{default.settings[name]:.3g}",
                f"{best.settings[name]:.3g}",
                f"{dimension.low:.3g} to {dimension.high:.3g}",
                "{:.3g} to {:.3g}".format(*flat.ranges[name]) if flat else "-",
                f"{tuning.importances[name]:.2f}" if tuning.importances else "-",
            ]
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        f"{tuning.method} on {tuning.shift}: {len(tuning.trials)} of {tuning.num_trials} trials, "
        f"{pruned} of them pruned, {len(tuning.seeds)} seeds each",
        f"objective: {tuning.objective}",
        "",
        *("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows),
        "",
    ]
    if flat is not None:
        lines.append(
            f"flatness: {flat.share:.0%} of the search box is within one standard error "
            f"({100 * flat.standard_error:.2f} points) of the best"
        )
    return "\n".join([*lines, *tell_best(tuning)])


def tell_best(tuning: Tuning) -> list[str]:
    """What the best is worth beside the default, in sentences, the winner's curse among them."""
    best, default = tuning.best, tuning.default
    count = len(tuning.trials)
    if best.is_default:
        return [f"None of {count} trials was better than the default ({default.value:.3f})."]
    original, shifted = tuning.tested_change("original"), tuning.tested_change("shifted")
    change = tuning.fresh_change
    verdict = (
        "The best setting is better than the default"
        if change.low > 0
        else "The best setting is worse than the default"
        if change.high < 0
        else "The best setting cannot be told from the default"
    )
    told = [
        f"{verdict} on {len(tuning.fresh_best)} fresh seeds: {change_in_points(change)} points in "
        f"the objective, paired by seed.",
        f"On the seeds of the search it was {100 * (best.value - default.value):+.1f}: the best of "
        f"{count} trials is the best by luck too (winner's curse), so only fresh seeds count.",
        f"Held-out pairs of the fresh seeds, best minus default: original "
        f"{change_in_points(original)}",
    ]
    told[-1] += f", shifted {change_in_points(shifted)} points." if shifted else " points."
    return told


def tuning_to_json(tuning: Tuning) -> dict[str, Any]:
    """`tune.json`: everything, and what is worked out of it."""
    document = asdict(tuning)
    for trial, row in zip(tuning.trials, document["trials"], strict=True):
        row["value"] = trial.value
    return {
        **document,
        "default": tuning.default.number,
        "best": tuning.best.number,
        "search_change": tuning.best.value - tuning.default.value,
        "fresh_change": asdict(tuning.fresh_change),
        "original_change": _json_of(tuning.tested_change("original")),
        "shifted_change": _json_of(tuning.tested_change("shifted")),
    }


def _json_of(change: Estimate | None) -> dict[str, Any] | None:
    return None if change is None else asdict(change)
