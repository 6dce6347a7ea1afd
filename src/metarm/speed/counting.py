# SPDX-License-Identifier: Apache-2.0
"""Tokens that enter a model and bytes that are alive at once: counted, not timed."""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["LiveBytes", "TokenCount", "counting_tokens", "peak_bytes"]


class TokenCount:
    """Tokens that have entered a model, by optimiser step."""

    def __init__(self) -> None:
        self.total = 0
        self._at_ends: list[int] = []

    def end_step(self) -> None:
        """A step is done."""
        self._at_ends.append(self.total)

    @property
    def per_step(self) -> float:
        """Mean over all steps but the first."""
        return (self._at_ends[-1] - self._at_ends[0]) / (len(self._at_ends) - 1)


@contextmanager
def counting_tokens(model: "PreTrainedModel") -> Iterator[TokenCount]:
    """A block in which every token id that is embedded is counted, padding too."""
    count = TokenCount()

    def see(module: Any, inputs: tuple[Tensor, ...]) -> None:
        count.total += inputs[0].numel()

    with model.get_input_embeddings().register_forward_pre_hook(see):
        yield count


class LiveBytes(TorchDispatchMode):
    """Bytes of all tensors' storages that were made inside and are still alive, and their peak.

    What a kernel allocates for itself and gives back before it returns is not seen.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run the operation and look at what it made."""
        found = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(found):
            if isinstance(leaf, Tensor):
                self._see(leaf.untyped_storage())
        return found

    def _see(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._known:
            return
        self._known.add(key)
        size = storage.nbytes()
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


@contextmanager
def peak_bytes() -> Iterator[list[int]]:
    """A block at whose end the list holds the largest number of bytes alive at once in it."""
    found: list[int] = []
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        yield found
        found.append(torch.cuda.max_memory_allocated())
        return
    with LiveBytes() as mode:
        yield found
    found.append(mode.peak)
