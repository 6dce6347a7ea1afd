# SPDX-License-Identifier: Apache-2.0
"""What a batch of responses says of the policy that wrote it, the same for every optimiser."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from metarm.data.encoding import Encoder
from metarm.policy.sampling import Conversation, join_rows, response_log_probs
from metarm.schema import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["measure_batch"]


@torch.no_grad()
def measure_batch(
    policy: "PreTrainedModel",
    reference: "PreTrainedModel",
    encoder: Encoder,
    prompts: Sequence[Prompt],
    response_ids: Sequence[Sequence[int]],
    finished: Sequence[bool],
    *,
    temperature: float,
    rows_at_once: int,
) -> dict[str, float]:
    """KL to SFT, entropy and lengths of responses that `policy` drew at `temperature`.

    Args:
        policy: The model as it was when it drew them, without dropout.
        reference: The SFT policy.
        encoder: Of both.
        prompts: One a response.
        response_ids: Sampled ids, with EOS where a response ended by itself.
        finished: Whether it did.
        temperature: Log-probabilities are taken under softmax(logits / temperature).
        rows_at_once: Responses per forward pass.

    Returns:
        `objective/kl` in nats a response, `objective/entropy` in nats a token (1.1 for an even
        choice of three), and `completions/*`; docs/metrics.md has the formulas.
    """
    batch = Conversation(
        *(tensor.to(policy.device) for tensor in join_rows(encoder, prompts, response_ids))
    )
    log_prob = log_ratio = 0.0
    for rows in torch.arange(len(response_ids)).split(rows_at_once):
        part = Conversation(*(tensor[rows] for tensor in batch))
        own = response_log_probs(policy, part, temperature)
        log_prob += own.sum().item()
        log_ratio += (own - response_log_probs(reference, part, temperature)).sum().item()
    num_tokens = sum(map(len, response_ids))
    return {
        "objective/kl": log_ratio / len(response_ids),
        "objective/entropy": -log_prob / num_tokens,
        "completions/mean_length": num_tokens / len(response_ids),
        "completions/finished_fraction": sum(finished) / len(finished),
    }
