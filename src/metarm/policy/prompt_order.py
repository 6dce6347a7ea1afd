# SPDX-License-Identifier: Apache-2.0
"""Which prompts an iteration samples for: each once before any again, by seed and place alone."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch

from metarm.config_optimize import OptimizeSettings
from metarm.data.encoding import Encoder, check_prompt_length
from metarm.errors import EmptySetError
from metarm.models.loading import context_length
from metarm.schema import Prompt
from metarm.streams import generator

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["check_prompts", "prompt_batch"]


def prompt_batch(
    prompts: Sequence[Prompt], batch_size: int, seed: int, iteration: int
) -> list[Prompt]:
    """The prompts of one iteration: places of an endless row of passes, each in its own order.

    Args:
        prompts: At least one.
        batch_size: Prompts per iteration.
        seed: Of the optimisation.
        iteration: From 0; batches of different iterations overlap nowhere.
    """
    batch: list[Prompt] = []
    place = iteration * batch_size
    while len(batch) < batch_size:
        number, start = divmod(place + len(batch), len(prompts))
        order = torch.randperm(len(prompts), generator=generator(seed, "prompts", number)).tolist()
        batch += [prompts[index] for index in order[start:]]
    return batch[:batch_size]


def check_prompts(
    encoder: Encoder,
    prompts: Sequence[Prompt],
    models: Iterable["PreTrainedModel"],
    settings: OptimizeSettings,
    *,
    what: str,
) -> None:
    """Fail before anything is sampled where a prompt leaves no room for a response.

    Raises:
        EmptySetError: When there are no prompts; `what` names who needs them.
        DataError: When one does not fit in the shortest of the models' contexts.
    """
    if not prompts:
        raise EmptySetError(f"{what} needs at least one prompt to sample responses to, got none")
    context = min(map(context_length, models))
    for prompt in dict.fromkeys(prompts):
        check_prompt_length(encoder, prompt, context, settings.max_completion_length)
