# SPDX-License-Identifier: Apache-2.0
"""Attention of a packed row by blocks: each text's keys side by side, in transformers' own kernel.

Texts of like length go together, a common beginning's keys are copied for each of its texts, and a
mask hides what pads. It runs on any device, and can be differentiated as often as the kernel can.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from metarm.models.prompt_layout import PackedLayout

__all__ = ["AttentionBlock", "BlockAttention", "attend_in_blocks"]

MAX_BLOCK_WASTE: Final = 1.5
"""Attention work of a padded block over that of its texts, before another block is begun."""


@dataclass(frozen=True, slots=True, eq=False)
class AttentionBlock:
    """Texts whose attention is one call: which tokens ask, and which tokens they may see."""

    queries: Tensor
    """Flat token indices, (texts, queries); padded with any token."""
    keys: Tensor
    """Flat token indices, (texts, keys)."""
    mask: Tensor | None
    """True where a query sees a key, (texts or 1, 1, queries, keys); None: causal."""

    def to(self, device: torch.device) -> "AttentionBlock":
        """The same on a device."""
        mask = None if self.mask is None else self.mask.to(device)
        return AttentionBlock(self.queries.to(device), self.keys.to(device), mask)


@dataclass(frozen=True, slots=True, eq=False)
class BlockAttention:
    """Attention by blocks; satisfies `shared_attention.Attends`."""

    blocks: tuple[AttentionBlock, ...]
    order: Tensor
    """For each token, its row among all blocks' queries laid end to end, (tokens,)."""

    def __call__(
        self, module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, **options: Any
    ) -> Tensor:
        """Block by block, by transformers' own function for SDPA."""
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        sources = [tensor[0].transpose(0, 1).flatten(1) for tensor in (query, key, value)]
        heads = [tensor.shape[1] for tensor in (query, key, value)]
        answers = []
        for block in self.blocks:
            places = (block.queries, block.keys, block.keys)
            asked, seen, told = (
                source.index_select(0, place.flatten())
                .view(*place.shape, count, -1)
                .transpose(1, 2)
                for source, place, count in zip(sources, places, heads, strict=True)
            )
            # Without a mask it is causal, as the module is.
            answer, _ = sdpa_attention_forward(module, asked, seen, told, block.mask, **options)
            answers.append(answer.flatten(0, 1))
        return torch.cat(answers).index_select(0, self.order).unsqueeze(0)


def attend_in_blocks(layout: PackedLayout) -> tuple[BlockAttention, BlockAttention]:
    """How a packed row attends, and in the last layer, where only the texts' last tokens ask."""
    device = layout.ends.device
    num_tokens = layout.input_ids.shape[1]
    prefixes = dict.fromkeys(prefix for prefix, _ in layout.texts if prefix)
    together = _split([(prefix, prefix, prefix) for prefix in prefixes])
    own = _split([(prefix, own, own) for prefix, own in layout.texts])
    last = _split([(prefix, own, own[-1:]) for prefix, own in layout.texts])
    every = (*map(_causal_block, together), *map(_seeing_block, own))
    return (
        BlockAttention(
            tuple(block.to(device) for block in every),
            _order([*together, *own], num_tokens).to(device),
        ),
        BlockAttention(
            tuple(_seeing_block(block).to(device) for block in last),
            _order(last, num_tokens).to(device),
        ),
    )


_Text = tuple[range, range, range]
"""Tokens of the common beginning, of the text itself, and those that ask."""


def _split(texts: Sequence[_Text]) -> list[list[_Text]]:
    """Blocks of texts of like length, so that padding stays within `MAX_BLOCK_WASTE`."""
    blocks: list[list[_Text]] = []
    longest = (0, 0, 0)
    work = 0
    for text in sorted(texts, key=lambda text: tuple(map(len, text))):
        lengths = tuple(map(len, text))
        wider = tuple(map(max, longest, lengths))
        area = lengths[2] * (lengths[0] + lengths[1])
        padded = (len(blocks[-1]) + 1) * wider[2] * (wider[0] + wider[1]) if blocks else 0
        if not blocks or padded > MAX_BLOCK_WASTE * (work + area):
            blocks.append([])
            wider, work = lengths, 0
        blocks[-1].append(text)
        longest, work = (wider[0], wider[1], wider[2]), work + area
    return blocks


def _causal_block(texts: Sequence[_Text]) -> AttentionBlock:
    """Texts that see themselves; what pads them on the right is seen by padding alone."""
    tokens = _indices([text[0] for text in texts])
    return AttentionBlock(tokens, tokens, None)


def _seeing_block(texts: Sequence[_Text]) -> AttentionBlock:
    """Texts that see their common beginning, and their own tokens up to the one that asks."""
    prefix, own, asks = (_indices([text[part] for text in texts]) for part in range(3))
    prefix_lengths, own_lengths = (
        torch.tensor([len(text[part]) for text in texts]).view(-1, 1, 1) for part in (0, 1)
    )
    first = torch.tensor([len(text[1]) - len(text[2]) for text in texts]).view(-1, 1, 1)
    query = torch.arange(asks.shape[1]).view(1, -1, 1) + first
    key = torch.arange(own.shape[1]).view(1, 1, -1)
    sees_prefix = torch.arange(prefix.shape[1]).view(1, 1, -1) < prefix_lengths
    sees_own = (key <= query) & (key < own_lengths)
    sees_prefix = sees_prefix.expand(-1, asks.shape[1], -1)
    mask = torch.cat([sees_prefix, sees_own.expand(len(texts), -1, -1)], dim=2).unsqueeze(1)
    if len({tuple(map(len, text)) for text in texts}) == 1:
        mask = mask[:1]
    return AttentionBlock(asks, torch.cat([prefix, own], dim=1), mask)


def _indices(ranges: Sequence[range]) -> Tensor:
    """Token indices, one row a range; padded with any."""
    width = max(map(len, ranges))
    rows = [[*found, *[0] * (width - len(found))] for found in ranges]
    return torch.tensor(rows, dtype=torch.long).view(len(ranges), width)


def _order(blocks: Sequence[Sequence[_Text]], num_tokens: int) -> Tensor:
    """Where each token's answer stands; a token that does not ask is given any."""
    order = torch.zeros(num_tokens, dtype=torch.long)
    start = 0
    for texts in blocks:
        width = max(len(asks) for _, _, asks in texts)
        for _, _, asks in texts:
            order[asks.start : asks.stop] = torch.arange(start, start + len(asks))
            start += width
    return order
