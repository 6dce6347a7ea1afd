# SPDX-License-Identifier: Apache-2.0
"""How far judges agree beyond chance: Cohen's kappa of two, Krippendorff's alpha of any number."""

from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np

from metarm.errors import EmptySetError, ShapeError
from metarm.schema import Estimate

__all__ = ["agreement_fraction", "alpha_estimate", "cohens_kappa", "krippendorffs_alpha"]


def agreement_fraction(first: Sequence[Hashable], second: Sequence[Hashable]) -> float:
    """Share of items that both judges call the same.

    Args:
        first: One label an item.
        second: The other judge's, of the same items in the same order.

    Returns:
        In [0, 1].

    Raises:
        EmptySetError: When there is no item.
        ShapeError: When the two are not of one length.

    Example:
        >>> agreement_fraction(["tie", "first"], ["tie", "second"])
        0.5
    """
    _check_pairs(first, second)
    return sum(one == other for one, other in zip(first, second, strict=True)) / len(first)


def cohens_kappa(first: Sequence[Hashable], second: Sequence[Hashable]) -> float | None:
    """(observed - chance) / (1 - chance), with each judge's own shares of labels as chance.

    Args:
        first: One label an item.
        second: The other judge's, of the same items in the same order.

    Returns:
        1 for full agreement, 0 for chance; None where both use one and the same label throughout,
        so that chance agrees as well.

    Raises:
        EmptySetError: When there is no item.
        ShapeError: When the two are not of one length.

    Source:
        Cohen 1960, unweighted.

    Example:
        >>> yes, no = "yes", "no"
        >>> first = [yes] * 25 + [no] * 25
        >>> second = [yes] * 20 + [no] * 5 + [yes] * 10 + [no] * 15
        >>> round(cohens_kappa(first, second), 12)
        0.4
    """
    observed = agreement_fraction(first, second)
    counts, others = Counter(first), Counter(second)
    total = sum(count * others[label] for label, count in counts.items())
    if total == len(first) ** 2:
        return None
    chance = total / len(first) ** 2
    return (observed - chance) / (1.0 - chance)


def krippendorffs_alpha(
    ratings: Sequence[Sequence[Hashable | None]],
    *,
    sides: tuple[Hashable, Hashable] | None = None,
) -> float | None:
    """1 - observed disagreement / that of labels paired at random, for nominal labels.

    Args:
        ratings: One row a judge, one label an item, None where the judge has none; all rows of
            one length.
        sides: Two labels that might as well change names in any item, as the sides of a pair:
            chance has each as often as the other. Without it, alpha depends on which response of
            a pair was written first, and is 0 where that is always the better one.

    Returns:
        1 for full agreement, 0 for chance; None where only one label occurs.

    Raises:
        EmptySetError: When no item has two labels.
        ShapeError: When the rows are not of one length.

    Source:
        Krippendorff 2011, Computing Krippendorff's alpha-reliability: coincidences of nominal
        data with missing values.

    Example:
        >>> round(krippendorffs_alpha([[0, 1, 0, 0, 0, 0, 0, 0, 1, 0],
        ...                            [1, 1, 1, 0, 0, 1, 0, 0, 0, 0]]), 3)
        0.095
    """
    if len({len(row) for row in ratings}) > 1:
        raise ShapeError(f"expected rows of one length, got {[len(row) for row in ratings]}")
    totals: Counter[Hashable] = Counter()
    disagreement = 0.0
    for item in zip(*ratings, strict=True):
        labels = Counter(label for label in item if label is not None)
        size = labels.total()
        if size < 2:
            continue
        same = sum(count * (count - 1) for count in labels.values())
        disagreement += (size * (size - 1) - same) / (size - 1)
        totals.update(labels)
    size = totals.total()
    if not size:
        raise EmptySetError("expected items with two labels or more, got none")
    if sides:
        first, second = sides
        totals[first] = totals[second] = (totals[first] + totals[second]) / 2  # type: ignore[assignment]
    by_chance = size * size - sum(count * count for count in totals.values())
    if not by_chance:
        return None
    return 1.0 - (size - 1) * disagreement / by_chance


def alpha_estimate(
    ratings: Sequence[Sequence[Hashable | None]],
    *,
    sides: tuple[Hashable, Hashable] | None = None,
    num_resamples: int = 1000,
    seed: int = 0,
) -> Estimate | None:
    """Krippendorff's alpha with its 95 % interval, by a bootstrap over items.

    Args:
        ratings: As in `krippendorffs_alpha`.
        sides: The same.
        num_resamples: Of the bootstrap, 100 or more.
        seed: Of the bootstrap.

    Returns:
        The count is that of items with two labels or more; None where alpha is None.

    Raises:
        EmptySetError: When no item has two labels.
        ShapeError: When the rows are not of one length.

    Source:
        Percentile bootstrap over units (pairs), which keeps a pair's labels together.
    """
    value = krippendorffs_alpha(ratings, sides=sides)
    if value is None:
        return None
    items = [Counter(label for label in item if label is not None) for item in zip(*ratings)]  # noqa: B905 - of one length
    items = [item for item in items if item.total() > 1]
    kinds = list(dict.fromkeys([*(sides or ()), *(label for item in items for label in item)]))
    counts = np.array([[item[kind] for kind in kinds] for item in items], dtype=np.float64)
    sizes = counts.sum(axis=1)
    apart = (sizes**2 - (counts**2).sum(axis=1)) / (sizes - 1)
    draw = np.random.default_rng(seed)
    times = draw.multinomial(len(items), np.full(len(items), 1 / len(items)), num_resamples)
    totals = times @ counts
    if sides:
        totals[:, :2] = totals[:, :2].mean(axis=1, keepdims=True)
    size = totals.sum(axis=1)
    by_chance = size**2 - (totals**2).sum(axis=1)
    told = by_chance > 0
    values = 1.0 - (size - 1)[told] * (times @ apart)[told] / by_chance[told]
    low, high = np.percentile(values, [2.5, 97.5])
    return Estimate(value, float(low), float(high), len(items))


def _check_pairs(first: Sequence[Hashable], second: Sequence[Hashable]) -> None:
    if len(first) != len(second):
        raise ShapeError(f"expected labels of the same items, got {len(first)} and {len(second)}")
    if not first:
        raise EmptySetError("expected at least one item that both have judged, got none")
