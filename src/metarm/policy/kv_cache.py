# SPDX-License-Identifier: Apache-2.0
"""A language model's keys and values: rows can be copied and removed, tokens are written in place.

transformers' own cache copies all keys and values at each token: three fifths of the time of a
model of 3e7 weights on a CPU. Its layers for sliding windows stay: they hold no more than a window.
"""

import inspect
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import DynamicCache, GenerationMixin
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from metarm.errors import CacheError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["build_cache"]


class _RoomyLayer(DynamicLayer):
    """Keys and values of one layer, with room for all tokens that will come.

    `keys` and `values`, of shape (rows, heads, tokens, size), are the part of it written so far.
    Only what `decode` calls is made to fit: a layer of this kind cannot be cropped or reordered.
    """

    def __init__(self, max_length: int) -> None:
        super().__init__()
        self._max_length = max_length
        self._rooms: list[Tensor] = []

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write the keys and values of new tokens, and return all so far."""
        new = (key_states, value_states)
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._rooms = [
                states.new_empty((*states.shape[:2], self._max_length, states.shape[3]))
                for states in new
            ]
        start = self.get_seq_length()
        stop = start + key_states.shape[2]
        for room, states in zip(self._rooms, new, strict=True):
            room[:, :, start:stop] = states
        self.keys, self.values = (room[:, :, :stop] for room in self._rooms)
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Rows become those at `indices`."""
        length = self.get_seq_length()
        self._rooms = [_select_rows(room, indices, length) for room in self._rooms]
        if self._rooms:
            self.keys, self.values = (room[:, :, :length] for room in self._rooms)


def _select_rows(room: Tensor, indices: Tensor, length: int) -> Tensor:
    """Rows of a room with `length` tokens in it: in place, unless they become more."""
    if len(indices) > len(room):
        grown = room.new_empty((len(indices), *room.shape[1:]))
        grown[:, :, :length] = room[indices, :, :length]
        return grown
    moved = (indices != torch.arange(len(indices), device=indices.device)).nonzero().squeeze(1)
    # The right side is a copy, so that no row is overwritten before it is read.
    room[moved, :, :length] = room[indices[moved], :, :length]
    return room[: len(indices)]


def build_cache(model: "PreTrainedModel", max_length: int) -> DynamicCache:
    """An empty cache for texts of up to `max_length` tokens, padding included.

    Raises:
        CacheError: When the model takes none, or keeps more of a row than keys and values.
    """
    if model.config.is_encoder_decoder:
        raise CacheError("it has an encoder, whose states are not in the cache")
    if model.training:
        raise CacheError("it is in training mode, where equal rows differ by dropout")
    if (
        type(model).prepare_inputs_for_generation
        is not GenerationMixin.prepare_inputs_for_generation
    ):
        raise CacheError("it prepares the inputs of a generation in its own way")
    if "past_key_values" not in inspect.signature(model.forward).parameters:
        raise CacheError("it takes no `past_key_values`")
    cache = DynamicCache(config=model.config.get_text_config(decoder=True))
    # Exactly these: hybrid layers inherit a selection of rows that leaves out recurrent states.
    unknown = {type(layer) for layer in cache.layers} - {DynamicLayer, DynamicSlidingWindowLayer}
    if unknown:
        names = ", ".join(sorted(kind.__name__ for kind in unknown))
        raise CacheError(f"rows of these layers of its cache cannot be selected: {names}")
    # Metal's attention has read keys wrongly that are a part of a larger tensor (pytorch 163597).
    if model.device.type != "mps":
        cache.layers = [
            _RoomyLayer(max_length) if type(layer) is DynamicLayer else layer
            for layer in cache.layers
        ]
    return cache
