# SPDX-License-Identifier: Apache-2.0
"""Tests of fresh against reference responses to the same prompts, by relabelling within prompts.

Where nothing has shifted, a prompt's reference responses and its fresh ones are draws of one
distribution, so that which is which is a matter of chance: whatever the statistic, and whatever the
model behind it, its place among the values of other labellings gives an exact p-value. No threshold
is borrowed from elsewhere, none depends on a distribution that was assumed.
"""

import functools
import itertools
import math
from collections.abc import Callable
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from metarm.errors import DataError, ShapeError

__all__ = [
    "ShiftTest",
    "disagreement_test",
    "length_test",
    "permutation_p_value",
    "reward_test",
    "shift_test",
    "spread_test",
]

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

ENOUGH: Final = 20
"""Labellings at least as extreme after which a p-value is near enough."""
FIRST_BATCH: Final = 128
MOST_CELLS: Final = 2**21
"""Labels in memory at once."""
MOST_WAYS: Final = 20_000
NUM_DIMENSIONS: Final = 32
MEDIAN_POINTS: Final = 512
MOST_POINTS: Final = 1536
ROUNDING: Final = 1e-9
TINY: Final = 1e-12


class ShiftTest(NamedTuple):
    """What one statistic says of fresh against reference responses."""

    effect: float
    """In the statistic's own unit; each function says which, and where no shift is."""
    p_value: float
    """In (0, 1]; at most x with probability at most x where nothing has shifted."""


def spread_test(
    reference: ArrayLike, fresh: ArrayLike, *, most: int, generator: np.random.Generator
) -> ShiftTest:
    """Whether rewards of fresh responses to one prompt lie nearer together than the reference's.

    statistic = mean over prompts of (s_reference - s_fresh) / (s_reference + s_fresh), s the
    standard deviation of the rewards within a prompt and side: paired by prompt, free of each
    prompt's own scale, and no prompt counts for more than 1.

    Args:
        reference: Rewards, shape (prompts, m), m >= 2.
        fresh: Rewards of the same prompts, shape (prompts, n), n >= 2.
        most: Relabellings at most.
        generator: Draws them.

    Returns:
        effect: the ratio of fresh to reference spread, 1 without a shift and 0.5 where half is
        left; the p-value is one-sided, small where spread is lost.

    Raises:
        DataError: When a reward is not finite, or a side has fewer than two a prompt.
        ShapeError: When the shapes do not fit.
    """
    values, mask = _pool(reference, fresh)
    if min(mask.sum(), (~mask).sum()) < 2:
        raise DataError("a spread needs two responses a prompt on both sides: sample more")
    centred = values - values.mean(axis=1, keepdims=True)
    squares = centred**2
    sums, totals = centred.sum(axis=1), squares.sum(axis=1)
    # What rounding leaves of equal rewards is no spread.
    smallest = ROUNDING * np.abs(values).max(axis=1, initial=0.0)

    def statistic(masks: Mask) -> Floats:
        weights = masks.astype(np.float64)
        own, own_squares = (np.einsum("bpk,pk->bp", weights, x) for x in (centred, squares))
        ours = _deviation(own, own_squares, int(mask.sum()), smallest)
        theirs = _deviation(sums - own, totals - own_squares, int((~mask).sum()), smallest)
        both = ours + theirs
        contrast = np.divide(theirs - ours, both, out=np.zeros_like(both), where=both > 0)
        means: Floats = contrast.mean(axis=1)
        return means

    observed, p_value, centre = _relabel(statistic, values.shape[0], mask, most, generator)
    lost = float(np.clip(observed - centre, -1.0 + TINY, 1.0))
    return ShiftTest((1.0 - lost) / (1.0 + lost), p_value)


def shift_test(
    reference: ArrayLike, fresh: ArrayLike, *, most: int, generator: np.random.Generator
) -> ShiftTest:
    """Maximum mean discrepancy of features, with an RBF kernel of the median distance.

    Of the first prompts' responses, 1536 in all. Features are less their prompt's mean and cut
    to their first 32 principal axes; both look at all responses alike, so that relabelling stays
    exact.

    Args:
        reference: Shape (prompts, m, size).
        fresh: Shape (prompts, n, size).
        most: Relabellings at most.
        generator: Draws them.

    Returns:
        effect: the squared discrepancy beyond that of chance labels, about 0 without a shift, at
        most 2; the p-value is small where the two differ in any way the kernel sees.

    Raises:
        DataError: When a feature is not finite.
        ShapeError: When the shapes do not fit.

    Source:
        Gretton et al. 2012, A kernel two-sample test; its labels permuted within prompts, and the
        median that of the first prompts' 512 responses.
    """
    values, mask = _pool(reference, fresh, num_axes=3)
    size = values.shape[1]
    values = values[: max(1, MOST_POINTS // size)]
    num_prompts = len(values)
    points = _principal(
        (values - values.mean(axis=1, keepdims=True)).reshape(num_prompts * size, -1)
    )
    lengths = (points**2).sum(axis=1)
    # In place from here to the kernel: it is the largest array of a look.
    kernel = points @ points.T
    kernel *= -2.0
    kernel += lengths[:, None]
    kernel += lengths
    np.maximum(kernel, 0.0, out=kernel)
    # Of whole prompts, so that it is the same whichever responses are called fresh.
    few = min(num_prompts, max(1, MEDIAN_POINTS // size)) * size
    apart = kernel[:few, :few][np.triu_indices(few, k=1)]
    apart = apart[apart > TINY * max(float(lengths.max()), TINY)]
    if apart.size == 0:
        return ShiftTest(0.0, 1.0)
    kernel /= -np.median(apart)
    np.exp(kernel, out=kernel)
    ours, theirs = num_prompts * mask.sum(), num_prompts * (~mask).sum()

    def statistic(masks: Mask) -> Floats:
        weights = np.where(masks, 1.0 / ours, -1.0 / theirs).reshape(len(masks), -1)
        found: Floats = ((weights @ kernel) * weights).sum(axis=1)
        return found

    observed, p_value, centre = _relabel(statistic, num_prompts, mask, most, generator)
    return ShiftTest(observed - centre, p_value)


def reward_test(
    reference: ArrayLike, fresh: ArrayLike, *, most: int, generator: np.random.Generator
) -> ShiftTest:
    """Whether fresh responses have higher rewards: the direction that optimisation moves in.

    Rewards are taken less their prompt's mean and in units of its standard deviation, both over
    all its responses. At small KL this sees a shift that no test of all directions does: the mean
    can rise by up to sqrt(2 KL) standard deviations.

    Args:
        reference: Rewards, shape (prompts, m).
        fresh: Rewards of the same prompts, shape (prompts, n).
        most: Relabellings at most.
        generator: Draws them.

    Returns:
        effect: mean fresh less mean reference reward, in those standard deviations, 0 without a
        shift; the p-value is one-sided, small where rewards have risen.

    Raises:
        DataError: When a reward is not finite.
        ShapeError: When the shapes do not fit.
    """
    values, mask = _pool(reference, fresh)
    standard = _standard(values)
    p_value = _rise_p_value(standard, mask, most, generator)
    return ShiftTest(float(standard[:, mask].mean() - standard[:, ~mask].mean()), p_value)


def disagreement_test(
    reference: ArrayLike, fresh: ArrayLike, *, most: int, generator: np.random.Generator
) -> ShiftTest:
    """Whether the members of an ensemble disagree more on fresh responses.

    A response's disagreement is the standard deviation over members of their rewards, each less
    its prompt's mean and in units of the member's own spread within prompts.

    Args:
        reference: Shape (members, prompts, m), two members or more.
        fresh: Shape (members, prompts, n).
        most: Relabellings at most.
        generator: Draws them.

    Returns:
        effect: fresh over reference disagreement, 1 without a shift; the p-value is one-sided,
        small where it has risen.

    Raises:
        DataError: When there is one member only, or a reward is not finite.
        ShapeError: When the shapes do not fit.
    """
    first, second = (np.asarray(side, dtype=np.float64) for side in (reference, fresh))
    if first.ndim != 3 or second.ndim != 3:
        raise ShapeError(f"expected (members, prompts, k), got {first.shape} and {second.shape}")
    if len(first) < 2:
        raise DataError("disagreement needs an ensemble of two members or more, got one")
    values, mask = _pool(first.transpose(1, 2, 0), second.transpose(1, 2, 0), num_axes=3)
    centred = values - values.mean(axis=1, keepdims=True)
    units = np.sqrt((centred**2).mean(axis=(0, 1)))
    apart = (centred / np.maximum(units, TINY)).std(axis=2)
    p_value = _rise_p_value(apart, mask, most, generator)
    before, now = apart[:, ~mask].mean(), apart[:, mask].mean()
    ratio = float(now / before) if before > 0 else math.inf if now > 0 else 1.0
    return ShiftTest(ratio, p_value)


def length_test(
    reference: tuple[ArrayLike, ArrayLike],
    fresh: tuple[ArrayLike, ArrayLike],
    *,
    most: int,
    generator: np.random.Generator,
) -> ShiftTest:
    """Whether the reward goes along with length more than it did, within prompts.

    statistic = mean over prompts of the correlation of reward and length among fresh responses,
    less that among the reference's; where either does not vary the correlation counts as 0.

    Args:
        reference: Rewards and lengths, each of shape (prompts, m).
        fresh: The same of the same prompts, shape (prompts, n).
        most: Relabellings at most.
        generator: Draws them.

    Returns:
        effect: the rise of the correlation, 0 without a shift, in [-2, 2]; the p-value is
        one-sided, small where it has risen.

    Raises:
        DataError: When a value is not finite.
        ShapeError: When the shapes do not fit.
    """
    rewards, mask = _pool(reference[0], fresh[0])
    lengths, _ = _pool(reference[1], fresh[1])
    if rewards.shape != lengths.shape:
        raise ShapeError(f"got {rewards.shape} rewards and {lengths.shape} lengths")
    # Units of 1: a variance below rounding is then told by one number.
    one, other = (_standard(column) for column in (rewards, lengths))
    products = np.stack([one, other, one**2, other**2, one * other])

    def statistic(masks: Mask) -> Floats:
        ours, theirs = (
            _correlation(np.einsum("bpk,cpk->cbp", part.astype(np.float64), products), count)
            for part, count in ((masks, mask.sum()), (~masks, (~mask).sum()))
        )
        means: Floats = (ours - theirs).mean(axis=1)
        return means

    observed, p_value, _ = _relabel(statistic, rewards.shape[0], mask, most, generator)
    return ShiftTest(observed, p_value)


def permutation_p_value(
    observed: float, draw: Callable[[int], Floats], *, most: int, batch: int = FIRST_BATCH
) -> float:
    """The p-value of a statistic among draws of its null distribution, with as few as will do.

    Draws end when 20 were at least as large: p = 20 / draws; else p = (1 + those) / (1 + most).
    Both are exact: P(p <= x) <= x for every x where `observed` is itself such a draw.

    Args:
        observed: The statistic.
        draw: That many draws of it under the null hypothesis.
        most: Draws at most; the least p-value is 1 / (1 + most).
        batch: Draws at first; each later batch has as many as all before.

    Source:
        Besag & Clifford 1991, Sequential Monte Carlo p-values; Phipson & Smyth 2010 for the 1s.

    Example:
        >>> permutation_p_value(9.0, lambda count: np.zeros(count), most=999)
        0.001
    """
    above = drawn = 0
    margin = ROUNDING * abs(observed)
    while drawn < most:
        size = min(max(batch, drawn), most - drawn)
        places = np.flatnonzero(draw(size) >= observed - margin)
        if above + places.size >= ENOUGH:
            return ENOUGH / (drawn + int(places[ENOUGH - above - 1]) + 1)
        above, drawn = above + places.size, drawn + size
    return (1 + above) / (1 + most)


def _relabel(
    statistic: Callable[[Mask], Floats],
    num_prompts: int,
    mask: Mask,
    most: int,
    generator: np.random.Generator,
) -> tuple[float, float, float]:
    """The statistic, its p-value among relabellings, and their mean."""
    seen: list[float] = []
    part = max(1, MOST_CELLS // (num_prompts * mask.size))

    def draw(count: int) -> Floats:
        values = np.concatenate(
            [
                statistic(_labels(min(part, count - start), num_prompts, mask, generator))
                for start in range(0, count, part)
            ]
        )
        seen.extend((float(values.sum()), float(values.size)))
        return values

    observed = float(statistic(np.broadcast_to(mask, (1, num_prompts, mask.size)))[0])
    p_value = permutation_p_value(observed, draw, most=most)
    return observed, p_value, sum(seen[::2]) / sum(seen[1::2])


def _labels(count: int, num_prompts: int, mask: Mask, generator: np.random.Generator) -> Mask:
    """Labellings with as many fresh ones in every prompt as there are, shape (count, P, K)."""
    ways = _ways(mask.size, int(mask.sum()))
    if ways is not None:
        found: Mask = ways[generator.integers(len(ways), size=(count, num_prompts))]
        return found
    keys = generator.random((count, num_prompts, mask.size), dtype=np.float32)
    return mask[keys.argsort(axis=2, kind="stable")]


@functools.cache
def _ways(size: int, chosen: int) -> Mask | None:
    """Every way to choose, shape (ways, size); None where there are too many to write down."""
    if math.comb(size, chosen) > MOST_WAYS:
        return None
    table = np.zeros((math.comb(size, chosen), size), dtype=np.bool_)
    for row, places in enumerate(itertools.combinations(range(size), chosen)):
        table[row, list(places)] = True
    return table


def _pool(reference: ArrayLike, fresh: ArrayLike, num_axes: int = 2) -> tuple[Floats, Mask]:
    """Both sides side by side along axis 1, and which of them are fresh."""
    first, second = (np.asarray(side, dtype=np.float64) for side in (reference, fresh))
    fits = first.ndim == second.ndim == num_axes and first.shape[0] == second.shape[0]
    if not fits or first.shape[2:] != second.shape[2:]:
        raise ShapeError(
            f"expected two sides of the same prompts, got shapes {first.shape} and {second.shape}"
        )
    if not first.shape[0] or min(first.shape[1], second.shape[1]) < 1:
        raise DataError("expected responses on both sides, got none: sample some")
    values = np.concatenate([first, second], axis=1)
    if not np.isfinite(values).all():
        raise DataError("expected finite values: the model that gave them is broken")
    mask = np.arange(values.shape[1]) >= first.shape[1]
    return values, mask


def _deviation(sums: Floats, squares: Floats, count: int, smallest: Floats) -> Floats:
    variances = np.maximum(squares - sums**2 / count, 0.0) / (count - 1)
    deviations: Floats = np.sqrt(variances)
    return np.where(deviations > smallest, deviations, 0.0)


def _standard(values: Floats) -> Floats:
    centred = values - values.mean(axis=1, keepdims=True)
    unit = np.sqrt((centred**2).mean(axis=1, keepdims=True))
    scale = np.maximum(np.abs(values).max(axis=1, keepdims=True), TINY)
    varies = unit > ROUNDING * scale
    return np.divide(centred, unit, out=np.zeros_like(centred), where=varies)


def _correlation(sums: Floats, count: int) -> Floats:
    """Of two columns, from sums of x, y, x^2, y^2 and x y over `count` responses."""
    x, y, xx, yy, xy = sums
    one, other = xx - x**2 / count, yy - y**2 / count
    scale = np.sqrt(np.maximum(one, 0.0) * np.maximum(other, 0.0))
    varies = np.minimum(one, other) > ROUNDING
    return np.divide(xy - x * y / count, scale, out=np.zeros_like(scale), where=varies)


def _rise_p_value(values: Floats, mask: Mask, most: int, generator: np.random.Generator) -> float:
    """Of the mean of a number that each response has, fresh against reference, one-sided."""
    ours, theirs = mask.sum() * len(values), (~mask).sum() * len(values)
    total = values.sum()

    def statistic(masks: Mask) -> Floats:
        own = np.einsum("bpk,pk->b", masks.astype(np.float64), values)
        found: Floats = own / ours - (total - own) / theirs
        return found

    return _relabel(statistic, values.shape[0], mask, most, generator)[1]


def _principal(points: Floats) -> Floats:
    """Coordinates along the first principal axes of points whose mean is 0."""
    if points.shape[1] <= NUM_DIMENSIONS:
        return points
    if points.shape[1] <= points.shape[0]:
        _, axes = np.linalg.eigh(points.T @ points)
        return points @ axes[:, -NUM_DIMENSIONS:]
    # As many points as there are, not as many features: a model's states are long.
    values, vectors = np.linalg.eigh(points @ points.T)
    return vectors[:, -NUM_DIMENSIONS:] * np.sqrt(np.maximum(values[-NUM_DIMENSIONS:], 0.0))
