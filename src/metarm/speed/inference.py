# SPDX-License-Identifier: Apache-2.0
"""Scoring many responses to one prompt, and sampling some, beside one after the other."""

from collections.abc import Callable, Mapping
from typing import Any, Final

import torch

from metarm.data.encoding import pad_batch
from metarm.models.reward_model import RewardModelScore
from metarm.policy.sampling import generate
from metarm.speed.machine import now
from metarm.speed.problem import Problem, build_model

__all__ = [
    "NUM_SAMPLED",
    "NUM_SCORED",
    "Contestants",
    "prepare_sampling",
    "prepare_scoring",
    "timed",
]

NUM_SCORED: Final = 16
"""Responses to a prompt that are scored."""
NUM_SAMPLED: Final = 5
"""Responses to a prompt that are sampled."""

Contestants = Mapping[str, Callable[[], Any]]
"""Ways to do the same work: the first is metarm's."""


def prepare_scoring(problem: Problem) -> Contestants:
    """A group of responses scored by `RewardModelScore`, in a padded batch, and one by one."""
    model = problem.build_model().eval()
    score = RewardModelScore(model, problem.encoder, batch_size=NUM_SCORED)
    group = problem.groups[0]
    responses = list(group.responses)

    @torch.no_grad()
    def padded() -> None:
        rows = [problem.encoder.encode(group.prompt, response) for response in responses]
        batch = pad_batch(rows, problem.encoder.pad_token_id, side="right")
        model(
            input_ids=batch.input_ids.to(model.device),
            attention_mask=batch.attention_mask.to(model.device),
            use_cache=False,
        ).logits.tolist()

    return {
        "metarm": lambda: score([group.prompt] * len(responses), responses),
        "one batch": padded,
        "one by one": lambda: [score([group.prompt], [response]) for response in responses],
    }


def prepare_sampling(problem: Problem) -> Contestants:
    """Some responses to a prompt by `generate`, and by as many calls of the model's own."""
    workload = problem.workload
    model = build_model(
        problem.shape,
        seed=problem.seed,
        context=workload.prompt_tokens + workload.response_tokens + 1,
        is_causal_lm=True,
    ).eval()
    prompt = problem.groups[0].prompt
    ids = torch.tensor([problem.encoder.encode_prompt(prompt)], device=model.device)

    def ours() -> None:
        generate(
            model,
            problem.encoder,
            [prompt] * NUM_SAMPLED,
            temperature=1.0,
            top_p=1.0,
            max_completion_length=workload.response_tokens,
            seed=problem.seed,
        )

    @torch.no_grad()
    def theirs(rows: int) -> None:
        model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=True,
            top_k=0,
            num_return_sequences=rows,
            max_new_tokens=workload.response_tokens,
            pad_token_id=problem.encoder.pad_token_id,
        )

    return {
        "metarm": ours,
        "one batch": lambda: theirs(NUM_SAMPLED),
        "one by one": lambda: [theirs(1) for _ in range(NUM_SAMPLED)],
    }


def timed(work: Callable[[], Any]) -> float:
    """Seconds of one call."""
    started = now()
    work()
    return now() - started
