# SPDX-License-Identifier: Apache-2.0
"""What single labels did: a linear Bradley-Terry head, fitted exactly, with and without each one.

    L(w) = sum over labels of log(1 + exp(-w . d_i)) + penalty / 2 |w|^2

With d_i = phi_chosen - phi_rejected, H the second derivative of L, p_i the chance that label i is
given of being wrong (its residual) and h_i = p_i (1 - p_i) d_i' H^-1 d_i its leverage, label i
moves the difference q . w by

    q' H^-1 d_i p_i              to first order, and
    q' H^-1 d_i p_i / (1 - h_i)  by one Newton step from the fit without it,

which is checked against fits without it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import linalg
from scipy.special import expit, log_expit

from metarm.errors import DataError, EmptySetError, ShapeError

__all__ = ["PENALTIES", "LinearHead", "fit_head", "refit_without"]

Floats = NDArray[np.float64]

PENALTIES: Final = (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
"""Ridge penalties per label that are tried, on states of standard deviation 1."""
MAX_NEWTON_STEPS: Final = 100
TOLERANCE: Final = 1e-12


@dataclass(frozen=True, slots=True, eq=False)
class LinearHead:
    """A fitted head, and what its labels do to it."""

    differences: Floats
    """phi_chosen - phi_rejected in units of `scale`, shape (labels, size)."""
    scale: Floats
    """Root mean square of each state's differences, shape (size,)."""
    weights: Floats
    """Shape (size,), of differences in units of `scale`."""
    penalty: float
    """Of the sum of losses."""
    covariance: Floats
    """H^-1, shape (size, size)."""

    @property
    def margins(self) -> Floats:
        """W . d_i of each label, in logits: above 0 where the head agrees with it."""
        found: Floats = self.differences @ self.weights
        return found

    @property
    def residuals(self) -> Floats:
        """The chance that the head gives each label of being wrong, in (0, 1)."""
        found: Floats = expit(-self.margins)
        return found

    @property
    def leverages(self) -> Floats:
        """h_i, in [0, 1): how far each label bends the head to itself."""
        residuals = self.residuals
        own = np.einsum("ij,jk,ik->i", self.differences, self.covariance, self.differences)
        found: Floats = residuals * (1.0 - residuals) * own
        return found

    def predict(self, differences: ArrayLike) -> Floats:
        """The head's reward differences of other pairs, in logits; shape (pairs, size) in."""
        found: Floats = np.asarray(differences, np.float64) / self.scale @ self.weights
        return found

    def influences(self, differences: ArrayLike, *, is_first_order: bool = False) -> Floats:
        """What each label adds to the head's reward difference of each pair.

        Args:
            differences: phi_first - phi_second of the pairs, shape (pairs, size).
            is_first_order: Leave out the leverage: an infinitesimal weight, scaled up to one.

        Returns:
            In logits, shape (pairs, labels): above 0 where the label speaks for the first side.

        Source:
            Koh & Liang 1703.04730 for the first order; Beirami et al. 1711.05482 for the Newton
            step with its leverage.
        """
        asked = np.asarray(differences, np.float64) / self.scale
        moved = asked @ self.covariance @ (self.differences * self.residuals[:, None]).T
        found: Floats = moved if is_first_order else moved / (1.0 - self.leverages)
        return found

    @property
    def self_influences(self) -> Floats:
        """What each label adds to its own margin, in logits; never below 0."""
        own = np.einsum("ij,jk,ik->i", self.differences, self.covariance, self.differences)
        found: Floats = own * self.residuals / (1.0 - self.leverages)
        return found

    @property
    def margins_without(self) -> Floats:
        """What all other labels say of each one, in logits: far below 0, and it may be mistaken."""
        found: Floats = self.margins - self.self_influences
        return found


def fit_head(
    chosen_minus_rejected: ArrayLike, penalties: Sequence[float] = PENALTIES
) -> LinearHead:
    """The head that the labels teach, its penalty chosen by what labels say of each other.

    Args:
        chosen_minus_rejected: Differences of states, shape (labels, size).
        penalties: Per label; the one under which left-out labels are likeliest is kept.

    Returns:
        The exact minimum of L; of labels that agree on nothing, weights near 0.

    Raises:
        EmptySetError: When there is no label.
        DataError: When a difference is not finite.
        ShapeError: When differences are not of shape (labels, size).

    Source:
        Approximate leave-one-out likelihood: Rad & Maleki 1801.10243.
    """
    raw = np.asarray(chosen_minus_rejected, np.float64)
    if raw.ndim != 2:
        raise ShapeError(f"expected differences of shape (labels, size), got {raw.shape}")
    if not len(raw):
        raise EmptySetError("expected at least one labelled pair to fit a head on, got none")
    if not np.isfinite(raw).all():
        raise DataError("expected finite differences of states, got one that is not")
    scale = np.sqrt((raw**2).mean(axis=0))
    scale = np.where(scale > 0, scale, 1.0)
    scaled = raw / scale
    heads = [_fit(scaled, scale, penalty * len(raw)) for penalty in penalties]
    return max(heads, key=lambda head: float(log_expit(head.margins_without).sum()))


def refit_without(head: LinearHead, label: int) -> LinearHead:
    """The same head without one label: the exact minimum again, with the same penalty."""
    others = np.delete(head.differences, label, axis=0)
    return _fit(others, head.scale, head.penalty, start=head.weights)


def _fit(
    differences: Floats, scale: Floats, penalty: float, start: Floats | None = None
) -> LinearHead:
    """Newton's method on a strictly convex function; steps that do not gain are halved."""
    at = np.zeros(differences.shape[1]) if start is None else start.copy()

    def loss(place: Floats) -> float:
        return float(-log_expit(differences @ place).sum() + 0.5 * penalty * place @ place)

    def curvature(place: Floats) -> Floats:
        wrong = expit(-differences @ place)
        found: Floats = (differences.T * (wrong * (1.0 - wrong))) @ differences
        return found + penalty * np.eye(len(place))

    for _ in range(MAX_NEWTON_STEPS):
        wrong = expit(-differences @ at)
        gradient = penalty * at - differences.T @ wrong
        step = linalg.solve(curvature(at), gradient, assume_a="pos")
        size = 1.0
        most = (before := loss(at)) + TOLERANCE * (1.0 + abs(before))
        while size > TOLERANCE and loss(at - size * step) > most:
            size /= 2.0
        at = at - size * step
        if np.abs(step).max() < TOLERANCE:
            break
    covariance = linalg.inv(curvature(at))
    return LinearHead(differences, scale, at, penalty, covariance)
