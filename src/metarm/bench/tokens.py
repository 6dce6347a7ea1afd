# SPDX-License-Identifier: Apache-2.0
"""Texts as token ids, cut to a length, and batches of them with masks of what is response."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from metarm.schema import Prompt, prompt_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["TokenBatch", "TokenTable", "read_tokens"]


class TokenBatch(NamedTuple):
    """Padded on the right; all of shape (texts, longest text)."""

    ids: Tensor
    is_text: Tensor
    is_response: Tensor


@dataclass(frozen=True, slots=True)
class TokenTable:
    """Ids before each response, and its own."""

    rows: tuple[tuple[list[int], list[int]], ...]

    def length(self, index: int) -> int:
        """Tokens of one text."""
        return sum(map(len, self.rows[index]))

    def by_length(self, indices: Sequence[int]) -> list[int]:
        """The same indices, shortest text first: batches of neighbours waste no padding."""
        return sorted(indices, key=self.length)

    def batch(self, indices: Sequence[int]) -> TokenBatch:
        """These texts side by side."""
        longest = max(self.length(index) for index in indices)
        ids = torch.zeros(len(indices), longest, dtype=torch.long)
        is_text, is_response = (torch.zeros_like(ids, dtype=torch.bool) for _ in range(2))
        for place, index in enumerate(indices):
            before, own = self.rows[index]
            total = len(before) + len(own)
            ids[place, :total] = torch.tensor([*before, *own])
            is_text[place, :total] = True
            is_response[place, len(before) : total] = True
        return TokenBatch(ids, is_text, is_response)


def read_tokens(
    tokenizer: "PreTrainedTokenizerBase", texts: Sequence[tuple[Prompt, str]], max_length: int
) -> TokenTable:
    """Token ids of prompts with a response.

    A text that is longer than `max_length` is cut: the prompt keeps its end, at most half of the
    length, the response its beginning; a response has one token at least.
    """
    return TokenTable(tuple(_cut_ids(tokenizer, p, r, max_length) for p, r in texts))


def _cut_ids(
    tokenizer: "PreTrainedTokenizerBase", prompt: Prompt, response: str, max_length: int
) -> tuple[list[int], list[int]]:
    begin = _first_of(tokenizer.cls_token_id, tokenizer.bos_token_id)
    end = _first_of(tokenizer.sep_token_id, tokenizer.eos_token_id)
    before, own = (
        # Not verbose: what is longer than the model's context is cut below.
        list(tokenizer(text=text, add_special_tokens=False, verbose=False)["input_ids"])
        for text in (prompt_text(prompt), response)
    )
    room = max_length - len(begin) - 2 * len(end)
    before = before[-max(room // 2, room - len(own)) :]
    own = own[: room - len(before)]
    is_encoder = tokenizer.sep_token_id is not None
    return [*begin, *before, *(end if is_encoder else [])], [*own, *end]


def _first_of(*tokens: int | None) -> list[int]:
    return [token for token in tokens if token is not None][:1]
