# SPDX-License-Identifier: Apache-2.0
"""How parameters are held: whole, or as shards that FSDP2 gathers; and so how they are moved.

A whole parameter is moved by an exchange of storages: nothing is copied. A shard is edited in
place, since FSDP2 gathers from a storage of its own, which `.data =` would leave behind; and after
each edit every sharded module is told to drop what it had gathered, since a forward pass without
gradients keeps the last layers gathered, and the next one would read the weights from before.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.graph import increment_version

from metarm.errors import ModelError

if torch.distributed.is_available():
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor, Partial, Replicate

__all__ = [
    "PLACEMENTS",
    "Placement",
    "ShardedParameters",
    "backward_inputs",
    "hold",
    "is_sharded",
    "named_shards",
    "pending_sum",
    "put_into",
    "settle",
    "shard_of",
    "sharded_modules",
    "standing_at",
    "sums_over_shards",
    "widest",
]


class ShardedParameters(tuple[Tensor, ...]):
    """Parameters of a model that is sharded, with the modules that gather them."""

    modules: tuple[Any, ...]

    def __new__(cls, parameters: Iterable[Tensor], modules: Iterable[Any]) -> "ShardedParameters":
        """The parameters as the optimiser has them: a model's own may be gathered ones."""
        held = super().__new__(cls, parameters)
        held.modules = tuple(modules)
        return held


def is_sharded(tensor: Tensor) -> bool:
    """Whether this process holds a part of the tensor alone."""
    return torch.distributed.is_available() and isinstance(tensor, DTensor)


def shard_of(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor, in the same memory; a whole one as it is."""
    if not is_sharded(tensor):
        return tensor
    local: Tensor = tensor.detach().to_local()  # type: ignore[attr-defined]
    return local


def sharded_modules(model: nn.Module) -> list[Any]:
    """The modules of a model that gather their weights before they compute."""
    if not torch.distributed.is_available():
        return []
    return [module for module in model.modules() if isinstance(module, FSDPModule)]


def hold(parameters: Sequence[Tensor], model: nn.Module) -> Sequence[Tensor]:
    """The parameters, with what moving them needs: as they are where they are whole."""
    if not any(map(is_sharded, parameters)):
        return parameters
    return ShardedParameters(parameters, sharded_modules(model))


def settle(parameters: Sequence[Tensor]) -> None:
    """After an edit: forget what was made of the values from before."""
    for module in getattr(parameters, "modules", ()):
        module.reshard()
    # Inside one autocast context the cached bf16 weights would still be theta's.
    torch.clear_autocast_cache()


def named_shards(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Each parameter's name and what this process holds of it; gathered ones are given up first."""
    for module in sharded_modules(model):
        module.reshard()
    for name, parameter in model.named_parameters():
        yield name, shard_of(parameter.detach())


def backward_inputs(parameters: Sequence[Tensor]) -> list[Tensor] | None:
    """What `backward` is told to stop at; None for shards, whose gathered twins autograd knows."""
    return None if any(map(is_sharded, parameters)) else list(parameters)


def put_into(gradient: Tensor, place: Tensor) -> Tensor:
    """Let the gradient's memory hold the place, and no other memory; returns who holds it."""
    if is_sharded(gradient):
        shard_of(gradient).copy_(shard_of(place))
        return gradient
    gradient.data = place
    return place


class Placement(Protocol):
    """One parameter's way to another place and home; `back` undoes any part of `go`."""

    def __init__(self, parameter: Tensor, place: Tensor) -> None: ...

    def go(self) -> None:
        """The parameter's values are the place's."""

    def back(self) -> None:
        """They are bit for bit what they were."""


class _Exchanged:
    """A whole parameter: its storage gives way to the place's."""

    def __init__(self, parameter: Tensor, place: Tensor) -> None:
        self._parameter, self._place, self._home = parameter, place, parameter.data

    def go(self) -> None:
        self._point_at(self._place)

    def back(self) -> None:
        self._point_at(self._home)

    def _point_at(self, storage: Tensor) -> None:
        self._parameter.data = storage
        # Unlike an operation in place, `.data` does not tell autograd.
        increment_version(self._parameter)


class _Edited:
    """A shard: its values and the place's change sides, so that no third copy is held."""

    def __init__(self, parameter: Tensor, place: Tensor) -> None:
        self._here, self._there = shard_of(parameter), shard_of(place)
        self._between: Tensor | None = None
        self._is_there = False

    def go(self) -> None:
        self._swap(is_there=True)

    def back(self) -> None:
        if self._between is not None:  # interrupted on the way
            home = self._there if self._is_there else self._between
            self._here.copy_(home)
        elif self._is_there:
            self._swap(is_there=False)

    @torch.no_grad()
    def _swap(self, *, is_there: bool) -> None:
        self._between = self._here.clone()
        self._here.copy_(self._there)
        self._there.copy_(self._between)
        self._is_there, self._between = is_there, None


PLACEMENTS: Final[Mapping[bool, Callable[[Tensor, Tensor], Placement]]] = {
    False: _Exchanged,
    True: _Edited,
}
"""By whether the parameter is a shard."""


@contextmanager
def standing_at(parameters: Sequence[Tensor], places: Sequence[Tensor | None]) -> Iterator[None]:
    """Hold the parameters at other weights; on any exit they are back, as they were never touched.

    Nothing is rounded. A graph that was built on one side and is gone back through on the other is
    an error of autograd's, as after any change in place; of shards it is not, and is wrong.
    Whatever keeps addresses of weights (CUDA graphs) must not run inside. Inside, the places of
    shards are where the weights wait.

    Args:
        parameters: From `hold`, where they are sharded.
        places: One a parameter, held as it is; None: it stays.

    Raises:
        ModelError: When parameters are sharded and their modules are not known.
    """
    if any(map(is_sharded, parameters)) and not getattr(parameters, "modules", ()):
        raise ModelError(
            "sharded parameters cannot be moved without the modules that gather them, which would "
            "go on with the old weights: pass metarm.placement.hold(parameters, model)"
        )
    moved: list[Placement] = []
    try:
        for parameter, place in zip(parameters, places, strict=True):
            if place is not None:
                moved.append(PLACEMENTS[is_sharded(parameter)](parameter, place))
                moved[-1].go()
        settle(parameters)
        yield
    finally:
        for placement in moved:
            placement.back()
        settle(parameters)


def widest(tensor: Tensor) -> Tensor:
    """The tensor in fp64, or in fp32 on Apple's accelerator, which has no fp64."""
    return tensor.float() if tensor.device.type == "mps" else tensor.double()


def pending_sum(part: Tensor, like: Tensor) -> Tensor:
    """A number of this process's shard, marked as one that the others' have to be added to.

    Args:
        part: 0-d.
        like: The tensor that it was computed of; where that is whole, so is the number.
    """
    if not is_sharded(like):
        return part
    spec: Any = like
    kinds = [Partial() if kind.is_shard() else Replicate() for kind in spec.placements]
    pending: Tensor = DTensor.from_local(part, spec.device_mesh, kinds, run_check=False)
    return pending


def sums_over_shards(products: Sequence[Tensor]) -> list[Tensor]:
    """The whole numbers as they are, and one sum in fp64 for all that wait for other processes.

    So however many parameters there are, processes talk to each other once.
    """
    whole = [product for product in products if not is_sharded(product)]
    waiting: dict[Any, list[Any]] = {}
    for product in products:
        if is_sharded(product):
            spec: Any = product
            waiting.setdefault((spec.device_mesh, spec.placements), []).append(product)
    for (mesh, kinds), parts in waiting.items():
        total = torch.stack([widest(part.to_local()) for part in parts]).sum()
        whole.append(DTensor.from_local(total, mesh, kinds, run_check=False).full_tensor())
    return whole
