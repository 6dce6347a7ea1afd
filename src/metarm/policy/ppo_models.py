# SPDX-License-Identifier: Apache-2.0
"""What PPO trains and reads: policy, reference, value model, adapters, and texts to remember."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from metarm.config_optimize import OptimizeSettings
from metarm.data.encoding import Encoder
from metarm.data.meta_sets import load_texts
from metarm.errors import ConfigError, EmptySetError, ModelError
from metarm.models.ensemble import first_member
from metarm.models.loading import (
    context_length,
    load_causal_lm,
    load_encoder,
    load_reward_model,
    lora_config,
)
from metarm.policy.sampling import Conversation
from metarm.policy.sft import encode_demonstration
from metarm.schema import Prompt
from metarm.streams import draw_seed

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = [
    "PpoModels",
    "TextRow",
    "check_vocabulary",
    "load_models",
    "read_texts",
    "token_values",
]

TextRow = dict[str, list[int]]
"""`input_ids` and `labels` of one text, of one length."""


class PpoModels(NamedTuple):
    """The models of one optimisation; with adapters, the transformers that have them inside."""

    encoder: Encoder
    policy: "PreTrainedModel"
    reference: "PreTrainedModel"
    value_model: "PreTrainedModel"
    adapter: Any
    """peft's wrapper of the policy, which can merge the adapter; None without one."""


def load_models(
    settings: OptimizeSettings,
    policy_dir: Path,
    reference_dir: Path,
    reward_model_dir: Path,
    seed: int,
) -> PpoModels:
    """The models where PPO begins: the value model is the reward model, or its first member.

    Raises:
        ModelError: When one is missing or of another kind, or tokenizers differ.
    """
    encoder = load_encoder(policy_dir)
    value_start = first_member(reward_model_dir)
    check_vocabulary(
        encoder,
        policy_dir,
        reference_dir,
        "KL compares token by token: the reference must be the policy's ancestor",
    )
    check_vocabulary(
        encoder,
        policy_dir,
        value_start,
        "the value model starts from the reward model and reads the policy's tokens: train the "
        "reward model on the policy's own backbone",
    )
    policy = load_causal_lm(policy_dir)
    value_model = load_reward_model(value_start, encoder, seed=seed)
    reference = load_causal_lm(reference_dir)
    reference.requires_grad_(False)
    adapter = None
    if settings.use_peft:
        adapter = _add_adapter(policy, settings.lora_r, draw_seed(seed, "adapter", 0))
        _add_adapter(value_model, settings.lora_r, draw_seed(seed, "adapter", 1), value_model=True)
    return PpoModels(encoder, policy, reference, value_model, adapter)


def check_vocabulary(encoder: Encoder, policy: Path, other: str | Path, reason: str) -> None:
    """Refuse a model that reads other tokens than the policy.

    Raises:
        ModelError: With the reason, which ends the message.
    """
    if load_encoder(other).tokenizer.get_vocab() != encoder.tokenizer.get_vocab():
        raise ModelError(f"{other} has another tokenizer than {policy}; {reason}")


def _add_adapter(
    model: "PreTrainedModel", lora_r: int, seed: int, *, value_model: bool = False
) -> Any:
    """LoRA inside the model's linear layers, in place; everything else is frozen."""
    config = lora_config(lora_r, has_score_head=value_model)
    from peft import get_peft_model

    with torch.random.fork_rng(devices=[]):
        # Not torch's own manual_seed: that seeds every device, which the fork does not put back.
        torch.default_generator.manual_seed(seed)
        wrapped = get_peft_model(model, config)
    return wrapped.eval()


def token_values(value_model: "PreTrainedModel", batch: Conversation) -> Tensor:
    """Value before each response token, shape (rows, tokens): the score head at every place."""
    backbone = getattr(value_model, value_model.base_model_prefix)
    hidden = backbone(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        position_ids=(batch.attention_mask.cumsum(dim=1) - 1).clamp(min=0),
        use_cache=False,
    ).last_hidden_state
    num_tokens = batch.response_ids.shape[1]
    values = value_model.score(hidden[:, -num_tokens - 1 : -1]).squeeze(-1).float()
    return values.masked_fill(~batch.response_mask, 0.0)


def read_texts(
    settings: OptimizeSettings,
    demonstrations: Sequence[tuple[Prompt, str]],
    encoder: Encoder,
    policy: "PreTrainedModel",
) -> list[TextRow]:
    """The texts of the language-model loss, cut to the policy's context; none without `ptx_coef`.

    Raises:
        ConfigError: When `ptx_coef` asks for texts and nothing names any.
        EmptySetError: When no text has a token to learn within the context.
    """
    if not settings.ptx_coef:
        return []
    texts = load_texts(settings.ptx_texts) if settings.ptx_texts else list(demonstrations)
    if not texts:
        raise ConfigError(
            f"optimize.ptx_coef is {settings.ptx_coef:g}, but there are no texts: set "
            "optimize.ptx_texts to a file of plain lines or demonstrations, or give the run an "
            "`sft` section with demonstrations"
        )
    context = context_length(policy)
    rows = [_text_row(encoder, text, context) for text in texts]
    rows = [row for row in rows if any(label >= 0 for label in row["labels"][1:])]
    if not rows:
        raise EmptySetError(
            f"none of the {len(texts)} texts has a token to learn within the policy's context of "
            f"{context}: give shorter prompts"
        )
    return rows


def _text_row(encoder: Encoder, text: str | tuple[Prompt, str], context: int) -> TextRow:
    if isinstance(text, str):
        ids = encoder.encode("", text)
        row = {"input_ids": ids, "labels": ids}
    else:
        row = encode_demonstration(encoder, *text)
    return {name: values[:context] for name, values in row.items()}
