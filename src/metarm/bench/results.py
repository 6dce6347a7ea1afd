# SPDX-License-Identifier: Apache-2.0
"""What came out of one cell (shift, seed, method), and how methods differ over seeds."""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student_t

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
    """Mean within-group Spearman correlation with `plain` at the same step, on groups that were
    not trained on.
    """
    difference: float
    """J of those groups, in units of the spread of scores on original pairs."""
    strength: float
    """Share of its full strength that a guard left the meta step at `best_step`; 1 without one."""
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
    """Accuracy over several splits, its 95 % interval clustered by prompt and by split.

    Splits share prompts, so a prompt that three of them test is one cluster; and all answers of a
    split come from one training, so a split is a cluster too.
    """
    return _ratio(tallies, _column(tallies, "correct"))


def clustered_difference(ours: Sequence[Tally], theirs: Sequence[Tally]) -> Estimate:
    """Difference in accuracy on the same pairs of the same splits, clustered in the same way."""
    return _ratio(ours, _column(ours, "correct") - _column(theirs, "correct"))


def _column(tallies: Sequence[Tally], name: str) -> NDArray[np.float64]:
    values = [value for tally in tallies for value in getattr(tally, name)]
    return np.array(values, dtype=np.float64)


def _ratio(tallies: Sequence[Tally], sums: NDArray[np.float64]) -> Estimate:
    """sum(sums) / sum(counts), and the two-way sandwich variance of a ratio.

    V = V(by prompt) + V(by split) - V(by both), each G / (G - 1) * sum of squared residual sums;
    Student's t with one less than the smaller number of clusters. One split has its prompts only,
    and says nothing of another training.

    Source:
        Cameron, Gelbach & Miller 2011, eq. 2.11.
    """
    counts = _column(tallies, "counts")
    value = float(sums.sum() / counts.sum())
    residuals = (sums - value * counts) / counts.sum()
    prompts = [prompt for tally in tallies for prompt in tally.prompts]
    splits = [index for index, tally in enumerate(tallies) for _ in tally.prompts]
    both = list(zip(prompts, splits, strict=True))
    num_prompts, num_splits = len(set(prompts)), len(tallies)
    by_prompt = _cluster_variance(residuals, prompts)
    if num_splits == 1 or num_prompts == 1:
        # From one prompt no spread can be learnt: a count of 1 says so, as in `metrics`.
        quantile = float(student_t.ppf(0.975, num_prompts - 1)) if num_prompts > 1 else 0.0
        half = quantile * math.sqrt(by_prompt)
        return Estimate(value, value - half, value + half, num_prompts)
    by_split = _cluster_variance(residuals, splits)
    # The difference can fall below one of its parts where there are few clusters.
    variance = max(by_prompt + by_split - _cluster_variance(residuals, both), by_prompt, by_split)
    count = min(num_prompts, num_splits)
    half = float(student_t.ppf(0.975, count - 1)) * math.sqrt(variance)
    return Estimate(value, value - half, value + half, count)


def _cluster_variance(residuals: NDArray[np.float64], clusters: Sequence[Hashable]) -> float:
    """G / (G - 1) times the sum over clusters of their squared residual sums."""
    numbers: dict[Hashable, int] = {}
    rows = [numbers.setdefault(cluster, len(numbers)) for cluster in clusters]
    sums = np.bincount(rows, weights=residuals)
    return float(len(sums) / max(len(sums) - 1, 1) * (sums**2).sum())
