# SPDX-License-Identifier: Apache-2.0
"""What is added to the preference loss so that few labels are not learnt by heart.

Verified on trl 1.16, transformers 5.23. All are 0 by default, and then TRL's loss is as it is.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel, TrainerCallback

from metarm.errors import ConfigError
from metarm.objectives import batch_sum_penalty
from metarm.streams import generator
from metarm.training.task_trainer import TaskTrainer

__all__ = ["RegularisedTrainer", "StartDecay", "text_loss"]


class RegularisedTrainer(TaskTrainer):
    """`TaskTrainer` with the regularisers of a `MetaRewardConfig`.

    Overrides, and why:
        `compute_loss`: the parent's, with some of the last state left out, and the terms
            `batch_sum_coefficient` and `text_loss_coefficient`.
    """

    language_head: nn.Module | None = None
    """What makes words of the trunk's states, frozen: `text_loss_coefficient` needs it."""
    _drawn: tuple[int, int] = (-1, 0)
    """Optimiser step and number of the micro-batch that dropout was drawn for last."""

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """The parent's, and what the settings add to it while training."""
        args = self.args
        if not self.model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        with self._thinned_states():
            loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        if args.batch_sum_coefficient:
            loss = loss + args.batch_sum_coefficient * batch_sum_penalty(outputs.logits)
        if args.text_loss_coefficient:
            loss = loss + args.text_loss_coefficient * self._text_loss(inputs)
        return (loss, outputs) if return_outputs else loss

    @contextmanager
    def _thinned_states(self) -> Iterator[None]:
        """A block in which the score head sees a share of the state's places as 0.

        The same ones for all rows of a micro-batch: its sides are compared in the same places, and
        however a pass is shared out, its scores are the same.
        """
        share = self.args.score_dropout
        if not share:
            yield
            return
        head = self._inner().score
        step, number = self.state.global_step, self._drawn[1] + 1
        self._drawn = (step, number if self._drawn[0] == step else 0)
        draw = generator(self.args.seed, "score-dropout", *self._drawn)
        kept = (torch.rand(head.in_features, generator=draw) >= share).float() / (1.0 - share)

        def thin(module: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
            return (given[0] * kept.to(given[0]), *given[1:])

        handle = head.register_forward_pre_hook(thin)
        try:
            yield
        finally:
            handle.remove()

    def _text_loss(self, inputs: dict[str, Any]) -> Tensor:
        """Of the chosen texts, which TRL lays out before the rejected ones."""
        assert self.language_head is not None, "checked where training begins"
        count = len(inputs["input_ids"]) // 2
        ids, mask = inputs["input_ids"][:count], inputs["attention_mask"][:count]
        states = (
            self._inner()
            .base_model(input_ids=ids, attention_mask=mask, use_cache=False)
            .last_hidden_state
        )
        return text_loss(self.language_head(states), ids, mask)

    def _inner(self) -> Any:
        """The classifier itself, whatever is wrapped around it."""
        return next(m for m in self.model.modules() if isinstance(m, PreTrainedModel))

    def train(self, *arguments: Any, **options: Any) -> Any:
        """The parent's.

        Raises:
            ConfigError: When the text loss is asked for, and nothing can make words.
        """
        if self.args.text_loss_coefficient and self.language_head is None:
            raise ConfigError(
                "text_loss_coefficient needs the model's own language head: train from a language "
                "model (a reward model has none), or set it to 0"
            )
        return super().train(*arguments, **options)


def text_loss(logits: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    """Cross-entropy of each token after those before it, the mean over tokens, in nats.

    Args:
        logits: Shape (rows, tokens, words).
        ids: Shape (rows, tokens).
        mask: Shape (rows, tokens), 0 where there is padding.

    Returns:
        Scalar >= 0; log(words) where all words are as likely.

    Source:
        SFT regularisation of GRM, Yang et al. 2406.10216. Differs: over prompt and response, which
        a batch of pairs does not tell apart, and per token.

    Example:
        >>> round(text_loss(torch.zeros(1, 3, 4), torch.tensor([[1, 2, 3]]), torch.ones(1, 3)).item(), 4)
        1.3863
    """  # noqa: E501 - an example is one line
    wanted = ids[:, 1:].masked_fill(mask[:, 1:] == 0, -100)
    flat = logits[:, :-1].reshape(-1, logits.shape[-1])
    wide = flat.to(torch.promote_types(flat.dtype, torch.float32))
    return functional.cross_entropy(wide, wanted.reshape(-1))


class StartDecay(TrainerCallback):
    """Draws the trainable weights back to where they began, after each optimiser step.

    theta <- theta + lr * strength * (start - theta), which is decoupled weight decay around the
    start.

    Args:
        start: The weights by name, as `training.plain_training.copy_weights` gives them.
        strength: The coefficient; 0: nothing is done.

    Source:
        L2-SP, Li et al. 1802.01483. Differs: decoupled from the gradient, as in AdamW.
    """

    def __init__(self, start: dict[str, Tensor], strength: float) -> None:
        self.start = start
        self.strength = strength

    @torch.no_grad()
    def on_optimizer_step(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Of the rate that the step was taken with."""
        rates = {id(p): g["lr"] for g in given["optimizer"].param_groups for p in g["params"]}
        for name, weight in given["model"].named_parameters():
            start = self.start.get(name.removeprefix("module."))
            if start is not None and id(weight) in rates:
                share = min(1.0, rates[id(weight)] * self.strength)
                weight.lerp_(start.to(weight), share)
