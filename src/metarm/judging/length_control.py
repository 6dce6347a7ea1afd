# SPDX-License-Identifier: Apache-2.0
"""The win rate that responses of equal length would have: a logistic model, fitted exactly."""

import math
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit

from metarm.errors import DataError, EmptySetError, ShapeError
from metarm.schema import Estimate

__all__ = [
    "INTERVAL",
    "LengthFit",
    "bootstrap_interval",
    "fit_length",
    "length_controlled_win_rate",
]

Floats = NDArray[np.float64]

LENGTH_PRIOR_SD: Final = 2.0
"""Standard deviation of the Gaussian prior on the length coefficient, in logits."""
MAX_NEWTON_STEPS: Final = 100
TOLERANCE: Final = 1e-12
INTERVAL: Final = (0.025, 0.975)


class LengthFit(NamedTuple):
    """P(the first response wins) = sigmoid(quality + length * tanh(difference of lengths / sd))."""

    quality: float
    """Log odds that the first wins at equal length."""
    length: float
    """Log odds that being longer by far adds."""

    @property
    def win_rate(self) -> float:
        """The first one's, at equal length."""
        return float(expit(self.quality))


def fit_length(outcomes: ArrayLike, length_differences: ArrayLike) -> LengthFit | None:
    """The most likely `LengthFit`, with a prior on the length coefficient alone.

    Args:
        outcomes: Shape (comparisons,): 1 the first wins, 0 it loses, 0.5 a tie.
        length_differences: First length minus second, shape (comparisons,), any unit.

    Returns:
        None where the data cannot tell quality from length: all differences are the same, and not
        zero. Where all outcomes are 1, or all 0, the quality is infinite.

    Raises:
        EmptySetError: When there is no comparison.
        DataError: When an outcome is outside [0, 1] or a difference is not finite.
        ShapeError: When the two are not of the same shape (comparisons,).

    Source:
        Dubois et al. 2404.04475 (AlpacaEval 2): tanh of the length difference in units of its
        standard deviation, ties as half wins, the prediction at difference 0. Differs: no term for
        the difficulty of the prompt and no responses of gamed baselines, both of which need many
        models judged on the same prompts; a Gaussian prior with sd 2 on the length coefficient
        in place of an L1 penalty on all terms chosen by cross-validation, so that the fit is one
        convex problem, solved to the last digit, and swapping the arms gives exactly 1 - win rate.

    Example:
        >>> round(fit_length([1, 1, 1, 0], [0, 0, 0, 0]).win_rate, 12)
        0.75
    """
    wins, differences = _columns(outcomes, length_differences)
    spread = differences.std(ddof=1) if differences.size > 1 else 0.0
    if not spread:
        if differences.any():
            return None
        feature = differences
    else:
        feature = np.tanh(differences / spread)
    if wins.min() == wins.max() and wins[0] in (0.0, 1.0):
        return LengthFit(math.inf if wins[0] else -math.inf, 0.0)
    return _newton(wins, feature)


def _newton(wins: Floats, feature: Floats) -> LengthFit:
    """The maximum of a concave function of two numbers; steps that do not gain are halved."""
    design = np.stack([np.ones_like(feature), feature], axis=1)
    penalty = np.array([0.0, 1.0 / LENGTH_PRIOR_SD**2])
    at = np.zeros(2)

    def loss(place: Floats) -> float:
        logits = design @ place
        fit = np.logaddexp(0.0, logits) - wins * logits
        return float(fit.sum() + 0.5 * (penalty * place**2).sum())

    for _ in range(MAX_NEWTON_STEPS):
        chance = expit(design @ at)
        gradient = design.T @ (chance - wins) + penalty * at
        curvature = (design.T * (chance * (1.0 - chance))) @ design + np.diag(penalty)
        step = np.linalg.solve(curvature, gradient)
        size = 1.0
        # Near the maximum losses differ by rounding alone, and the full step is right.
        most = (before := loss(at)) + TOLERANCE * (1.0 + abs(before))
        while size > TOLERANCE and loss(at - size * step) > most:
            size /= 2.0
        at = at - size * step
        if np.abs(step).max() < TOLERANCE:
            break
    return LengthFit(float(at[0]), float(at[1]))


def length_controlled_win_rate(
    outcomes: ArrayLike,
    length_differences: ArrayLike,
    clusters: ArrayLike,
    *,
    num_resamples: int,
    seed: int,
) -> Estimate | None:
    """The win rate at equal length, with an interval from resampled prompts.

    Args:
        outcomes: Shape (comparisons,): 1 the first wins, 0 it loses, 0.5 a tie.
        length_differences: First length minus second, shape (comparisons,), any unit.
        clusters: Shape (comparisons,), the prompt each belongs to, numbered from 0.
        num_resamples: Of the bootstrap.
        seed: Of the bootstrap.

    Returns:
        In [0, 1]; `count` is the number of prompts. None where quality and length cannot be told
        apart. From one prompt no spread can be learnt: the interval is then [0, 1].

    Raises:
        EmptySetError: When there is no comparison.
        ShapeError: When the three are not of the same shape.

    Example:
        >>> rate = length_controlled_win_rate([1, 0, 1, 0], [5, -5, 5, -5], [0, 1, 2, 3],
        ...                                   num_resamples=50, seed=0)
        >>> round(rate.value, 12)
        0.5
    """
    wins, differences = _columns(outcomes, length_differences)
    fit = fit_length(wins, differences)
    if fit is None:
        return None

    def statistic(rows: NDArray[np.intp]) -> float | None:
        again = fit_length(wins[rows], differences[rows])
        return None if again is None else again.win_rate

    low, high, count = bootstrap_interval(
        clusters, statistic, num_resamples=num_resamples, seed=seed
    )
    return Estimate(fit.win_rate, min(low, fit.win_rate), max(high, fit.win_rate), count)


def bootstrap_interval(
    clusters: ArrayLike,
    statistic: Callable[[NDArray[np.intp]], float | None],
    *,
    num_resamples: int,
    seed: int,
) -> tuple[float, float, int]:
    """The middle 95 % of a share over resamples of whole clusters, and the number of clusters.

    Args:
        clusters: Shape (n,), the cluster of each row, numbered from 0.
        statistic: Rows, with repeats, to a number in [0, 1]; None where it is not defined there.
        num_resamples: 1 or more; resamples without the number do not count.
        seed: Of the draws.

    Source:
        Efron's percentile bootstrap, over clusters.
    """
    labels = np.asarray(clusters, dtype=np.intp)
    members: list[Any] = [np.flatnonzero(labels == label) for label in range(labels.max() + 1)]
    draw = np.random.default_rng(seed)
    values = []
    for _ in range(num_resamples if len(members) > 1 else 0):
        chosen = draw.integers(len(members), size=len(members))
        value = statistic(np.concatenate([members[index] for index in chosen]))
        if value is not None:
            values.append(value)
    if not values:
        return 0.0, 1.0, len(members)
    low, high = np.quantile(values, INTERVAL)
    return float(low), float(high), len(members)


def _columns(outcomes: ArrayLike, length_differences: ArrayLike) -> tuple[Floats, Floats]:
    wins = np.asarray(outcomes, dtype=np.float64)
    differences = np.asarray(length_differences, dtype=np.float64)
    if wins.ndim != 1 or wins.shape != differences.shape:
        raise ShapeError(
            f"expected outcomes and length differences of one shape (comparisons,), got "
            f"{wins.shape} and {differences.shape}"
        )
    if not wins.size:
        raise EmptySetError("expected at least one judged comparison, got none")
    if not (np.isfinite(differences).all() and ((wins >= 0) & (wins <= 1)).all()):
        raise DataError("expected outcomes in [0, 1] and finite length differences")
    return wins, differences
