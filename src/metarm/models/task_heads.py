# SPDX-License-Identifier: Apache-2.0
"""One trunk with a last layer for each of several tasks, of which a row reads its own alone.

    give_task_heads(model, 2)
    with reading(model, torch.tensor([0, 1, 0, 1])):
        scores = model(input_ids=input_ids, attention_mask=attention_mask).logits  # (4, 1)

Outside the block, and so for all that knows nothing of tasks, the model is the first task's.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional

from metarm.errors import ModelError

__all__ = ["TaskHeads", "alone", "give_task_heads", "reading", "task_heads"]


class TaskHeads(nn.Linear):
    """Last layers of several tasks, one a row of the weight, that begin as one layer did.

    Its output has one column, as that layer's: in a `reading` block each row's own task's, else
    the first task's.

    Args:
        head: A last layer with one output.
        count: Tasks.
    """

    def __init__(self, head: nn.Linear, count: int) -> None:
        weight = head.weight
        super().__init__(
            head.in_features,
            count,
            bias=head.bias is not None,
            device=weight.device,
            dtype=weight.dtype,
        )
        self.task_of_row: Tensor | None = None
        with torch.no_grad():
            self.weight.copy_(weight.expand_as(self.weight))
            if head.bias is not None:
                self.bias.copy_(head.bias.expand_as(self.bias))

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the parent's name
        """Scores of states, shape (rows, ..., size) -> (rows, ..., 1).

        Raises:
            ModelError: When these are other rows than those whose tasks are known.
        """
        if self.task_of_row is None:
            # What the first task's model alone computes, bit for bit.
            bias = None if self.bias is None else self.bias[:1]
            return functional.linear(input, self.weight[:1], bias)
        scores: Tensor = super().forward(input)
        if len(self.task_of_row) != len(scores):
            raise ModelError(
                f"expected the {len(self.task_of_row)} rows whose tasks are known, got "
                f"{len(scores)}: score others outside of `reading`"
            )
        own = self.task_of_row.to(scores.device)
        index = own.view(-1, *(1,) * (scores.dim() - 1)).expand(*scores.shape[:-1], 1)
        return scores.gather(-1, index)

    def head_of(self, task: int) -> nn.Linear:
        """A layer of one output: that of a task."""
        head = nn.Linear(
            self.in_features,
            1,
            bias=self.bias is not None,
            device=self.weight.device,
            dtype=self.weight.dtype,
        )
        with torch.no_grad():
            head.weight.copy_(self.weight[task : task + 1])
            if self.bias is not None:
                head.bias.copy_(self.bias[task : task + 1])
        return head


def give_task_heads(model: nn.Module, count: int) -> None:
    """Put a last layer for each task in place of a reward model's, all of which begin as it did.

    Args:
        model: A sequence classifier of transformers with one score.
        count: Tasks, the main one among them.

    Raises:
        ModelError: When the model's last layer is not one linear map to a score.
    """
    base: nn.Module = model.base_model  # type: ignore[assignment]
    trunk = set(base.modules())
    names = [
        name
        for name, module in model.named_modules()
        if module not in trunk and isinstance(module, nn.Linear) and module.out_features == 1
    ]
    if len(names) != 1:
        raise ModelError(
            f"several tasks need a model with one linear last layer of one score over its trunk, "
            f"got {type(model).__name__} with {len(names)} ({', '.join(names) or 'none'})"
        )
    head = model.get_submodule(names[0])
    assert isinstance(head, nn.Linear)
    model.set_submodule(names[0], TaskHeads(head, count))


def task_heads(model: nn.Module) -> list[TaskHeads]:
    """Those of a model, bare or wrapped: none, one, or with an adapter the frozen first one too."""
    return [module for module in model.modules() if isinstance(module, TaskHeads)]


@contextmanager
def reading(model: nn.Module, task_of_row: Tensor) -> Iterator[None]:
    """A block in which the rows of a forward pass are scored by their own tasks' layers.

    Args:
        model: With task heads, bare or wrapped.
        task_of_row: Shape (rows,), from 0, integers.
    """
    heads = task_heads(model)
    for head in heads:
        head.task_of_row = task_of_row
    try:
        yield
    finally:
        for head in heads:
            head.task_of_row = None


@contextmanager
def alone(model: nn.Module, task: int) -> Iterator[None]:
    """A block in which a model is a task's ordinary reward model, to be scored with or saved."""
    with ExitStack() as stack:
        for name, module in list(model.named_modules()):
            if isinstance(module, TaskHeads):
                model.set_submodule(name, module.head_of(task))
                stack.callback(model.set_submodule, name, module)
        yield
