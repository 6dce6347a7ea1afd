# SPDX-License-Identifier: Apache-2.0
"""A trained reward model on disk, with the rule by which it reads text beside it."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metarm.config import RewardSettings
from metarm.data.encoding import Encoder
from metarm.storage import STAGE_FILE, write_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["copy_model_folder", "merge_adapter", "save_reward_model"]


def copy_model_folder(source: Path, output_dir: Path) -> None:
    """Copy a finished model folder, its folders too, into one that is there.

    Args:
        source: A model folder; the record of the stage that made it is left behind.
        output_dir: A folder; files of the same names are replaced.

    Writes:
        `output_dir`: everything else that `source` holds.
    """

    def left_behind(folder: str, names: Sequence[str]) -> set[str]:
        return {STAGE_FILE}.intersection(names) if Path(folder) == source else set()

    shutil.copytree(source, output_dir, ignore=left_behind, dirs_exist_ok=True)


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
