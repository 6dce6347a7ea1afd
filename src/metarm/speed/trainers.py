# SPDX-License-Identifier: Apache-2.0
"""Blocks of steps of TRL's trainer and of metarm's, as their users start them."""

import tempfile
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import datasets
import torch
from transformers import TrainerCallback
from transformers.trainer_callback import PrinterCallback
from trl import RewardConfig, RewardTrainer

from metarm.speed.clock import StepClock
from metarm.speed.problem import Problem
from metarm.speed.results import Block
from metarm.training import MetaRewardConfig, MetaRewardTrainer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["run_metarm", "run_trl"]


class _CountFrom(TrainerCallback):
    """Go on counting where the last block ended: logs and meta steps fall as in one training."""

    def __init__(self, step: int, end_step: Callable[[], None]) -> None:
        self.step, self.end_step = step, end_step

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        state.global_step = self.step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.end_step()


def run_trl(
    problem: Problem,
    model: "PreTrainedModel",
    first_step: int,
    num_steps: int,
    end_step: Callable[[], None],
    **options: Any,
) -> Block:
    """`num_steps` timed steps of `RewardTrainer`, after one that is not.

    Args:
        problem: Gives the pairs.
        model: Is trained.
        first_step: Where the count of steps begins.
        num_steps: That are timed.
        end_step: Called after each step.
        options: Of `RewardConfig`, where its defaults are not meant.
    """
    with tempfile.TemporaryDirectory() as folder:
        settings = _settings(problem, folder, first_step + 1 + num_steps) | options
        trainer = RewardTrainer(
            model=model,
            args=RewardConfig(**settings),
            train_dataset=_pairs(problem),
            processing_class=problem.encoder.tokenizer,
        )
        return _train(trainer, _CountFrom(first_step, end_step))


def run_metarm(
    problem: Problem,
    model: "PreTrainedModel",
    first_step: int,
    num_steps: int,
    end_step: Callable[[], None],
    **options: Any,
) -> Block:
    """The same of `MetaRewardTrainer`, without gradient checkpointing."""
    workload = problem.workload
    own: dict[str, Any] = {
        "gradient_checkpointing": False,
        "meta_batch_size": workload.num_groups,
        "meta_group_size": workload.group_size,
    }
    if not options.get("share_prompts", True):
        # The step as one would write it: all responses in one batch.
        own["meta_micro_batch_size"] = workload.num_groups * workload.group_size
    with tempfile.TemporaryDirectory() as folder:
        settings = _settings(problem, folder, first_step + 1 + num_steps) | own | options
        trainer = MetaRewardTrainer(
            model=model,
            args=MetaRewardConfig(**settings),
            train_dataset=_pairs(problem),
            meta_dataset=problem.groups,
            processing_class=problem.encoder.tokenizer,
        )
        return _train(trainer, _CountFrom(first_step, end_step))


def _settings(problem: Problem, folder: str, max_steps: int) -> dict[str, Any]:
    """What both trainers are told: one batch a step, in its order, and nothing is saved."""
    return {
        "output_dir": folder,
        "per_device_train_batch_size": problem.workload.num_pairs,
        "max_steps": max_steps,
        "max_length": None,
        "bf16": problem.bf16,
        "learning_rate": 1e-5,
        "lr_scheduler_type": "constant",
        "train_sampling_strategy": "sequential",
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "dataloader_pin_memory": torch.cuda.is_available(),
        "seed": problem.seed,
    }


def _pairs(problem: Problem) -> datasets.Dataset:
    return datasets.Dataset.from_dict(
        {
            "prompt": [pair.prompt for pair in problem.preferences],
            "chosen": [pair.chosen for pair in problem.preferences],
            "rejected": [pair.rejected for pair in problem.preferences],
        }
    )


def _train(trainer: Any, counting: _CountFrom) -> Block:
    clock = StepClock()
    trainer.remove_callback(PrinterCallback)
    trainer.callback_handler.callbacks.insert(0, clock.first)
    trainer.add_callback(clock)
    trainer.add_callback(counting)
    trainer.train()
    return clock.block()
