# SPDX-License-Identifier: Apache-2.0
"""The labelled pairs that a pair is most like, in what the score layer can tell them apart by."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from metarm.errors import ShapeError

__all__ = ["Neighbour", "nearest_pairs", "similarities"]

Floats = NDArray[np.float64]


class Neighbour(NamedTuple):
    """A labelled pair and how like it is."""

    label: int
    """Its row number among the labelled pairs."""
    similarity: float
    """In [-1, 1]: above 0 its label speaks for the first side, below 0 for the second."""


def similarities(asked: ArrayLike, labelled: ArrayLike) -> Floats:
    """Cosines between differences of states, each state in units of its labelled differences.

    Args:
        asked: phi_first - phi_second, shape (pairs, size).
        labelled: phi_chosen - phi_rejected, shape (labels, size).

    Returns:
        In [-1, 1], shape (pairs, labels): 1 the same difference, -1 the same with sides swapped;
        0 where there is no difference at all.

    Raises:
        ShapeError: When sizes differ.

    Example:
        >>> similarities([[1.0, 1.0]], [[2.0, 2.0], [-2.0, -2.0]]).round(12).tolist()
        [[1.0, -1.0]]
    """
    one, other = np.asarray(asked, np.float64), np.asarray(labelled, np.float64)
    if one.ndim != 2 or other.ndim != 2 or one.shape[1] != other.shape[1]:
        raise ShapeError(f"expected differences of one size, got {one.shape} and {other.shape}")
    # A few states of a transformer are a hundred times as large as the others.
    scale = np.sqrt((other**2).mean(axis=0))
    scale = np.where(scale > 0, scale, 1.0)
    found: Floats = _unit(one / scale) @ _unit(other / scale).T
    return found


def nearest_pairs(similarity: ArrayLike, count: int) -> list[Neighbour]:
    """The labelled pairs of the largest absolute similarity to one pair, most like first.

    Args:
        similarity: To each labelled pair, shape (labels,).
        count: At most.

    Example:
        >>> [near.label for near in nearest_pairs([0.1, -0.9, 0.5], 2)]
        [1, 2]
    """
    values = np.asarray(similarity, np.float64)
    order = np.argsort(-np.abs(values), kind="stable")[:count]
    return [Neighbour(int(index), float(values[index])) for index in order]


def _unit(rows: Floats) -> Floats:
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(lengths > 0, lengths, 1.0)
