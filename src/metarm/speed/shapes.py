# SPDX-License-Identifier: Apache-2.0
"""Shapes of the Llama-like models that steps are measured on, and how many weights they have."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

__all__ = ["SHAPES", "ModelShape"]


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A decoder of equal blocks under one scalar head."""

    hidden: int
    layers: int
    intermediate: int
    heads: int
    kv_heads: int
    vocabulary: int

    @property
    def token_weights(self) -> int:
        """Of query, key and value, which every token needs in every block."""
        width = self.hidden // self.heads
        return self.hidden**2 + 2 * self.hidden * width * self.kv_heads

    @property
    def row_weights(self) -> int:
        """Of the rest of a block, the output and the MLP: in the last one a row's end needs it."""
        return self.hidden**2 + 3 * self.hidden * self.intermediate

    @property
    def linear_weights(self) -> int:
        """Of all blocks' matrices: what a token is multiplied with (N_b)."""
        return self.layers * (self.token_weights + self.row_weights)

    @property
    def num_weights(self) -> int:
        """All of them, with embeddings, norms and the head (N)."""
        norms = (2 * self.layers + 1) * self.hidden
        return self.vocabulary * self.hidden + self.linear_weights + norms + self.hidden


SHAPES: Final[Mapping[str, ModelShape]] = {
    "tiny": ModelShape(32, 2, 64, 2, 2, 128),
    "4m": ModelShape(192, 6, 512, 6, 6, 8192),
    "30m": ModelShape(512, 8, 1376, 8, 8, 8192),
    "120m": ModelShape(896, 12, 2432, 14, 14, 8192),
    "0.5b": ModelShape(896, 24, 4864, 14, 2, 151936),
    "1.5b": ModelShape(1536, 28, 8960, 12, 2, 151936),
    "3b": ModelShape(2048, 36, 11008, 16, 2, 151936),
}
"""The three largest are Qwen2.5's; the others are small enough for a CPU."""
