# SPDX-License-Identifier: Apache-2.0
"""The hidden states that a reward model's score head reads: all that its reward can see."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from metarm.data.encoding import pad_batch
from metarm.models.reward_model import RewardModelScore
from metarm.schema import Prompt

__all__ = ["head_states"]


@torch.no_grad()
def head_states(
    score: RewardModelScore, prompts: Sequence[Prompt], responses: Sequence[str]
) -> NDArray[np.float64]:
    """The states at each response's last token under the score head, shape (responses, size).

    The reward is a linear function of them: what they do not show, it cannot see.
    """
    model, encoder = score.model, score.encoder
    rows = [encoder.encode(p, r) for p, r in zip(prompts, responses, strict=True)]
    found: list[NDArray[np.float64]] = []
    for start in range(0, len(rows), score.batch_size):
        batch = pad_batch(
            rows[start : start + score.batch_size], encoder.pad_token_id, side="right"
        )
        mask = batch.attention_mask.to(model.device)
        states = model.base_model(
            input_ids=batch.input_ids.to(model.device), attention_mask=mask, use_cache=False
        ).last_hidden_state
        last = mask.sum(dim=1) - 1
        own = states[torch.arange(len(last), device=last.device), last]
        found.append(own.double().cpu().numpy())
    return np.concatenate(found) if found else np.zeros((0, model.config.hidden_size))
