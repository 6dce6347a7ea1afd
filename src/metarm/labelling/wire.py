# SPDX-License-Identifier: Apache-2.0
"""What the page and its server say to each other: strict JSON, and nothing that tells the sides."""

import math
from collections.abc import Mapping
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from metarm.labelling.texts import parts_of, prompt_turns
from metarm.labels.events import Item, Progress, VoteEvent
from metarm.labels.votes import Choice

__all__ = [
    "ANSWERS",
    "BatchAnswer",
    "BatchRequest",
    "EnterAnswer",
    "EnterRequest",
    "InviteAnswer",
    "InviteRequest",
    "ItemAnswer",
    "NextAnswer",
    "NextRequest",
    "ProgressAnswer",
    "QueueAnswer",
    "QueueRequest",
    "RevokeAnswer",
    "RevokeRequest",
    "TurnAnswer",
    "UndoAnswer",
    "UndoRequest",
    "VoteAnswer",
    "VoteRequest",
    "Wait",
    "WhyAnswer",
    "WhyRequest",
    "event_of",
    "item_answer",
    "progress_answer",
]

STRICT: Final = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

Name = Annotated[str, Field(min_length=1, max_length=100)]
Key = Annotated[str, Field(min_length=8, max_length=64, pattern=r"^[A-Za-z0-9-]+$")]
ItemId = Annotated[str, Field(min_length=1, max_length=100)]
Seconds = Annotated[float, Field(ge=0, lt=1e9)]
Count = Annotated[int, Field(ge=0, le=1_000_000)]
Parts = list[str]
"""Plain text and, at odd places, codes of what cannot be seen: see `parts_of`."""

Answer = Literal["left_much", "left", "tie", "right", "right_much", "skip"]

ANSWERS: Final[Mapping[Answer, tuple[Choice, int]]] = {
    "left_much": ("first", 2),
    "left": ("first", 1),
    "tie": ("tie", 1),
    "right": ("second", 1),
    "right_much": ("second", 2),
    "skip": ("skip", 1),
}
"""Answer -> choice and strength, where the sides are not turned."""

Wait = Literal["batch", "closed", "none"]
"""Why no pair is handed out: the batch is over, the queue is closed, or nothing is left."""

LEFT_STEP: Final = 10

_TURNED: Final[Mapping[Choice, Choice]] = {
    "first": "second",
    "second": "first",
    "tie": "tie",
    "skip": "skip",
}


class EnterRequest(BaseModel):
    """A token that somebody was given."""

    model_config = STRICT
    token: Annotated[str, Field(min_length=1, max_length=200)]


class EnterAnswer(BaseModel):
    """Where it leads."""

    go: Literal["/", "/owner"]


class NextRequest(BaseModel):
    """A wish for items to answer."""

    model_config = STRICT
    annotator: Name
    besides: Annotated[list[ItemId], Field(max_length=200)]
    """Items that are held, or whose answers are on the way."""
    count: Annotated[int, Field(ge=1, le=4)] = 1


class TurnAnswer(BaseModel):
    """One turn of a prompt."""

    role: Parts
    text: Parts


class ItemAnswer(BaseModel):
    """A pair as an annotator sees it: no model, score, source or strategy, no first or second."""

    id: str
    prompt: list[TurnAnswer]
    left: Parts
    right: Parts


class ProgressAnswer(BaseModel):
    """How far the annotator is."""

    num_today: int
    num_votes: int
    num_left: int
    """Rounded up to `LEFT_STEP`: an exact one would stay as it is after a known answer."""
    median_seconds: float | None
    batch: int
    """Number of the batch that is open."""
    num_in_batch: int
    """Answers in it, of all kinds."""
    batch_size: int
    """0: there are no batches."""


class NextAnswer(BaseModel):
    """Items to answer, as many as there are of those that were wished for."""

    items: list[ItemAnswer]
    progress: ProgressAnswer
    wait: Wait | None
    """Why there are fewer than were wished for."""


class VoteRequest(BaseModel):
    """An answer to an item."""

    model_config = STRICT
    annotator: Name
    key: Key
    """Made by the page, once an answer: however often it arrives, it counts once."""
    item: ItemId
    answer: Answer
    seconds: Seconds | None = None
    """From being shown to the answer."""
    note: Annotated[str, Field(max_length=8000)] = ""
    flag: bool = False
    changes: Count = 0
    """Other answers that were marked before this one."""
    blurs: Count = 0
    """Times that the page lost the focus."""
    away_seconds: Seconds = 0.0
    """Of `seconds`, those without the focus."""
    pastes: Count = 0
    """Pastes into the note."""
    left_seconds: Seconds | None = None
    """Of `seconds`, those in which the left response was in view."""
    right_seconds: Seconds | None = None


class VoteAnswer(BaseModel):
    """The answer is on the disk."""

    is_new: bool
    progress: ProgressAnswer


class UndoRequest(BaseModel):
    """Take an answer back."""

    model_config = STRICT
    annotator: Name
    key: Key


class UndoAnswer(BaseModel):
    """Whether it was taken back, now or when the same was asked before."""

    is_undone: bool
    is_closed: bool
    """Whether its batch is: then nothing is taken back or given again."""
    progress: ProgressAnswer


class BatchRequest(BaseModel):
    """The wish to see how a batch went, after which its answers are no longer undone."""

    model_config = STRICT
    annotator: Name
    number: Annotated[int, Field(ge=1, le=10**9)]


class BatchAnswer(BaseModel):
    """Whether it is closed: a page tells the rest; there may be more to answer."""

    is_closed: bool


class WhyRequest(BaseModel):
    """The wish to know why an item that was answered had been chosen."""

    model_config = STRICT
    annotator: Name
    key: Key


class WhyAnswer(BaseModel):
    """Why it had been chosen, in a sentence."""

    why: Parts


class InviteRequest(BaseModel):
    """The owner invites somebody."""

    model_config = STRICT
    name: Name
    days: Annotated[float, Field(gt=0, le=3650)] = 14.0

    @model_validator(mode="before")
    @classmethod
    def _whole_days(cls, values: object) -> object:
        if isinstance(values, dict) and type(values.get("days")) is int:
            return values | {"days": float(min(values["days"], 10**6))}
        return values


class InviteAnswer(BaseModel):
    """A link that is shown once."""

    link: str
    name: Parts


class RevokeRequest(BaseModel):
    """The owner ends somebody's invitations."""

    model_config = STRICT
    name: Name


class RevokeAnswer(BaseModel):
    """They have ended."""

    name: Parts


class QueueRequest(BaseModel):
    """The owner closes the queue, or opens it again."""

    model_config = STRICT
    is_open: bool


class QueueAnswer(BaseModel):
    """As it is now."""

    is_open: bool


def item_answer(item: Item) -> ItemAnswer:
    """What may be told of an item."""
    left, right = item.pair.first, item.pair.second
    if item.is_turned:
        left, right = right, left
    return ItemAnswer(
        id=item.id,
        prompt=[
            TurnAnswer(role=parts_of(role), text=parts_of(text))
            for role, text in prompt_turns(item.pair.prompt)
        ],
        left=parts_of(left),
        right=parts_of(right),
    )


def progress_answer(progress: Progress) -> ProgressAnswer:
    """What an annotator is told of their progress: not which answers were known ones or repeats."""
    return ProgressAnswer(
        num_today=progress.num_today,
        num_votes=progress.num_votes,
        num_left=math.ceil(progress.num_left / LEFT_STEP) * LEFT_STEP,
        median_seconds=progress.median_seconds,
        batch=progress.batch,
        num_in_batch=progress.num_in_batch,
        batch_size=progress.batch_size,
    )


def event_of(vote: VoteRequest, item: Item) -> VoteEvent:
    """The vote that an answer is: sides become the pair's own order."""
    choice, strength = ANSWERS[vote.answer]
    return VoteEvent(
        key=vote.key,
        annotator=vote.annotator,
        choice=_TURNED[choice] if item.is_turned else choice,
        item=vote.item,
        strength=strength,
        is_turned=item.is_turned,
        seconds=vote.seconds,
        note=vote.note,
        flag=vote.flag,
    )
