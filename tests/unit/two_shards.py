# SPDX-License-Identifier: Apache-2.0
"""A script for `torch.distributed.run`: the meta step on shards, right, and wrong in known ways.

Every number is beside that of a whole model: the gradient of the preference loss at the look-ahead
point, or the scores. What is wrong here is how a stranger would write it.
"""

import copy
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard

from metarm.meta_step import (
    gather_direction,
    gradient_norm,
    inner_product,
    look_ahead,
    read_sum,
    weights_norm,
)
from metarm.placement import hold, sharded_modules, standing_at
from metarm.training.processes import direction_over_processes

STEP = 0.3
WIDTH = 6


class Scorer(nn.Module):
    """A trunk, a tail that FSDP2 leaves gathered, and perhaps an adapter that it never shards."""

    def __init__(self, *, is_adapted: bool = False) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH))
        self.head = nn.Linear(WIDTH, 1, bias=False)
        self.adapter = nn.Linear(WIDTH, WIDTH, bias=False) if is_adapted else None

    def forward(self, inputs: Tensor) -> Tensor:
        states = torch.tanh(self.trunk(inputs))
        if self.adapter is not None:
            states = states + torch.tanh(self.adapter(states))
        return self.head(states).squeeze(-1)


def make_model(*, is_adapted: bool = False) -> Scorer:
    """The same in every process, fp64."""
    torch.manual_seed(3)
    return Scorer(is_adapted=is_adapted).double()


def shard(model: Scorer) -> Scorer:
    """As accelerate does it: blocks are given up after a pass, the tail is kept."""
    ignored = set() if model.adapter is None else set(model.adapter.parameters())
    for block in (model.trunk[0], model.trunk[2]):
        fully_shard(block)
    fully_shard(model.head, reshard_after_forward=False)
    fully_shard(model, ignored_params=ignored)
    return model


def rows(seed: int, count: int = 4) -> Tensor:
    """Inputs of all processes."""
    return torch.randn(
        count, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )


def own(inputs: Tensor) -> Tensor:
    """Those of this process: half of them."""
    return inputs.chunk(dist.get_world_size())[dist.get_rank()]


def spread(scores: Tensor) -> Tensor:
    """Stands in for J."""
    return scores.square().mean()


def preference(scores: Tensor) -> Tensor:
    """Stands in for L."""
    return torch.sin(3 * scores).mean()


def norm_of_gradients(model: nn.Module) -> float:
    """Of the whole gradient, whoever holds it."""
    return gradient_norm(parameter.grad for parameter in parameters_of(model))


def parameters_of(model: nn.Module) -> list[Tensor]:
    """As an optimiser has them."""
    for module in sharded_modules(model):
        module.reshard()
    return list(model.parameters())


def full(tensor: Tensor) -> Tensor:
    """All of a tensor."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def accelerator() -> Any:
    """The part of accelerate's that means take."""

    def reduce(tensor: Tensor, reduction: str) -> Tensor:
        found = tensor.clone()
        dist.all_reduce(found)
        return found / dist.get_world_size() if reduction == "mean" else found

    return SimpleNamespace(num_processes=2, device=torch.device("cpu"), reduce=reduce)


def whole_reference(*, is_adapted: bool = False) -> dict[str, float]:
    """The numbers of one process that sees all rows."""
    model = make_model(is_adapted=is_adapted)
    parameters = list(model.parameters())

    def difference() -> float:
        loss = spread(model(rows(1)))
        loss.backward()
        return loss.item()

    direction = gather_direction(parameters, difference)
    with look_ahead(parameters, direction.gradients, STEP) as move:
        loss = preference(model(rows(2)))
        loss.backward()
        ahead = model(rows(2)).sum().item()
    return {
        "direction": direction.norm,
        "length": move.length,
        "ahead": ahead,
        "gradient": norm_of_gradients(model),
        "home": model(rows(2)).sum().item(),
        "weights": weights_norm(parameters),
        "product": read_sum(
            [
                inner_product(p.grad, g)
                for p, g in zip(parameters, direction.gradients, strict=True)
                if g is not None
            ]
        ),
    }


def sharded(*, is_adapted: bool = False) -> dict[str, float]:
    """The same of two processes with half of the rows each."""
    model = shard(make_model(is_adapted=is_adapted))
    parameters = hold(parameters_of(model), model)
    before = [full(p.detach()).clone() for p in parameters]

    def difference() -> float:
        loss = spread(model(own(rows(1))))
        loss.backward()
        return loss.item()

    direction = direction_over_processes(accelerator(), gather_direction(parameters, difference))
    with look_ahead(parameters, direction.gradients, STEP) as move:
        loss = preference(model(own(rows(2))))
        loss.backward()
        with torch.no_grad():
            ahead = model(rows(2)).sum().item()
    for parameter in model.parameters():
        if parameter.grad is not None and not hasattr(parameter, "full_tensor"):
            parameter.grad = accelerator().reduce(parameter.grad, "mean")
    with torch.no_grad():
        home = model(rows(2)).sum().item()
    names = parameters_of(model)
    assert all(torch.equal(full(p.detach()), b) for p, b in zip(names, before, strict=True))
    return {
        "direction": direction.norm,
        "length": move.length,
        "ahead": ahead,
        "gradient": norm_of_gradients(model),
        "home": home,
        "weights": weights_norm(parameters),
        "product": read_sum(
            [
                inner_product(p.grad, g)
                for p, g in zip(parameters, direction.gradients, strict=True)
                if g is not None
            ]
        ),
    }


def adapted() -> dict[str, dict[str, float]]:
    """A plain adapter beside a sharded trunk: its gradient is averaged by hand."""
    return {"right": sharded(is_adapted=True), "reference": whole_reference(is_adapted=True)}


def an_error_within() -> dict[str, float]:
    """Where the block fails, the weights are back all the same."""
    model = shard(make_model())
    parameters = hold(parameters_of(model), model)
    with torch.no_grad():
        before = model(rows(2)).sum().item()
    try:
        with standing_at(parameters, [2 * parameter.detach() for parameter in parameters]):
            with torch.no_grad():
                moved = model(rows(2)).sum().item()
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        with torch.no_grad():
            after = model(rows(2)).sum().item()
    return {"before": before, "moved": moved, "after": after}


def without_resharding() -> dict[str, float]:
    """(a) The tail stays gathered after a pass without gradients: an edit is not seen."""
    model = shard(make_model())
    parameters = parameters_of(model)
    with torch.no_grad():
        before = model(rows(2)).sum().item()
        for parameter in parameters:
            if parameter.shape[0] == 1:
                parameter.zero_()
        unseen = model(rows(2)).sum().item()
        for module in sharded_modules(model):
            module.reshard()
        seen = model(rows(2)).sum().item()
    return {"before": before, "unseen": unseen, "seen": seen}


def with_data_assigned() -> dict[str, float]:
    """(b) `.data =` leaves what FSDP2 gathers from behind: the weights do not come back."""
    model = shard(make_model())
    parameters = parameters_of(model)
    with torch.no_grad():
        before = model(rows(2)).sum().item()
        for module in sharded_modules(model):
            module.reshard()
        kept = [parameter.data.clone() for parameter in parameters]
        for parameter in parameters:
            parameter.mul_(2.0)
        for parameter, old in zip(parameters, kept, strict=True):
            parameter.data = old
        for module in sharded_modules(model):
            module.reshard()
        after = model(rows(2)).sum().item()
    return {"before": before, "after": after}


def without_sync() -> dict[str, float]:
    """(c) Without gradient sync J has no gradient to read, and is added to that of L."""
    model = shard(make_model())
    model.set_requires_gradient_sync(False)
    spread(model(own(rows(1)))).backward()
    none = sum(parameter.grad is None for parameter in parameters_of(model))
    model.zero_grad()
    model.set_requires_gradient_sync(True)
    preference(model(own(rows(2)))).backward()
    mixed = norm_of_gradients(model)
    clean_model = shard(make_model())
    preference(clean_model(own(rows(2)))).backward()
    count = len(list(clean_model.parameters()))
    return {
        "without_gradient": none,
        "count": count,
        "mixed": mixed,
        "clean": norm_of_gradients(clean_model),
    }


CASES: dict[str, Callable[[], Any]] = {
    "right": sharded,
    "reference": whole_reference,
    "adapted": adapted,
    "error": an_error_within,
    "a": without_resharding,
    "b": with_data_assigned,
    "c": without_sync,
}


def main(output: str) -> None:
    """Write every case's numbers, from process 0."""
    dist.init_process_group("gloo")
    found = {name: copy.deepcopy(case()) for name, case in CASES.items()}
    if dist.get_rank() == 0:
        Path(output).write_text(json.dumps(found), encoding="utf-8")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
