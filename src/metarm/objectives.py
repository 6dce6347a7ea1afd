# SPDX-License-Identifier: Apache-2.0
"""The two losses of MetaRM, scores in and one number out: the difference loss J, Bradley-Terry L.

Deviations from the paper: (1) J is averaged over groups, which the paper leaves open; (2) groups
may have different k; (3) exact ties have sub-gradient 0, the convention of `torch.abs`.
"""

import torch
from torch import Tensor
from torch.nn import functional

from metarm.errors import ShapeError

__all__ = ["batch_sum_penalty", "bradley_terry_loss", "difference_gradient", "difference_loss"]


def difference_loss(
    scores: Tensor, mask: Tensor | None = None, *, ranking: Tensor | None = None
) -> Tensor:
    """How far apart the scores within a group are, averaged over groups; needs no label.

    J = mean over groups of (2 / k^2) * sum_{i<j} sigmoid(|s_i - s_j|)

    It sees differences only: adding a constant to a group's scores, permuting them or turning
    their sign leaves J as it is. It does not see which order is right.

    Args:
        scores: Shape (groups, k), in logits.
        mask: Shape (groups, k), True where there is a response; None means everywhere. A group's
            k is its count of True; what stands in masked places does not matter.
        ranking: Scores whose order is held to, shape (groups, k), where it is not that of `scores`:
            |s_i - s_j| becomes sign(r_i - r_j) (s_i - s_j), J's smooth continuation past ties.

    Returns:
        Scalar in [(k-1)/(2k), (k-1)/k) for groups of k: for k = 5, 0.4 when all scores are equal
        and towards 0.8 as they separate. A group of one response counts as 0.

    Raises:
        ShapeError: When scores are not (groups, k), or the mask has another shape.

    Source:
        Dou et al. 2024, arXiv 2405.00438, the difference loss of section 3. Differs: see above.

    Example:
        >>> round(difference_loss(torch.zeros(3, 5)).item(), 4)
        0.4
    """
    mask = _check_groups(scores, mask)
    # Masked scores become 0 before the subtraction: an inf or nan there would poison gradients.
    filled = scores.masked_fill(~mask, 0.0)
    gaps = filled.unsqueeze(2) - filled.unsqueeze(1)
    sizes = gaps.abs() if ranking is None else gaps * _signs(ranking, filled, mask)
    is_pair = (mask.unsqueeze(2) & mask.unsqueeze(1)).triu(diagonal=1)
    apart = torch.sigmoid(sizes).masked_fill(~is_pair, 0.0).sum(dim=(1, 2))
    k = mask.sum(dim=1).clamp(min=1).to(scores.dtype)
    return (2.0 / k.square() * apart).mean()


@torch.no_grad()
def difference_gradient(
    scores: Tensor, mask: Tensor | None = None, *, ranking: Tensor | None = None
) -> Tensor:
    """The gradient of `difference_loss` by the scores, in closed form.

    c_i = (2 / (m k^2)) * sum_{j != i} sign(s_i - s_j) * sigmoid'(|s_i - s_j|)   for m groups

    A model's gradient of J is `scores.backward(c)`, so that groups can be taken in any parts: c
    needs their scores alone. The slope is taken as exp(log sigmoid(d) + log sigmoid(-d)), which
    does not vanish in fp32 at gaps above 17 as s * (1 - s) does.

    Args:
        scores: Shape (groups, k), in logits; computed in fp32 or better.
        mask: As in `difference_loss`.
        ranking: As in `difference_loss`: the signs are those of its gaps.

    Returns:
        Shape (groups, k), 0 in masked places and at exact ties; a group's sum is 0, and each entry
        within (k-1)/(2 m k^2) of it: for m = 1, k = 2, c = (1/8, -1/8) just beside a tie.

    Raises:
        ShapeError: As `difference_loss`.

    Source:
        Derived from the difference loss of arXiv 2405.00438, section 3.

    Example:
        >>> [round(c, 3) for c in difference_gradient(torch.tensor([[1e-6, 0.0]])).tolist()[0]]
        [0.125, -0.125]
    """
    is_there = _check_groups(scores, mask)
    wide = scores.to(torch.promote_types(scores.dtype, torch.float32)).masked_fill(~is_there, 0.0)
    gaps = wide.unsqueeze(2) - wide.unsqueeze(1)
    slope = torch.exp(functional.logsigmoid(gaps) + functional.logsigmoid(-gaps))
    is_pair = is_there.unsqueeze(2) & is_there.unsqueeze(1)
    signs = gaps.sign() if ranking is None else _signs(ranking, wide, is_there)
    sums = (signs * slope).masked_fill(~is_pair, 0.0).sum(dim=2)
    k = is_there.sum(dim=1, keepdim=True).clamp(min=1).to(wide.dtype)
    return 2.0 / (len(scores) * k.square()) * sums


def bradley_terry_loss(
    chosen: Tensor,
    rejected: Tensor,
    *,
    margin: Tensor | float | None = None,
    label: Tensor | None = None,
) -> Tensor:
    """Negative log-likelihood that the chosen response wins, averaged over pairs.

    L = mean of -[ p * log sigmoid(g - m) + (1 - p) * log sigmoid(m - g) ],  g = chosen - rejected

    Args:
        chosen: Scores of the chosen responses, shape (pairs,), in logits.
        rejected: Scores of the rejected responses, shape (pairs,), in logits.
        margin: Gap m that counts as a coin flip, in logits, one number or one a pair; None is 0.
        label: Probability p in [0, 1] that the chosen response is the better one; None is 1.

    Returns:
        Scalar >= 0; log 2 = 0.6931 when all gaps are 0 and there is no margin.

    Raises:
        ShapeError: When the tensors are not all of shape (pairs,): broadcasting would give a
            number that is wrong without an error.

    Source:
        Bradley & Terry 1952; the vanilla loss L of arXiv 2405.00438. Written with logsigmoid:
        log(sigmoid + epsilon) kills the gradient of badly wrong pairs.

    Example:
        >>> round(bradley_terry_loss(torch.zeros(3), torch.zeros(3)).item(), 4)
        0.6931
    """
    named = {"chosen": chosen, "rejected": rejected, "margin": margin, "label": label}
    for name, tensor in named.items():
        if isinstance(tensor, Tensor) and (tensor.dim() != 1 or tensor.shape != chosen.shape):
            raise ShapeError(
                f"bradley_terry_loss expects {name} of shape (pairs,), got {tuple(tensor.shape)} "
                f"beside chosen {tuple(chosen.shape)}. Use `.squeeze(-1)` on a model's logits."
            )
    gap = chosen - rejected
    if margin is not None:
        gap = gap - margin
    if label is None:
        return -functional.logsigmoid(gap).mean()
    return -(label * functional.logsigmoid(gap) + (1 - label) * functional.logsigmoid(-gap)).mean()


def batch_sum_penalty(scores: Tensor) -> Tensor:
    """A batch's squared sum of scores, over its size: what holds their free offset and scale.

    P = n * mean(s)^2 = (sum s)^2 / n

    Args:
        scores: All scores of a batch, any shape, in logits.

    Returns:
        Scalar >= 0: 0 where they sum to 0, n c^2 where all n are c.

    Source:
        Batch-wise sum-to-zero regularisation, Hong et al. 2505.07271. Differs: over the batch's
        size, so that a weight means the same in any.

    Example:
        >>> batch_sum_penalty(torch.tensor([[1.0, 3.0]])).item()
        8.0
    """
    return scores.mean().square() * scores.numel()


def _signs(ranking: Tensor, scores: Tensor, mask: Tensor) -> Tensor:
    """Signs of the ranking's gaps within each group, shape (groups, k, k)."""
    if ranking.shape != scores.shape:
        raise ShapeError(
            f"ranking must have the shape of scores {tuple(scores.shape)}, got "
            f"{tuple(ranking.shape)}"
        )
    known = ranking.detach().masked_fill(~mask, 0.0)
    return (known.unsqueeze(2) - known.unsqueeze(1)).sign().to(scores.dtype)


def _check_groups(scores: Tensor, mask: Tensor | None) -> Tensor:
    """The mask of scores that are (groups, k): given, or True everywhere."""
    if scores.dim() != 2 or scores.shape[0] == 0:
        raise ShapeError(
            f"difference_loss expects scores of shape (groups, k), got {tuple(scores.shape)}. "
            "Reshape flat scores with `.view(groups, k)`."
        )
    if mask is None:
        return torch.ones_like(scores, dtype=torch.bool)
    if mask.shape != scores.shape or mask.dtype != torch.bool:
        raise ShapeError(
            f"mask must be boolean with the shape of scores {tuple(scores.shape)}, "
            f"got {mask.dtype} {tuple(mask.shape)}"
        )
    return mask
