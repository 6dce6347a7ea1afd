# SPDX-License-Identifier: Apache-2.0
"""The cost law: tokens, operations and bytes of a step by formula, and the time none can beat.

A token costs 2 N_b operations forward and 4 N_b backward in the linear layers; causal attention
over S tokens costs 2 L d S^2 forward and twice that backward. One prompt with k responses is
k (P + R) tokens where each response repeats it, and P + k R where they share it. Where only the
responses' last tokens are read, the last block computes its output and its MLP for those alone.
"""

from collections.abc import Sequence
from dataclasses import astuple, dataclass

from metarm.speed.shapes import ModelShape
from metarm.speed.workload import Bundle

__all__ = ["BACKWARD", "Cost", "Recipe", "packed_cost", "padded_cost", "step_cost"]

BACKWARD = 3
"""Forward and backward together, in forwards."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What something takes."""

    tokens: float = 0.0
    """Sent through the model."""
    linear: float = 0.0
    """Floating-point operations of the matrices, a multiplication and an addition being two."""
    attention: float = 0.0
    """Those of the products between tokens."""
    bytes: float = 0.0
    """Through memory, of what is as large as the weights."""

    @property
    def flops(self) -> float:
        """All floating-point operations."""
        return self.linear + self.attention

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(*map(sum, zip(astuple(self), astuple(other), strict=True)))

    def __mul__(self, factor: float) -> "Cost":
        return Cost(*(factor * part for part in astuple(self)))

    def seconds(self, flops_per_second: float, bytes_per_second: float) -> float:
        """The floor: operations at the rate of matrix products, bytes at that of copies."""
        return self.flops / flops_per_second + self.bytes / bytes_per_second


@dataclass(frozen=True, slots=True)
class Recipe:
    """Which passes a method makes in a step, and how."""

    shares: bool
    """Prompts are computed once a bundle, without padding, and the last block is trimmed."""
    group_share: float = 0.0
    """Passes over the groups a step: 0 plain training, 1 the meta step, 1 / meta_every."""
    recomputes: bool = False
    """Gradient checkpointing: one more forward."""


def padded_cost(
    shape: ModelShape,
    bundles: Sequence[Bundle],
    *,
    recomputes: bool = False,
    dense_attention: bool = False,
) -> Cost:
    """Forward and backward with a row for each response, all padded to the longest.

    Args:
        shape: Of the model.
        bundles: What is scored.
        recomputes: With gradient checkpointing.
        dense_attention: Count the half above the diagonal too, as eager attention computes it.
    """
    rows = sum(len(bundle.responses) for bundle in bundles)
    length = max((bundle.padded for bundle in bundles), default=0)
    tokens = rows * length
    linear = 2 * (shape.linear_weights + shape.hidden) * tokens
    attention = (4 if dense_attention else 2) * shape.layers * shape.hidden * tokens * length
    passes = BACKWARD + int(recomputes)
    return Cost(tokens, passes * linear, passes * attention)


def packed_cost(shape: ModelShape, bundles: Sequence[Bundle], *, trims: bool = True) -> Cost:
    """Forward and backward with each prompt once and no padding.

    Args:
        shape: Of the model.
        bundles: What is scored.
        trims: The last block computes no more than the responses' last tokens need.
    """
    tokens = sum(bundle.prompt + sum(bundle.responses) for bundle in bundles)
    rows = sum(len(bundle.responses) for bundle in bundles)
    full, last = shape.layers - int(trims), int(trims)
    linear = 2 * shape.linear_weights // shape.layers * tokens * full
    linear += last * 2 * (shape.token_weights * tokens + shape.row_weights * rows)
    linear += 2 * shape.hidden * rows
    looked_at = sum(map(_looked_at, bundles))
    whole = sum(bundle.prompt + length for bundle in bundles for length in bundle.responses)
    attention = 2 * shape.hidden * (full * looked_at + last * 2 * whole)
    return Cost(tokens, BACKWARD * linear, BACKWARD * attention)


def _looked_at(bundle: Bundle) -> int:
    """Twice the pairs of tokens that attention needs: P^2 + sum of (2 P R + R^2)."""
    prompt = bundle.prompt
    return prompt**2 + sum(2 * prompt * length + length**2 for length in bundle.responses)


def step_cost(
    shape: ModelShape, recipe: Recipe, pairs: Sequence[Bundle], groups: Sequence[Bundle]
) -> Cost:
    """A whole optimiser step: the passes, AdamW (28 N bytes) and the gradient's norm (4 N).

    The move of a meta step and the way back are 12 N: the least that keeps the weights exactly.
    """
    weights = Cost(bytes=32 * shape.num_weights)
    move = Cost(bytes=12 * shape.num_weights) * (recipe.group_share > 0)
    if recipe.shares:
        passes = packed_cost(shape, pairs) + packed_cost(shape, groups) * recipe.group_share
    else:
        passes = padded_cost(shape, pairs, recomputes=recipe.recomputes)
        passes += padded_cost(shape, groups, recomputes=recipe.recomputes) * recipe.group_share
    return passes + weights + move
