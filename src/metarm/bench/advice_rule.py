# SPDX-License-Identifier: Apache-2.0
"""The rule that foretells a step's change in shifted accuracy from label-free figures.

One ridge regression a method, on the figures and their products, fitted to the map of
`benchmarks/feature_space.py` by `benchmarks/fit_advice.py`, which writes `advice_rule.json`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from metarm.bench.foretell import Figures
from metarm.bench.recipes import Recipe
from metarm.storage import read_json

__all__ = [
    "CANDIDATES",
    "INPUTS",
    "LARGEST_CHANGE",
    "AdviceRule",
    "Forecast",
    "MethodRule",
    "figure_inputs",
    "fit_method",
    "load_rule",
    "rule_columns",
]

Floats = NDArray[np.float64]

CANDIDATES: Final[Mapping[str, Recipe]] = MappingProxyType(
    {
        "ascent-1": Recipe(step="ascent", strength=1.0),
        "descent-1": Recipe(step="descent", strength=1.0),
        "descent-3": Recipe(step="descent", strength=3.0),
        "descent-quarter": Recipe(step="descent", reward_fraction=0.25),
        "descent-half": Recipe(step="descent", reward_fraction=0.5),
        "descent-whole": Recipe(step="descent", reward_fraction=1.0),
        "joint-0.1": Recipe(step="joint", strength=0.1),
        "joint-0.3": Recipe(step="joint", strength=0.3),
        "joint-1": Recipe(step="joint", strength=1.0),
    }
)
"""Name -> recipe of what is advised for or against: eta, share of the rewards' spread, weight."""

LARGEST_CHANGE: Final = 0.1
"""What is foretold is the change cut to 10 points: a turned orientation can cost any number."""
RULE_FILE: Final = Path(__file__).with_name("advice_rule.json")
INPUTS: Final = (*(field.name for field in fields(Figures)), "rank_correlation")
"""The figures, and the method's own rank correlation with plain within shifted groups."""
_LOGARITHMIC: Final = ("pairs_per_dimension", "spread_ratio", "axis_evidence")
_SMALLEST: Final = 1e-3
_RIDGES: Final = tuple(float(10**power) for power in np.arange(-3.0, 1.01, 0.5))


@dataclass(frozen=True, slots=True)
class Forecast:
    """What the rule expects of a method; accuracies in fractions."""

    change: float
    """Of accuracy on shifted pairs against plain training, between -0.1 and 0.1."""
    low: float
    """Lower end of the 95 % interval."""
    high: float
    helps: float
    """Probability that the change is above 0."""


@dataclass(frozen=True, slots=True)
class MethodRule:
    """Coefficients of one method: a constant, then `rule_columns`."""

    change: tuple[float, ...]
    log_error: tuple[float, ...]
    """Of the logarithm of the error's size: settings differ in how well they can be foretold."""
    error_scale: float
    """Standard deviation of errors over the size that `log_error` gives."""
    width: float
    """95 % of errors are within so many of these standard deviations."""

    def forecast(self, columns: Floats) -> Forecast:
        """From `rule_columns`, shape (columns,)."""
        row = np.concatenate([[1.0], columns])
        change = float(np.clip(row @ self.change, -LARGEST_CHANGE, LARGEST_CHANGE))
        error = self.error_scale * float(np.exp(row @ self.log_error))
        half = self.width * error
        return Forecast(change, change - half, change + half, float(norm.cdf(change / error)))


@dataclass(frozen=True, slots=True)
class AdviceRule:
    """A fitted rule, the range of figures it has seen, and where it comes from."""

    low: tuple[float, ...]
    """Of each of INPUTS, the 1st percentile over the map, as `figure_inputs` gives it."""
    high: tuple[float, ...]
    """The 99th."""
    methods: Mapping[str, MethodRule]
    provenance: Mapping[str, Any]
    """Command, seeds, how well it foretells on the map and on the real shifts."""

    def forecast(self, method: str, figures: Figures, rank_correlation: float) -> Forecast:
        """What to expect of a method; figures outside the map count as its nearest edge."""
        inputs = figure_inputs(figures, rank_correlation)
        return self.methods[method].forecast(rule_columns(inputs, self.low, self.high))

    def outside(self, figures: Figures) -> list[str]:
        """Names of the figures that lie outside the map."""
        inputs = figure_inputs(figures, 1.0)[:-1]
        return [
            name
            for name, value, low, high in zip(INPUTS, inputs, self.low, self.high, strict=False)
            if not low <= value <= high
        ]

    def range_of(self, name: str) -> tuple[float, float]:
        """The 1st and 99th percentile of a figure over the map, in its own unit."""
        place = INPUTS.index(name)
        low, high = self.low[place], self.high[place]
        if name in _LOGARITHMIC:
            return float(np.exp(low)), float(np.exp(high))
        return low, high

    def to_json(self) -> dict[str, Any]:
        """Nested plain JSON values, numbers to six digits."""
        return {
            "provenance": dict(self.provenance),
            "inputs": list(INPUTS),
            "low": _rounded(self.low),
            "high": _rounded(self.high),
            "methods": {
                name: {
                    key: _rounded(value) if isinstance(value, tuple) else float(f"{value:.6g}")
                    for key, value in asdict(rule).items()
                }
                for name, rule in self.methods.items()
            },
        }

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> "AdviceRule":
        """The inverse of `to_json`, to six digits."""
        assert tuple(row["inputs"]) == INPUTS, "the rule was fitted to other figures: fit it again"
        methods = {
            name: MethodRule(
                **{k: tuple(v) if isinstance(v, list) else v for k, v in own.items()}
            )
            for name, own in row["methods"].items()
        }
        return cls(tuple(row["low"]), tuple(row["high"]), methods, row["provenance"])


def _rounded(values: Sequence[float]) -> list[float]:
    return [float(f"{value:.6g}") for value in values]


@cache
def load_rule() -> AdviceRule:
    """The rule that comes with the package."""
    return AdviceRule.from_json(read_json(RULE_FILE))


def figure_inputs(figures: Figures, rank_correlation: float) -> Floats:
    """The INPUTS as numbers, those over several orders of magnitude as their logarithm."""
    values = asdict(figures) | {"rank_correlation": rank_correlation}
    return np.array(
        [
            np.log(max(values[name], _SMALLEST)) if name in _LOGARITHMIC else values[name]
            for name in INPUTS
        ]
    )


def rule_columns(inputs: Floats, low: Sequence[float], high: Sequence[float]) -> Floats:
    """Inputs cut to their range and scaled to [-1, 1], then all products of two of them.

    Args:
        inputs: Shape (..., n).
        low: Shape (n,).
        high: Shape (n,), above `low`.

    Returns:
        Shape (..., n + n (n + 1) / 2).
    """
    start, end = np.asarray(low), np.asarray(high)
    scaled = 2 * (np.clip(inputs, start, end) - start) / (end - start) - 1
    first, second = np.triu_indices(scaled.shape[-1])
    return np.concatenate([scaled, scaled[..., first] * scaled[..., second]], axis=-1)


def fit_method(
    columns: Floats, changes: Floats, folds: NDArray[np.intp]
) -> tuple[MethodRule, Floats, Floats]:
    """Fit a method's rule, each penalty the one that foretells left-out folds best.

    Args:
        columns: Shape (runs, columns).
        changes: Shape (runs,), in fractions.
        folds: Shape (runs,): runs of one setting are in one fold.

    Returns:
        The rule on all runs; for each run what a rule fitted without its fold expects; and the
        standard deviation it expects of its error.
    """
    wanted = np.clip(changes, -LARGEST_CHANGE, LARGEST_CHANGE)
    change, expected = _fit_ridge(columns, wanted, folds)
    errors = wanted - expected
    log_error, logs = _fit_ridge(columns, np.log(np.maximum(np.abs(errors), _SMALLEST)), folds)
    sizes = np.exp(logs)
    scale = float(np.sqrt(np.mean((errors / sizes) ** 2)))
    deviations = scale * sizes
    width = float(np.quantile(np.abs(errors) / deviations, 0.95))
    return MethodRule(change, log_error, scale, width), expected, deviations


def _fit_ridge(
    columns: Floats, targets: Floats, folds: NDArray[np.intp]
) -> tuple[tuple[float, ...], Floats]:
    """Coefficients on all rows, and what those fitted without a row's fold give there."""
    best: tuple[float, Floats, float] | None = None
    for ridge in _RIDGES:
        left_out = np.empty_like(targets)
        for fold in np.unique(folds):
            rows = folds != fold
            left_out[~rows] = _with_constant(columns[~rows]) @ _solve_ridge(
                columns[rows], targets[rows], ridge
            )
        error = float(np.mean((targets - left_out) ** 2))
        if best is None or error < best[0]:
            best = (error, left_out, ridge)
    assert best is not None
    return tuple(_solve_ridge(columns, targets, best[2]).tolist()), best[1]


def _with_constant(columns: Floats) -> Floats:
    return np.concatenate([np.ones((len(columns), 1)), columns], axis=1)


def _solve_ridge(columns: Floats, targets: Floats, ridge: float) -> Floats:
    """Least squares with a penalty of `ridge` a row on all coefficients but the constant."""
    table = _with_constant(columns)
    penalty = ridge * len(table) * np.eye(table.shape[1])
    penalty[0, 0] = 0.0
    solution: Floats = np.linalg.solve(table.T @ table + penalty, table.T @ targets)
    return solution
