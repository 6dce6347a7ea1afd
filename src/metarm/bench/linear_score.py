# SPDX-License-Identifier: Apache-2.0
"""A linear score on frozen states, fitted before anything under it is trained.

A new score layer on a pretrained model sends its first, random gradients into the model and spoils
what it knows; starting from the fitted layer keeps more of it, most of all under a shift.
"""

from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["fit_linear_score"]

PENALTIES: Final = (0.003, 0.01, 0.03, 0.1, 0.3)
MOST_ITERATIONS: Final = 100


def fit_linear_score(states: Tensor, pairs: Tensor, validation: Tensor) -> Tensor:
    """The Bradley-Terry maximum over linear scores, with a ridge penalty on standardised states.

    Args:
        states: Shape (texts, size).
        pairs: Shape (pairs, 2), rows of `states`: chosen, rejected.
        validation: The same, of other prompts: their likelihood chooses the penalty.

    Returns:
        Weights of the states as they are, shape (size,), float64.

    Source:
        Kumar et al., "Fine-Tuning can Distort Pretrained Features and Underperform
        Out-of-Distribution", arXiv 2202.10054: linear probing, then fine-tuning.
    """
    states = states.double()
    spread = states[pairs.unique()].std(0).clamp(min=1e-6)
    scaled = states / spread
    taught, held = (scaled[rows[:, 0]] - scaled[rows[:, 1]] for rows in (pairs, validation))
    fitted = [_fit(taught, penalty) for penalty in PENALTIES]
    best = min(fitted, key=lambda weights: -functional.logsigmoid(held @ weights).mean().item())
    return best / spread


def _fit(gaps: Tensor, penalty: float) -> Tensor:
    weights = torch.zeros(gaps.shape[1], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weights], max_iter=MOST_ITERATIONS, line_search_fn="strong_wolfe"
    )

    def evaluate() -> Tensor:
        optimizer.zero_grad()
        loss = -functional.logsigmoid(gaps @ weights).mean() + penalty / 2 * weights.square().sum()
        loss.backward()
        return loss

    optimizer.step(evaluate)
    return weights.detach()
