# SPDX-License-Identifier: Apache-2.0
"""J of one step's groups and its gradient, a few responses in memory at a time, exactly.

The gradient of J is `scores.backward(c)` with c in closed form, so groups may be taken in any
parts; of a group that is too large itself, the scores come first and the gradients after.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from itertools import zip_longest

import torch
from torch import Tensor

from metarm.data.encoding import EncodedGroup
from metarm.data.meta_batches import MetaBatch, collate_groups
from metarm.meta_step import Direction, gather_direction
from metarm.objectives import difference_gradient, difference_loss
from metarm.placement import backward_inputs
from metarm.training.plain_training import noise_put_back

__all__ = ["MetaPass", "Part", "ScoreResponses", "StepState", "split_groups"]

ScoreResponses = Callable[[MetaBatch], AbstractContextManager[Tensor]]
"""Scores of a batch, shape (responses,), fp32 or better, in a block that covers the way back."""


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """Groups whose responses are in memory together."""

    batches: tuple[MetaBatch, ...]
    """One; several where a single group is too large."""
    groups: Tensor
    """Their rows in the table of all scores."""


def split_groups(groups: Sequence[EncodedGroup], most_responses: int) -> list[list[int]]:
    """Which groups go together: like lengths, and at most so many responses unless one has more.

    Example:
        >>> group = lambda *lengths: EncodedGroup(tuple([1] * n for n in lengths), "meta set")
        >>> split_groups([group(3, 3), group(9, 9), group(4, 4), group(1, 1, 1)], 4)
        [[3], [0, 2], [1]]
    """
    parts: list[list[int]] = []
    size = 0
    # The order is that of lengths, then of places: the same for the same groups.
    for index in sorted(range(len(groups)), key=lambda i: max(map(len, groups[i].response_ids))):
        count = len(groups[index].response_ids)
        if not parts or size + count > most_responses:
            parts.append([])
            size = 0
        parts[-1].append(index)
        size += count
    return parts


class MetaPass:
    """The difference loss of some groups, at the weights as they are.

    Args:
        groups: Encoded, at least one.
        score: Scores of responses; in a block, as the way back belongs to it.
        most_responses: In memory at once.
        pad_token_id: To pad with.
        device: Where the scores are.
        share: What J counts in the mean over processes.
        most: What processes make of their numbers of passes, one for each part: the largest of
            each, where weights are gathered and so none may make a pass alone.
    """

    def __init__(
        self,
        groups: Sequence[EncodedGroup],
        score: ScoreResponses,
        *,
        most_responses: int,
        pad_token_id: int,
        device: torch.device,
        share: float = 1.0,
        most: Callable[[list[int]], list[int]] = list,
    ) -> None:
        self._score, self.share = score, share
        self._groups, self._pad_token_id, self._device = groups, pad_token_id, device
        self._most = most
        sizes = torch.tensor([len(group.response_ids) for group in groups], device=device)
        self.mask = torch.arange(int(sizes.max()), device=device) < sizes.unsqueeze(1)
        """True where there is a response, (groups, k)."""
        self.sources = tuple(group.source for group in groups)
        self.scores = torch.zeros(self.mask.shape, device=device)
        """Of the last `measure`, (groups, k), in fp32 or better."""
        self.parts: list[Part] = []
        """What is in memory together."""
        shortest = min((ids for group in groups for ids in group.response_ids), key=len)
        alone = groups[0]._replace(response_ids=(shortest,))
        self._least = collate_groups([alone], pad_token_id, device)
        self.split(most_responses)

    def split(self, most_responses: int) -> None:
        """Take so many responses into memory at once, with the same result."""
        self.parts = []
        for part in split_groups(self._groups, most_responses):
            chosen = [self._groups[index] for index in part]
            batches = tuple(
                collate_groups(piece, self._pad_token_id, self._device)
                for piece in _fitting(chosen, most_responses)
            )
            self.parts.append(Part(batches, torch.tensor(part, device=self._device)))
        self._passes = self._most([len(part.batches) for part in self.parts])

    def measure(self, parameters: Sequence[Tensor], ranking: Tensor | None = None) -> Direction:
        """J times its share, and its gradient; `scores` are those that it is of.

        Args:
            parameters: The trainable parameters.
            ranking: As in `difference_loss`, (groups, k).
        """
        return gather_direction(parameters, lambda: self._accumulate(parameters, ranking))

    def difference(self) -> Tensor:
        """J with the graph of all groups, to be differentiated twice."""
        table = self.scores.new_zeros(self.mask.shape)
        for part in self.parts:
            found = []
            for batch in part.batches:
                with self._score(batch) as scores:
                    found.append(scores)
            table = table.index_put(self._places(part), torch.cat(found).to(table.dtype))
        return difference_loss(table, self.mask)

    @torch.no_grad()
    def table(self) -> Tensor:
        """Scores at the weights as they are, (groups, k); 0 where a group is smaller."""
        table = torch.zeros_like(self.scores)
        for part, passes in zip_longest(self.parts, self._passes):
            if part is not None:
                table[self._places(part)] = self._scores_of(part).to(table.dtype)
            self._idle(passes - (len(part.batches) if part is not None else 0))
        return table

    def _accumulate(self, parameters: Sequence[Tensor], ranking: Tensor | None) -> float:
        """Leave the gradient of J in `.grad`, part by part; returns J."""
        table = torch.zeros_like(self.scores)
        total, leaves = 0.0, backward_inputs(parameters)
        for part, passes in zip_longest(self.parts, self._passes):
            count = len(part.batches) if part is not None else 0
            if passes > 1:
                # The second pass draws the first one's dropout.
                with torch.no_grad(), noise_put_back(table.device):
                    if count > 1:
                        table = self._noted(table, part, self._scores_of(part))
                    self._idle(passes - (count if count > 1 else 0))
            if part is not None:
                weight = self.share * len(part.groups) / len(self.mask)
                table, loss = self._go_back(table, part, ranking, weight, leaves)
                total += loss
            self._idle(passes - count)
        self.scores = table
        return total

    def _go_back(
        self,
        table: Tensor,
        part: Part,
        ranking: Tensor | None,
        weight: float,
        leaves: list[Tensor] | None,
    ) -> tuple[Tensor, float]:
        """A part's weighted gradient into `.grad`; the scores with its own, and its weighted J."""
        if len(part.batches) == 1:
            with self._score(part.batches[0]) as scores:
                table = self._noted(table, part, scores)
                loss, slopes = self._slopes(table, part, ranking)
                scores.backward(weight * slopes.to(scores.dtype), inputs=leaves)
            return table, weight * loss
        loss, slopes = self._slopes(table, part, ranking)
        pieces = slopes.split([len(batch.input_ids) for batch in part.batches])
        for batch, piece in zip(part.batches, pieces, strict=True):
            with self._score(batch) as scores:
                scores.backward(weight * piece.to(scores.dtype), inputs=leaves)
        return table, weight * loss

    def _idle(self, count: int) -> None:
        """Passes that change nothing, of one response, while other processes make theirs."""
        for _ in range(count):
            with noise_put_back(self.scores.device), self._score(self._least) as scores:
                if torch.is_grad_enabled():
                    scores.backward(torch.zeros_like(scores))

    def _scores_of(self, part: Part) -> Tensor:
        return torch.cat(list(self._each(part)))

    def _each(self, part: Part) -> Iterator[Tensor]:
        for batch in part.batches:
            with self._score(batch) as scores:
                yield scores

    def _noted(self, table: Tensor, part: Part, scores: Tensor) -> Tensor:
        table = table.to(scores.dtype)
        table[self._places(part)] = scores.detach()
        return table

    def _slopes(self, table: Tensor, part: Part, ranking: Tensor | None) -> tuple[float, Tensor]:
        """J of a part's groups, and its gradient by their scores, flat."""
        scores, mask = table[part.groups], self.mask[part.groups]
        order = None if ranking is None else ranking[part.groups]
        loss = difference_loss(scores, mask, ranking=order).item()
        return loss, difference_gradient(scores, mask, ranking=order)[mask]

    def _places(self, part: Part) -> tuple[Tensor, Tensor]:
        """Rows and columns of a part's responses in the table."""
        rows, columns = self.mask[part.groups].nonzero(as_tuple=True)
        return part.groups[rows], columns


def _fitting(groups: list[EncodedGroup], most_responses: int) -> list[list[EncodedGroup]]:
    """The groups as they are, or a single group that is too large in pieces."""
    responses = groups[0].response_ids
    if len(groups) > 1 or len(responses) <= most_responses:
        return [groups]
    starts = range(0, len(responses), most_responses)
    return [
        [groups[0]._replace(response_ids=responses[start : start + most_responses])]
        for start in starts
    ]


@dataclass(slots=True, eq=False)
class StepState:
    """The meta step of one optimiser step, over all its micro-batches."""

    direction: Direction
    """J's gradient; once it is spent, its tensors are theta'; none are left in the end."""
    step: float
    """The signed multiple of the gradient to look ahead by; 0 in `joint`."""
    measured: MetaPass | None
    """What the direction was measured on; None: by a training that was stopped."""
    is_fresh: bool = True
    """Whether it was measured at this optimiser step, or is an earlier one's."""
    places: list[Tensor | None] = field(default_factory=list)
    """theta', found before the first micro-batch; empty before and after."""

    def release(self) -> None:
        """Give back the memory of a step that is over but for the optimiser."""
        self.direction = Direction(self.direction.difference, (), self.direction.norm)
        self.places = []
