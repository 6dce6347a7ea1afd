# SPDX-License-Identifier: Apache-2.0
"""What is known of a linear reward head: its Laplace posterior, and what a label would tell of it.

A head scores a response by theta' phi, phi its frozen features. A pair is its gap c, the features
of its first response less those of its second; its reward gap is z = theta' c, in logits.
"""

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import cho_factor, cho_solve
from scipy.special import expit, xlogy

from metarm.errors import DataError, ShapeError

__all__ = [
    "HeadPosterior",
    "add_label",
    "fit_head",
    "gap_variances",
    "head_covariance",
    "information_gain",
    "laplace_posterior",
]

Floats = NDArray[np.float64]

BLOCK: Final = 2048
"""Pairs that are multiplied with the covariance at once."""
NUM_NODES: Final = 32
MOST_ITERATIONS: Final = 100
TOLERANCE: Final = 1e-9


class HeadPosterior(NamedTuple):
    """A normal distribution of the head's weights."""

    mean: Floats
    """Shape (size,), the maximum of the posterior."""
    covariance: Floats
    """Shape (size, size), the inverse of H."""


def fit_head(
    gaps: ArrayLike,
    outcomes: ArrayLike,
    *,
    penalty: float = 1.0,
    prior_mean: ArrayLike | None = None,
) -> Floats:
    """The weights of largest posterior of a Bradley-Terry head, by Newton's method.

    They minimise sum_i [log(1 + exp z_i) - y_i z_i] + penalty / 2 * |theta - prior_mean|^2.

    Args:
        gaps: c, shape (pairs, size); no pair at all is fine.
        outcomes: y, shape (pairs,), in [0, 1]: 1 where the first response was preferred, 0.5 for a
            tie, between them a soft label.
        penalty: l2 > 0, the prior's precision.
        prior_mean: Shape (size,); None: zeros.

    Returns:
        Shape (size,). Without pairs the prior mean.

    Raises:
        DataError: When a number is not finite, or an outcome outside [0, 1].
        ShapeError: When the shapes do not fit.

    Example:
        >>> fit_head([[1.0], [1.0]], [1.0, 0.0])
        array([0.])
    """
    x, y = _pairs(gaps, outcomes)
    if not (penalty > 0 and np.isfinite(penalty)):
        raise DataError(f"expected a penalty above 0, got {penalty}")
    if y.size and (y.min() < 0.0 or y.max() > 1.0):
        raise DataError(f"expected outcomes in [0, 1], got {y.min():g} to {y.max():g}")
    start = np.zeros(x.shape[1]) if prior_mean is None else np.asarray(prior_mean, np.float64)
    if start.shape != (x.shape[1],):
        raise ShapeError(f"expected a prior mean of shape ({x.shape[1]},), got {start.shape}")

    def loss(weights: Floats) -> float:
        z = x @ weights
        fit = np.logaddexp(0.0, z).sum() - y @ z
        return float(fit + penalty / 2 * np.square(weights - start).sum())

    theta, value = start.copy(), loss(start)
    for _ in range(MOST_ITERATIONS):
        p = expit(x @ theta)
        gradient = x.T @ (p - y) + penalty * (theta - start)
        if np.abs(gradient).max(initial=0.0) <= TOLERANCE * (1.0 + len(y)):
            break
        curvature = (x.T * (p * (1 - p))) @ x + penalty * np.eye(len(theta))
        step = cho_solve(cho_factor(curvature), gradient)
        size = 1.0
        while (found := loss(theta - size * step)) > value and size > 1e-6:
            size /= 2
        if found >= value:
            break
        theta, value = theta - size * step, found
    return theta


def head_covariance(gaps: ArrayLike, means: ArrayLike, *, penalty: float = 1.0) -> Floats:
    """H^-1 with H = sum_i p_i (1 - p_i) c_i c_i' + penalty * I: what labelled pairs leave unknown.

    Args:
        gaps: c of the pairs that are labelled, shape (pairs, size).
        means: Their reward gaps z, shape (pairs,), in logits; p = sigmoid(z).
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
    p = expit(z)
    information = (x.T * (p * (1 - p))) @ x + penalty * np.eye(x.shape[1])
    found: Floats = cho_solve(cho_factor(information), np.eye(x.shape[1]))
    return (found + found.T) / 2


def laplace_posterior(
    gaps: ArrayLike,
    outcomes: ArrayLike,
    *,
    penalty: float = 1.0,
    prior_mean: ArrayLike | None = None,
) -> HeadPosterior:
    """`fit_head` and, at it, `head_covariance`."""
    mean = fit_head(gaps, outcomes, penalty=penalty, prior_mean=prior_mean)
    means = np.asarray(gaps, np.float64) @ mean
    return HeadPosterior(mean, head_covariance(gaps, means, penalty=penalty))


def gap_variances(gaps: ArrayLike, covariance: Floats) -> Floats:
    """v_i = c_i' H^-1 c_i, the variance of each pair's reward gap, shape (pairs,), in logits^2."""
    x = np.asarray(gaps, np.float64)
    found = np.empty(len(x))
    for start in range(0, len(x), BLOCK):
        rows = x[start : start + BLOCK]
        found[start : start + BLOCK] = np.einsum("nd,nd->n", rows @ covariance, rows)
    return found


def add_label(covariance: Floats, gap: Floats, weight: float) -> tuple[Floats, Floats]:
    """The covariance once one more pair is labelled, by Sherman and Morrison.

    A <- A - u u' with u = A c * sqrt(weight / (1 + weight * c' A c)); a variance c_i' A c_i then
    falls by (c_i' u)^2.

    Args:
        covariance: A, shape (size, size).
        gap: c of that pair, shape (size,).
        weight: p (1 - p) of it, in [0, 0.25].

    Returns:
        The new covariance, and u.
    """
    along = covariance @ gap
    step = along * np.sqrt(weight / (1.0 + weight * float(gap @ along)))
    return covariance - np.outer(step, step), step


def information_gain(means: ArrayLike, variances: ArrayLike) -> Floats:
    """What a label is expected to tell of the head, in nats (BALD).

    entropy(E sigmoid(z)) - E entropy(sigmoid(z)) with z ~ N(mean, variance): high where the head
    itself does not know, low where the pair is a toss-up whatever the head.

    Args:
        means: Of the reward gaps, any shape, in logits.
        variances: The same shape, >= 0.

    Returns:
        In [0, log 2]; 0 where the variance is 0, 0.13 nats at mean 0 and variance 1.5.

    Source:
        Houlsby et al., 1112.5745. Differs: Gauss-Hermite quadrature of 32 nodes, not samples.

    Example:
        >>> information_gain([0.0, 5.0], [4.0, 4.0]).round(3)
        array([0.231, 0.044])
    """
    centre, spread = np.broadcast_arrays(
        np.asarray(means, np.float64), np.sqrt(np.maximum(np.asarray(variances, np.float64), 0.0))
    )
    nodes, shares = np.polynomial.hermite_e.hermegauss(NUM_NODES)
    shares = shares / shares.sum()
    expected, within = np.zeros(centre.shape), np.zeros(centre.shape)
    for node, share in zip(nodes, shares, strict=True):
        p = expit(centre + spread * node)
        expected += share * p
        within += share * _entropy(p)
    return np.maximum(_entropy(expected) - within, 0.0)


def _entropy(p: Floats) -> Floats:
    found: Floats = -xlogy(p, p) - xlogy(1 - p, 1 - p)
    return found


def _pairs(gaps: ArrayLike, values: ArrayLike) -> tuple[Floats, Floats]:
    """Both as finite float64 of shapes (pairs, size) and (pairs,)."""
    x, y = np.asarray(gaps, np.float64), np.asarray(values, np.float64)
    if x.ndim != 2 or y.shape != x.shape[:1]:
        raise ShapeError(
            f"expected gaps of shape (pairs, size) and a number for each, got {x.shape}, {y.shape}"
        )
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise DataError("expected finite features and numbers, got nan or inf")
    return x, y
