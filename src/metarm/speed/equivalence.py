# SPDX-License-Identifier: Apache-2.0
"""How far scores and gradients with shared prompts are from those of the plain pass."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from metarm.data.encoding import PaddedBatch
from metarm.models.shared_prompts import SharedPrompts
from metarm.objectives import bradley_terry_loss, difference_loss
from metarm.speed.problem import Problem

__all__ = ["Equivalence", "measure_equivalence"]


@dataclass(frozen=True, slots=True)
class Equivalence:
    """The larger of the errors on the pairs and on the groups."""

    score_error: float
    """max |shared - plain| / max |plain|."""
    gradient_error: float
    """|shared - plain| / |plain|, of the whole gradient of the loss."""
    computed_share: float
    """Tokens computed with sharing over places of the padded batch; 1: nothing was shared."""


def measure_equivalence(problem: Problem) -> Equivalence:
    """On a problem's pairs with the preference loss, and on its groups with J."""
    model = problem.build_model().eval()
    num_pairs, group_size = problem.workload.num_pairs, problem.workload.group_size
    batch, mask = problem.group_batch()

    def difference(scores: Tensor) -> Tensor:
        return difference_loss(scores.new_zeros(mask.shape).masked_scatter(mask, scores), mask)

    def preference(scores: Tensor) -> Tensor:
        return bradley_terry_loss(*scores.chunk(2))

    of_pairs = [*range(num_pairs)] * 2
    of_groups = [row // group_size for row in range(len(batch.input_ids))]
    found = [
        _compare(model, problem.pair_batch(), of_pairs, preference),
        _compare(model, batch, of_groups, difference),
    ]
    return Equivalence(
        max(one.score_error for one in found),
        max(one.gradient_error for one in found),
        max(one.computed_share for one in found),
    )


def _compare(
    model: Any,
    batch: PaddedBatch,
    group_of_row: Sequence[int],
    loss: Callable[[Tensor], Tensor],
) -> Equivalence:
    def measure() -> tuple[Tensor, Tensor]:
        logits = model(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False
        ).logits
        scores = logits.squeeze(-1).float()
        gradients = torch.autograd.grad(loss(scores), list(model.parameters()))
        return scores.detach(), torch.cat([gradient.flatten() for gradient in gradients])

    scores, gradient = measure()
    with SharedPrompts(model).sharing(*batch, group_of_row) as work:
        shared_scores, shared_gradient = measure()
    return Equivalence(
        ((shared_scores - scores).abs().max() / scores.abs().max()).item(),
        ((shared_gradient - gradient).norm() / gradient.norm()).item(),
        work.computed / work.plain,
    )
