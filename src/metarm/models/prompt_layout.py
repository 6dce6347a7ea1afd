# SPDX-License-Identifier: Apache-2.0
"""Where each token of a batch goes when rows with a common beginning compute it once.

Two layouts of the same tokens. *Packed*: every token that has to be computed stands once in one row
without padding, and blocks of indices say which tokens attend to which. *Grouped*: one row a group,
its prompt followed by its responses, with a dense mask of who sees whom.

Both are exact for a causal model: a token depends on the tokens before it in its own text alone, so
texts that begin alike have equal states as long as they do.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Final, TypeVar, cast

import torch
from torch import Tensor

__all__ = [
    "Attends",
    "AttentionBlock",
    "GroupedLayout",
    "PackedLayout",
    "SharedRows",
    "find_shared_rows",
    "lay_out_grouped",
    "lay_out_packed",
    "shared_length",
]

MAX_BLOCK_WASTE: Final = 1.5
"""Attention work of a padded block over that of its texts, before another block is begun."""

_Layout = TypeVar("_Layout", "GroupedLayout", "PackedLayout")


@dataclass(frozen=True, slots=True)
class SharedRows:
    """Texts of token ids, and how many first tokens each one's group has in common."""

    rows: tuple[list[int], ...]
    """Tokens of each text up to the one whose state is asked for."""
    groups: tuple[tuple[int, ...], ...]
    """The rows of each group, in order."""
    prefixes: tuple[int, ...]
    """Common first tokens of each group; every row has at least one token of its own."""

    @property
    def num_tokens(self) -> int:
        """Tokens that are computed: each group's beginning once."""
        saved = sum(
            prefix * (len(group) - 1)
            for group, prefix in zip(self.groups, self.prefixes, strict=True)
        )
        return sum(map(len, self.rows)) - saved


@dataclass(frozen=True, slots=True, eq=False)
class AttentionBlock:
    """Texts whose attention is one call: which tokens ask, and which tokens they may see."""

    queries: Tensor
    """Flat token indices, (texts, queries); padded with any token."""
    keys: Tensor
    """Flat token indices, (texts, keys)."""
    mask: Tensor | None
    """True where a query sees a key, (texts or 1, 1, queries, keys); None: causal."""


@dataclass(frozen=True, slots=True, eq=False)
class Attends:
    """How the tokens of a packed row attend to each other in a layer."""

    blocks: tuple[AttentionBlock, ...]
    order: Tensor
    """For each token, its row among all blocks' queries laid end to end, (tokens,)."""


@dataclass(frozen=True, slots=True, eq=False)
class PackedLayout:
    """One row of all tokens that have to be computed, and how they attend."""

    input_ids: Tensor
    """(1, tokens)."""
    position_ids: Tensor
    """(1, tokens): places in the token's own text."""
    ends: Tensor
    """Flat index of each text's last token, (texts,)."""
    attends: Attends
    attends_last: Attends
    """The same in the last layer, where only each text's last token asks."""
    group_of_token: Tensor
    """(tokens,)."""
    text_of_token: Tensor
    """The row of a text's own token, -1 for one of the common beginning, (tokens,)."""

    def sees(self, query: Tensor, key: Tensor) -> Tensor:
        """Whether a token sees another one, by their flat indices, which broadcast."""
        positions, texts = self.position_ids[0], self.text_of_token
        is_before = positions[key] <= positions[query]
        is_common = texts[key] == -1
        is_near = self.group_of_token[key] == self.group_of_token[query]
        return is_near & is_before & (is_common | (texts[key] == texts[query]))


@dataclass(frozen=True, slots=True, eq=False)
class GroupedLayout:
    """One row a group: its common beginning, then what is each text's own."""

    input_ids: Tensor
    """(groups, tokens), padded on the right."""
    position_ids: Tensor
    mask: Tensor
    """True where a token (row) sees another (column), (groups, 1, tokens, tokens)."""
    ends: Tensor
    """Index of each text's last token in the flattened batch, (texts,)."""


def shared_length(rows: Sequence[list[int]]) -> int:
    """Number of first tokens that all rows have in common, less than the shortest row's length.

    Example:
        >>> shared_length([[5, 6, 7, 8], [5, 6, 9]]), shared_length([[5, 6], [5, 6, 7]])
        (2, 1)
    """
    # Between the first and the last row in order of tokens lie all others.
    low, high = min(rows), max(rows)
    limit = min(map(len, rows)) - 1
    for place in range(limit):
        if low[place] != high[place]:
            return place
    return limit


def find_shared_rows(rows: Sequence[list[int]], group_of_row: Sequence[int]) -> SharedRows:
    """Gather rows by group and find what each group's rows begin with.

    Args:
        rows: Token ids of each text, at least one.
        group_of_row: Which group each row belongs to, any numbers.
    """
    members: dict[int, list[int]] = {}
    for row, group in enumerate(group_of_row):
        members.setdefault(group, []).append(row)
    groups = tuple(tuple(group) for group in members.values())
    prefixes = tuple(shared_length([rows[row] for row in group]) for group in groups)
    return SharedRows(tuple(rows), groups, prefixes)


def lay_out_packed(shared: SharedRows, device: torch.device | str = "cpu") -> PackedLayout:
    """All tokens in one row without padding: prefixes first, then each text's own tokens."""
    tokens: list[int] = []
    positions: list[int] = []
    owners: list[tuple[int, int]] = []

    def append(row: int, span: range, owner: tuple[int, int]) -> range:
        begin = len(tokens)
        tokens.extend(shared.rows[row][span.start : span.stop])
        positions.extend(span)
        owners.extend([owner] * len(span))
        return range(begin, len(tokens))

    prefix_of_row: dict[int, range] = {}
    prefixes = []
    for number, (group, length) in enumerate(zip(shared.groups, shared.prefixes, strict=True)):
        prefix = append(group[0], range(length), (number, -1))
        prefix_of_row.update(dict.fromkeys(group, prefix))
        if prefix:
            prefixes.append(prefix)
    own_of_row = {
        row: append(row, range(length, len(shared.rows[row])), (number, row))
        for number, (group, length) in enumerate(zip(shared.groups, shared.prefixes, strict=True))
        for row in group
    }
    texts = [(prefix_of_row[row], own_of_row[row]) for row in range(len(shared.rows))]
    together = _split([(prefix, prefix, prefix) for prefix in prefixes])
    own = _split([(prefix, own, own) for prefix, own in texts])
    last = _split([(prefix, own, own[-1:]) for prefix, own in texts])
    layout = PackedLayout(
        torch.tensor([tokens]),
        torch.tensor([positions]),
        torch.tensor([own[-1] for _, own in texts]),
        Attends(
            (*map(_causal_block, together), *map(_seeing_block, own)),
            _order([*together, *own], len(tokens)),
        ),
        Attends(tuple(map(_seeing_block, last)), _order(last, len(tokens))),
        *torch.tensor(owners).unbind(1),
    )
    return _move(layout, device)


def lay_out_grouped(
    shared: SharedRows, pad_token_id: int, device: torch.device | str = "cpu"
) -> GroupedLayout:
    """One row a group, [beginning, own tokens of text 1, of text 2, ...], and who sees whom."""
    ids, positions, segments = [], [], []
    ends = {}
    for number, (group, prefix) in enumerate(zip(shared.groups, shared.prefixes, strict=True)):
        ids.append(list(shared.rows[group[0]][:prefix]))
        positions.append(list(range(prefix)))
        segments.append([0] * prefix)
        for text, row in enumerate(group, start=1):
            own = shared.rows[row][prefix:]
            ids[-1].extend(own)
            positions[-1].extend(range(prefix, prefix + len(own)))
            segments[-1].extend([text] * len(own))
            ends[row] = (number, len(ids[-1]) - 1)
    width = max(map(len, ids))

    def padded(rows: list[list[int]], value: int) -> Tensor:
        return torch.tensor([row + [value] * (width - len(row)) for row in rows])

    segment = padded(segments, -1)
    # A token sees what stands before it, in the common beginning or in its own text.
    is_seen = (segment.unsqueeze(1) == 0) | (segment.unsqueeze(1) == segment.unsqueeze(2))
    mask = is_seen & torch.ones(width, width, dtype=torch.bool).tril()
    flat = torch.tensor([ends[row][0] * width + ends[row][1] for row in range(len(shared.rows))])
    layout = GroupedLayout(padded(ids, pad_token_id), padded(positions, 0), mask.unsqueeze(1), flat)
    return _move(layout, device)


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


def _move(layout: _Layout, device: torch.device | str) -> _Layout:
    """The same with every tensor on a device."""
    return cast(_Layout, _moved(layout, torch.device(device)))


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, tuple):
        return tuple(_moved(part, device) for part in value)
    if isinstance(value, AttentionBlock | Attends | GroupedLayout | PackedLayout):
        parts = {f.name: _moved(getattr(value, f.name), device) for f in fields(value)}
        return replace(value, **parts)
    return value
