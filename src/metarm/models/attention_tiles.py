# SPDX-License-Identifier: Apache-2.0
"""Attention of a packed row by tiles: every key where it stands, once, whoever asks.

A token's keys are split over tiles (its text's own tokens; the common beginning), each tile is one
call of torch's kernel, and the answers are merged by their log-sum-exp, which is exact. So no key
is copied for each text that sees it, and no mask is read but what hides padding. For the CPU's
kernel, which says its log-sum-exp; differentiable once.

Source: the merging is that of blockwise (ring) attention, Liu et al. 2310.01889, section 3.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from metarm.models.prompt_layout import PackedLayout

__all__ = ["Tile", "TileAttention", "attend_in_tiles"]

MAX_TILE_WASTE: Final = 1.5
"""Work of a padded tile over that of its texts, before another tile is begun."""
_Span = tuple[Sequence[int], Sequence[int]]
"""Tokens that ask, and tokens that are asked."""

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


@dataclass(frozen=True, slots=True, eq=False)
class Tile:
    """Texts of like length, some of whose tokens ask and some are asked."""

    queries: Tensor
    """Flat token indices, (texts, queries)."""
    keys: Tensor
    """Flat token indices, (texts, keys)."""
    causal: bool
    """Queries and keys are the same tokens, and see those before them."""
    asks: Tensor | None
    """Where there is a query, (texts, queries); None: everywhere."""
    seen: Tensor | None
    """Where there is a key, (texts, 1, 1, keys); None: everywhere, or seen by padding alone."""


def attend_in_tiles(layout: PackedLayout) -> "tuple[TileAttention, TileAttention]":
    """How a packed row attends, and in the last layer, where only the texts' last tokens ask."""
    prefixes = {group: layout.texts[group[0]][0] for group in layout.groups}
    shared = [(prefix, group) for group, prefix in prefixes.items() if prefix]
    owns = [own for _, own in layout.texts]
    # The own tokens of a group follow each other.
    asking = [(range(owns[group[0]].start, owns[group[-1]].stop), p) for p, group in shared]
    ends = [([owns[row][-1] for row in group], prefix) for prefix, group in shared]
    return (
        TileAttention(
            (
                *_tiles([(prefix, prefix) for prefix, _ in shared], causal=True),
                *_tiles([(own, own) for own in owns], causal=True),
                *_tiles(asking, causal=False),
            )
        ),
        TileAttention(
            (
                *_tiles([(own[-1:], own) for own in owns], causal=False),
                *_tiles(ends, causal=False),
            )
        ),
    )


def _tiles(spans: Sequence[_Span], *, causal: bool) -> tuple[Tile, ...]:
    """Tiles of like lengths: (asking, asked) tokens of each text, both at least one."""
    tiles: list[list[_Span]] = []
    widths, work = (0, 0), 0
    for span in sorted(spans, key=lambda span: (len(span[1]), len(span[0]))):
        wider = (max(widths[0], len(span[0])), max(widths[1], len(span[1])))
        area = len(span[0]) * len(span[1])
        if not tiles or (len(tiles[-1]) + 1) * wider[0] * wider[1] > MAX_TILE_WASTE * (work + area):
            tiles.append([])
            wider, work = (len(span[0]), len(span[1])), 0
        tiles[-1].append(span)
        widths, work = wider, work + area
    return tuple(_lay(tile, causal) for tile in tiles)


def _lay(spans: Sequence[_Span], causal: bool) -> Tile:
    queries, asks = _padded([span[0] for span in spans])
    keys, seen = _padded([span[1] for span in spans])
    hides = seen is not None and not causal
    return Tile(
        queries,
        keys,
        causal,
        asks,
        seen.view(len(spans), 1, 1, -1) if hides and seen is not None else None,
    )


def _padded(spans: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor | None]:
    """Indices padded with the first of their text, and where there is no padding; None: nowhere."""
    width = max(map(len, spans))
    indices = torch.tensor([[*span, *[span[0]] * (width - len(span))] for span in spans])
    lengths = torch.tensor([[len(span)] for span in spans])
    is_there = torch.arange(width) < lengths
    return indices, None if bool(is_there.all()) else is_there


@dataclass(frozen=True, slots=True, eq=False)
class TileAttention:
    """Attention by tiles, a token's answers merged; satisfies `shared_attention.Attends`."""

    tiles: tuple[Tile, ...]

    def __call__(
        self, module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, **options: Any
    ) -> Tensor:
        """Tile by tile."""
        scale = options.get("scaling") or query.shape[-1] ** -0.5
        flat = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
        answer: Tensor = _Tiled.apply(*flat, self.tiles, scale)  # type: ignore[no-untyped-call]
        return answer.unsqueeze(0)


class _Tiled(torch.autograd.Function):
    """Queries, keys, values and answers are (tokens, heads, width)."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, tiles: tuple[Tile, ...], scale: float
    ) -> Tensor:
        # Merged in fp32 or better: in bf16 the weights of the parts would be 0.4 % off.
        wide = torch.promote_types(query.dtype, torch.float32)
        answer = query.new_zeros(*query.shape[:2], value.shape[2], dtype=wide)
        total = query.new_full(query.shape[:2], -torch.inf, dtype=wide)
        for tile in tiles:
            asked = (_take(query, tile.queries), *_keys(query, tile, key, value))
            found, sums = _forward(
                *asked, 0.0, tile.causal, attn_mask=_bias(tile, query), scale=scale
            )
            found, sums = found.transpose(1, 2).flatten(0, 1), sums.transpose(1, 2).flatten(0, 1)
            places = tile.queries.flatten()
            if tile.asks is not None:
                real = tile.asks.flatten().nonzero().squeeze(1)
                places, found, sums = places[real], found[real], sums[real]
            before = total.index_select(0, places)
            after = torch.logaddexp(before, sums.to(before.dtype))
            merged = found * (sums - after).exp().unsqueeze(2)
            if not torch.isneginf(before).all():
                earlier = answer.index_select(0, places)
                merged += earlier * (before - after).exp().unsqueeze(2)
            answer.index_copy_(0, places, merged)
            total.index_copy_(0, places, after)
        answer = answer.to(query.dtype)
        ctx.save_for_backward(query, key, value, answer, total)
        ctx.tiles, ctx.scale = tiles, scale
        return answer

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, answer, total = ctx.saved_tensors
        sums = [torch.zeros_like(tensor) for tensor in (query, key, value)]
        for tile in ctx.tiles:
            asked = (_take(query, tile.queries), *_keys(query, tile, key, value))
            back, found = _take(gradient, tile.queries), _take(answer, tile.queries)
            weights = total[tile.queries].transpose(1, 2)
            if tile.asks is not None:
                # What pads asks nothing: its weights are exp(-inf).
                weights = weights.masked_fill(~tile.asks.unsqueeze(1), torch.inf)
                back = back.masked_fill(~tile.asks[:, None, :, None], 0.0)
            parts = _backward(
                back, *asked, found, weights, 0.0, tile.causal,
                attn_mask=_bias(tile, query), scale=ctx.scale,
            )  # fmt: skip
            for total_part, part, places in zip(
                sums, parts, (tile.queries, tile.keys, tile.keys), strict=True
            ):
                heads = total_part.shape[1]
                # Heads that share a key add up.
                shared = part.unflatten(1, (heads, -1)).sum(2)
                flat = shared.transpose(1, 2).flatten(0, 1)
                total_part.index_add_(0, places.flatten(), flat)
        return *sums, None, None


def _take(tensor: Tensor, places: Tensor) -> Tensor:
    """Rows of (tokens, heads, width) as (texts, heads, places, width)."""
    taken = tensor.index_select(0, places.flatten())
    return taken.view(*places.shape, *tensor.shape[1:]).transpose(1, 2)


def _keys(query: Tensor, tile: Tile, *tensors: Tensor) -> list[Tensor]:
    """Keys and values of a tile, each repeated for the query heads that share it."""
    repeats = [query.shape[1] // tensor.shape[1] for tensor in tensors]
    return [
        _take(tensor, tile.keys).repeat_interleave(count, dim=1)
        for tensor, count in zip(tensors, repeats, strict=True)
    ]


def _bias(tile: Tile, query: Tensor) -> Tensor | None:
    """What the kernel adds to logits: -inf where there is no key."""
    if tile.seen is None:
        return None
    bias = query.new_zeros(tile.seen.shape).masked_fill(~tile.seen, -torch.inf)
    return bias.expand(-1, -1, tile.queries.shape[1], -1)
