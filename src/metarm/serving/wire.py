# SPDX-License-Identifier: Apache-2.0
"""What goes over the wire: the requests and answers of every route, strict, unknown fields refused.

`RewardRequest` and `RewardAnswer` are OpenRLHF's format (`openrlhf/cli/serve_rm.py` and the client
in `openrlhf/utils/agent.py`): `query` holds whole texts, prompt and response in one, special tokens
and all; `prompts` and `labels` are sent along and not needed here.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from metarm.schema import Message, Prompt

__all__ = [
    "ChatMessage",
    "ErrorAnswer",
    "ErrorFacts",
    "HealthAnswer",
    "MessagesItem",
    "ModelFacts",
    "ResponseItem",
    "RewardAnswer",
    "RewardRequest",
    "ScoreAnswer",
    "ScoreRequest",
]


class _Wire(BaseModel):
    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True
    )


class ChatMessage(_Wire):
    """One turn of a conversation."""

    role: Annotated[str, Field(min_length=1, max_length=64)]
    content: str


class ResponseItem(_Wire):
    """A prompt, as text or as messages, and a response to it."""

    prompt: str | Annotated[list[ChatMessage], Field(min_length=1)]
    response: str

    def sides(self) -> tuple[Prompt, str]:
        """The prompt and the response."""
        return _prompt(self.prompt), self.response


class MessagesItem(_Wire):
    """A whole conversation; its last message is the assistant's response, which is scored."""

    messages: Annotated[list[ChatMessage], Field(min_length=2)]

    @model_validator(mode="after")
    def _ends_with_a_response(self) -> "MessagesItem":
        if self.messages[-1].role != "assistant":
            raise ValueError("the last message must have the role assistant: it is what is scored")
        return self

    def sides(self) -> tuple[Prompt, str]:
        """The messages before the response, and the response."""
        return _prompt(self.messages[:-1]), self.messages[-1].content


class ScoreRequest(_Wire):
    """`POST /v1/score`: responses to score; the server applies the chat template."""

    items: list[ResponseItem | MessagesItem]
    truncate: bool = False
    """Cut the beginning off what is too long, and say so in `truncated`; else it is an error."""


class ModelFacts(_Wire):
    """Which model gave the scores."""

    name: str
    version: int
    """1 for the model that the server began with, one more with each that took its place."""
    sha256: str
    """Of all its files: equal digits, equal model."""


class ScoreAnswer(_Wire):
    """One score an item, in the order of the items."""

    scores: list[float]
    """In logits; of an ensemble, in standard deviations of a member's scores."""
    uncertainty: list[float] | None
    """Standard deviation over the members of an ensemble; null for a single model."""
    truncated: list[bool]
    num_tokens: list[int]
    """Tokens that were read, end of sequence included."""
    exact: bool
    """Whether each score is that of a local call bit for bit, or equal to it up to rounding."""
    model: ModelFacts


class RewardRequest(_Wire):
    """`POST /get_reward`, as OpenRLHF sends it."""

    query: list[str]
    """Whole texts: prompt and response in one."""
    prompts: list[str] | None = None
    """Sent by OpenRLHF; not needed."""
    labels: list[Any] | None = None
    """Sent by OpenRLHF; not needed."""


class RewardAnswer(_Wire):
    """`rewards` and `scores` are the same numbers; OpenRLHF filters prompts by the latter."""

    rewards: list[float]
    scores: list[float]
    extra_logs: dict[str, float]
    """`uncertainty`, the mean over the request, where an ensemble is served."""
    model: ModelFacts


class HealthAnswer(_Wire):
    """`GET /health`: the one route that never asks for a token."""

    status: Literal["ok", "failed"]
    version: int
    sha256: str
    uptime_seconds: float
    last_swap_failed: bool
    """Whether the newest model that was offered could not be loaded; the log says why."""


class ErrorFacts(_Wire):
    """Why there are no scores."""

    reason: str
    """A word for programs: docs/serving.md lists them."""
    message: str


class ErrorAnswer(_Wire):
    """The body of every answer that is not a success."""

    error: ErrorFacts


def _prompt(prompt: str | list[ChatMessage]) -> Prompt:
    if isinstance(prompt, str):
        return prompt
    return tuple(Message(message.role, message.content) for message in prompt)
