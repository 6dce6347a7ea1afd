# SPDX-License-Identifier: Apache-2.0
"""The rule that foretells a step's change in shifted accuracy from label-free figures.

Ridge regressions of each method, on the figures and their products, fitted to the map of
`benchmarks/feature_space.py` by `benchmarks/fit_advice.py`, which writes `advice_rule.json`: one
for the change, one for the size of its error, two logistic ones for whether it helps or hurts.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit

from metarm.bench.foretell import Figures
from metarm.bench.recipes import Recipe
from metarm.storage import read_json

__all__ = [
    "CANDIDATES",
    "INPUTS",
    "LARGEST_CHANGE",
    "NEUTRAL",
    "AdviceRule",
    "Forecast",
    "LeftOut",
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

LARGEST_CHANGE: Final = 0.05
"""What is foretold is the change cut to 5 points: a turned orientation can cost any number."""
NEUTRAL: Final = 0.005
"""Half a point: a smaller change neither helps nor hurts."""
RULE_FILE: Final = Path(__file__).with_name("advice_rule.json")
INPUTS: Final = (*(field.name for field in fields(Figures)), "rank_correlation")
"""The figures, and the method's own rank correlation with plain within shifted groups."""
_LOGARITHMIC: Final = ("pairs_per_dimension", "spread_ratio", "axis_evidence")
_SMALLEST: Final = 1e-3
_NEWTON_STEPS: Final = 12
_RIDGES: Final = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)


@dataclass(frozen=True, slots=True)
class Forecast:
    """What the rule expects of a method; accuracies in fractions."""

    change: float
    """Of accuracy on shifted pairs against plain training, between -0.05 and 0.05."""
    low: float
    """Lower end of the 95 % interval."""
    high: float
    helps: float
    """Probability that the change is above half a point."""
    hurts: float
    """Probability that it is below minus half a point."""


@dataclass(frozen=True, slots=True)
class MethodRule:
    """Coefficients of one method: a constant, then `rule_columns`."""

    change: tuple[float, ...]
    log_error: tuple[float, ...]
    """Of the logarithm of the error's size: settings differ in how well they can be foretold."""
    helps: tuple[float, ...]
    """Of the log odds that the change is above half a point."""
    hurts: tuple[float, ...]
    """Of the log odds that it is below minus half a point."""
    width: float
    """95 % of errors are within so many of the sizes that `log_error` gives."""

    def forecast(self, columns: Floats) -> Forecast:
        """From `rule_columns`, shape (columns,)."""
        row = np.concatenate([[1.0], columns])
        change = float(np.clip(row @ self.change, -LARGEST_CHANGE, LARGEST_CHANGE))
        half = self.width * float(np.exp(row @ self.log_error))
        helps, hurts = (float(expit(row @ odds)) for odds in (self.helps, self.hurts))
        return Forecast(change, change - half, change + half, helps, hurts)


@dataclass(frozen=True, slots=True, eq=False)
class LeftOut:
    """What rules that were fitted without a run's fold say of it, shape (runs,) each."""

    change: Floats
    half_width: Floats
    """Of the 95 % interval."""
    helps: Floats
    hurts: Floats


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
        """Nested plain JSON values, numbers to five digits."""
        return {
            "provenance": dict(self.provenance),
            "inputs": list(INPUTS),
            "low": _rounded(self.low),
            "high": _rounded(self.high),
            "methods": {
                name: {
                    key: _rounded(value) if isinstance(value, tuple) else float(f"{value:.5g}")
                    for key, value in asdict(rule).items()
                }
                for name, rule in self.methods.items()
            },
        }

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> "AdviceRule":
        """The inverse of `to_json`, to five digits."""
        assert tuple(row["inputs"]) == INPUTS, "the rule was fitted to other figures: fit it again"
        methods = {
            name: MethodRule(
                change=tuple(own["change"]),
                log_error=tuple(own["log_error"]),
                helps=tuple(own["helps"]),
                hurts=tuple(own["hurts"]),
                width=own["width"],
            )
            for name, own in row["methods"].items()
        }
        return cls(tuple(row["low"]), tuple(row["high"]), methods, row["provenance"])


def _rounded(values: Sequence[float]) -> list[float]:
    return [float(f"{value:.5g}") for value in values]


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
) -> tuple[MethodRule, LeftOut]:
    """Fit a method's rule, each penalty the one that foretells left-out folds best.

    Args:
        columns: Shape (runs, columns).
        changes: Shape (runs,), in fractions.
        folds: Shape (runs,): runs of one setting are in one fold.
    """
    wanted = np.clip(changes, -LARGEST_CHANGE, LARGEST_CHANGE)
    change, expected = _fit(_LINEAR, columns, wanted, folds)
    errors = np.abs(wanted - expected)
    log_error, logs = _fit(_LINEAR, columns, np.log(np.maximum(errors, _SMALLEST)), folds)
    ratios = errors / np.exp(logs)
    widths = np.empty_like(ratios)
    for fold in np.unique(folds):
        widths[folds == fold] = np.quantile(ratios[folds != fold], 0.95)
    helps, odds_helps = _fit(_LOGISTIC, columns, (changes > NEUTRAL).astype(float), folds)
    hurts, odds_hurts = _fit(_LOGISTIC, columns, (changes < -NEUTRAL).astype(float), folds)
    width = float(np.quantile(ratios, 0.95))
    left_out = LeftOut(expected, widths * np.exp(logs), expit(odds_helps), expit(odds_hurts))
    return MethodRule(change, log_error, helps, hurts, width), left_out


def _fit(
    kind: "tuple[_Solve, _Loss]",
    columns: Floats,
    targets: Floats,
    folds: NDArray[np.intp],
) -> tuple[tuple[float, ...], Floats]:
    """Coefficients on all rows, and what those fitted without a row's fold give there."""
    solve, loss = kind
    best: tuple[float, Floats, float] | None = None
    table: Floats = np.concatenate([np.ones((len(columns), 1)), columns], axis=1)
    for ridge in _RIDGES:
        left_out = np.empty(len(table))
        for fold in np.unique(folds):
            rows = folds != fold
            left_out[~rows] = table[~rows] @ solve(table[rows], targets[rows], ridge)
        error = float(loss(left_out, targets).mean())
        if best is None or error < best[0]:
            best = (error, left_out, ridge)
    assert best is not None
    return tuple(solve(table, targets, best[2]).tolist()), best[1]


def _penalty(table: Floats, ridge: float) -> Floats:
    """`ridge` a row on all coefficients but the constant, which is in the first column."""
    penalty: Floats = ridge * len(table) * np.eye(table.shape[1])
    penalty[0, 0] = 0.0
    return penalty


def _solve_ridge(table: Floats, targets: Floats, ridge: float) -> Floats:
    """Least squares with a penalty."""
    curvature = table.T @ table + _penalty(table, ridge)
    return np.asarray(np.linalg.solve(curvature, table.T @ targets), dtype=np.float64)


def _solve_logistic(table: Floats, targets: Floats, ridge: float) -> Floats:
    """Logistic regression with a penalty, by Newton's steps from the share of ones."""
    penalty = _penalty(table, ridge)
    solution: Floats = np.zeros(table.shape[1], dtype=np.float64)
    # Shares of 0 and 1 have no finite log odds.
    solution[0] = logit(np.clip(targets.mean(), _SMALLEST, 1 - _SMALLEST))
    for _ in range(_NEWTON_STEPS):
        chance = expit(table @ solution)
        slope = table.T @ (targets - chance) - penalty @ solution
        weight = np.maximum(chance * (1 - chance), _SMALLEST)
        curvature = (table * weight[:, None]).T @ table + penalty
        step: Floats = np.linalg.solve(curvature, slope)
        solution += step
    return solution


_Solve = Callable[[Floats, Floats, float], Floats]
_Loss = Callable[[Floats, Floats], Floats]
_LINEAR: Final[tuple[_Solve, _Loss]] = (_solve_ridge, lambda found, wanted: (found - wanted) ** 2)
_LOGISTIC: Final[tuple[_Solve, _Loss]] = (
    _solve_logistic,
    lambda odds, wanted: np.logaddexp(0.0, odds) - wanted * odds,
)
"""How coefficients are found, and what each row that was left out costs."""
