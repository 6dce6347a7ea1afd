# SPDX-License-Identifier: Apache-2.0
"""Groups of responses from a policy behind a URL: many prompts at once, taken up after any end."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from metarm.config import SamplingSettings
from metarm.endpoint.answers import Answer, AnswerFile
from metarm.endpoint.client import Endpoint, Question
from metarm.errors import EndpointError
from metarm.protocols import ProgressReporter
from metarm.schema import Prompt, ResponseGroup, prompt_to_json
from metarm.storage import fingerprint

__all__ = ["sample_groups_from", "sampling_question"]

logger = logging.getLogger(__name__)


def sampling_question(prompt: Prompt, settings: SamplingSettings, seed: int) -> Question:
    """One response as a question: text is gone on with, a conversation gets a template there.

    Example:
        >>> sampling_question("Once", SamplingSettings(), 3).body["prompt"]
        'Once'
    """
    length = settings.max_completion_length
    body: dict[str, Any] = {
        "temperature": settings.temperature,
        "top_p": settings.top_p,
        "seed": seed,
    }
    if isinstance(prompt, str):
        return Question({"prompt": prompt, "max_tokens": length, **body}, length)
    messages = prompt_to_json(prompt)
    return Question({"messages": messages, "max_completion_tokens": length, **body}, length)


def sample_groups_from(
    endpoint: Endpoint,
    prompts: Sequence[Prompt],
    settings: SamplingSettings,
    answers: Path,
    *,
    seed: int,
    progress: ProgressReporter,
) -> list[ResponseGroup]:
    """A meta set: `num_generations` responses of the policy at `endpoint` to each prompt.

    Each response is a call with a seed of its own, made of `seed`, the prompt and its place in the
    group: servers differ in whether they take `n`.

    Args:
        endpoint: Where the policy is served.
        prompts: Text, or conversations that end before the answer.
        settings: How many, how long, how drawn.
        answers: File that keeps every response as it comes: after any end the same call goes on.
        seed: Of all draws; what a server makes of it is its own affair.
        progress: Gets a bar.

    Raises:
        EndpointError: When some response could not be had; those that came are kept.

    Writes:
        `answers`.
    """
    prompts = prompts[: settings.num_prompts] if settings.num_prompts else prompts
    questions = [
        sampling_question(prompt, settings, _seed_of(seed, prompt, number))
        for prompt in prompts
        for number in range(settings.num_generations)
    ]
    with (
        AnswerFile(answers) as file,
        progress.stage("sample responses", len(questions)) as bar,
    ):
        asked = endpoint.ask(questions, file, bar)
    found = [answer for answer in asked.answers if answer is not None]
    if len(found) < len(questions):
        reasons = [f"{count} times {reason}" for reason, count in asked.failures.items()]
        told = "; ".join([*reasons, *([asked.stopped] if asked.stopped else [])])
        raise EndpointError(
            f"{endpoint.base_url}: expected {len(questions)} responses, got {len(found)}: {told}. "
            f"They are kept in {answers}: the same command asks for the others."
        )
    size = settings.num_generations
    groups = [found[start : start + size] for start in range(0, len(found), size)]
    _report_equal(groups)
    return [
        ResponseGroup(
            prompt,
            tuple(answer.text for answer in group),
            tuple(answer.is_finished for answer in group),
        )
        for prompt, group in zip(prompts, groups, strict=True)
    ]


def _seed_of(seed: int, prompt: Prompt, number: int) -> int:
    """31 bits, which every server takes; a stream of its own for each prompt and place."""
    return int(fingerprint("endpoint", seed, prompt_to_json(prompt), number), 16) % 2**31


def _report_equal(groups: Sequence[Sequence[Answer]]) -> None:
    """Say where a server seems not to sample: no prompt got two different responses."""
    if len(groups) > 1 and all(len({answer.text for answer in group}) == 1 for group in groups):
        logger.warning(
            "the responses of every group are the same: the server may not sample. transformers "
            "serve does where the model's generation_config.json has do_sample=true"
        )
