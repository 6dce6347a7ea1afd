# SPDX-License-Identifier: Apache-2.0
"""A linear head on frozen states, fitted exactly to labelled pairs, hard ones and soft ones.

A head scores a response by theta' phi, phi its states. A pair is its gap c, the states of its first
response less those of its second; its reward gap is z = theta' c, in logits. With p_i the chance
that the first response of pair i is the better one,

    L(theta) = sum_i [log(1 + exp z_i) - p_i z_i] + penalty / 2 |theta - prior_mean|^2

is strictly convex. Its gradient has p in it; its second derivative H, which is what is known of the
head, has not: a label tells as much of theta whatever it says.
"""

from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import cho_factor, cho_solve
from scipy.special import expit

from metarm.errors import DataError, ShapeError

__all__ = ["check_labels", "fit_head", "head_covariance"]

Floats = NDArray[np.float64]

MOST_STEPS: Final = 100
TOLERANCE: Final = 1e-12


def fit_head(
    gaps: ArrayLike,
    p: ArrayLike | None = None,
    *,
    penalty: float = 1.0,
    prior_mean: ArrayLike | None = None,
    start: ArrayLike | None = None,
) -> Floats:
    """The minimum of L, to rounding, by Newton's method: the head of largest posterior.

    Args:
        gaps: c, shape (pairs, size); no pair at all is fine.
        p: Shape (pairs,), in [0, 1]: 1 where the first response was preferred, 0.5 for a tie,
            between them a soft label; None: 1 for all, as in `PreferencePair`.
        penalty: l2 > 0, the prior's precision.
        prior_mean: Shape (size,); None: zeros.
        start: Where to begin, shape (size,), which saves steps; None: the prior mean.

    Returns:
        Shape (size,). Without pairs the prior mean; 0 where all that is known are ties.

    Raises:
        DataError: When a number is not finite, or a label outside [0, 1].
        ShapeError: When the shapes do not fit.

    Source:
        Bradley & Terry 1952 as a logistic regression without intercept. Differs: soft labels, by
        the cross-entropy of p and sigmoid(z), of which a hard label is the end.

    Example:
        >>> fit_head([[1.0], [1.0]], [1.0, 0.0])
        array([0.])
    """
    x, y = check_labels(gaps, p)
    _check_penalty(penalty)
    size = x.shape[1]
    mean = _vector(prior_mean, size, "a prior mean") if prior_mean is not None else np.zeros(size)

    def loss(weights: Floats) -> float:
        z = x @ weights
        fit = np.logaddexp(0.0, z).sum() - y @ z
        return float(fit + penalty / 2 * np.square(weights - mean).sum())

    theta = _vector(start, size, "a start") if start is not None else mean.copy()
    for _ in range(MOST_STEPS):
        likely = expit(x @ theta)
        gradient = x.T @ (likely - y) + penalty * (theta - mean)
        step = cho_solve(cho_factor(_curvature(x, likely, penalty)), gradient)
        share = 1.0
        # Near the minimum a loss falls by less than its own rounding.
        most = (before := loss(theta)) + TOLERANCE * (1.0 + abs(before))
        while share > TOLERANCE and loss(theta - share * step) > most:
            share /= 2
        theta = theta - share * step
        if np.abs(step).max(initial=0.0) <= TOLERANCE * (1.0 + np.abs(theta).max(initial=0.0)):
            break
    return theta


def head_covariance(gaps: ArrayLike, means: ArrayLike, *, penalty: float = 1.0) -> Floats:
    """H^-1 with H = sum_i s_i (1 - s_i) c_i c_i' + penalty * I: what labelled pairs leave unknown.

    Args:
        gaps: c of the pairs that are labelled, shape (pairs, size).
        means: Their reward gaps z, shape (pairs,), in logits; s = sigmoid(z).
        penalty: l2 > 0.

    Returns:
        Shape (size, size), symmetric, positive definite; I / penalty where nothing is labelled.

    Raises:
        DataError: When a number is not finite.
        ShapeError: When the shapes do not fit.

    Source:
        The Laplace approximation; Shen, Sun & Ton, "Active Reward Modeling", 2502.04354, call the
        sum the Fisher information of the last layer.
    """
    x, z = _pairs(gaps, means)
    _check_penalty(penalty)
    found: Floats = cho_solve(cho_factor(_curvature(x, expit(z), penalty)), np.eye(x.shape[1]))
    return (found + found.T) / 2


def check_labels(gaps: ArrayLike, p: ArrayLike | None) -> tuple[Floats, Floats]:
    """Gaps and labels as float64 of shapes (pairs, size) and (pairs,); None: all labels are 1.

    Raises:
        DataError: When a number is not finite, or a label outside [0, 1].
        ShapeError: When the shapes do not fit.
    """
    x, y = _pairs(gaps, np.ones(len(np.asarray(gaps))) if p is None else p)
    if y.size and (y.min() < 0.0 or y.max() > 1.0):
        raise DataError(f"expected labels p in [0, 1], got {y.min():g} to {y.max():g}")
    return x, y


def _curvature(gaps: Floats, likely: Floats, penalty: float) -> Floats:
    found: Floats = (gaps.T * (likely * (1.0 - likely))) @ gaps
    return found + penalty * np.eye(gaps.shape[1])


def _check_penalty(penalty: float) -> None:
    if not (penalty > 0 and np.isfinite(penalty)):
        raise DataError(f"expected a penalty above 0, got {penalty}")


def _vector(values: ArrayLike, size: int, name: str) -> Floats:
    found = np.array(values, np.float64)
    if found.shape != (size,):
        raise ShapeError(f"expected {name} of shape ({size},), got {found.shape}")
    return found


def _pairs(gaps: ArrayLike, values: ArrayLike) -> tuple[Floats, Floats]:
    """Both as finite float64 of shapes (pairs, size) and (pairs,)."""
    x, y = np.asarray(gaps, np.float64), np.asarray(values, np.float64)
    if x.ndim != 2 or y.shape != x.shape[:1]:
        raise ShapeError(
            f"expected gaps of shape (pairs, size) and a number for each, got {x.shape}, {y.shape}"
        )
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise DataError("expected finite states and numbers, got nan or inf")
    return x, y
