# SPDX-License-Identifier: Apache-2.0
"""The states that a reward is a linear function of, read at the score layer of any architecture."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from metarm.data.encoding import pad_batch
from metarm.errors import ModelError
from metarm.models.ensemble import EnsembleScore
from metarm.models.kept_states import KeptStates
from metarm.models.reward_model import RewardModelScore
from metarm.protocols import StageProgress
from metarm.schema import Prompt

__all__ = ["HeadStates", "head_states"]

Floats = NDArray[np.float64]

ROUNDINGS: Final = 8
"""Of the sum of absolute terms: how far the model's score may be from states @ weights + bias."""


class HeadStates(NamedTuple):
    """Rewards taken apart: `states @ weights + bias`."""

    states: Floats
    """Shape (texts, size); of an ensemble, its members' side by side."""
    weights: Floats
    """Shape (size,)."""
    bias: float

    @property
    def scores(self) -> Floats:
        """The rewards, shape (texts,); of an ensemble, the mean over members."""
        found: Floats = self.states @ self.weights + self.bias
        return found


@torch.no_grad()
def head_states(
    score: RewardModelScore | EnsembleScore,
    prompts: Sequence[Prompt],
    responses: Sequence[str],
    bar: StageProgress | None = None,
    kept: KeptStates | None = None,
) -> HeadStates:
    """What the score layer reads of each response, and the layer itself.

    Args:
        score: A causal language model or an encoder with one score, or an ensemble of them.
        prompts: One for each response.
        responses: That fit the model's context.
        bar: Moves by one for each text and member.
        kept: Has the batches that are read already, and gets the others as they are read.

    Raises:
        ModelError: When the model has no linear layer that gives the score, or its score is not
            what that layer gives, to rounding.
    """
    if isinstance(score, RewardModelScore):
        return _read_states(score, prompts, responses, bar, kept)
    found = [
        _read_states(
            member, prompts, responses, bar, None if kept is None else kept.of_member(number)
        )
        for number, member in enumerate(score.members)
    ]
    shares = [1.0 / (spread * len(found)) for spread in score.spreads]
    return HeadStates(
        np.concatenate([one.states for one in found], axis=1),
        np.concatenate([s * one.weights for s, one in zip(shares, found, strict=True)]),
        sum(
            share * (one.bias - mean)
            for share, one, mean in zip(shares, found, score.means, strict=True)
        ),
    )


def _read_states(
    score: RewardModelScore,
    prompts: Sequence[Prompt],
    responses: Sequence[str],
    bar: StageProgress | None,
    kept: KeptStates | None,
) -> HeadStates:
    layer = _score_layer(score.model)
    weights = layer.weight[0].double().cpu().numpy()
    bias = 0.0 if layer.bias is None else float(layer.bias)
    rows = [score.encoder.encode(p, r) for p, r in zip(prompts, responses, strict=True)]
    order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
    states = np.empty((len(rows), layer.in_features))
    for start in range(0, len(order), score.batch_size):
        indices = order[start : start + score.batch_size]
        batch = [rows[i] for i in indices]
        found = None if kept is None else kept.get(batch)
        if found is None:
            found = _read_batch(score, layer, batch)
            if kept is not None:
                kept.put(batch, found)
        states[indices] = found
        if bar is not None:
            bar.advance(len(indices))
    return HeadStates(states, weights, bias)


def _read_batch(
    score: RewardModelScore, layer: nn.Linear, rows: Sequence[Sequence[int]]
) -> NDArray[np.float64]:
    """What the layer reads of each row of tokens, shape (rows, size)."""
    batch = pad_batch(rows, score.encoder.pad_token_id, side="right")
    ids = batch.input_ids.to(score.model.device)
    mask = batch.attention_mask.to(score.model.device)
    with _inputs_of(layer) as seen:
        logits = score.model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    own = seen[-1]
    if own.ndim == 3:
        # A language model scores every token; its reward is that of the last which is no padding.
        places = torch.arange(ids.shape[1], device=ids.device)
        last = (places * (ids != score.encoder.pad_token_id)).argmax(dim=1)
        own = own[torch.arange(len(own), device=own.device), last]
    _check_scores(layer, own.double(), logits)
    found: NDArray[np.float64] = own.double().cpu().numpy()
    return found


def _check_scores(layer: nn.Linear, states: Tensor, logits: Tensor) -> None:
    """Refuse states that are not those the score comes from."""
    weights = layer.weight[0].double()
    bias = weights.new_zeros(()) if layer.bias is None else layer.bias.double().squeeze()
    left = (logits.double().squeeze(-1) - states @ weights - bias).abs()
    terms = states.abs() @ weights.abs() + bias.abs()
    # On a GPU products in float32 may be of TF32, which has the mantissa of float16.
    is_short = logits.is_cuda and logits.dtype == torch.float32
    kinds = (torch.float16 if is_short else logits.dtype, layer.weight.dtype)
    rounding = max(torch.finfo(kind).eps for kind in kinds)
    if bool((left > ROUNDINGS * rounding * (1.0 + terms)).any()):
        raise ModelError(
            f"expected a reward model whose score is what its last linear layer gives, got scores "
            f"that are up to {float(left.max()):.3g} away from it: its rewards cannot be taken "
            "apart into states and weights"
        )


def _score_layer(model: nn.Module) -> nn.Linear:
    found = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == 1]
    if not found:
        raise ModelError(
            "expected a reward model whose score is a linear layer of one output, got none: its "
            "rewards cannot be taken apart into states and weights"
        )
    return found[-1]


@contextmanager
def _inputs_of(layer: nn.Module) -> Iterator[list[Tensor]]:
    seen: list[Tensor] = []
    handle = layer.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    try:
        yield seen
    finally:
        handle.remove()
