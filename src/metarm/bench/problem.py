# SPDX-License-Identifier: Apache-2.0
"""A shift as tensors: features of every text once, and rows of indices into them."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import torch
from torch import Tensor

from metarm.bench.networks import Backbone
from metarm.bench.shifts import Shift
from metarm.data.derived import split_labelled, without_kin_of
from metarm.schema import PreferencePair, Prompt, ResponseGroup

__all__ = ["Problem", "SoftPairs", "build_problem"]

VALIDATION_FRACTION: Final = 0.1


class SoftPairs(NamedTuple):
    """Pairs with how likely the first of each is the better one."""

    rows: Tensor
    """Shape (pairs, 2), rows of `features`."""
    labels: Tensor
    """Shape (pairs,), in [0, 1]."""

    def plus(self, other: "SoftPairs | None") -> "SoftPairs":
        """Both together."""
        if other is None:
            return self
        return SoftPairs(torch.cat([self.rows, other.rows]), torch.cat([self.labels, other.labels]))


@dataclass(frozen=True, slots=True, eq=False)
class Problem:
    """What a method may see: labelled original pairs and unlabelled groups.

    `own_labels` are for the methods that say that they use labels; nothing here is tested on.
    """

    features: Tensor
    """Shape (texts, size), mean 0 and spread 1 over the texts of training pairs."""
    pairs: Tensor
    """Shape (pairs, 2), rows of `features`: chosen, rejected."""
    validation: Tensor
    """The same, of training prompts that are kept for the stopping rule."""
    groups: Tensor
    """Shape (groups, k), rows of `features`; -1 where a group is smaller."""
    watched_groups: Tensor
    """The same, kept for guards."""
    own_labels: Tensor
    """Shape (labels, 2): labelled shifted pairs, in an order drawn by the seed."""
    backbone: Backbone | None = None
    """Where a pretrained model is trained itself, not a head on its features."""
    measured: Tensor | None = None
    """Rows that are scored along training, where scoring all of them takes too long."""
    sources: tuple[str, ...] = ()
    """Of each group, the name of its source; empty: all are of one."""
    made: Mapping[str, SoftPairs] = field(default_factory=dict)
    """Rows made from pairs and groups, by the kind that they are of."""
    extra: SoftPairs | None = None
    """Soft pairs that a method trains on beside `pairs`."""

    @property
    def num_texts(self) -> int:
        """Rows of `features`."""
        return len(self.features)

    @property
    def unit_rows(self) -> Tensor:
        """Texts of original pairs that are measured: the spread of their scores is the unit."""
        rows: Tensor = (self.pairs if self.measured is None else self.validation).unique()
        return rows


def build_problem(shift: Shift, features: Tensor, seed: int) -> Problem:
    """The tensors of a shift; `features` belong to `shift.texts`."""
    place = {text: index for index, text in enumerate(shift.texts)}

    def rows(pairs: Sequence[PreferencePair]) -> Tensor:
        found = [[place[p.prompt, p.chosen], place[p.prompt, p.rejected]] for p in pairs]
        return torch.tensor(found, dtype=torch.long).reshape(-1, 2)

    draw = random.Random(f"problem|{seed}")
    train, validation = split_labelled(shift.pairs, VALIDATION_FRACTION, seed)
    groups = draw.sample(list(shift.groups), len(shift.groups))
    cut = max(1, round(VALIDATION_FRACTION * len(groups)))
    labels = draw.sample(list(shift.shifted_labels), len(shift.shifted_labels))
    kept = groups[cut:] or groups
    made: dict[str, list[PreferencePair]] = {}
    for row in without_kin_of(shift.augmented, validation):
        made.setdefault(row.source, []).append(row)
    pairs = rows(train)
    return Problem(
        features=_standardise(features, pairs.unique()),
        pairs=pairs,
        validation=rows(validation),
        groups=_padded(kept, place),
        watched_groups=_padded(groups[:cut], place),
        own_labels=rows(labels),
        sources=tuple(group.source for group in kept),
        made={
            kind: SoftPairs(rows(of), torch.tensor([1.0 if r.p is None else r.p for r in of]))
            for kind, of in made.items()
        },
    )


def _standardise(features: Tensor, rows: Tensor) -> Tensor:
    """Mean 0 and spread 1 over some rows; without columns there is nothing to do."""
    if features.shape[1] == 0:
        return features
    seen = features[rows]
    return (features - seen.mean(dim=0)) / seen.std(dim=0).clamp(min=1e-6)


def _padded(groups: Sequence[ResponseGroup], place: Mapping[tuple[Prompt, str], int]) -> Tensor:
    size = max(len(group.responses) for group in groups)
    found = torch.full((len(groups), size), -1, dtype=torch.long)
    for row, group in enumerate(groups):
        ids = [place[group.prompt, response] for response in group.responses]
        found[row, : len(ids)] = torch.tensor(ids)
    return found
