# SPDX-License-Identifier: Apache-2.0
"""Meta batches: which groups a training step uses, thinned to k responses and padded."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from metarm.data.encoding import EncodedGroup, pad_batch
from metarm.data.fields import Row, shown
from metarm.data.meta_sets import read_group
from metarm.errors import DataError
from metarm.schema import ResponseGroup

__all__ = [
    "MetaBatch",
    "collate_groups",
    "draw_group_indices",
    "draw_passes",
    "read_meta_dataset",
    "thin_group",
]


@dataclass(frozen=True, slots=True, eq=False)
class MetaBatch:
    """Responses of several groups, flat, and where each stands among (groups, k)."""

    input_ids: Tensor
    attention_mask: Tensor
    mask: Tensor
    sources: tuple[str, ...]
    """The name of each group's source."""

    @property
    def group_of_row(self) -> list[int]:
        """Which group each response belongs to."""
        return [group for group, there in enumerate(self.mask.tolist()) for _ in range(sum(there))]


def draw_group_indices(num_groups: int, batch_size: int, *, step: int, seed: int) -> list[int]:
    """Which groups optimiser step `step` uses: passes over all groups, each in a new order.

    A function of seed and step alone, so that a resumed run draws what the first would have.

    Example:
        >>> sorted(draw_group_indices(4, 4, step=7, seed=0))
        [0, 1, 2, 3]
    """
    return draw_passes(num_groups, step * batch_size, batch_size, seed=seed)


def draw_passes(num_groups: int, start: int, count: int, *, seed: int) -> list[int]:
    """Places `start` to `start + count` of endless passes over all groups, each in a new order."""
    orders: dict[int, list[int]] = {}
    drawn = []
    for position in range(start, start + count):
        epoch, offset = divmod(position, num_groups)
        if epoch not in orders:
            generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
            orders[epoch] = torch.randperm(num_groups, generator=generator).tolist()
        drawn.append(orders[epoch][offset])
    return drawn


def thin_group(group: EncodedGroup, k: int, *, seed: int) -> EncodedGroup:
    """At most `k` responses of a group, drawn by `seed`, in their order."""
    if len(group.response_ids) <= k:
        return group
    generator = torch.Generator().manual_seed(seed)
    kept = sorted(torch.randperm(len(group.response_ids), generator=generator)[:k].tolist())
    return group._replace(response_ids=tuple(group.response_ids[index] for index in kept))


def collate_groups(
    groups: Sequence[EncodedGroup], pad_token_id: int, device: torch.device
) -> MetaBatch:
    """Pad all responses into one batch; the mask has one row a group."""
    rows = [row for group in groups for row in group.response_ids]
    batch = pad_batch(rows, pad_token_id, side="right")
    sizes = torch.tensor([len(group.response_ids) for group in groups])
    mask = torch.arange(int(sizes.max())).unsqueeze(0) < sizes.unsqueeze(1)
    return MetaBatch(
        batch.input_ids.to(device),
        batch.attention_mask.to(device),
        mask.to(device),
        tuple(group.source for group in groups),
    )


def read_meta_dataset(meta_dataset: Any) -> list[ResponseGroup]:
    """Groups from a data set with `prompt` and `responses` (or `completions`), or as they are.

    Raises:
        DataError: When a column is missing or a value has another type; names the row.
    """
    groups = []
    for number, row in enumerate(meta_dataset):
        if isinstance(row, ResponseGroup):
            groups.append(row)
        elif isinstance(row, Mapping):
            groups.append(read_group(Row(f"meta_dataset row {number}", row)))
        else:
            raise DataError(
                f"meta_dataset row {number}: expected columns `prompt` and `responses`, got "
                f"{shown(row)}. Give one split of a data set, or metarm.data.meta_sets.load_groups."
            )
    return groups
