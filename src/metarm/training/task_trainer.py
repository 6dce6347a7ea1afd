# SPDX-License-Identifier: Apache-2.0
"""TRL's `RewardTrainer` with a column `task`: by whose last layer each pair is scored.

Verified on trl 1.16, transformers 5.23.
"""

from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor

from metarm.errors import ConfigError, DataError
from metarm.models.task_heads import reading, task_heads
from metarm.training.soft_labels import SoftLabelTrainer

__all__ = ["NO_COMMON_ZERO", "TASK", "TaskTrainer", "main_rows", "main_sides"]

TASK: Final = "task"
NO_COMMON_ZERO: Final = (
    "batch_sum_coefficient: scores of several tasks have no common zero, and their sum no meaning; "
    "use center_rewards_coefficient"
)
TOGETHER: Final = ("NO", "MULTI_GPU", "MULTI_CPU")
"""Ways to train in which each process has all weights."""


class TaskTrainer(SoftLabelTrainer):
    """`SoftLabelTrainer` that scores each pair by its own task's last layer.

    L = mean over pairs of the loss of the gap  w_task . (state of chosen - state of rejected)

    Of a model without `models.task_heads.TaskHeads` it is the parent, and a column `task` is what
    any other column is. A layer whose task has no pair in a batch gets a gradient of zero.

    Overrides, and why:
        `compute_loss`: the parent's, where each row reads its own layer.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        heads = task_heads(self.model)
        self.has_tasks = bool(heads)
        if not heads:
            return
        self.take_column(TASK, torch.long)
        self._refuse_with_tasks()
        known = range(heads[0].out_features)
        if TASK in (getattr(self.train_dataset, "column_names", None) or ()):
            for task in set(self.train_dataset[TASK]):
                if task not in known:
                    raise DataError(
                        f"column `task`: expected whole numbers from 0 to {known[-1]}, one a last "
                        f"layer of the model, got {task!r}"
                    )

    def _refuse_with_tasks(self) -> None:
        kind = str(self.accelerator.distributed_type).rpartition(".")[2]
        reasons = {
            f"{kind}, which shares a model's weights out: train in one process, or with DDP": kind
            not in TOGETHER,
            f"nn.DataParallel over {self.args.n_gpu} GPUs, which takes batches apart: start with "
            "torchrun": self.args.n_gpu > 1,
            NO_COMMON_ZERO: bool(getattr(self.args, "batch_sum_coefficient", 0.0)),
        }
        for reason, holds in reasons.items():
            if holds:
                raise ConfigError(f"several tasks on one trunk do not go along with {reason}")

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """The parent's, each row by its own task's layer."""
        if not self.has_tasks or TASK not in inputs:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        others = {name: value for name, value in inputs.items() if name != TASK}
        # TRL lays out chosen sides first, then rejected ones.
        with reading(model, inputs[TASK].repeat(2)):
            return super().compute_loss(model, others, return_outputs, num_items_in_batch)


def main_sides(scores: Tensor, inputs: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Chosen and rejected scores of the main task's pairs among those of TRL's batch.

    Args:
        scores: Shape (rows,), chosen sides first.
        inputs: The batch; without `task` all pairs are the main task's.
    """
    chosen, rejected = scores.chunk(2)
    if TASK not in inputs:
        return chosen, rejected
    is_main = inputs[TASK] == 0
    return chosen[is_main], rejected[is_main]


def main_rows(train_dataset: Any) -> Any:
    """Those of the main task: a unit of scores is one of its own layer's scores."""
    if TASK not in (getattr(train_dataset, "column_names", None) or ()):
        return train_dataset
    return train_dataset.filter(lambda task: task == 0, input_columns=TASK)
