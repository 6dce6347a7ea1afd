# SPDX-License-Identifier: Apache-2.0
"""Covariances of fitted parameters by Laplace: the inverse of the observed information."""

from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["laplace_covariance"]

Floats = NDArray[np.float64]

STEP: Final = 1e-5
LEAST_CURVATURE: Final = 1e-6


def laplace_covariance(gradient: Callable[[Floats], Floats], at: Floats) -> Floats:
    """The inverse of the Hessian of a penalised negative log-likelihood at its minimum.

    The Hessian is taken from the exact gradient by forward differences of step 1e-5; curvatures
    under 1e-6, which a penalty rules out, are raised to that.

    Args:
        gradient: Of the loss, in nats.
        at: The minimum, shape (parameters,).

    Returns:
        Shape (parameters, parameters), symmetric and positive definite: 1/2 for the loss x^2.

    Source:
        Laplace's approximation to a posterior; observed information, Efron & Hinkley 1978.

    Example:
        >>> float(laplace_covariance(lambda x: 2.0 * x, np.zeros(1))[0, 0].round(6))
        0.5
    """
    here = gradient(at)
    rows = [(gradient(at + step) - here) / STEP for step in STEP * np.eye(len(at))]
    hessian = np.array(rows).reshape(len(at), len(at))
    values, vectors = np.linalg.eigh((hessian + hessian.T) / 2.0)
    covariance: Floats = (vectors / np.maximum(values, LEAST_CURVATURE)) @ vectors.T
    return covariance
