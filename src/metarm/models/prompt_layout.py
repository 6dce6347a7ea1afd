# SPDX-License-Identifier: Apache-2.0
"""Where each token of a batch goes when rows with a common beginning compute it once.

Two layouts of the same tokens. *Packed*: every token that has to be computed stands once in one row
without padding. *Grouped*: one row a group, its prompt followed by its responses, with a dense mask
of who sees whom.

Both are exact for a causal model: a token depends on the tokens before it in its own text alone, so
texts that begin alike have equal states as long as they do.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

__all__ = [
    "GroupedLayout",
    "PackedLayout",
    "SharedRows",
    "find_shared_rows",
    "lay_out_grouped",
    "lay_out_packed",
    "shared_length",
]

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
    def sharing_groups(self) -> list[tuple[int, ...]]:
        """Groups of several rows that begin alike."""
        found = zip(self.groups, self.prefixes, strict=True)
        return [group for group, prefix in found if len(group) > 1 and prefix]

    @property
    def num_tokens(self) -> int:
        """Tokens that are computed: each group's beginning once."""
        saved = sum(
            prefix * (len(group) - 1)
            for group, prefix in zip(self.groups, self.prefixes, strict=True)
        )
        return sum(map(len, self.rows)) - saved


@dataclass(frozen=True, slots=True, eq=False)
class PackedLayout:
    """One row of all tokens that have to be computed."""

    input_ids: Tensor
    """(1, tokens)."""
    position_ids: Tensor
    """(1, tokens): places in the token's own text."""
    ends: Tensor
    """Flat index of each text's last token, (texts,)."""
    texts: tuple[tuple[range, range], ...]
    """Flat indices of each text's common beginning and of its own tokens."""
    groups: tuple[tuple[int, ...], ...]
    """The texts of each group; their own tokens follow each other."""
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
    layout = PackedLayout(
        torch.tensor([tokens]),
        torch.tensor([positions]),
        torch.tensor([own[-1] for _, own in texts]),
        tuple(texts),
        shared.groups,
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


def _move(layout: _Layout, device: torch.device | str) -> _Layout:
    """The same with every tensor on a device."""
    values: dict[str, Any] = {f.name: getattr(layout, f.name) for f in fields(layout)}
    tensors: dict[str, Any] = {
        name: value.to(device) for name, value in values.items() if isinstance(value, Tensor)
    }
    return replace(layout, **tensors)
