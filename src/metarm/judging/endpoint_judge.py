# SPDX-License-Identifier: Apache-2.0
"""A model behind a URL as a judge: asked by a template, its answers kept, none of them guessed."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from metarm.config_judge import JudgeSettings
from metarm.endpoint.answers import Answer, AnswerFile
from metarm.endpoint.caps import cost_of
from metarm.endpoint.client import Endpoint, Question
from metarm.judging.templates import fill_template, load_template, read_verdict
from metarm.protocols import ProgressReporter
from metarm.schema import Prompt, Verdict

__all__ = ["EndpointJudge"]


class EndpointJudge:
    """A model that is asked which of two responses is better.

    Satisfies `protocols.Judge`. A question that gets no answer is `unjudged`: the same call asks it
    again. An answer without a verdict is `malformed`, and is kept: to ask again would cost again.

    Args:
        endpoint: Where the model is.
        answers: File that keeps every answer; what it has costs nothing.
        settings: Template, temperature, longest answer.
        progress: Gets a bar.

    Raises:
        ConfigError: When there is no such template.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        answers: Path,
        settings: JudgeSettings,
        progress: ProgressReporter,
    ) -> None:
        self._endpoint = endpoint
        self._answers = answers
        self._settings = settings
        self._progress = progress
        self._template = load_template(settings.template)
        self._failures: Counter[str] = Counter()
        self._told: dict[str, Any] = {}
        self.stopped: str | None = None
        """Why the last call asked no more; None where it asked everything."""

    @property
    def facts(self) -> dict[str, Any]:
        """What decides the verdicts, and what they took so far."""
        return {
            "kind": "endpoint",
            "base_url": self._endpoint.base_url,
            "model": self._endpoint.model,
            "template": self._template.name,
            "template_text": self._template.text,
            "temperature": self._settings.temperature,
            "max_answer_tokens": self._settings.max_answer_tokens,
            **self._told,
            "failures": dict(self._failures),
            "stopped": self.stopped,
        }

    def __call__(
        self, prompts: Sequence[Prompt], first: Sequence[str], second: Sequence[str]
    ) -> list[Verdict]:
        """Judge `first[i]`, shown as A, against `second[i]`, shown as B.

        Raises:
            EndpointError: When the endpoint cannot be asked; answers that came before are kept.
        """
        questions = [
            self._question(fill_template(self._template, *texts))
            for texts in zip(prompts, first, second, strict=True)
        ]
        with (
            AnswerFile(self._answers) as file,
            self._progress.stage("ask the judge", len(questions)) as bar,
        ):
            asked = self._endpoint.ask(questions, file, bar)
            spent = file.spent
        self.stopped = asked.stopped
        self._failures.update(asked.failures)
        self._told = {
            "served_models": sorted({answer.model for answer in asked.answers if answer}),
            "spent": spent.to_json(),
            "cost": cost_of(spent, self._endpoint.settings),
        }
        return [_verdict_of(answer) for answer in asked.answers]

    def _question(self, text: str) -> Question:
        settings = self._settings
        body: dict[str, Any] = {
            "messages": [{"role": "user", "content": text}],
            "max_completion_tokens": settings.max_answer_tokens,
        }
        if settings.temperature is not None:
            body["temperature"] = settings.temperature
        return Question(body, settings.max_answer_tokens)


def _verdict_of(answer: Answer | None) -> Verdict:
    return "unjudged" if answer is None else read_verdict(answer.text)
