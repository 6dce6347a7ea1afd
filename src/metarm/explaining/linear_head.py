# SPDX-License-Identifier: Apache-2.0
"""What single labels did: a linear Bradley-Terry head, fitted exactly, with and without each one.

The head is that of `models.linear_head`: the minimum of L with d_i = phi_chosen - phi_rejected and
p_i the chance that the chosen side of label i is the better one, 1 of a hard label. With H the
second derivative of L, s_i = sigmoid(w . d_i), r_i = p_i - s_i what the label says beyond the head
(its residual) and h_i = s_i (1 - s_i) d_i' H^-1 d_i its leverage, label i moves q . w by

    q' H^-1 d_i r_i              to first order, and
    q' H^-1 d_i r_i / (1 - h_i)  by one Newton step from the fit without it,

which is checked against fits without it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import entr, expit, log_expit

from metarm.errors import EmptySetError
from metarm.models.linear_head import check_labels, fit_head, head_covariance

__all__ = ["PENALTIES", "LinearHead", "learn_head", "refit_without"]

Floats = NDArray[np.float64]

PENALTIES: Final = (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
"""Ridge penalties per label that are tried, on states of standard deviation 1."""


@dataclass(frozen=True, slots=True, eq=False)
class LinearHead:
    """A fitted head, and what its labels do to it."""

    differences: Floats
    """phi_chosen - phi_rejected in units of `scale`, shape (labels, size)."""
    p: Floats
    """The chance that each label's chosen side is the better one, shape (labels,), in [0, 1]."""
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
        """W . d_i of each label, in logits: above 0 where the head takes its chosen side."""
        found: Floats = self.differences @ self.weights
        return found

    @property
    def residuals(self) -> Floats:
        """r_i = p_i - s_i, in [-1, 1]; of a hard label, the chance of being wrong that it has."""
        # A margin of 40 leaves 1 - sigmoid nothing, but sigmoid of -40 something.
        found: Floats = self.p * expit(-self.margins) - (1.0 - self.p) * expit(self.margins)
        return found

    @property
    def leverages(self) -> Floats:
        """h_i, in [0, 1): how far each label bends the head to itself."""
        found: Floats = expit(self.margins) * expit(-self.margins) * self._variances
        return found

    @property
    def _variances(self) -> Floats:
        """d_i' H^-1 d_i, shape (labels,)."""
        found: Floats = np.einsum(
            "ij,jk,ik->i", self.differences, self.covariance, self.differences
        )
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
        """What each label adds to its own margin, in logits; of a hard label never below 0."""
        found: Floats = self._variances * self.residuals / (1.0 - self.leverages)
        return found

    @property
    def margins_without(self) -> Floats:
        """What all other labels say of each one, in logits: far below 0, its sides are swapped."""
        found: Floats = self.margins - self.self_influences
        return found

    @property
    def surprises(self) -> Floats:
        """How far each label is from what all others say of it, in nats.

        KL(p_i || sigmoid(margin without it)) >= 0: 0 where a soft label says what they say, log 2
        for a hard one of which they know nothing.
        """
        p, without = self.p, self.margins_without
        found: Floats = -entr(p) - entr(1.0 - p) - _log_likelihoods(p, without)
        return np.maximum(found, 0.0)


def learn_head(
    chosen_minus_rejected: ArrayLike,
    p: ArrayLike | None = None,
    penalties: Sequence[float] = PENALTIES,
) -> LinearHead:
    """The head that the labels teach, its penalty chosen by what labels say of each other.

    Args:
        chosen_minus_rejected: Differences of states, shape (labels, size).
        p: Labels, hard or soft, shape (labels,), in [0, 1]; None: 1 for all.
        penalties: Per label; the one under which left-out labels are likeliest is kept.

    Returns:
        The exact minimum of L; of labels that agree on nothing, weights near 0.

    Raises:
        EmptySetError: When there is no label.
        DataError: When a difference is not finite, or a label outside [0, 1].
        ShapeError: When differences are not of shape (labels, size).

    Source:
        Approximate leave-one-out likelihood: Rad & Maleki 1801.10243.
    """
    raw, labels = check_labels(chosen_minus_rejected, p)
    if not len(raw):
        raise EmptySetError("expected at least one labelled pair to fit a head on, got none")
    scale = np.sqrt((raw**2).mean(axis=0))
    scale = np.where(scale > 0, scale, 1.0)
    heads = [_fit(raw / scale, labels, scale, penalty * len(raw)) for penalty in penalties]
    return max(heads, key=lambda head: float(_log_likelihoods(head.p, head.margins_without).sum()))


def refit_without(head: LinearHead, label: int) -> LinearHead:
    """The same head without one label: the exact minimum again, with the same penalty."""
    others, labels = np.delete(head.differences, label, axis=0), np.delete(head.p, label)
    return _fit(others, labels, head.scale, head.penalty, start=head.weights)


def _fit(
    differences: Floats, p: Floats, scale: Floats, penalty: float, start: Floats | None = None
) -> LinearHead:
    weights = fit_head(differences, p, penalty=penalty, start=start)
    covariance = head_covariance(differences, differences @ weights, penalty=penalty)
    return LinearHead(differences, p, scale, weights, penalty, covariance)


def _log_likelihoods(p: Floats, margins: Floats) -> Floats:
    """Of each label, given a margin: p log s + (1 - p) log (1 - s), in nats."""
    found: Floats = p * log_expit(margins) + (1.0 - p) * log_expit(-margins)
    return found
