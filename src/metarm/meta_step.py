# SPDX-License-Identifier: Apache-2.0
"""The MetaRM step: look ahead along the difference loss, take the preference gradient, come back.

    with meta_step(parameters, lambda: difference_loss(model(groups)), mode="descent",
                   step_size=1.0):
        bradley_terry_loss(model(chosen), model(rejected)).backward()
    optimizer.step()

The product is the gradient in `.grad`; clipping, accumulation and the optimiser stay the caller's.

Deviations from the paper: (1) `ascent` is Algorithm 1 as printed; it leaves the kept weights with
a LOWER difference loss than plain training, so `descent` (the sign turned) and `joint` (no
look-ahead, L - weight * J) stand beside it; (2) a fixed length of the move may replace its step
size; (3) `order="exact"` lets the gradient flow through the look-ahead, which Algorithm 1 does not,
and `order="finite-difference"` nearly so, with any attention, at the price of one more pass of J.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Literal, get_args

import torch
from torch import Tensor

from metarm.errors import ConfigError, PrecisionError, nearest_names
from metarm.placement import (
    pending_sum,
    put_into,
    shard_of,
    standing_at,
    sums_over_shards,
    widest,
)

__all__ = [
    "SIGNS",
    "TINY_NORM",
    "Direction",
    "MetaMode",
    "MetaOrder",
    "Move",
    "add_curvature",
    "add_curvature_by_difference",
    "add_gradients",
    "check_mode",
    "check_precision",
    "gather_direction",
    "gradient_norm",
    "inner_product",
    "look_ahead",
    "measure_direction",
    "meta_step",
    "place_ahead",
    "read_sum",
    "signed_step",
    "through_look_ahead",
    "weights_norm",
]

MetaMode = Literal["off", "ascent", "descent", "joint"]
MetaOrder = Literal["first", "exact", "finite-difference"]
SIGNS: Final = {"ascent": 1.0, "descent": -1.0}
TINY_NORM: Final = 1e-12
PROBE_LENGTH: Final = 1e-3
"""Of the weights' own length: the move of a finite difference."""


@dataclass(frozen=True, slots=True, eq=False)
class Direction:
    """The gradient of the difference loss J at the kept weights, one tensor a parameter."""

    difference: float
    """J there."""
    gradients: tuple[Tensor | None, ...]
    """None where J does not depend on a parameter."""
    norm: float
    """Euclidean length of the whole gradient."""


@dataclass(frozen=True, slots=True)
class Move:
    """How the weights were really moved by a look-ahead."""

    length: float
    """|theta' - theta| as stored, after rounding."""
    realised_fraction: float
    """Share of the intended move that survived rounding: 1 in fp32, near 0 in bf16."""


def check_mode(mode: str) -> None:
    """Fail on an unknown mode with the nearest known one.

    Raises:
        ConfigError: When `mode` is not one of off, ascent, descent, joint.
    """
    if mode not in get_args(MetaMode):
        raise ConfigError(f"unknown meta_mode {mode!r}: {nearest_names(mode, get_args(MetaMode))}")


def check_precision(parameters: Iterable[Tensor]) -> None:
    """Refuse parameters whose storage type would round the look-ahead away.

    Raises:
        PrecisionError: When a parameter is neither fp32 nor fp64.
    """
    low = {p.dtype for p in parameters if p.dtype not in (torch.float32, torch.float64)}
    if low:
        raise PrecisionError(
            f"the meta step needs trainable parameters in float32, got {sorted(map(str, low))}: a "
            "move of 1e-4 of a weight keeps 6 % of its length in bfloat16 and is lost without a "
            "word. Load the model with dtype=float32 (bf16=True may still autocast the forward "
            "pass), or train a float32 LoRA adapter."
        )


def measure_direction(difference: Tensor, parameters: Sequence[Tensor]) -> Direction:
    """The direction of `difference`, a scalar that still has its graph; `.grad` is not touched."""
    gradients = torch.autograd.grad(difference, parameters, allow_unused=True)
    return Direction(difference.item(), gradients, gradient_norm(gradients))


def gather_direction(parameters: Sequence[Tensor], accumulate: Callable[[], float]) -> Direction:
    """The direction that backward passes leave in `.grad`, which is put back as it was.

    Args:
        parameters: The trainable parameters.
        accumulate: Runs the passes, in as many parts as it likes, and returns J. So only one
            gradient is held, however many parts there are.
    """
    earlier = [parameter.grad for parameter in parameters]
    for parameter in parameters:
        parameter.grad = None
    try:
        difference = accumulate()
        gradients = tuple(parameter.grad for parameter in parameters)
    finally:
        for parameter, before in zip(parameters, earlier, strict=True):
            parameter.grad = before
    return Direction(difference, gradients, gradient_norm(gradients))


def signed_step(
    mode: MetaMode, direction: Direction, *, step_size: float, step_length: float | None = None
) -> float:
    """The multiple of the gradient to move by: +eta in `ascent`, -eta in `descent`, else 0.

    Args:
        mode: See the module's docstring.
        direction: Where J rises.
        step_size: The paper's eta, used where there is no `step_length`. Paper: 5e-6.
        step_length: |theta' - theta|, fixed whatever the gradient's length is.
    """
    sign = SIGNS.get(mode, 0.0)
    if step_length is None:
        return sign * step_size
    # A vanishing gradient has no direction: do not blow rounding noise up to full length.
    return sign * step_length / direction.norm if direction.norm > TINY_NORM else 0.0


def place_ahead(
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor | None],
    step: float,
    *,
    spend: bool = False,
) -> tuple[list[Tensor | None], Move]:
    """The weights theta + step * gradient, beside theta, and how far they are from it.

    Args:
        parameters: The trainable parameters, fp32.
        gradients: One a parameter; None: it stays, and so there is None in its place.
        step: What they are multiplied by.
        spend: The gradients become these weights, so that no more memory is held.

    Raises:
        PrecisionError: When a parameter is stored in less than fp32.
    """
    moved = [(p, g) for p, g in zip(parameters, gradients, strict=True) if g is not None]
    check_precision(p for p, _ in moved)
    places: list[Tensor | None] = []
    squared, along, intended = [], [], []
    with torch.no_grad():
        for parameter, gradient in zip(parameters, gradients, strict=True):
            if gradient is None:
                places.append(None)
                continue
            place = torch.add(parameter, gradient, alpha=step)
            change = place - parameter
            squared.append(inner_product(change, change))
            along.append(inner_product(change, gradient))
            intended.append(inner_product(gradient, gradient))
            places.append(put_into(gradient, place) if spend else place)
    whole = step * read_sum(intended)
    return places, Move(math.sqrt(read_sum(squared)), read_sum(along) / whole if whole else 1.0)


@contextmanager
def look_ahead(
    parameters: Sequence[Tensor], gradients: Sequence[Tensor | None], step: float
) -> Iterator[Move]:
    """Hold the parameters at theta + step * gradient; on any exit they are back bit for bit.

    Raises:
        PrecisionError: When a parameter is stored in less than fp32.
    """
    places, move = place_ahead(parameters, gradients, step)
    with standing_at(parameters, places):
        yield move


def add_curvature(
    parameters: Sequence[Tensor], difference: Callable[[], Tensor], step: float
) -> None:
    """Turn the gradient in `.grad`, g = grad L(theta'), into (I + step * H_J) g, by autograd.

    That is the gradient of L(theta + step * grad J(theta)) by theta. The attention must be
    differentiable twice: load the model with `attn_implementation="eager"`.

    Args:
        parameters: The trainable parameters, at theta.
        difference: Evaluates J there with its graph.
        step: As in `look_ahead`.
    """
    taken = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    products = _hessian_vector_products(difference(), parameters, taken)
    for parameter, gradient, product in zip(parameters, taken, products, strict=True):
        if product is not None:
            parameter.grad = gradient + step * product


def add_curvature_by_difference(
    parameters: Sequence[Tensor],
    measure: Callable[[], Direction],
    direction: Direction,
    step: float,
) -> None:
    """As `add_curvature`, with H_J g by one difference of J's gradient at the kept weights.

    H g ~ (grad J(theta + e g) - grad J(theta)) / e,   e |g| = 1e-3 |theta|

    Any attention will do, and gradient checkpointing; no dropout. J has kinks where two scores
    are equal, which autograd does not see and a difference across them does, times 1 / e: hold the
    order of the scores at theta (`ranking` of `difference_loss`) in `measure`.

    Args:
        parameters: The trainable parameters, at theta, fp32 or better.
        measure: J's direction at the weights as they are, in the order that scores have at theta;
            called once, at the end of the move.
        direction: J's direction at theta.
        step: As in `look_ahead`.
    """
    taken = [p.grad for p in parameters]
    norm = gradient_norm(taken)
    if norm <= TINY_NORM:
        return
    probe = PROBE_LENGTH * weights_norm(parameters) / norm
    with look_ahead(parameters, taken, probe):
        there = measure()
    add_gradients(parameters, there.gradients, step / probe)
    add_gradients(parameters, direction.gradients, -step / probe)


@contextmanager
def through_look_ahead(
    parameters: Sequence[Tensor], difference: Callable[[], Tensor], step: float
) -> Iterator[None]:
    """`add_curvature` to the gradient that is taken inside, on a clean exit.

    Put it around `look_ahead`: J is evaluated again, at the kept weights. Gradients accumulated
    before are left as they were.
    """
    with _gradients_apart(parameters):
        yield
        add_curvature(parameters, difference, step)


@contextmanager
def _gradients_apart(parameters: Sequence[Tensor]) -> Iterator[None]:
    """A block that begins without gradients; those from before are added on any exit."""
    earlier = [parameter.grad for parameter in parameters]
    for parameter in parameters:
        parameter.grad = None
    try:
        yield
    finally:
        for parameter, before in zip(parameters, earlier, strict=True):
            if before is not None:
                parameter.grad = before if parameter.grad is None else before + parameter.grad


@contextmanager
def meta_step(
    parameters: Iterable[Tensor],
    difference: Callable[[], Tensor],
    *,
    mode: MetaMode,
    step_size: float = 5e-6,
    step_length: float | None = None,
    weight: float = 0.1,
    order: MetaOrder = "first",
) -> Iterator[Move | None]:
    """One MetaRM step around the caller's own preference gradient: see the module's docstring.

    Args:
        parameters: The trainable parameters, fp32.
        difference: Evaluates J on the meta batch with its graph; called on entry (twice in all
            for `exact`, never for `off`).
        mode: `off`, `ascent`, `descent` or `joint`.
        step_size: The paper's eta. Paper: 5e-6.
        step_length: Fixed |theta' - theta| instead of eta.
        weight: Weight of J in `joint`.
        order: `exact` lets the gradient flow through the look-ahead: eager attention only.
            `finite-difference` nearly so, with any.

    Yields:
        How the weights were moved; None where they were not (`off`, `joint`).

    Raises:
        ConfigError: When mode or order is unknown.
        PrecisionError: When a parameter is stored in less than fp32.

    Source:
        Dou et al. 2024, arXiv 2405.00438, Algorithm 1. Differs: see the module's docstring.
    """
    check_mode(mode)
    if order not in get_args(MetaOrder):
        raise ConfigError(
            f"unknown meta_order {order!r}: {nearest_names(order, get_args(MetaOrder))}"
        )
    if mode == "off":
        yield None
        return
    # By identity: a tied weight that is listed twice must not move twice.
    trainable = list({id(p): p for p in parameters if p.requires_grad}.values())
    check_precision(trainable)
    direction = measure_direction(difference(), trainable)
    if mode == "joint":
        yield None
        add_gradients(trainable, direction.gradients, -weight)
        return
    step = signed_step(mode, direction, step_size=step_size, step_length=step_length)
    with _gradients_apart(trainable):
        with look_ahead(trainable, direction.gradients, step) as move:
            yield move
        if order == "exact":
            add_curvature(trainable, difference, step)
        elif order == "finite-difference":
            add_curvature_by_difference(
                trainable, lambda: measure_direction(difference(), trainable), direction, step
            )


def add_gradients(
    parameters: Sequence[Tensor], gradients: Sequence[Tensor | None], factor: float
) -> None:
    """Add `factor * gradient` to each parameter's `.grad`."""
    for parameter, gradient in zip(parameters, gradients, strict=True):
        if gradient is None:
            continue
        if parameter.grad is None:
            parameter.grad = factor * gradient
        else:
            parameter.grad.add_(gradient, alpha=factor)


def _hessian_vector_products(
    difference: Tensor, parameters: Sequence[Tensor], vectors: Sequence[Tensor]
) -> Sequence[Tensor | None]:
    gradients = torch.autograd.grad(difference, parameters, create_graph=True, allow_unused=True)
    terms = [
        (gradient * vector).sum()
        for gradient, vector in zip(gradients, vectors, strict=True)
        if gradient is not None and gradient.requires_grad
    ]
    if not terms:
        return [None] * len(parameters)
    return torch.autograd.grad(terms, parameters, allow_unused=True)


def gradient_norm(gradients: Iterable[Tensor | None]) -> float:
    """Euclidean length of a whole gradient; None counts as 0."""
    return math.sqrt(read_sum([inner_product(g, g) for g in gradients if g is not None]))


def weights_norm(parameters: Iterable[Tensor]) -> float:
    """Euclidean length of all weights together."""
    return gradient_norm(parameter.detach() for parameter in parameters)


def inner_product(one: Tensor, other: Tensor) -> Tensor:
    """The inner product of two tensors of one shape, on their device; of shards, a part of it."""
    here, there = shard_of(one).flatten(), shard_of(other).flatten()
    return pending_sum(torch.dot(here, there.to(here.dtype)), one)


def read_sum(products: Sequence[Tensor]) -> float:
    """Their sum in fp64 over all shards, read from the device at one go; 0 for none."""
    if not products:
        return 0.0
    home = products[0].device
    whole = [widest(product).to(home) for product in sums_over_shards(products)]
    return float(sum(torch.stack(whole).tolist()))
