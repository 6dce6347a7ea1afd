# SPDX-License-Identifier: Apache-2.0
"""Frozen features: a pretrained model's hidden states of each response, once, kept on disk."""

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from metarm.bench.settings import AdviseSettings, CompareSettings, TuneSettings
from metarm.bench.tokens import read_tokens
from metarm.errors import FormatError
from metarm.models.loading import load_backbone
from metarm.protocols import ProgressReporter, StageProgress
from metarm.schema import Prompt, prompt_text
from metarm.storage import content_digest, fingerprint

__all__ = ["features_of", "frozen_features", "mean_over_response"]

BATCH_SIZE: Final = 32
KEEP_EVERY: Final = 4096


def features_of(
    settings: CompareSettings | AdviseSettings | TuneSettings,
    texts: Sequence[tuple[Prompt, str]],
    progress: ProgressReporter,
) -> Tensor:
    """`frozen_features` of a verb's texts, by its settings."""
    return frozen_features(
        settings.backbone,
        texts,
        max_length=settings.max_length,
        cache=settings.features_dir or settings.output_dir / "features",
        progress=progress,
    )


def frozen_features(
    model: str,
    texts: Sequence[tuple[Prompt, str]],
    *,
    max_length: int,
    cache: Path,
    progress: ProgressReporter,
) -> Tensor:
    """Hidden states of responses, mean over their tokens, at two depths side by side.

    The depths are two thirds of the layers, and the last. Long texts are cut: `read_tokens`.

    Args:
        model: Folder or hub id; bidirectional encoders and causal models both.
        texts: Prompts with a response.
        max_length: In tokens.
        cache: Folder; what is in it is not computed again, whichever texts are asked for.
        progress: Gets one bar, where anything has to be computed.

    Returns:
        Shape (texts, 2 * hidden size), float32.

    Raises:
        FormatError: When the file in `cache` is damaged.
        ModelError: When there is no model at `model`.

    Writes:
        One safetensors file for each model and length in `cache`, every few thousand texts.
    """
    keys = [fingerprint(prompt_text(prompt), response) for prompt, response in texts]
    path = cache / f"{fingerprint(content_digest(model), max_length)}.safetensors"
    known = _read_cache(path)
    missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in known}
    if missing:
        names = list(missing)
        with progress.stage("frozen features", len(missing)) as bar:
            found: dict[str, Tensor] = {}
            for index, states in _compute(model, list(missing.values()), max_length, bar):
                found[names[index]] = states
                if len(found) % KEEP_EVERY == 0:
                    _write_cache(path, known | found)
        known |= found
        _write_cache(path, known)
    return torch.stack([known[key] for key in keys])


def _read_cache(path: Path) -> dict[str, Tensor]:
    if not path.exists():
        return {}
    try:
        with safe_open(path, framework="pt") as file:
            return dict(
                zip(json.loads(file.metadata()["keys"]), file.get_tensor("features"), strict=True)
            )
    except (SafetensorError, KeyError, ValueError) as error:
        raise FormatError(
            f"{path}: expected frozen features, got {error}. Remove the file: it is made again."
        ) from error


def _write_cache(path: Path, known: dict[str, Tensor]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Two comparisons may share the folder: each writes a file of its own.
    partial = path.with_suffix(f".{os.getpid()}.partial")
    tensors = {"features": torch.stack(list(known.values()))}
    save_file(tensors, partial, metadata={"keys": json.dumps(list(known))})
    partial.replace(path)


@torch.no_grad()
def _compute(
    name: str, texts: Sequence[tuple[Prompt, str]], max_length: int, bar: StageProgress
) -> Iterator[tuple[int, Tensor]]:
    """Each text's number and its states, the shortest texts first."""
    tokenizer, model = load_backbone(name)
    num_layers = model.config.get_text_config().num_hidden_layers
    depths = (round(num_layers * 2 / 3), num_layers)
    table = read_tokens(tokenizer, texts, max_length)
    order = table.by_length(range(len(texts)))
    for start in range(0, len(order), BATCH_SIZE):
        indices = order[start : start + BATCH_SIZE]
        batch = table.batch(indices)
        states = model(
            input_ids=batch.ids.to(model.device),
            attention_mask=batch.is_text.long().to(model.device),
            output_hidden_states=True,
        ).hidden_states
        means = [mean_over_response(states[d].float().cpu(), batch.is_response) for d in depths]
        bar.advance(len(indices))
        yield from zip(indices, torch.cat(means, dim=1), strict=True)


def mean_over_response(states: Tensor, is_response: Tensor) -> Tensor:
    """The mean state over a response's tokens.

    Args:
        states: Shape (texts, length, size).
        is_response: Shape (texts, length); True once at least in each text.

    Returns:
        Shape (texts, size).
    """
    weights = is_response.to(states).unsqueeze(-1)
    return (states * weights).sum(1) / weights.sum(1)
