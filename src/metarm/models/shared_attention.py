# SPDX-License-Identifier: Apache-2.0
"""Attention within a packed row, as one of transformers' attention implementations.

A model's layers take who sees whom from the keyword `attends` of the forward pass.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, Protocol

import torch
from torch import Tensor

from metarm.errors import ModelError
from metarm.models.prompt_layout import PackedLayout

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask
    from transformers import PreTrainedModel

__all__ = ["PACKED_ATTENTION", "Attends", "attend_packed", "attention", "block_mask"]

PACKED_ATTENTION: Final = "metarm_packed"

KNOWN_OPTIONS: Final = {
    *("scaling", "dropout", "is_causal", "position_ids", "use_cache"),
    "sliding_window",  # longer than every text, else nothing is shared
}
"""What a packed row takes from a module; softcaps, sinks and biases it would leave out."""


class Attends(Protocol):
    """How the tokens of a packed row attend to each other in a layer."""

    def __call__(
        self, module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, **options: Any
    ) -> Tensor:
        """Shape (1, tokens, heads, width), from those of `attend_packed`."""


@contextmanager
def attention(model: "PreTrainedModel", name: str) -> Iterator[None]:
    """A block in which a model's layers attend by the implementation of this name."""
    from transformers import AttentionInterface

    AttentionInterface.register(PACKED_ATTENTION, attend_packed)
    configs = {id(m.config): m.config for m in model.modules() if hasattr(m, "config")}
    kept = {key: config._attn_implementation for key, config in configs.items()}
    try:
        for config in configs.values():
            config._attn_implementation = name
        yield
    finally:
        for key, config in configs.items():
            config._attn_implementation = kept[key]


def attend_packed(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    attends: Attends | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention of one packed row.

    Args:
        module: The attention module that asks.
        query: Shape (1, heads, tokens, width).
        key: Shape (1, key heads, tokens, width).
        value: As `key`; its width may differ.
        attention_mask: Not used: who sees whom is in `attends`.
        attends: From the keyword arguments of the model's forward pass.
        options: What the module gives beside (scaling, dropout).

    Returns:
        Shape (1, tokens, heads, width), and no weights.

    Raises:
        ModelError: When the model does not hand `attends` down to its attention, or asks for more
            than `KNOWN_OPTIONS`.
    """
    if attends is None:
        raise ModelError(f"{type(module).__name__} is not told who sees whom in a packed row")
    unknown = {name for name, value in options.items() if value is not None} - KNOWN_OPTIONS
    if unknown or options.get("dropout"):
        raise ModelError(f"a packed row does not know {sorted(unknown) or ['dropout']}")
    return attends(module, query, key, value, **options), None


def block_mask(layout: PackedLayout) -> "BlockMask":
    """Who sees whom in a packed row, for FlexAttention, which skips what nobody sees.

    Its backward pass needs a GPU (torch 2.13).
    """
    from torch.nn.attention.flex_attention import create_block_mask

    count = layout.input_ids.shape[1]

    def sees(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return layout.sees(query, key)

    return create_block_mask(sees, None, None, count, count, device=layout.ends.device)
