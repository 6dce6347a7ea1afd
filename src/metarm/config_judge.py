# SPDX-License-Identifier: Apache-2.0
"""The knobs of judging and of asking models behind a URL, one description per field; no torch."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

__all__ = ["EndpointSettings", "JudgeSettings"]

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]


class _Settings(BaseModel):
    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class EndpointSettings(_Settings):
    """How a model behind a URL is asked, and when to stop asking it."""

    num_in_flight: Count = 16
    """Requests under way at the same time."""
    timeout_seconds: Positive = 120.0
    """Longest time from a request to the end of its answer."""
    max_retries: int = Field(default=5, ge=0)
    """Further tries after a time-out, a lost connection, 429, 5xx or an answer that is cut."""
    max_wait_seconds: Positive = 60.0
    """Longest wait before a try; a server that asks for more ends the asking, cleanly."""
    max_calls: Count | None = None
    """Calls over all starts, tries included; what is done is kept. None: no cap."""
    max_total_tokens: Count | None = None
    """Tokens of prompts and answers over all starts, never exceeded. None: no cap."""
    max_cost: Positive | None = None
    """Cost over all starts in the prices' currency, never exceeded. None: no cap."""
    price_prompt: NonNegative = 0.0
    """Price of a million tokens of prompts."""
    price_answer: NonNegative = 0.0
    """Price of a million tokens of answers."""
    api_key_variable: str = "OPENAI_API_KEY"
    """Environment variable with the key; a key stands nowhere else, and is never written."""

    @model_validator(mode="after")
    def _a_cost_has_a_price(self) -> "EndpointSettings":
        if self.max_cost is not None and not self.has_prices:
            raise ValueError("max_cost caps nothing without price_prompt or price_answer: give one")
        return self

    @property
    def has_prices(self) -> bool:
        """Whether tokens cost anything."""
        return bool(self.price_prompt or self.price_answer)


class JudgeSettings(_Settings):
    """How responses of arms are judged against each other."""

    against: str | None = None
    """Arm that all others are compared with; None: every two arms."""
    num_prompts: Count | None = None
    """Prompts judged, the first ones of the first arm; None: all that the arms share."""
    num_responses: Count = 1
    """Responses of each arm to a prompt that are judged, the first ones."""
    both_orders: bool = True
    """Ask with either response first; two answers that disagree are a tie."""
    tie_margin: NonNegative = 1e-6
    """Score differences up to this are ties, in the score's unit."""
    template: str = "overall-1"
    """What a model is asked: `overall-1`, `harmless-1`, `summary-1`, or a text file of your own."""
    temperature: NonNegative | None = 0.0
    """Of the judge's answer; None: not sent, for models that refuse it."""
    max_answer_tokens: Count = 512
    """Longest answer of the judge, in tokens, its reasoning included."""
    num_resamples: Count = 1000
    """Bootstrap resamples of prompts, behind length-controlled win rates and ratings."""
    endpoint: EndpointSettings = EndpointSettings()
