# SPDX-License-Identifier: Apache-2.0
"""Exact tests of many slices at once: whole prompts change places."""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from metarm.errors import ShapeError

__all__ = ["sign_test", "slice_tests"]

Floats = NDArray[np.float64]


def slice_tests(
    outcomes: ArrayLike,
    masks: ArrayLike,
    clusters: Sequence[int],
    *,
    num_permutations: int,
    seed: int,
) -> list[float]:
    """Whether outcomes are larger or smaller in a slice than chance would have it, slice by slice.

    Prompts with as many pairs change outcomes as a whole, which keeps the likeness within prompts
    and holds whatever the outcomes' law.

    Args:
        outcomes: Shape (pairs,), any unit.
        masks: Shape (slices, pairs): whether the slice has the pair.
        clusters: The prompt of each pair.
        num_permutations: Draws; 4,999 tell p-values down to 0.0004.
        seed: Of the draws.

    Returns:
        Two-sided p-values, one a slice, in (0, 1].

    Raises:
        ShapeError: When shapes differ.

    Source:
        Phipson & Smyth 1603.05766: the draws and the data themselves are counted, so that no
        p-value is 0.
    """
    values, sets = np.asarray(outcomes, np.float64), np.asarray(masks, np.float64)
    if sets.ndim != 2 or sets.shape[1] != len(values) or len(clusters) != len(values):
        raise ShapeError(
            f"expected masks of shape (slices, {len(values)}) and as many clusters, got "
            f"{sets.shape} and {len(clusters)}"
        )
    tables = _by_size(clusters)
    draw = np.random.default_rng(seed)
    observed = sets @ values
    # Sums of 0s and 1s are exact; of other outcomes equal ones may differ in the last digit.
    slack = 1e-9 * (1.0 + np.abs(observed))
    above, below = np.ones(len(sets)), np.ones(len(sets))
    for _ in range(num_permutations):
        moved = np.empty_like(values)
        for table in tables:
            moved[table] = values[table[draw.permutation(len(table))]]
        found = sets @ moved
        above += found >= observed - slack
        below += found <= observed + slack
    smaller = np.minimum(above, below) / (num_permutations + 1)
    return [float(min(1.0, 2.0 * p)) for p in smaller]


def sign_test(
    differences: ArrayLike, clusters: Sequence[int], *, num_permutations: int, seed: int
) -> float:
    """Whether paired differences are 0 on average: the signs of whole prompts are drawn anew.

    Args:
        differences: Shape (pairs,), any unit.
        clusters: The prompt of each pair.
        num_permutations: Draws.
        seed: Of the draws.

    Returns:
        A two-sided p-value in (0, 1]; 1 where all differences are 0.

    Example:
        >>> sign_test([0.0, 0.0], [0, 1], num_permutations=9, seed=0)
        1.0
    """
    values = np.asarray(differences, np.float64)
    _, labels = np.unique(np.asarray(clusters), return_inverse=True)
    sums = np.bincount(labels, weights=values)
    sums = sums[sums != 0]
    if not sums.size:
        return 1.0
    draw = np.random.default_rng(seed)
    signs = draw.integers(0, 2, size=(num_permutations, sums.size)) * 2 - 1
    drawn = np.abs(signs @ sums)
    extreme = int((drawn >= abs(sums.sum()) - 1e-9).sum())
    return (1 + extreme) / (1 + num_permutations)


def _by_size(clusters: Sequence[int]) -> list[NDArray[np.intp]]:
    """Rows of pair numbers, one a prompt, in a table for each number of pairs."""
    members: defaultdict[int, list[int]] = defaultdict(list)
    for row, cluster in enumerate(clusters):
        members[cluster].append(row)
    tables: defaultdict[int, list[list[int]]] = defaultdict(list)
    for own in members.values():
        tables[len(own)].append(own)
    return [np.array(rows, dtype=np.intp) for rows in tables.values()]
