# SPDX-License-Identifier: Apache-2.0
"""What is known of a linear reward head: its Laplace posterior, and what a label would tell of it.

A head scores a response by theta' phi, phi its frozen features. A pair is its gap c, the features
of its first response less those of its second; its reward gap is z = theta' c, in logits.
"""

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, xlogy

from metarm.models.linear_head import fit_head, head_covariance

__all__ = [
    "HeadPosterior",
    "add_label",
    "gap_variances",
    "information_gain",
    "laplace_posterior",
]

Floats = NDArray[np.float64]

BLOCK: Final = 2048
"""Pairs that are multiplied with the covariance at once."""
NUM_NODES: Final = 32


class HeadPosterior(NamedTuple):
    """A normal distribution of the head's weights."""

    mean: Floats
    """Shape (size,), the maximum of the posterior."""
    covariance: Floats
    """Shape (size, size), the inverse of H."""


def laplace_posterior(
    gaps: ArrayLike,
    p: ArrayLike | None = None,
    *,
    penalty: float = 1.0,
    prior_mean: ArrayLike | None = None,
) -> HeadPosterior:
    """`fit_head` and, at it, `head_covariance`."""
    mean = fit_head(gaps, p, penalty=penalty, prior_mean=prior_mean)
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
