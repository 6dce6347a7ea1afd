# SPDX-License-Identifier: Apache-2.0
"""The memory law: bytes that a training holds at its peak, by formula, and what they are; no torch.

In float32 with AdamW a weight is 4 bytes, its moments 8 and its gradient 4; the meta step holds one
more copy of the weights: J's gradient, which becomes theta'. A token leaves 10 h + 4 I numbers in
each block (h the width, I that of the MLP) for the way back: what norms, matrices and attention
were given. With gradient checkpointing it leaves h in each, and all of them in one.
"""

from dataclasses import dataclass
from typing import Final

from metarm.speed.shapes import ModelShape

__all__ = ["BF16", "FP32", "Memory", "Training", "block_bytes", "peak_memory"]

FP32: Final = 4
BF16: Final = 2
MOMENTS: Final = 8
"""Bytes a weight of AdamW, in float32."""
BLOCKS_GATHERED: Final = 2
"""By FSDP2 at once: the one that computes, and the next."""


@dataclass(frozen=True, slots=True)
class Training:
    """What decides the peak of one process's memory."""

    tokens: int
    """Of its largest pass, padding in it."""
    recomputes: bool = False
    """Gradient checkpointing."""
    bf16: bool = False
    """Autocast; weights stay float32."""
    moves: bool = False
    """A meta step: one more copy of the trained weights."""
    accumulates: bool = False
    """Gradients of an earlier pass are there when a pass begins."""
    processes: int = 1
    is_sharded: bool = False
    """FSDP2; else DDP where there are several processes."""
    trained: int | None = None
    """Weights that are trained; None: all. Fewer with an adapter."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of one process, by what they are."""

    weights: float
    optimiser: float
    move: float
    """J's gradient, then theta'."""
    gradients: float
    """At the peak: those that are not there yet do not count."""
    gathered: float
    """Blocks that FSDP2 has put together, and their gradients; or DDP's buckets."""
    activations: float

    @property
    def total(self) -> float:
        """All of them."""
        held = self.weights + self.optimiser + self.move + self.gradients
        return held + self.gathered + self.activations


def block_bytes(shape: ModelShape, *, bf16: bool = False) -> int:
    """What a token leaves in one block: 10 h + 4 I numbers, of 4 bytes; 85 KiB for 4096 and 11008.

    Under autocast the stream between blocks and its norms stay float32, and each matrix keeps a
    bfloat16 copy of what it was given: 34 h + 8 I bytes.
    """
    if bf16:
        return 34 * shape.hidden + 4 * BF16 * shape.intermediate
    return FP32 * (10 * shape.hidden + 4 * shape.intermediate)


def peak_memory(shape: ModelShape, training: Training) -> Memory:
    """The most that one process holds at once.

    The way back frees activations as it makes gradients, so the peak is at one of its ends: all
    activations and no gradient, or all gradients and one block's activations.

    Args:
        shape: Of the model.
        training: Of it.
    """
    parts = training.processes if training.is_sharded else 1
    trained = shape.num_weights if training.trained is None else training.trained
    width = BF16 if training.bf16 else FP32
    one = training.tokens * block_bytes(shape, bf16=training.bf16)
    # The gradients of the MLP's two inner products, on the way back through it.
    passing = training.tokens * 2 * shape.intermediate * width
    stream = training.tokens * shape.hidden * FP32
    kept = shape.layers * stream + one if training.recomputes else shape.layers * one
    # Autocast's copies of the weights, until a pass ends; of shards one block's at a time.
    if training.bf16 and not (training.is_sharded and training.recomputes):
        kept += BF16 * shape.linear_weights
    gradients = FP32 * trained / parts
    at_begin = kept + passing + (gradients if training.accumulates else 0.0)
    at_end = one + passing + gradients
    is_begin = at_begin > at_end
    return Memory(
        weights=FP32 * shape.num_weights / parts,
        optimiser=MOMENTS * trained / parts,
        move=FP32 * trained / parts if training.moves else 0.0,
        gradients=0.0 if is_begin and not training.accumulates else gradients,
        gathered=_gathered(shape, training, trained),
        activations=(kept if is_begin else one) + passing,
    )


def _gathered(shape: ModelShape, training: Training, trained: int) -> float:
    """What processes hold beside their own for the sake of each other."""
    if training.processes == 1:
        return 0.0
    if not training.is_sharded:
        return float(FP32 * trained)
    block = shape.token_weights + shape.row_weights
    # A cast block beside it, and the gradients of as many blocks before they are given away.
    cast = BF16 * block if training.bf16 else 0
    blocks = BLOCKS_GATHERED * FP32 * block + cast + BLOCKS_GATHERED * FP32 * block
    return float(blocks + FP32 * shape.vocabulary * shape.hidden)
