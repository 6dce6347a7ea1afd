# SPDX-License-Identifier: Apache-2.0
"""Token ids that continue prompts: equal prompts are computed once, rows that end leave the batch.

A row's ids depend on its own text and on `choose` alone; who shares its batch changes rounding.
"""

import inspect
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor

from metarm.data.encoding import PaddedBatch, pad_batch
from metarm.errors import CacheError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["LEAST_ENDED", "Choose", "choose_likeliest", "decode"]

Choose = Callable[[Tensor, Tensor], Tensor]
"""The next ids, shape (carried,), from fp32 logits of shape (carried, vocabulary) and the numbers
of the rows carried. Called once a token, also for rows that have ended and are still carried."""

LEAST_ENDED: Final = 0.125
"""Rows leave when this share of those carried has ended."""
# Measured: a removal costs the rows that move two steps of theirs, but every row up to one step
# where a sliding window's layers copy all. At an eighth even that pays after eight steps.


@torch.no_grad()
def decode(
    model: "PreTrainedModel",
    rows: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    ends: Collection[int],
    pad_token_id: int,
    choose: Choose,
) -> list[list[int]]:
    """New ids of each row, up to and with its first of `ends`, as one batch.

    Args:
        model: A causal language model in evaluation mode.
        rows: Prompts' ids; a prompt with k responses stands k times, and is computed once.
        max_new_tokens: Longest continuation, at least 1.
        ends: Ids that end a row.
        pad_token_id: Fills shorter prompts on the left.
        choose: Picks each row's next id: `choose_likeliest`, or one that draws.

    Raises:
        CacheError: When the model has no cache whose rows can be copied and removed; nothing has
            been chosen then.
    """
    distinct = {row: place for place, row in enumerate(dict.fromkeys(map(tuple, rows)))}
    prompts = pad_batch(list(distinct), pad_token_id, side="left")
    texts = _CachedTexts(model, prompts, max_new_tokens)
    if len(distinct) < len(rows):
        texts.keep([distinct[tuple(row)] for row in rows])
    written: list[list[int]] = [[] for _ in rows]
    carried = list(range(len(rows)))
    going = set(carried)
    for num_left in reversed(range(max_new_tokens)):
        ids = choose(texts.logits, torch.tensor(carried, device=model.device))
        for row, token in zip(carried, ids.tolist(), strict=True):
            if row in going:
                written[row].append(token)
                if token in ends:
                    going.remove(row)
        if not going or not num_left:
            break
        if len(carried) - len(going) >= LEAST_ENDED * len(carried):
            places = _fill_holes([row in going for row in carried])
            carried = [carried[place] for place in places]
            texts.keep(places)
            ids = ids[places]
        texts.extend(ids)
    return written


def choose_likeliest(logits: Tensor, rows: Tensor) -> Tensor:
    """Greedy decoding: the id of the highest logit, shape (carried,)."""
    return logits.argmax(dim=-1)


def _fill_holes(going: Sequence[bool]) -> list[int]:
    """Places of the rows that go on, the last of them where others ended: fewest are moved."""
    num_going = sum(going)
    last = (place for place in range(num_going, len(going)) if going[place])
    return [place if going[place] else next(last) for place in range(num_going)]


class _CachedTexts:
    """Texts that grow at their ends, and what the model computed of them."""

    def __init__(self, model: "PreTrainedModel", prompts: PaddedBatch, max_new_tokens: int) -> None:
        from metarm.policy.kv_cache import build_cache

        self._model = model
        self._cache = build_cache(model, prompts.input_ids.shape[1] + max_new_tokens)
        self._parameters = inspect.signature(model.forward).parameters
        # transformers' `generate` gives no mask where nothing is padded, which is faster: so do we.
        self._padded = not prompts.attention_mask.all()
        self._mask = prompts.attention_mask.to(model.device)
        self.logits = self._forward(prompts.input_ids.to(model.device))
        """Those after each text's last token: fp32, of shape (rows, vocabulary)."""

    def keep(self, places: Sequence[int]) -> None:
        """Rows become those that stood at `places`: some of them, or some several times."""
        index = torch.tensor(places, device=self._model.device)
        self._cache.batch_select_indices(index)
        self._mask = self._mask[index]
        self.logits = self.logits[index]

    def extend(self, ids: Tensor) -> None:
        """Add one token to each row, ids of shape (rows,), and compute the logits after it."""
        self._mask = torch.cat([self._mask, torch.ones_like(ids)[:, None]], dim=1)
        self.logits = self._forward(ids[:, None])

    def _forward(self, input_ids: Tensor) -> Tensor:
        # Left padding: positions count real tokens, as `generate` counts them.
        positions = (self._mask.cumsum(dim=1) - 1).clamp(min=0)[:, -input_ids.shape[1] :]
        options = {"position_ids": positions, "logits_to_keep": 1}
        output = self._model(
            input_ids=input_ids,
            attention_mask=self._mask if self._padded else None,
            past_key_values=self._cache,
            use_cache=True,
            return_dict=True,
            **{name: value for name, value in options.items() if name in self._parameters},
        )
        if self._cache.get_seq_length() != self._mask.shape[1]:
            raise CacheError("it does not fill the cache that it is given")
        # A copy: a view would keep the logits of whole prompts, where the model gives them.
        return output.logits[:, -1].to(copy=True, dtype=torch.float32)
