# SPDX-License-Identifier: Apache-2.0
"""A trained reward model on disk, with the rule by which it reads text beside it."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from metarm.config import RewardSettings
from metarm.data.encoding import Encoder
from metarm.storage import write_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["merge_adapter", "save_reward_model"]


def merge_adapter(model: Any) -> "PreTrainedModel":
    """The plain model: an adapter is merged into its base."""
    merge = getattr(model, "merge_and_unload", None)
    merged: PreTrainedModel = merge() if merge is not None else model
    return merged


def save_reward_model(
    model: "PreTrainedModel", encoder: Encoder, settings: RewardSettings, output_dir: Path
) -> None:
    """Write the model, its tokenizer and the rule by which it reads text.

    Writes:
        `output_dir` in Hugging Face format, and `metarm.json`.
    """
    model.save_pretrained(output_dir)
    encoder.tokenizer.save_pretrained(output_dir)
    record = {
        "settings": settings.model_dump(),
        "encoding": "prompt + response + EOS in one piece; score at the last token that is not "
        "padding",
        "pad_token_id": encoder.pad_token_id,
        "eos_token_id": encoder.eos_token_id,
    }
    write_json(output_dir / "metarm.json", record)
