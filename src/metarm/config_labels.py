# SPDX-License-Identifier: Apache-2.0
"""The `labels` section: how people and models answer what rounds ask; and what an arm may ask."""

from typing import TYPE_CHECKING, Final

from pydantic import BaseModel

from metarm.config_base import STRICT, Count, Positive
from metarm.config_judge import JudgeSettings

if TYPE_CHECKING:
    from metarm.config import ArmSettings

__all__ = ["GOLD", "MODEL", "PEOPLE", "AnswerSettings", "label_problem", "needs_gold"]

GOLD: Final = "gold"
PEOPLE: Final = "people"
MODEL: Final = "model"
"""Names that `labels_from` knows; whatever else has a colon is a function or an address."""

DETAILS: Final = ("labels_from", "labels_choice", "labels_on", "label_noise")


class AnswerSettings(BaseModel):
    """How people, or a model behind a URL, answer the pairs that rounds ask about."""

    model_config = STRICT

    votes_per_pair: Count = 1
    """Votes of different people that each pair waits for."""
    url: str | None = None
    """`labels_from: model`: where the model is, `http://127.0.0.1:8000/v1` say."""
    model: str | None = None
    """`labels_from: model`: its name there."""
    max_calls: Count | None = None
    """`labels_from: model`: calls over the whole run, all rounds, arms, seeds and starts, tries
    included. None: no cap."""
    max_total_tokens: Count | None = None
    """`labels_from: model`: tokens of prompts and answers over the whole run, never exceeded."""
    max_cost: Positive | None = None
    """`labels_from: model`: cost over the whole run, in the currency of the judge's prices, never
    exceeded."""
    judge: JudgeSettings = JudgeSettings()
    """`labels_from: model`: template, both orders, and caps of one round's labels, as
    `metarm judge` has them."""


def needs_gold(arm: "ArmSettings") -> bool:
    """Whether an arm cannot do without a gold function."""
    is_gold = arm.labels_per_round > 0 and arm.labels_from == GOLD
    return arm.num_gold_labels > 0 or arm.relabel_original or is_gold


def label_problem(arm: "ArmSettings", answers: AnswerSettings) -> str | None:
    """What is wrong with the labels that an arm asks for; None where nothing is."""
    usual = type(arm)()
    details = [name for name in DETAILS if getattr(arm, name) != getattr(usual, name)]
    if arm.num_gold_labels and (arm.labels_per_round or details):
        return (
            "num_gold_labels is short for labels_per_round with labels_from: gold, labels_choice: "
            "random and labels_on: policy: write labels_per_round alone"
        )
    if details and not arm.labels_per_round:
        return f"{details[0]} changes nothing without labels: set labels_per_round"
    if arm.label_noise and arm.labels_from != GOLD:
        return f"label_noise is of gold labels, got labels_from: {arm.labels_from}: leave it out"
    if ":" not in arm.labels_from and arm.labels_from not in (GOLD, PEOPLE, MODEL):
        return (
            f"labels_from: expected {GOLD}, {PEOPLE}, {MODEL}, module:function or the address of a "
            f"served reward model, got {arm.labels_from!r}"
        )
    if arm.labels_per_round and arm.labels_from == MODEL and not (answers.url and answers.model):
        return f"labels_from: {MODEL} needs labels.url and labels.model: where it is, and its name"
    if answers.max_cost is not None and not answers.judge.endpoint.has_prices:
        return (
            "labels.max_cost caps nothing without labels.judge.endpoint.price_prompt or "
            "price_answer: give one"
        )
    return None
