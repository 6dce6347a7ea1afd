# SPDX-License-Identifier: Apache-2.0
"""What TRL's RLOO and GRPO trainers would learn from wrongly, without a word: refused here."""

from collections.abc import Sequence
from typing import Final

import torch

from metarm.data.encoding import Encoder
from metarm.errors import ModelError
from metarm.policy.trainer_watch import Watch
from metarm.schema import Prompt

__all__ = ["refuse_absolute_positions", "refuse_other_tokens"]

TOLERANCE: Final = 1e-3
"""Log-probabilities that differ by more were taken at other positions."""


def refuse_other_tokens(encoder: Encoder, prompts: Sequence[Prompt]) -> None:
    """TRL continues a text prompt as the tokenizer writes it: with EOS where it adds one.

    Raises:
        ModelError: Where it does.
    """
    for prompt in dict.fromkeys(prompts):
        if not isinstance(prompt, str):
            continue
        if list(encoder.tokenizer(text=prompt)["input_ids"]) != encoder.encode_prompt(prompt):
            raise ModelError(
                f"the tokenizer ends the prompt {prompt[:60]!r} with EOS, and rloo and grpo would "
                "go on after it: set `add_eos_token` of the tokenizer to false, or use ppo"
            )


@torch.no_grad()
def refuse_absolute_positions(watch: Watch) -> None:
    """Whether padding on the left, without positions, changes what the policy says of a prompt.

    Raises:
        ModelError: Where it does.
    """
    encoder, policy = watch.encoder, watch.policy
    rows = sorted(map(encoder.encode_prompt, dict.fromkeys(watch.prompts)), key=len)
    short, num_padding = rows[0], len(rows[-1]) - len(rows[0])
    if not num_padding:
        return
    device = policy.device
    alone = policy(input_ids=torch.tensor([short], device=device), use_cache=False)
    padded = policy(
        input_ids=torch.tensor([[encoder.pad_token_id] * num_padding + short], device=device),
        attention_mask=torch.tensor([[0] * num_padding + [1] * len(short)], device=device),
        use_cache=False,
    )
    first, second = (found.logits[0, -1].float().log_softmax(-1) for found in (alone, padded))
    if (first - second).abs().max() > TOLERANCE:
        raise ModelError(
            f"{type(policy).__name__} has absolute positions, which TRL counts with the padding: "
            "its log-probabilities would not be those of the responses. Use ppo, or prompts of one "
            "length"
        )
