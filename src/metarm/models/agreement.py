# SPDX-License-Identifier: Apache-2.0
"""Whether another way of a forward pass gives the plain one's scores and gradients."""

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor, nn

__all__ = [
    "few_parameters",
    "largest_difference",
    "measure_rounding",
    "score_with_gradients",
    "tolerance",
]

TOLERANCE: Final = 1e-5
"""Largest relative difference from the plain pass that passes for rounding in any case."""
LOW_PRECISION_TOLERANCE: Final = 2e-2
"""The same in bf16, which rounds off 4e-3 of a number, and a model makes more of it."""
MAX_CHECKED_NUMBERS: Final = 2**20
"""Gradient entries that the check compares: those of the smallest trainable tensors."""


def few_parameters(model: nn.Module) -> list[Tensor]:
    """Trainable tensors, smallest first, of a bounded size together: norms are in every layer."""
    few: list[Tensor] = []
    for parameter in sorted(
        (p for p in model.parameters() if p.requires_grad), key=torch.Tensor.numel
    ):
        if few and sum(p.numel() for p in (*few, parameter)) > MAX_CHECKED_NUMBERS:
            break
        few.append(parameter)
    return few


def tolerance(base: nn.Module) -> float:
    """By the precision of a pass that is going on: autocast is put on inside the model's."""
    parameter = next(base.parameters())
    is_low = parameter.dtype not in (torch.float32, torch.float64)
    is_low |= torch.is_autocast_enabled(parameter.device.type)
    return LOW_PRECISION_TOLERANCE if is_low else TOLERANCE


def _centred(scores: Tensor, group_of_row: Sequence[int]) -> Tensor:
    """Less their group's mean: what the prompt gives all rows would hide how they differ."""
    groups = torch.tensor(group_of_row, device=scores.device)
    same = (groups.unsqueeze(0) == groups.unsqueeze(1)).to(scores.dtype)
    return scores - same @ scores / same.sum(dim=1)


def score_with_gradients(
    model: nn.Module,
    input_ids: Tensor,
    attention_mask: Tensor,
    group_of_row: Sequence[int],
    parameters: Sequence[Tensor],
) -> list[Tensor]:
    """Scores, their differences within groups, and the gradients of their weighted sum."""
    logits = model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits
    scores = logits.double().flatten()
    found = [scores.detach(), _centred(scores.detach(), group_of_row)]
    if parameters:
        # Unlike weights: the gradient of a plain sum would miss texts that are mixed up.
        weights = _check_weights(len(scores), scores.device)
        gradients = torch.autograd.grad((weights * scores).sum(), parameters, allow_unused=True)
        found += [
            torch.zeros_like(p) if g is None else g
            for p, g in zip(parameters, gradients, strict=True)
        ]
    return found


def _check_weights(count: int, device: torch.device) -> Tensor:
    return torch.linspace(-1.0, 2.0, count, device=device, dtype=torch.float64)


def measure_rounding(
    model: nn.Module,
    input_ids: Tensor,
    attention_mask: Tensor,
    group_of_row: Sequence[int],
    parameters: Sequence[Tensor],
    plain: Sequence[Tensor],
) -> float:
    """How much the plain pass differs from itself when each row is alone and not padded."""
    scores, gradients = [], [torch.zeros_like(p, dtype=torch.float64) for p in parameters]
    weights = _check_weights(len(input_ids), input_ids.device)
    for row, length in enumerate(attention_mask.sum(dim=1).tolist()):
        ids, mask = input_ids[row : row + 1, :length], attention_mask[row : row + 1, :length]
        score = model(input_ids=ids, attention_mask=mask, use_cache=False).logits.double().sum()
        scores.append(score.detach())
        if parameters:
            taken = torch.autograd.grad(weights[row] * score, parameters, allow_unused=True)
            gradients = [s if g is None else s + g for s, g in zip(gradients, taken, strict=True)]
    alone = torch.stack(scores)
    return largest_difference([alone, _centred(alone, group_of_row), *gradients], plain)


def largest_difference(found: Sequence[Tensor], plain: Sequence[Tensor]) -> float:
    """The largest |found - plain| / |plain| over what `_score` gives, by length; inf for NaN.

    Differences within groups that are next to nothing are not told from rounding: they count
    against a hundredth of the scores as well.
    """
    norms = [tensor.double().norm() for tensor in plain]
    norms[1] = norms[1] + 0.01 * norms[0]
    shares = [
        ((a.double() - b.double()).norm() / norm.clamp(min=1e-30)).item()
        for a, b, norm in zip(found, plain, norms, strict=True)
    ]
    return max(share if share == share else float("inf") for share in shares)
