# SPDX-License-Identifier: Apache-2.0
"""One reward model, or ensemble, as a server holds it: text to token rows, rows to exact scores."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from metarm.errors import MetarmError, ModelError
from metarm.models.ensemble import EnsembleScore, load_reward
from metarm.models.loading import context_length
from metarm.models.reward_model import RewardModelScore
from metarm.schema import Prompt
from metarm.serving.model_files import Signature, file_signature, model_sha256
from metarm.serving.refusals import RefusedError
from metarm.serving.row_scores import RowScores
from metarm.serving.wire import ModelFacts

__all__ = ["EncodedItem", "ItemScore", "ScoreItem", "ServedModel", "load_served_model"]

PROBE: Final = ("a", " b")
"""A model that gives no finite score of it is not put in place."""


@dataclass(frozen=True, slots=True)
class ScoreItem:
    """A response to score."""

    prompt: Prompt
    response: str
    is_query: bool = False
    """Whether `response` is the whole text as a policy's tokens say it, and `prompt` is empty."""


@dataclass(frozen=True, slots=True)
class EncodedItem:
    """Token ids as each member reads them."""

    rows: tuple[tuple[int, ...], ...]
    is_truncated: bool
    prompt: Prompt | None = None
    """Items of one prompt begin alike; None: nothing is known of its beginning."""

    @property
    def num_tokens(self) -> int:
        """Tokens of the longest row."""
        return max(map(len, self.rows))


@dataclass(frozen=True, slots=True)
class ItemScore:
    """The score of one item, and how far members disagree about it (None: there is one)."""

    score: float
    uncertainty: float | None


class ServedModel:
    """Scores of items, each bit for bit what a local call with that pair alone gives.

    A local call: `load_reward(folder)([prompt], [response])`. Not `is_exact`: equal to it up to
    rounding. Only one thread may use it.
    """

    def __init__(
        self,
        score: RewardModelScore | EnsembleScore,
        facts: ModelFacts,
        signature: Signature,
        *,
        is_exact: bool = True,
        max_tokens: int | None = None,
    ) -> None:
        self.facts, self.signature = facts, signature
        self._ensemble = score if isinstance(score, EnsembleScore) else None
        self._members = score.members if isinstance(score, EnsembleScore) else (score,)
        self._rows = [RowScores(member, is_exact=is_exact) for member in self._members]
        contexts = [context_length(member.model) for member in self._members]
        self.max_tokens = min([*contexts, *([] if max_tokens is None else [max_tokens])])

    def encode(self, item: ScoreItem, *, truncate: bool) -> EncodedItem:
        """Token ids of an item.

        Args:
            item: Text to read.
            truncate: Keep the end of what is too long, where the score is read.

        Raises:
            RefusedError: When it is too long, or the tokenizer's template cannot take it.
        """
        from jinja2 import TemplateError

        try:
            rows = [_encode(member, item) for member in self._members]
        # A template is a program of the tokenizer's author, and may raise what it likes.
        except (
            MetarmError,
            TemplateError,
            ArithmeticError,
            LookupError,
            TypeError,
            ValueError,
        ) as e:
            told = str(e) if isinstance(e, ModelError | TemplateError) else type(e).__name__
            raise RefusedError("cannot_encode", f"the tokenizer cannot take an item: {told}") from e
        longest = max(map(len, rows))
        if longest > self.max_tokens and not truncate:
            raise RefusedError(
                "too_long",
                f"expected at most {self.max_tokens} tokens an item, got {longest}: shorten it, or "
                'ask for "truncate": true',
            )
        cut = tuple(tuple(row[-self.max_tokens :]) for row in rows)
        prompt = None if item.is_query else item.prompt
        return EncodedItem(cut, longest > self.max_tokens, prompt)

    def score(self, items: Sequence[EncodedItem]) -> list[ItemScore]:
        """One finite score an item, in order.

        Raises:
            ModelError: When a score is not finite.
        """
        numbers: dict[Prompt | int, int] = {}
        groups = [
            numbers.setdefault(place if item.prompt is None else item.prompt, len(numbers))
            for place, item in enumerate(items)
        ]
        by_member = [
            scores([item.rows[number] for item in items], groups)
            for number, scores in enumerate(self._rows)
        ]
        if self._ensemble is None:
            found = [ItemScore(score, None) for score in by_member[0]]
        else:
            # One item at a time: numpy's sums over members may differ with the number of items.
            combined = [
                self._ensemble.combine([[s] for s in own]) for own in zip(*by_member, strict=True)
            ]
            found = [ItemScore(one.scores[0], one.spreads[0]) for one in combined]
        if not all(math.isfinite(one.score) for one in found):
            raise ModelError("the members of the ensemble give a score that is not finite")
        return found

    @property
    def num_together(self) -> int:
        """Rows that were scored side by side with others."""
        return sum(scores.num_together for scores in self._rows)

    @property
    def num_alone(self) -> int:
        """Rows that were scored by themselves."""
        return sum(scores.num_alone for scores in self._rows)


def load_served_model(
    folder: Path, *, version: int, is_exact: bool = True, max_tokens: int | None = None
) -> ServedModel:
    """The model in a folder, tried on one text.

    Raises:
        ModelError: When it is none, gives no finite score, or was written to meanwhile.
        DataError: When a file cannot be read.
    """
    signature = file_signature(folder)
    facts = ModelFacts(name=folder.name, version=version, sha256=model_sha256(folder))
    model = ServedModel(
        load_reward(folder), facts, signature, is_exact=is_exact, max_tokens=max_tokens
    )
    prompt, response = PROBE
    model.score([model.encode(ScoreItem(prompt, response), truncate=True)])
    if file_signature(folder) != signature:
        raise ModelError(
            f"the files of {folder} changed while they were read: write a model under another name "
            "and rename it when it is whole"
        )
    return model


def _encode(member: RewardModelScore, item: ScoreItem) -> list[int]:
    encoder = member.encoder
    if not item.is_query:
        return encoder.encode(item.prompt, item.response)
    tokenizer = encoder.tokenizer
    text = item.response
    # As tokens say it: padding at both ends, and a beginning that the tokenizer adds by itself.
    if tokenizer.pad_token and tokenizer.pad_token != tokenizer.eos_token:
        while text.startswith(tokenizer.pad_token):
            text = text.removeprefix(tokenizer.pad_token)
        while text.endswith(tokenizer.pad_token):
            text = text.removesuffix(tokenizer.pad_token)
    while text.endswith(2 * tokenizer.eos_token):
        text = text.removesuffix(tokenizer.eos_token)
    if tokenizer.bos_token and text.startswith(tokenizer.bos_token):
        begins = list(tokenizer(text="a")["input_ids"])[:1]
        if begins == [tokenizer.bos_token_id]:
            text = text.removeprefix(tokenizer.bos_token)
    return encoder.encode("", text)
