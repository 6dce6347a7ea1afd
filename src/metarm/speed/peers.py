# SPDX-License-Identifier: Apache-2.0
"""The same step by other means: what one would write, or import, without metarm.

Each leaves in `.grad` the gradient of the preference loss where the weights have moved down J's
gradient; prompts are repeated and padded, as nobody else shares them. A loop around it clips, steps
and clears as Hugging Face's trainer does.
"""

import importlib
import itertools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from metarm.data.encoding import PaddedBatch
from metarm.objectives import bradley_terry_loss, difference_loss
from metarm.speed.machine import now
from metarm.speed.problem import Problem
from metarm.speed.results import Block

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["PEERS", "STEP_SIZE", "PeerGradient", "run_peer"]

STEP_SIZE: Final = 1e-3
"""Of the look-ahead, for every method alike."""
MAX_GRAD_NORM: Final = 1.0

PeerGradient = Callable[[Problem, "PreTrainedModel"], Callable[[], Tensor]]
"""Given problem and model, a call that leaves the gradients in `.grad` and returns the loss."""


def run_peer(
    problem: Problem,
    model: "PreTrainedModel",
    first_step: int,
    num_steps: int,
    end_step: Callable[[], None],
    *,
    prepare: PeerGradient,
) -> Block:
    """`num_steps` timed optimiser steps, after one that is not; `end_step` is called after each."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    model.train()
    take_gradient = prepare(problem, model)
    moments = []
    for _ in range(1 + num_steps):
        loss = take_gradient()
        torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()
        moments.append(now())
        end_step()
    return Block(tuple(after - before for before, after in itertools.pairwise(moments)))


def _score(problem: Problem, model: Callable[..., Any], batch: PaddedBatch) -> Tensor:
    """Scores, shape (rows,), in fp32."""
    with torch.autocast(batch.input_ids.device.type, torch.bfloat16, enabled=problem.bf16):
        logits = model(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False
        ).logits
    scores: Tensor = logits.squeeze(-1).float()
    return scores


def _preference(problem: Problem, model: Callable[..., Any]) -> Tensor:
    return bradley_terry_loss(*_score(problem, model, problem.pair_batch()).chunk(2))


def _difference(problem: Problem, model: Callable[..., Any]) -> Tensor:
    batch, mask = problem.group_batch()
    flat = _score(problem, model, batch)
    return difference_loss(flat.new_zeros(mask.shape).masked_scatter(mask, flat), mask)


def _two_closures(problem: Problem, model: "PreTrainedModel") -> Callable[[], Tensor]:
    """After davda54/sam: clone, perturb, zero, backward again, restore."""
    kept: dict[Tensor, Tensor] = {}

    @torch.no_grad()
    def first_step() -> None:
        for parameter in model.parameters():
            if parameter.grad is not None:
                kept[parameter] = parameter.data.clone()
                parameter.add_(parameter.grad * -STEP_SIZE)
        model.zero_grad()

    @torch.no_grad()
    def second_step() -> None:
        for parameter, before in kept.items():
            parameter.data = before

    def take_gradient() -> Tensor:
        _difference(problem, model).backward()
        first_step()
        loss = _preference(problem, model)
        loss.backward()
        second_step()
        return loss.detach()

    return take_gradient


def _functional_call(problem: Problem, model: "PreTrainedModel") -> Callable[[], Tensor]:
    """`torch.func.functional_call` at moved copies of the weights, first order."""

    def take_gradient() -> Tensor:
        named = dict(model.named_parameters())
        gradients = torch.autograd.grad(_difference(problem, model), list(named.values()))
        moved = {
            name: (parameter.detach() - STEP_SIZE * gradient).requires_grad_()
            for (name, parameter), gradient in zip(named.items(), gradients, strict=True)
        }
        del gradients

        def at_moved(**inputs: Any) -> Any:
            return torch.func.functional_call(model, moved, (), inputs)

        loss = _preference(problem, at_moved)
        taken = torch.autograd.grad(loss, list(moved.values()))
        for parameter, gradient in zip(named.values(), taken, strict=True):
            parameter.grad = gradient
        return loss.detach()

    return take_gradient


def _torchopt(problem: Problem, model: "PreTrainedModel") -> Callable[[], Tensor]:
    """TorchOpt's `MetaSGD`: second order always, with eager attention."""
    package = importlib.import_module("torchopt")

    def take_gradient() -> Tensor:
        before = package.extract_state_dict(model)
        inner = package.MetaSGD(model, lr=STEP_SIZE)
        inner.step(_difference(problem, model))
        loss = _preference(problem, model)
        loss.backward()
        package.recover_state_dict(model, before)
        return loss.detach()

    return take_gradient


def _learn2learn(problem: Problem, model: "PreTrainedModel") -> Callable[[], Tensor]:
    """learn2learn's MAML, first order."""
    package = importlib.import_module("learn2learn.algorithms")
    wrapped = package.MAML(model, lr=STEP_SIZE, first_order=True)

    def take_gradient() -> Tensor:
        learner = wrapped.clone()
        learner.adapt(_difference(problem, learner))
        loss = _preference(problem, learner)
        loss.backward()
        return loss.detach()

    return take_gradient


PEERS: Final[Mapping[str, PeerGradient]] = {
    "sam": _two_closures,
    "functional-call": _functional_call,
    "torchopt": _torchopt,
    "learn2learn": _learn2learn,
}
"""By the name of its method."""
