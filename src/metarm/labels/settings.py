# SPDX-License-Identifier: Apache-2.0
"""The knobs of a label store, one description per field; they are kept in the store itself."""

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from metarm.config_base import STRICT, Count, Fraction, Positive, Seed

__all__ = ["LabelSettings"]


class LabelSettings(BaseModel):
    """How pairs are handed out to be voted on."""

    model_config = STRICT

    votes_per_pair: Count = 1
    """Votes of people after which a pair leaves the queue; models and rules do not count. Pairs of
    a run's round keep the number that held when they were asked."""
    gold_fraction: Fraction = 0.05
    """Share of items with a known answer: 2 of the first 10, then drawn; 0: none."""
    repeat_fraction: Fraction = 0.05
    """Share of items shown again to the same annotator with the sides swapped; 0: none."""
    lease_minutes: Positive = 15.0
    """Time for an answer before the pair is offered to others; a late answer is taken, too."""
    batch_size: Annotated[int, Field(ge=0)] = 50
    """Answers after which an annotator is told how the batch went; 0: no batches."""
    gold_feedback: Literal["none", "count", "which"] = "count"
    """What is told of known answers when a batch is over; `which` also shows the pairs."""
    is_open: bool = True
    """Whether new pairs are handed out to people; what was handed out can be answered."""
    seed: Seed | None = None
    """Of sides, order, gold items and repeats, where they are to be drawn alike in another store,
    and by anybody who knows it; null: drawn by the store's own secret. It cannot be changed."""
