# SPDX-License-Identifier: Apache-2.0
"""A tiny reward model, pairs and groups, and trainers on them with everything random fixed."""

import itertools
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GPT2Config,
    GPT2ForSequenceClassification,
)
from trl import RewardConfig, RewardTrainer

from metarm.training import MetaRewardConfig, MetaRewardTrainer
from tiny_models import CONTEXT, SPECIAL, WORDS

NUM_PAIRS = 24
NUM_GROUPS = 7
GROUP_SIZE = 3


def _text(draw: random.Random) -> str:
    return "".join(f" {word}" for word in draw.choices(WORDS, k=draw.randint(1, 6)))


def pair_rows(count: int = NUM_PAIRS) -> list[dict[str, str]]:
    """Prompt, chosen and rejected, drawn from the tiny tokenizer's words."""
    draw = random.Random("pairs")
    return [
        {"prompt": _text(draw).strip(), "chosen": _text(draw), "rejected": _text(draw)}
        for _ in range(count)
    ]


def group_rows(count: int = NUM_GROUPS, k: int = GROUP_SIZE) -> list[dict[str, Any]]:
    """Prompt and k responses."""
    draw = random.Random("groups")
    return [
        {"prompt": _text(draw).strip(), "responses": [_text(draw) for _ in range(k)]}
        for _ in range(count)
    ]


def load_tokenizer(folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(folder)


def load_model(folder: Path, **options: Any) -> Any:
    """The model in `folder`, in fp32."""
    return AutoModelForSequenceClassification.from_pretrained(
        folder, **({"dtype": torch.float32} | options)
    )


def make_double_model(seed: int = 0) -> Any:
    """A GPT-2 in fp64 that can be differentiated twice; a Llama's norms would compute in fp32."""
    config = GPT2Config(
        vocab_size=len(SPECIAL) + len(WORDS),
        n_positions=CONTEXT,
        n_embd=16,
        n_layer=1,
        n_head=2,
        initializer_range=0.3,
        num_labels=1,
        pad_token_id=0,
        attn_implementation="eager",
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return GPT2ForSequenceClassification(config).to(torch.float64)


def plain_options(output_dir: Path, **changes: Any) -> dict[str, Any]:
    """Settings under which an update can be computed by hand: SGD, no clip, no decay."""
    return {
        "output_dir": str(output_dir),
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "optim": "sgd",
        "learning_rate": 0.1,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "max_steps": 3,
        "per_device_train_batch_size": 4,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    } | changes


def meta_options(output_dir: Path, **changes: Any) -> dict[str, Any]:
    """The same with a meta batch of 4 groups of all their responses."""
    return plain_options(output_dir, meta_batch_size=4, meta_group_size=GROUP_SIZE) | changes


def make_trl_trainer(folder: Path, output_dir: Path, model: Any = None, **changes: Any) -> Any:
    """TRL's own trainer."""
    return RewardTrainer(
        model if model is not None else load_model(folder),
        RewardConfig(**plain_options(output_dir, **changes)),
        train_dataset=datasets.Dataset.from_list(pair_rows()),
        processing_class=load_tokenizer(folder),
    )


def make_trainer(
    folder: Path,
    output_dir: Path,
    *,
    model: Any = None,
    trainer_class: type[MetaRewardTrainer] = MetaRewardTrainer,
    given: dict[str, Any] | None = None,
    sources: Sequence[str] = (),
    num_groups: int = NUM_GROUPS,
    **changes: Any,
) -> Any:
    """Ours; `given` goes to the trainer, `changes` to its settings.

    Groups are of the `sources` in turn, or say nothing of theirs.
    """
    groups = group_rows(num_groups)
    if sources:
        turns = itertools.cycle(sources)
        groups = [row | {"source": source} for row, source in zip(groups, turns, strict=False)]
    data = {
        "train_dataset": datasets.Dataset.from_list(pair_rows()),
        "meta_dataset": datasets.Dataset.from_list(groups),
        "processing_class": load_tokenizer(folder),
    }
    return trainer_class(
        model if model is not None else load_model(folder),
        MetaRewardConfig(**meta_options(output_dir, **changes)),
        **(data | (given or {})),
    )


def weights(model: Any) -> dict[str, torch.Tensor]:
    """Copies of the parameters and buffers as they are now."""
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def is_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    """Bit for bit."""
    return first.keys() == second.keys() and all(
        torch.equal(value, second[name]) for name, value in first.items()
    )


def distance(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    """The largest difference of an entry."""
    return max((value - second[name]).abs().max().item() for name, value in first.items())
