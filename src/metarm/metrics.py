# SPDX-License-Identifier: Apache-2.0
"""Numbers about scores, in float64 numpy: accuracies, gaps, rank correlations, with intervals.

Responses to one prompt resemble each other, so intervals count prompts (clusters), not responses.
"""

import math
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from metarm.errors import DataError, EmptySetError, ShapeError
from metarm.schema import Estimate, Histogram

__all__ = [
    "WinTieLose",
    "accuracy_estimate",
    "adjust_by_holm",
    "best_of_n_mean",
    "gap_histogram",
    "kl_estimate",
    "length_balanced_accuracy",
    "mean_estimate",
    "mean_group_spearman",
    "pair_accuracy",
    "paired_difference",
    "win_tie_lose",
    "within_group_gaps",
]

CONFIDENCE: Final = 0.95

Floats = NDArray[np.float64]


class WinTieLose(NamedTuple):
    """Shares of comparisons that the first side wins, ties and loses; the values sum to 1."""

    win: Estimate
    tie: Estimate
    lose: Estimate


def mean_estimate(values: ArrayLike, clusters: ArrayLike | None = None) -> Estimate:
    """The mean with its 95 % t interval, robust to likeness within clusters.

    variance = G / (G - 1) * sum over clusters of (sum of residuals)^2 / n^2, with G - 1 degrees of
    freedom; without clusters this is the usual s^2 / n.

    Args:
        values: Shape (n,), finite.
        clusters: Shape (n,), the prompt each value belongs to; None means each value its own.

    Returns:
        In the values' unit; `count` is the number of clusters. From one cluster no spread can be
        learnt: the interval is then the value itself, and a count of 1 says so.

    Raises:
        EmptySetError: When there is no value.
        DataError: When a value is not finite.
        ShapeError: When values or clusters are not of shape (n,).

    Source:
        Liang & Zeger 1986, the sandwich variance of a mean.

    Example:
        >>> str(mean_estimate([1.0, 2.0, 3.0]))
        '2.000 [-0.484, 4.484]'
    """
    numbers = _numbers(values, "values")
    labels = _cluster_labels(clusters, numbers.size)
    mean, half_width, count = _mean_and_half_width(numbers, labels)
    return Estimate(mean, mean - half_width, mean + half_width, count)


def accuracy_estimate(correct: ArrayLike, clusters: ArrayLike | None = None) -> Estimate:
    """Share of right answers with its 95 % interval, inside [0, 1].

    Wilson's interval where each 0/1 value stands for itself; else the interval of `mean_estimate`.
    Where all answers are right (or all wrong) that one would have no width, so Wilson's for as
    many answers as there are clusters stands in.

    Args:
        correct: Shape (n,), 1 right, 0 wrong, 0.5 a tie.
        clusters: Shape (n,), the prompt each value belongs to; None means each value its own.

    Returns:
        In [0, 1], 0.5 for guessing; `count` is the number of clusters.

    Raises:
        EmptySetError: When there is no value.
        DataError: When a value is outside [0, 1].
        ShapeError: When correct or clusters are not of shape (n,).

    Source:
        Wilson 1927; Liang & Zeger 1986.

    Example:
        >>> str(accuracy_estimate([1, 1, 1, 0]))
        '0.750 [0.301, 0.954]'
    """
    numbers = _numbers(correct, "correct")
    if numbers.min() < 0 or numbers.max() > 1:
        raise DataError(
            f"correct must be in [0, 1], got values from {numbers.min()} to {numbers.max()}. "
            "Use 1 for right, 0 for wrong, 0.5 for a tie."
        )
    labels = _cluster_labels(clusters, numbers.size)
    mean, half_width, count = _mean_and_half_width(numbers, labels)
    is_unanimous = mean in (0.0, 1.0)
    if is_unanimous or (count == numbers.size and bool(np.isin(numbers, (0.0, 1.0)).all())):
        interval = stats.binomtest(round(mean * count), count).proportion_ci(CONFIDENCE, "wilson")
        return Estimate(mean, float(interval.low), float(interval.high), count)
    if count == 1:
        return Estimate(mean, 0.0, 1.0, count)
    return Estimate(mean, max(0.0, mean - half_width), min(1.0, mean + half_width), count)


def pair_accuracy(gaps: ArrayLike, gold_gaps: ArrayLike) -> Floats:
    """Per pair whether the score orders it as gold does: 1, 0, or 0.5 where the score ties.

    Args:
        gaps: Score differences, shape (pairs,), any unit.
        gold_gaps: Gold differences of the same pairs; where gold ties there is no right answer.

    Returns:
        Shape (pairs without a gold tie,), in order: keep clusters in step with `gold_gaps != 0`.

    Raises:
        EmptySetError: When there is no pair.
        ShapeError: When the two are not of the same shape (pairs,).

    Example:
        >>> pair_accuracy([2.0, -1.0, 0.0, 3.0], [1.0, 1.0, 1.0, 0.0]).tolist()
        [1.0, 0.0, 0.5]
    """
    ours, gold = _same_length(gaps=gaps, gold_gaps=gold_gaps)
    decided = gold != 0
    agreement: Floats = np.sign(ours[decided]) * np.sign(gold[decided])
    return (1.0 + agreement) / 2.0


def length_balanced_accuracy(
    correct: ArrayLike, chosen_lengths: ArrayLike, rejected_lengths: ArrayLike
) -> float | None:
    """Mean of the accuracies where the better response is the longer and where it is the shorter.

    A score that only counts tokens gets 0.5, however often the longer response is the better one.

    Args:
        correct: Shape (pairs,), 1, 0 or 0.5.
        chosen_lengths: Length of the better response, shape (pairs,), any unit.
        rejected_lengths: Length of the other one; pairs of equal length count on neither side.

    Returns:
        In [0, 1]; None when one of the two sides has no pair.

    Raises:
        EmptySetError: When there is no pair.
        ShapeError: When the three are not of the same shape (pairs,).

    Example:
        >>> length_balanced_accuracy([1, 1, 1, 0], [9, 9, 9, 2], [3, 3, 3, 3])
        0.5
    """
    right, chosen, rejected = _same_length(
        correct=correct, chosen_lengths=chosen_lengths, rejected_lengths=rejected_lengths
    )
    longer, shorter = right[chosen > rejected], right[chosen < rejected]
    if longer.size == 0 or shorter.size == 0:
        return None
    return float((longer.mean() + shorter.mean()) / 2.0)


def within_group_gaps(scores: ArrayLike) -> Floats:
    """All differences s_i - s_j with i < j between responses to the same prompt.

    Args:
        scores: Shape (groups, k).

    Returns:
        Shape (groups, k (k - 1) / 2), in the scores' unit; no gaps when k is 1.

    Raises:
        ShapeError: When scores are not (groups, k).

    Example:
        >>> within_group_gaps([[1.0, 3.0, 6.0]]).tolist()
        [[-2.0, -5.0, -3.0]]
    """
    table = _groups(scores, "scores")
    first, second = np.triu_indices(table.shape[1], k=1)
    gaps: Floats = table[:, first] - table[:, second]
    return gaps


def mean_group_spearman(first: ArrayLike, second: ArrayLike) -> float | None:
    """Spearman's rank correlation of two scores within a prompt, averaged over prompts.

    Args:
        first: Shape (groups, k), any unit.
        second: Shape (groups, k), any unit, of the same responses.

    Returns:
        In [-1, 1]: 1 the same order everywhere, 0 no relation. Groups in which either score is
        constant have no order and are left out; None when none is left.

    Raises:
        ShapeError: When the two are not of the same shape (groups, k).

    Source:
        Spearman 1904; ties share their mean rank.

    Example:
        >>> mean_group_spearman([[1, 2, 3], [5, 5, 5]], [[10, 20, 15], [1, 2, 3]])
        0.5
    """
    one, other = _groups(first, "first"), _groups(second, "second")
    if one.shape != other.shape:
        raise ShapeError(f"expected two scores of one shape, got {one.shape} and {other.shape}")
    centre = (one.shape[1] + 1) / 2.0
    ranks_one: Floats = stats.rankdata(one, axis=1) - centre
    ranks_other: Floats = stats.rankdata(other, axis=1) - centre
    # One root of the product: sqrt(a) * sqrt(a) is not a, and equal orders should give exactly 1.
    scale = np.sqrt((ranks_one**2).sum(axis=1) * (ranks_other**2).sum(axis=1))
    ordered = scale > 0
    if not ordered.any():
        return None
    return float(((ranks_one * ranks_other).sum(axis=1)[ordered] / scale[ordered]).mean())


def gap_histogram(
    gaps: ArrayLike, unit: float, num_bins: int = 41, limit: float = 4.0
) -> Histogram:
    """How the gaps are spread, counted in units of `unit`; the outer bins collect the tails.

    Args:
        gaps: Any shape, finite.
        unit: What counts as 1, in the gaps' unit: the spread of a reference.
        num_bins: An odd number puts a bin around 0.
        limit: The edges run from -limit to limit, in units.

    Returns:
        Edges in units; the counts sum to the number of gaps.

    Raises:
        DataError: When `unit` is not above 0 or a gap is not finite.

    Example:
        >>> gap_histogram([-9.0, 0.0, 0.5, 2.0], unit=1.0, num_bins=3, limit=3.0).counts
        (1, 2, 1)
    """
    if not unit > 0:
        raise DataError(
            f"gap_histogram expects a unit above 0, got {unit}: the reference scores do not "
            "differ. Give it more responses, or a reward model that tells them apart."
        )
    edges = np.linspace(-limit, limit, num_bins + 1)
    flat = _finite(np.asarray(gaps, dtype=np.float64).ravel(), "gaps")
    counts, _ = np.histogram(np.clip(flat / unit, -limit, limit), bins=edges)
    return Histogram(tuple(edges.tolist()), tuple(counts.tolist()))


def win_tie_lose(first: ArrayLike, second: ArrayLike, tie_margin: float = 0.0) -> WinTieLose:
    """How often the first side's score is above, near and below the second's, prompt by prompt.

    Args:
        first: Shape (prompts,).
        second: Shape (prompts,), the same prompts in the same order.
        tie_margin: Differences up to this size are ties, in the scores' unit.

    Returns:
        Three shares in [0, 1], each with Wilson's 95 % interval.

    Raises:
        EmptySetError: When there is no prompt.
        ShapeError: When the two are not of the same shape (prompts,).

    Example:
        >>> [share.value for share in win_tie_lose([3, 1, 0, 5], [0, 1, 2, 1])]
        [0.5, 0.25, 0.25]
    """
    one, other = _same_length(first=first, second=second)
    differences = one - other
    return WinTieLose(
        win=accuracy_estimate(differences > tie_margin),
        tie=accuracy_estimate(np.abs(differences) <= tie_margin),
        lose=accuracy_estimate(differences < -tie_margin),
    )


def kl_estimate(log_ratios: ArrayLike, clusters: ArrayLike | None = None) -> Estimate:
    """KL(policy || reference) per response, as the mean log ratio on the policy's own samples.

    Unbiased (the estimator called k1), so that it may come out below 0 when the truth is near 0.

    Args:
        log_ratios: log policy(response) - log reference(response), summed over a response's
            tokens, shape (responses,), in nats.
        clusters: Shape (responses,), the prompt each belongs to; None means each its own.

    Returns:
        In nats; 0 when policy and reference are the same.

    Raises:
        EmptySetError: When there is no response.
        DataError: When a log ratio is not finite.
        ShapeError: When log ratios or clusters are not of shape (responses,).

    Example:
        >>> kl_estimate([0.5, -0.25, 0.5, 0.25]).value
        0.25
    """
    return mean_estimate(log_ratios, clusters)


def best_of_n_mean(scores: ArrayLike, gold: ArrayLike, n: int) -> float:
    """Mean gold of the response that scores best among n drawn from each prompt's pool.

    The mean over all subsets of n, not one draw of them: the response of rank i from below is the
    best of C(i - 1, n - 1) of C(size, n) subsets. Its policy is ln n - (n - 1) / n nats from the
    pool's, whatever the score, so that scores are compared at equal KL.

    Args:
        scores: Shape (prompts, pool), what the best is chosen by.
        gold: The same shape, what it is worth.
        n: 1 to the pool's size.

    Returns:
        In gold's unit; the mean of all gold at n = 1.

    Raises:
        DataError: When n is not from 1 to the pool's size.
        ShapeError: When the two are not of one shape (prompts, pool).

    Source:
        Nakano et al. 2112.09332, appendix I, for the estimator.

    Example:
        >>> best_of_n_mean([[1.0, 2.0, 3.0]], [[0.0, 6.0, 3.0]], 2)
        4.0
    """
    one, other = _groups(scores, "scores"), _groups(gold, "gold")
    if one.shape != other.shape:
        raise ShapeError(f"scores have shape {one.shape}, gold {other.shape}: give one of each")
    size = one.shape[1]
    if not 1 <= n <= size:
        raise DataError(f"expected n from 1 to the pool's size of {size}, got {n}")
    ordered = np.take_along_axis(other, np.argsort(one, axis=1, kind="stable"), axis=1)
    weights = np.array([math.comb(rank, n - 1) / math.comb(size, n) for rank in range(size)])
    return float((ordered @ weights).mean())


def paired_difference(first: ArrayLike, second: ArrayLike) -> Estimate:
    """Mean of first - second with the paired 95 % t interval: what two arms share cancels.

    Args:
        first: Shape (n,), one value a seed, say.
        second: Shape (n,), the same seeds in the same order.

    Returns:
        In the values' unit, above 0 where `first` is larger; a count of 1 has no interval, as in
        `mean_estimate`.

    Raises:
        EmptySetError: When there is no value.
        DataError: When a value is not finite.
        ShapeError: When the two are not of the same shape (n,).

    Example:
        >>> paired_difference([0.7, 0.8], [0.6, 0.7]).value > 0
        True
    """
    one, other = _same_length(first=first, second=second)
    return mean_estimate(one - other)


def _mean_and_half_width(values: Floats, labels: NDArray[Any]) -> tuple[float, float, int]:
    count = int(labels.max()) + 1
    mean = float(values.mean())
    if count == 1:
        return mean, 0.0, count
    residual_sums = np.bincount(labels, weights=values - mean)
    variance = count / (count - 1) * (residual_sums**2).sum() / values.size**2
    quantile = stats.t.ppf((1.0 + CONFIDENCE) / 2.0, df=count - 1)
    return mean, float(quantile * np.sqrt(variance)), count


def _cluster_labels(clusters: ArrayLike | None, size: int) -> NDArray[Any]:
    if clusters is None:
        return np.arange(size)
    names: list[Any] = list(clusters)  # type: ignore[arg-type]
    if len(names) != size:
        raise ShapeError(f"expected one cluster a value, shape ({size},), got ({len(names)},)")
    # Not numpy's own unique: an array of texts is as wide as the longest in every place.
    numbers: dict[Any, int] = {}
    return np.array([numbers.setdefault(name, len(numbers)) for name in names], dtype=np.intp)


def _numbers(values: ArrayLike, name: str) -> Floats:
    numbers = np.asarray(values, dtype=np.float64)
    if numbers.ndim != 1:
        raise ShapeError(f"expected {name} of shape (n,), got {numbers.shape}. Use `.ravel()`.")
    if numbers.size == 0:
        raise EmptySetError(f"expected at least one of {name}, got none")
    return _finite(numbers, name)


def _finite(numbers: Floats, name: str) -> Floats:
    if not np.isfinite(numbers).all():
        raise DataError(f"expected finite {name}, got {numbers[~np.isfinite(numbers)][:3]}")
    return numbers


def _same_length(**values: ArrayLike) -> list[Floats]:
    columns = [_numbers(column, name) for name, column in values.items()]
    if len({column.size for column in columns}) != 1:
        sizes = {name: column.size for name, column in zip(values, columns, strict=True)}
        raise ShapeError(f"expected columns of one length, got {sizes}")
    return columns


def _groups(scores: ArrayLike, name: str) -> Floats:
    table = np.asarray(scores, dtype=np.float64)
    if table.ndim != 2:
        raise ShapeError(
            f"expected {name} of shape (groups, k), got {table.shape}. Use `.reshape(-1, k)`."
        )
    return _finite(table, name)


def adjust_by_holm(p_values: ArrayLike) -> NDArray[np.float64]:
    """P-values that may be held against one level for all tests together.

    Args:
        p_values: Shape (tests,), in [0, 1].

    Returns:
        Shape (tests,): the smallest times the number of tests, and so on, never falling, at most 1.

    Source:
        Holm 1979, step-down.

    Example:
        >>> adjust_by_holm([0.01, 0.5, 0.02]).tolist()
        [0.03, 0.5, 0.04]
    """
    values = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(values, kind="stable")
    factors = np.arange(len(values), 0, -1)
    stepped = np.minimum(np.maximum.accumulate(values[order] * factors), 1.0)
    adjusted = np.empty_like(values)
    adjusted[order] = stepped
    return adjusted
