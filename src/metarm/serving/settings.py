# SPDX-License-Identifier: Apache-2.0
"""Every knob of a server, one description per field; as strict as `metarm.config`; no torch."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

__all__ = ["ServeSettings"]

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]


class ServeSettings(BaseModel):
    """Sizes and times of a reward server: what it takes, what it refuses."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    exact: bool = True
    """Score each text by itself, so that its score is that of a local call bit for bit; false: side
    by side, faster, and equal up to rounding."""
    max_items: Count = 256
    """Items of one request."""
    max_tokens: Count | None = None
    """Tokens of one item; None: the model's context."""
    max_request_tokens: Count = 131072
    """Tokens of all items of a request."""
    max_body_bytes: Count = 4194304
    """Size of a request; 16 times as much is held of all requests together."""
    max_waiting_items: Count = 512
    """Items that wait for the model; a request that would make them more is refused with 429."""
    max_wait_seconds: Positive = 30.0
    """Wait that is foreseen at the rate of late; a request that would wait longer gets 429 too."""
    max_batch_items: Count = 64
    """Items of one batch, of several requests."""
    max_connections: Count = 1024
    """Open connections; beyond them the answer is 503."""
    timeout_seconds: Positive = 60.0
    """From a request's arrival to its scores; later the answer is 504."""
    body_timeout_seconds: Positive = 15.0
    """For a request to arrive whole."""
    watch_seconds: Positive | None = None
    """Look for a new model at the place so often; None: only on SIGHUP."""
    hosts: list[str] | None = None
    """Names that requests may call the server by; None: its own, or any where it has a token and
    listens on all addresses."""

    @model_validator(mode="after")
    def _a_request_fits_the_queue(self) -> "ServeSettings":
        if self.max_items > self.max_waiting_items:
            raise ValueError(
                f"expected max_items ({self.max_items}) up to max_waiting_items "
                f"({self.max_waiting_items}): a larger request would never get in"
            )
        return self
