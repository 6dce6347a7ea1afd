# SPDX-License-Identifier: Apache-2.0
"""Every knob of choosing, one description per field; as strict as `metarm.config`; no torch."""

from pydantic import BaseModel, model_validator

from metarm.config_base import STRICT, Count, NonNegative

__all__ = ["SelectSettings"]


class SelectSettings(BaseModel):
    """Which pairs to have labelled, how many, and when to stop."""

    model_config = STRICT

    strategy: str = "mix"
    """`random`, `d-optimal`, `information-gain`, `disagreement`, `near-tie`, `thompson`; `mix`, the
    first two by halves; `mix+NAME`; or your own `module:function`."""
    count: Count = 50
    """Pairs to choose."""
    most_per_prompt: Count | None = None
    """Chosen pairs of one prompt at most, random ones apart; null: one more than an even share."""
    most_candidates: Count = 20000
    """Candidates that are scored; of more, so many are drawn."""
    cost_per_label: NonNegative | None = None
    """In any unit of money or time."""
    worth_per_point: NonNegative | None = None
    """What a point of accuracy is worth, in that unit: go on while a batch is worth its cost."""
    least_gain: NonNegative = 0.005
    """Without it: go on while a batch is expected to add this much accuracy."""

    @model_validator(mode="after")
    def _a_worth_has_a_cost(self) -> "SelectSettings":
        if self.worth_per_point is not None and self.cost_per_label is None:
            raise ValueError(
                "what a point is worth can only be held against a cost: give cost_per_label too"
            )
        return self
