# SPDX-License-Identifier: Apache-2.0
"""Frozen features: a pretrained model's hidden states of each response, once, kept on disk."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from metarm.models.loading import load_backbone
from metarm.protocols import ProgressReporter, StageProgress
from metarm.schema import Prompt, prompt_text
from metarm.storage import content_digest, fingerprint

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["frozen_features"]

BATCH_SIZE: Final = 32


def frozen_features(
    model: str,
    texts: Sequence[tuple[Prompt, str]],
    *,
    max_length: int,
    cache: Path,
    progress: ProgressReporter,
) -> Tensor:
    """Hidden states of responses, mean over their tokens, at two depths side by side.

    The depths are two thirds of the layers, and the last. A text that is longer than `max_length`
    is cut: the prompt keeps its end, at most half of the length, the response its beginning.

    Args:
        model: Folder or hub id; bidirectional encoders and causal models both.
        texts: Prompts with a response.
        max_length: In tokens.
        cache: Folder; what is in it is not computed again, whichever texts are asked for.
        progress: Gets one bar, where anything has to be computed.

    Returns:
        Shape (texts, 2 * hidden size), float32.

    Raises:
        ModelError: When there is no model at `model`.

    Writes:
        One safetensors file for each model and length in `cache`.
    """
    keys = [fingerprint(prompt_text(prompt), response) for prompt, response in texts]
    path = cache / f"{fingerprint(content_digest(model), max_length)}.safetensors"
    known = _read_cache(path)
    missing = [text for text, key in zip(texts, keys, strict=True) if key not in known]
    if missing:
        with progress.stage("frozen features", len(missing)) as bar:
            computed = _compute(model, missing, max_length, bar)
        lost = [key for key in keys if key not in known]
        known |= dict(zip(lost, computed, strict=True))
        _write_cache(path, known)
    return torch.stack([known[key] for key in keys])


def _read_cache(path: Path) -> dict[str, Tensor]:
    if not path.exists():
        return {}
    with safe_open(path, framework="pt") as file:
        return dict(
            zip(json.loads(file.metadata()["keys"]), file.get_tensor("features"), strict=True)
        )


def _write_cache(path: Path, known: dict[str, Tensor]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    tensors = {"features": torch.stack(list(known.values()))}
    save_file(tensors, partial, metadata={"keys": json.dumps(list(known))})
    partial.replace(path)


@torch.no_grad()
def _compute(
    name: str, texts: Sequence[tuple[Prompt, str]], max_length: int, bar: StageProgress
) -> list[Tensor]:
    tokenizer, model = load_backbone(name)
    num_layers = model.config.get_text_config().num_hidden_layers
    depths = (round(num_layers * 2 / 3), num_layers)
    rows = [_cut_ids(tokenizer, prompt, response, max_length) for prompt, response in texts]
    order = sorted(range(len(rows)), key=lambda index: sum(map(len, rows[index])))
    found: dict[int, Tensor] = {}
    for start in range(0, len(order), BATCH_SIZE):
        indices = order[start : start + BATCH_SIZE]
        part = [rows[index] for index in indices]
        length = max(sum(map(len, row)) for row in part)
        ids = torch.zeros(len(part), length, dtype=torch.long)
        is_text, is_response = (torch.zeros(len(part), length, dtype=torch.bool) for _ in range(2))
        for place, (before, own) in enumerate(part):
            total = len(before) + len(own)
            ids[place, :total] = torch.tensor([*before, *own])
            is_text[place, :total] = True
            is_response[place, len(before) : total] = True
        states = model(
            input_ids=ids.to(model.device),
            attention_mask=is_text.long().to(model.device),
            output_hidden_states=True,
        ).hidden_states
        weights = is_response.float().unsqueeze(-1)
        means = [(states[d].float().cpu() * weights).sum(1) / weights.sum(1) for d in depths]
        found.update(zip(indices, torch.cat(means, dim=1), strict=True))
        bar.advance(len(indices))
    return [found[index] for index in range(len(rows))]


def _cut_ids(
    tokenizer: "PreTrainedTokenizerBase", prompt: Prompt, response: str, max_length: int
) -> tuple[list[int], list[int]]:
    """Ids before a response and its own, both cut to fit; a response has one token at least."""
    begin = _first_of(tokenizer.cls_token_id, tokenizer.bos_token_id)
    end = _first_of(tokenizer.sep_token_id, tokenizer.eos_token_id)
    before, own = (
        # Not verbose: what is longer than the model's context is cut below.
        list(tokenizer(text=text, add_special_tokens=False, verbose=False)["input_ids"])
        for text in (prompt_text(prompt), response)
    )
    room = max_length - len(begin) - 2 * len(end)
    before = before[-max(room // 2, room - len(own)) :]
    own = own[: room - len(before)]
    is_encoder = tokenizer.sep_token_id is not None
    return [*begin, *before, *(end if is_encoder else [])], [*own, *end]


def _first_of(*tokens: int | None) -> list[int]:
    return [token for token in tokens if token is not None][:1]
