# SPDX-License-Identifier: Apache-2.0
"""Calibration: gaps of a reward model as probabilities, by one number fitted on labelled pairs."""

import math
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from metarm.errors import EmptySetError, ShapeError

__all__ = ["Calibration", "fit_temperature"]

Floats = NDArray[np.float64]
TOLERANCE: Final = 1e-12
MOST_STEPS: Final = 200


@dataclass(frozen=True, slots=True)
class Calibration:
    """P(a is better than b) = sigmoid(inverse_temperature * (r(a) - r(b)))."""

    inverse_temperature: float
    """In 1 / logits, from 0 (the gaps say nothing) up; 1: the gaps are logits already."""
    log_loss_before: float
    """Of the gaps as logits, in nats a pair; log 2 = 0.693 for a coin."""
    log_loss: float
    """The same after calibration, and before the targets were smoothed."""
    num_pairs: int

    def probabilities(self, gaps: ArrayLike) -> Floats:
        """P(first is better) of gaps of any shape, in [0, 1]; 0.5 at gap 0."""
        return _sigmoid(self.inverse_temperature * np.asarray(gaps, dtype=np.float64))

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def fit_temperature(gaps: ArrayLike, labels: ArrayLike | None = None) -> Calibration:
    """The temperature at which gaps are the likeliest log odds of held-out labels.

    Maximises sum t log sigmoid(a g) + (1 - t) log sigmoid(-a g) over a >= 0, by Newton's method
    inside a bracket: the function is concave. Targets are smoothed, t = p (n + 1) / (n + 2) +
    (1 - p) / (n + 2): of n pairs that are all in order no finite temperature would be likeliest.

    Args:
        gaps: Chosen minus rejected, of pairs that the model was not trained on, shape (pairs,).
        labels: P(chosen is better), shape (pairs,); None: 1.

    Returns:
        `inverse_temperature` 0 where the gaps are right no more often than wrong.

    Raises:
        EmptySetError: When there are no pairs.
        ShapeError: When labels are not of the gaps' shape.

    Source:
        Guo et al. 2017 for one temperature; Platt 2000 for the targets.

    Example:
        >>> round(fit_temperature([2.0, 2.0, 2.0, -2.0] * 100).inverse_temperature, 2)
        0.55
    """
    found = np.asarray(gaps, dtype=np.float64)
    told = np.ones_like(found) if labels is None else np.asarray(labels, dtype=np.float64)
    if found.ndim != 1 or told.shape != found.shape:
        raise ShapeError(f"expected one label a gap, got {told.shape} beside {found.shape}")
    if not found.size:
        raise EmptySetError("expected held-out labelled pairs to calibrate on, got none")
    count = found.size
    targets = (told * (count + 1) + (1 - told)) / (count + 2)
    # In units of their own size, so that neither steps nor bounds depend on the model's scale.
    unit = float(np.abs(found).mean()) or 1.0
    inverse = _maximise(found / unit, targets) / unit
    return Calibration(
        inverse, _log_loss(found, told), _log_loss(inverse * found, told), int(count)
    )


def _maximise(gaps: Floats, targets: Floats) -> float:
    """The a >= 0 at which the slope sum g (t - sigmoid(a g)) is 0, or 0 where it begins below."""

    def slope(at: float) -> float:
        return float((gaps * (targets - _sigmoid(at * gaps))).sum())

    if slope(0.0) <= 0.0:
        return 0.0
    low, high = 0.0, 1.0
    while slope(high) > 0.0:
        low, high = high, 2.0 * high
    at = low
    for _ in range(MOST_STEPS):
        rise = slope(at)
        low, high = (at, high) if rise > 0.0 else (low, at)
        spread = _sigmoid(at * gaps)
        curvature = float((gaps**2 * spread * (1.0 - spread)).sum())
        following = at + rise / curvature if curvature > 0.0 else math.inf
        if not low < following < high:
            following = (low + high) / 2.0
        if abs(following - at) <= TOLERANCE * max(1.0, at):
            return following
        at = following
    return at


def _sigmoid(values: Floats) -> Floats:
    """Without overflow at either end."""
    small = np.exp(-np.abs(values))
    result: Floats = np.where(values >= 0, 1.0, small) / (1.0 + small)
    return result


def _log_loss(logits: Floats, labels: Floats) -> float:
    """Cross-entropy of soft labels, in nats a pair."""
    return float((np.logaddexp(0.0, logits) - labels * logits).mean())
