# SPDX-License-Identifier: Apache-2.0
"""How much of a reward is length: its slope, the share of longer answers, accuracy without it."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from metarm.errors import ShapeError
from metarm.judging.length_control import length_controlled_win_rate
from metarm.metrics import accuracy_estimate, length_balanced_accuracy
from metarm.schema import Estimate, PreferencePair
from metarm.streams import draw_seed

__all__ = ["LengthBias", "length_slope", "measure_length_bias"]

Floats = NDArray[np.float64]

NUM_RESAMPLES: Final = 200
UNIT: Final = 100.0
CONFIDENCE: Final = 0.95


@dataclass(frozen=True, slots=True)
class LengthBias:
    """What a reward model makes of length, beside what the labels do; lengths in characters."""

    slope: Estimate | None
    """Logits for each 100 characters more, between answers to one prompt; None: all as long."""
    model_prefers_longer: Estimate | None
    """Share of pairs of different length in which the longer answer has the higher reward."""
    labels_prefer_longer: Estimate | None
    accuracy_controlled: Estimate | None
    """Accuracy that answers of equal length would have, by a logistic model; None: not told."""
    accuracy_balanced: float | None
    """Mean of the accuracies where the better answer is longer and where it is shorter."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def length_slope(
    gaps: ArrayLike, length_differences: ArrayLike, clusters: Sequence[int]
) -> Estimate | None:
    """The line through 0 of reward differences on length differences, with its 95 % interval.

    Args:
        gaps: Reward differences within prompts, shape (pairs,).
        length_differences: Of the same sides, any unit.
        clusters: The prompt of each pair.

    Returns:
        Reward for each unit of length; swapping sides changes nothing. None where no lengths
        differ.

    Raises:
        ShapeError: When shapes differ.

    Source:
        Liang & Zeger 1986, clustered by prompt, with G / (G - 1) and G - 1 degrees of freedom.

    Example:
        >>> length_slope([2.0, -4.0], [1.0, -2.0], [0, 1]).value
        2.0
    """
    y, x = np.asarray(gaps, np.float64), np.asarray(length_differences, np.float64)
    if y.ndim != 1 or y.shape != x.shape or len(clusters) != len(y):
        raise ShapeError(f"expected columns of one shape, got {y.shape}, {x.shape}")
    size = float(x @ x)
    if not size:
        return None
    slope = float(x @ y) / size
    _, labels = np.unique(np.asarray(clusters), return_inverse=True)
    sums = np.bincount(labels, weights=x * (y - slope * x))
    count = len(sums)
    if count == 1:
        return Estimate(slope, slope, slope, count)
    error = np.sqrt(count / (count - 1) * float(sums @ sums)) / size
    half = float(stats.t.ppf((1.0 + CONFIDENCE) / 2.0, df=count - 1) * error)
    return Estimate(slope, slope - half, slope + half, count)


def measure_length_bias(
    pairs: Sequence[PreferencePair], gaps: Floats, clusters: Sequence[int], *, seed: int
) -> LengthBias:
    """All figures of `LengthBias`.

    Args:
        pairs: Labelled.
        gaps: Reward of the chosen less that of the rejected response, shape (pairs,).
        clusters: The prompt of each pair, numbered from 0.
        seed: Of the bootstrap.
    """
    chosen = np.array([len(pair.chosen) for pair in pairs], np.float64)
    rejected = np.array([len(pair.rejected) for pair in pairs], np.float64)
    difference = chosen - rejected
    correct = (1.0 + np.sign(gaps)) / 2.0
    differs = difference != 0
    own = [cluster for cluster, is_own in zip(clusters, differs, strict=True) if is_own]
    longer = difference[differs] > 0
    return LengthBias(
        slope=length_slope(gaps, difference / UNIT, clusters),
        model_prefers_longer=accuracy_estimate(
            np.where(longer, correct[differs], 1.0 - correct[differs]), own
        )
        if own
        else None,
        labels_prefer_longer=accuracy_estimate(longer.astype(np.float64), own) if own else None,
        accuracy_controlled=length_controlled_win_rate(
            correct,
            difference,
            clusters,
            num_resamples=NUM_RESAMPLES,
            seed=draw_seed(seed, "length"),
        ),
        accuracy_balanced=length_balanced_accuracy(correct, chosen, rejected),
    )
