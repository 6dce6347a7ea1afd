# SPDX-License-Identifier: Apache-2.0
"""What came out of one cell (shift, seed, method), and how methods differ over seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metarm.metrics import mean_estimate
from metarm.schema import Estimate

__all__ = ["Cell", "Tally", "clustered_difference", "clustered_mean"]


@dataclass(frozen=True, slots=True)
class Tally:
    """Right answers on labelled pairs, by prompt, so that prompts can be clusters."""

    prompts: tuple[str, ...]
    """A short hash of each prompt."""
    counts: tuple[int, ...]
    """Pairs of it."""
    correct: tuple[float, ...]
    """Of them ordered as labelled; a tie counts one half."""

    @property
    def accuracy(self) -> float:
        """Over all pairs."""
        return sum(self.correct) / sum(self.counts)


@dataclass(frozen=True, slots=True)
class Cell:
    """One method on one split of one shift; what has no labels is None."""

    shift: str
    method: str
    seed: int
    best_step: int
    """Where the stopping rule took it: highest accuracy on original validation pairs."""
    original: Tally
    shifted: Tally | None
    length_balanced: float | None
    """Mean of the accuracies on shifted pairs where the better response is longer and shorter."""
    rank_correlation: float | None
    """Mean within-group Spearman correlation with `plain`, on groups that were not trained on."""
    difference: float
    """J of those groups, in units of the spread of scores on original pairs."""
    curve: tuple[tuple[int, float, float, float | None], ...]
    """Step, and accuracy on validation, original and shifted pairs."""
    forward: int
    backward: int
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Nested plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> "Cell":
        """The inverse of `to_json`."""
        values = dict(row)
        for name in ("original", "shifted"):
            if values[name] is not None:
                values[name] = Tally(**{key: tuple(v) for key, v in values[name].items()})
        values["curve"] = tuple(tuple(point) for point in values["curve"])
        return cls(**values)


def clustered_mean(tallies: Sequence[Tally]) -> Estimate:
    """Accuracy over several splits, its 95 % interval clustered by prompt.

    Splits share prompts: a prompt that is tested in three of them is one cluster.
    """
    prompts, correct, counts = _columns(tallies)
    return _ratio(prompts, correct, counts)


def clustered_difference(ours: Sequence[Tally], theirs: Sequence[Tally]) -> Estimate:
    """Difference in accuracy on the same pairs of the same splits, clustered by prompt."""
    prompts, correct, counts = _columns(ours)
    _, other, _ = _columns(theirs)
    return _ratio(prompts, correct - other, counts)


def _columns(
    tallies: Sequence[Tally],
) -> tuple[list[str], NDArray[np.float64], NDArray[np.float64]]:
    prompts = [prompt for tally in tallies for prompt in tally.prompts]
    correct = np.array([value for tally in tallies for value in tally.correct], dtype=np.float64)
    counts = np.array([value for tally in tallies for value in tally.counts], dtype=np.float64)
    return prompts, correct, counts


def _ratio(
    prompts: Sequence[str], sums: NDArray[np.float64], counts: NDArray[np.float64]
) -> Estimate:
    """sum(sums) / sum(counts), with the sandwich variance of a ratio over clusters."""
    value = float(sums.sum() / counts.sum())
    # Linearised: each cluster's residual in units of the mean count per row.
    residuals = (sums - value * counts) / counts.mean()
    spread = mean_estimate(residuals, prompts)
    half = spread.high - spread.value
    return Estimate(value, value - half, value + half, spread.count)
