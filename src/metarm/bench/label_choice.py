# SPDX-License-Identifier: Apache-2.0
"""Which shifted pairs are labelled: chosen in batches by what a linear head does not know yet."""

import functools
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from metarm.bench.problem import Problem
from metarm.choosing.pool import Basis, bootstrap_members, build_pool
from metarm.choosing.strategies import choose
from metarm.models.linear_head import fit_head
from metarm.schema import RANDOM
from metarm.streams import draw_seed

__all__ = ["choose_labels"]

BATCH: Final = 50
"""Labels that are asked for before the next are chosen with what they said."""


# A meta step and its plain twin learn from the same labels.
@functools.lru_cache(maxsize=4)
def choose_labels(problem: Problem, strategy: str, count: int, seed: int) -> Tensor:
    """Labelled shifted pairs of `problem.own_labels`, whose labels are seen once they are chosen.

    After each batch a Bradley-Terry head on the frozen features is fitted to the original pairs and
    the labels so far; its posterior is what the next batch is chosen by.

    Args:
        problem: Its `own_labels` are the candidates.
        strategy: As in `choosing.choose`; `random` takes the first, whose order was drawn.
        count: How many.
        seed: Of the split.

    Returns:
        Shape (count, 2), rows of texts: chosen, rejected.
    """
    candidates = problem.own_labels
    if strategy == RANDOM:
        return candidates[:count]
    features = problem.features.double().numpy()
    labelled, original = candidates.numpy(), problem.pairs.numpy()
    right = features[labelled[:, 0]] - features[labelled[:, 1]]
    basis = Basis.of(right)
    right = basis(right)
    past = basis(features[original[:, 0]] - features[original[:, 1]])
    # Which side was preferred must not be seen: texts are numbered by a hash of them.
    sides = np.sort(labelled, axis=1)
    gaps = np.where((labelled[:, 0] < labelled[:, 1])[:, None], right, -right)
    prompts = _prompts(problem)[sides[:, 0]]
    taken: list[int] = []
    while len(taken) < count:
        known = np.concatenate([past, right[taken]])
        head = fit_head(known)
        left = np.setdiff1d(np.arange(len(labelled)), taken)
        members = None
        if "disagreement" in strategy:
            draw = np.random.default_rng(draw_seed(seed, "label members", len(taken)))
            members = bootstrap_members(gaps[left], known, generator=draw)
        pool = build_pool(
            gaps[left],
            prompts[left],
            means=gaps[left] @ head,
            sides=sides[left],
            labelled=known,
            labelled_means=known @ head,
            members=members,
        )
        step = draw_seed(seed, "label batch", len(taken))
        found = choose(pool, strategy, min(BATCH, count - len(taken)), seed=step)
        taken += left[list(found.indices)].tolist()
    return candidates[torch.tensor(taken, dtype=torch.long)]


def _prompts(problem: Problem) -> NDArray[np.int64]:
    """A number for each text: texts that are compared, or are in one group, are of one prompt."""
    groups = problem.groups
    edges = torch.cat(
        [
            problem.own_labels,
            *(groups[:, [0, k]] for k in range(1, groups.shape[1])),
        ]
    )
    rows, columns = edges[(edges >= 0).all(1)].numpy().T
    graph = coo_array((np.ones(len(rows)), (rows, columns)), shape=2 * (problem.num_texts,))
    numbers: NDArray[np.int64] = connected_components(graph, directed=False)[1].astype(np.int64)
    return numbers
