# SPDX-License-Identifier: Apache-2.0
"""A meta set of several sources: more of the next batch for a source that is told apart less.

A source is a domain, a policy or a past round. What a reward model has lost on it is measured on
scores that a step computes anyway, without a label and without a loss. With one source everything
is as without this module.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Any, Final

import torch
from torch import Tensor

from metarm.data.meta_batches import draw_group_indices, draw_passes
from metarm.errors import ConfigError

__all__ = ["GroupMixture", "share_batch", "source_weights", "sum_squared_gaps"]

# About ten meta steps: a batch holds a few groups of a source.
DECAY: Final = 0.9
LEAST_SPREAD: Final = 1e-6
UNNAMED: Final = "unnamed"


def source_weights(spreads: Sequence[float | None], floor: float) -> list[float]:
    """The share of a meta batch that each source gets.

    w_d = floor / D + (1 - floor) * lost_d / (sum of lost),  lost_d = max(1, 1 / spread_d)

    So the weight is inverse to what is left, a source that has lost nothing counts as 1 however
    wide it is, and no source falls below its floor.

    Args:
        spreads: Of each of the D sources, the root mean square of the gaps within its groups over
            that of the gaps of original pairs: 1 is nothing lost, 0 is blind. None where it is not
            known yet, which counts as nothing lost.
        floor: In [0, 1], in units of an even share; 1 gives every source an even share.

    Returns:
        Weights that sum to 1, each at least floor / D; [1/3, 2/3] for spreads [1, 0.5], floor 0.

    Source:
        Group DRO (Sagawa et al. 2020, arXiv 1911.08731) up-weights by loss with exponentiated
        weights. Differs: there is no loss on unlabelled groups, and it would favour noisy domains;
        here the exponent is the log of what was lost.

    Example:
        >>> source_weights([1.0, 0.25], 0.5)
        [0.35, 0.65]
    """
    lost = [1.0 if s is None else max(1.0, 1.0 / max(s, LEAST_SPREAD)) for s in spreads]
    return [floor / len(lost) + (1.0 - floor) * value / sum(lost) for value in lost]


def share_batch(weights: Sequence[float], batch_size: int, *, step: int, seed: int) -> list[int]:
    """How many groups of a batch each source gives: `batch_size * weight` on average.

    Systematic sampling: a count is never a whole group away from that product. A function of
    weights, seed and step alone.

    Example:
        >>> share_batch([0.25, 0.75], 8, step=0, seed=0)
        [2, 6]
    """
    generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
    start = torch.rand((), generator=generator, dtype=torch.float64).item()
    # How many of the points start + 0, 1, ... lie below the end of each source's stretch.
    ends = [max(0, math.ceil(batch_size * end - start)) for end in accumulate(weights)]
    ends[-1] = batch_size
    return [end - begin for begin, end in zip([0, *ends[:-1]], ends, strict=True)]


def sum_squared_gaps(scores: Tensor, mask: Tensor) -> Tensor:
    """Sum of (s_i - s_j)^2 over the pairs i < j of each group, and the number of these pairs.

    Args:
        scores: Shape (groups, k), in logits.
        mask: Shape (groups, k), True where there is a response.

    Returns:
        Shape (2,).
    """
    filled = scores.masked_fill(~mask, 0.0)
    is_pair = (mask.unsqueeze(2) & mask.unsqueeze(1)).triu(diagonal=1)
    gaps = (filled.unsqueeze(2) - filled.unsqueeze(1))[is_pair]
    return torch.stack([gaps.square().sum(), gaps.new_tensor(float(len(gaps)))])


class GroupMixture:
    """Which groups a step uses, by what has been seen of their sources so far.

    Order of calls in a step: `draw`, `see_groups`, `see_pairs` (any number of times), `end_step`.
    """

    def __init__(self, sources: Sequence[str], *, floor: float, seed: int) -> None:
        if not 0.0 <= floor <= 1.0:
            raise ConfigError(
                f"meta_source_floor must be between 0 and 1, got {floor}: it is in units of an "
                "even share"
            )
        self.names = sorted(set(sources))
        self._num_groups = len(sources)
        self._members = [[i for i, s in enumerate(sources) if s == name] for name in self.names]
        self._floor = floor
        self._seed = seed
        self.restore(None)

    def restore(self, state: Mapping[str, Any] | None) -> None:
        """Go on from an earlier `state`; None begins anew, as does one of other sources."""
        count = len(self.names)
        is_ours = state is not None and state["names"] == self.names
        self._taken: list[int] = list(state["taken"]) if state and is_ours else [0] * count
        self._sums = (
            torch.tensor(state["sums"], dtype=torch.float64)
            if state and is_ours
            else torch.zeros(count + 1, 2, dtype=torch.float64)
        )
        self._new: Tensor | None = None

    def state(self) -> dict[str, Any]:
        """What a resumed training needs to draw the same batches; empty with one source."""
        if not self.is_mixed:
            return {}
        return {"names": self.names, "taken": self._taken, "sums": self._sums.tolist()}

    @property
    def is_mixed(self) -> bool:
        """Whether there is more than one source."""
        return len(self.names) > 1

    def spreads(self) -> list[float | None]:
        """Of each source what `source_weights` takes, smoothed over the steps so far."""
        *groups, pairs = self._sums.tolist()
        return [
            math.sqrt(square / count * pairs[1] / pairs[0]) if count and pairs[0] else None
            for square, count in groups
        ]

    def draw(self, batch_size: int, step: int) -> list[int]:
        """The groups of a step: shares by `source_weights`, and passes over a source's groups."""
        if not self.is_mixed:
            return draw_group_indices(self._num_groups, batch_size, step=step, seed=self._seed)
        weights = source_weights(self.spreads(), self._floor)
        drawn = []
        counts = share_batch(weights, batch_size, step=step, seed=self._seed)
        for source, count in enumerate(counts):
            members, start = self._members[source], self._taken[source]
            places = draw_passes(len(members), start, count, seed=self._seed)
            drawn += [members[place] for place in places]
            self._taken[source] = start + count
        return drawn

    def see_groups(self, scores: Tensor, mask: Tensor, sources: Sequence[str]) -> None:
        """Note the scores of a meta batch, shape (groups, k), at the kept weights."""
        if self.is_mixed:
            self._new = scores.new_zeros(len(self.names) + 1, 2)
            for row, name in enumerate(self.names):
                own = torch.tensor([source == name for source in sources], device=scores.device)
                self._new[row] = sum_squared_gaps(scores[own], mask[own])

    def see_pairs(self, chosen: Tensor, rejected: Tensor) -> None:
        """Note the scores of original pairs, shape (pairs,) each; nothing outside a meta step."""
        if self._new is not None:
            # Scores in bfloat16 would be subtracted with three digits.
            gaps = chosen.detach().to(self._new.dtype) - rejected.detach().to(self._new.dtype)
            self._new[-1] += torch.stack([gaps.square().sum(), gaps.new_tensor(len(gaps))])

    def end_step(self, total: Callable[[Tensor], Tensor] = lambda sums: sums) -> dict[str, float]:
        """Take what this step has seen into the smoothed spreads.

        Args:
            total: Adds a tensor up over all processes.

        Returns:
            `meta/weight_SOURCE` for the next step and `meta/spread_SOURCE`, where it is known;
            nothing outside a meta step or with one source.
        """
        if self._new is None:
            return {}
        self._sums = DECAY * self._sums + total(self._new).cpu().double()
        self._new = None
        spreads = self.spreads()
        metrics: dict[str, float] = {}
        for name, weight, spread in zip(
            self.names, source_weights(spreads, self._floor), spreads, strict=True
        ):
            metrics[f"meta/weight_{name or UNNAMED}"] = weight
            if spread is not None:
                metrics[f"meta/spread_{name or UNNAMED}"] = spread
        return metrics
