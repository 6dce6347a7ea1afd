# SPDX-License-Identifier: Apache-2.0
"""A transformer with one scalar head as a score function: the same encoder, the same score."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from metarm.data.encoding import Encoder, pad_batch
from metarm.errors import DataError, EmptySetError, ModelError
from metarm.models.loading import context_length, load_encoder, load_reward_model
from metarm.models.shared_prompts import SharedPrompts
from metarm.protocols import StageProgress
from metarm.schema import PreferencePair, Prompt, prompt_text

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["RewardModelScore", "fits_context", "load_score_function"]


def fits_context(encoder: Encoder, pair: PreferencePair, context: int) -> bool:
    """Whether a model that can attend to `context` tokens can read both sides of a pair."""
    sides = (pair.chosen, pair.rejected)
    return max(len(encoder.encode(pair.prompt, side)) for side in sides) <= context


class RewardModelScore:
    """A reward model that scores text; satisfies `protocols.ScoreFunction`."""

    def __init__(
        self,
        model: "PreTrainedModel",
        encoder: Encoder,
        *,
        batch_size: int = 64,
        bar: StageProgress | None = None,
    ) -> None:
        self.model = model
        self.encoder = encoder
        self.batch_size = batch_size
        self.bar = bar
        self._prompts = SharedPrompts(model)

    def reporting_to(self, bar: StageProgress) -> "RewardModelScore":
        """The same, which moves `bar` by one for each response it has scored."""
        return RewardModelScore(self.model, self.encoder, batch_size=self.batch_size, bar=bar)

    def fitting_pairs(self, pairs: Sequence[PreferencePair]) -> list[PreferencePair]:
        """The pairs whose both sides fit the model's context; the others cannot be scored.

        Raises:
            EmptySetError: When none does.
        """
        context = context_length(self.model)
        fits = [pair for pair in pairs if fits_context(self.encoder, pair, context)]
        if not fits:
            raise EmptySetError(
                f"none of the {len(pairs)} pairs fits the reward model's context of {context} "
                "tokens: give shorter ones, or train a model with a longer context"
            )
        return fits

    @torch.no_grad()
    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
        """Score each response, in logits, in the order given.

        Responses to one prompt go together where they fit in a batch, and the model reads the
        prompt once; batches are of like lengths.

        Raises:
            DataError: When a prompt and its response are longer than the model's context.
            ModelError: When a score is not finite.
        """
        rows = [self.encoder.encode(p, r) for p, r in zip(prompts, responses, strict=True)]
        context = context_length(self.model)
        if rows and len(longest := max(rows, key=len)) > context:
            prompt = prompts[next(i for i, row in enumerate(rows) if row is longest)]
            raise DataError(
                f"cannot score {prompt_text(prompt)[:60]!r}...: prompt and response have "
                f"{len(longest)} tokens, the reward model's context is {context}"
            )
        members: dict[Prompt, list[int]] = {}
        for index, prompt in enumerate(prompts):
            members.setdefault(prompt, []).append(index)
        groups = sorted(members.values(), key=lambda group: max(len(rows[i]) for i in group))
        order = [(index, number) for number, group in enumerate(groups) for index in group]
        scores = [0.0] * len(rows)
        for start in range(0, len(order), self.batch_size):
            indices, group_of_row = zip(*order[start : start + self.batch_size], strict=True)
            found = self.score_tokens([rows[index] for index in indices], group_of_row)
            for index, score in zip(indices, found, strict=True):
                scores[index] = score
            if self.bar is not None:
                self.bar.advance(len(indices))
        return scores

    @torch.no_grad()
    def score_tokens(
        self, rows: Sequence[Sequence[int]], group_of_row: Sequence[int]
    ) -> list[float]:
        """Scores of one batch of token ids, in logits; rows of equal number begin alike.

        Raises:
            ModelError: When a score is not finite.
        """
        batch = pad_batch(rows, self.encoder.pad_token_id, side="right")
        ids = batch.input_ids.to(self.model.device)
        mask = batch.attention_mask.to(self.model.device)
        with self._prompts.sharing(ids, mask, group_of_row):
            logits = self.model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        if not torch.isfinite(logits).all():
            raise ModelError(
                "the reward model gave a score that is not finite: its weights are broken "
                "(training diverged?); lower the learning rate and train it again"
            )
        found: list[float] = logits.float().squeeze(-1).tolist()
        return found


def load_score_function(model: str | Path, *, batch_size: int = 64) -> RewardModelScore:
    """The score function of a reward-model folder or hub id.

    Raises:
        ModelError: When it is missing or of another kind, a language model without a score head.
    """
    encoder = load_encoder(model)
    reward_model = load_reward_model(model, encoder, seed=None)
    return RewardModelScore(reward_model, encoder, batch_size=batch_size)
