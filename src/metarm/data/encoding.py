# SPDX-License-Identifier: Apache-2.0
"""The one encoder: text to token ids for training, scoring, sampling and optimisation alike.

A score must not depend on who asks, so everything that scores goes through `Encoder.encode`:
prompt + response + EOS, tokenised in one piece, exactly as TRL's `RewardTrainer` does it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from metarm.errors import DataError, EmptySetError, ModelError
from metarm.protocols import StageProgress
from metarm.schema import PreferencePair, Prompt, ResponseGroup, prompt_text, prompt_to_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "EncodedGroup",
    "EncodedPair",
    "Encoder",
    "EncodingReport",
    "PaddedBatch",
    "check_prompt_length",
    "encode_groups",
    "encode_pairs",
    "pad_batch",
]


class PaddedBatch(NamedTuple):
    """Token ids and their mask, both of shape (rows, tokens)."""

    input_ids: Tensor
    attention_mask: Tensor


class EncodedPair(NamedTuple):
    """Token ids of both sides, under the names TRL reads."""

    chosen_ids: list[int]
    rejected_ids: list[int]
    margin: float | None
    p: float | None = None
    """Of TRL's columns there is none for it: `training.soft_labels` reads it."""


class EncodedGroup(NamedTuple):
    """Token ids of each response of a group."""

    response_ids: tuple[list[int], ...]
    source: str = ""


@dataclass(frozen=True, slots=True)
class EncodingReport:
    """What encoding left out: nothing is dropped without a count."""

    num_read: int
    num_too_long: int
    num_too_small: int
    max_length: int | None
    num_responses_too_long: int = 0
    """Responses left out of their groups, whatever became of the group."""

    def summary(self) -> str:
        """One line for people."""
        text = (
            f"{self.num_read - self.num_too_long - self.num_too_small} of {self.num_read} encoded"
        )
        if self.num_too_long:
            text += (
                f"; {self.num_too_long} left out: longer than {self.max_length} tokens "
                "(max_length, or the model's context)"
            )
        if self.num_too_small:
            text += f"; {self.num_too_small} groups left out: fewer than 2 responses remained"
        if self.num_responses_too_long:
            text += (
                f"; {self.num_responses_too_long} responses of groups left out: longer than "
                f"{self.max_length} tokens"
            )
        return text


class Encoder:
    """Turns prompts and responses into token ids with one tokenizer.

    The padding token is made different from EOS where the tokenizer names none: a sequence
    classifier reads its score at the last token that is not padding, which must be EOS. Encoders in
    the manner of BERT name none: there it is what separates texts.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        tokenizer.eos_token = tokenizer.eos_token or tokenizer.sep_token
        if tokenizer.eos_token is None:
            raise ModelError(
                f"the tokenizer of {tokenizer.name_or_path!r} has no EOS token, so that no "
                "response can end: set `tokenizer.eos_token` and save it"
            )
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.unk_token or tokenizer.bos_token or tokenizer.eos_token
        self.tokenizer = tokenizer

    @property
    def pad_token_id(self) -> int:
        """Id of the padding token."""
        return int(self.tokenizer.pad_token_id)

    @property
    def eos_token_id(self) -> int:
        """Id of the token that ends a response."""
        return int(self.tokenizer.eos_token_id)

    def encode(self, prompt: Prompt, response: str) -> list[int]:
        """Token ids of prompt, response and EOS: what a reward model sees."""
        if isinstance(prompt, str):
            has_end = response.endswith(self.tokenizer.eos_token)
            text = prompt + response + ("" if has_end else self.tokenizer.eos_token)
            return list(self.tokenizer(text=text)["input_ids"])
        turns = [*prompt_to_json(prompt), {"role": "assistant", "content": response}]
        return self._apply_template(turns, add_generation_prompt=False)

    def encode_prompt(self, prompt: Prompt) -> list[int]:
        """Token ids a policy continues: the prompt, with the template's opening of an answer."""
        if not isinstance(prompt, str):
            return self._apply_template(prompt_to_json(prompt), add_generation_prompt=True)
        ids = list(self.tokenizer(text=prompt)["input_ids"])
        return ids[:-1] if ids and ids[-1] == self.eos_token_id else ids

    def encode_continuation(self, response: str) -> list[int]:
        """Token ids of a response by itself, as it would follow a prompt's; no EOS."""
        return list(self.tokenizer(text=response, add_special_tokens=False)["input_ids"])

    def decode(self, response_ids: Sequence[int]) -> str:
        """Text of sampled token ids as it follows the prompt, without special tokens."""
        # Decoders in the manner of Llama drop a text's first space: decode after another token.
        anchor = self.tokenizer("a", add_special_tokens=False)["input_ids"]
        before = self.tokenizer.decode(anchor, skip_special_tokens=True)
        text = self.tokenizer.decode([*anchor, *response_ids], skip_special_tokens=True)
        # A byte-level policy can sample NUL, which no reader of text files accepts.
        return str(text).removeprefix(str(before)).replace("\0", "\N{REPLACEMENT CHARACTER}")

    def _apply_template(self, turns: object, *, add_generation_prompt: bool) -> list[int]:
        if self.tokenizer.chat_template is None:
            raise ModelError(
                f"the data is conversational but the tokenizer of {self.tokenizer.name_or_path!r} "
                "has no chat template: set `tokenizer.chat_template`, or give plain-text prompts"
            )
        encoded = self.tokenizer.apply_chat_template(
            turns, tokenize=True, return_dict=True, add_generation_prompt=add_generation_prompt
        )
        return list(encoded["input_ids"])


def pad_batch(rows: Sequence[Sequence[int]], pad_token_id: int, *, side: str) -> PaddedBatch:
    """Pad rows of ids to one length, on the `left` (to generate) or the `right` (to score)."""
    length = max(len(row) for row in rows)
    input_ids = torch.full((len(rows), length), pad_token_id, dtype=torch.long)
    attention_mask = torch.zeros((len(rows), length), dtype=torch.long)
    for index, row in enumerate(rows):
        place = slice(length - len(row), length) if side == "left" else slice(0, len(row))
        input_ids[index, place] = torch.tensor(row, dtype=torch.long)
        attention_mask[index, place] = 1
    return PaddedBatch(input_ids, attention_mask)


def encode_pairs(
    encoder: Encoder,
    pairs: Iterable[PreferencePair],
    max_length: int | None,
    bar: StageProgress | None = None,
) -> tuple[list[EncodedPair], EncodingReport]:
    """Encode pairs; those with a side longer than `max_length` are counted and left out.

    Raises:
        EmptySetError: When no pair is left.
    """
    encoded = []
    for pair in pairs:
        chosen, rejected = (encoder.encode(pair.prompt, r) for r in (pair.chosen, pair.rejected))
        encoded.append(EncodedPair(chosen, rejected, pair.margin, pair.p))
        if bar is not None:
            bar.advance()
    fits = [
        pair
        for pair in encoded
        if max_length is None or max(len(pair.chosen_ids), len(pair.rejected_ids)) <= max_length
    ]
    if not fits:
        raise EmptySetError(
            f"no preference pair is left to train on: {len(encoded)} read, all longer than "
            f"max_length={max_length} tokens. Raise max_length or shorten the prompts."
            if encoded
            else "the preference set is empty: give a file with at least one pair"
        )
    return fits, EncodingReport(len(encoded), len(encoded) - len(fits), 0, max_length)


def encode_groups(
    encoder: Encoder, groups: Iterable[ResponseGroup], max_length: int | None
) -> tuple[list[EncodedGroup], EncodingReport]:
    """Encode groups; over-long responses leave their group, groups of one leave the set.

    The report counts groups: `num_too_long` lost every response, `num_too_small` all but one.

    Raises:
        EmptySetError: When no group of two or more responses is left.
    """
    kept: list[EncodedGroup] = []
    num_read = num_too_long = num_too_small = num_responses_too_long = 0
    for group in groups:
        num_read += 1
        rows = [encoder.encode(group.prompt, response) for response in group.responses]
        rows = [row for row in rows if max_length is None or len(row) <= max_length]
        num_responses_too_long += len(group.responses) - len(rows)
        if len(rows) >= 2:
            kept.append(EncodedGroup(tuple(rows), group.source))
        elif rows:
            num_too_small += 1
        else:
            num_too_long += 1
    if not kept:
        raise EmptySetError(
            f"no group of at least 2 responses is left in the meta set: {num_read} read, "
            f"{num_too_long} longer than max_length={max_length} tokens, {num_too_small} with one "
            "response. Sample with k >= 2 or raise max_length."
        )
    report = EncodingReport(
        num_read, num_too_long, num_too_small, max_length, num_responses_too_long
    )
    return kept, report


def check_prompt_length(encoder: Encoder, prompt: Prompt, context: int, room: int) -> list[int]:
    """Ids of a prompt that leaves `room` tokens of the model's `context` and EOS for a response.

    Raises:
        DataError: When it does not fit; the message shows the prompt's start.
    """
    ids = encoder.encode_prompt(prompt)
    # A response that fills the room is scored with EOS after it.
    if len(ids) + room + 1 > context:
        start = prompt_text(prompt)[:60]
        raise DataError(
            f"prompt {start!r}... has {len(ids)} tokens; with max_completion_length={room} and "
            f"EOS it needs {len(ids) + room + 1}, but the model's context is {context}. Shorten "
            "the prompt or lower max_completion_length."
        )
    return ids
