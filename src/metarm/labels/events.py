# SPDX-License-Identifier: Apache-2.0
"""What goes into a label store and comes out: items to answer, votes as they arrive, progress."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from metarm.errors import FormatError
from metarm.labels.votes import CHOICES, AnnotatorKind, Choice, LabelPair

__all__ = [
    "Annotator",
    "Event",
    "EventChoice",
    "Item",
    "LabelContent",
    "Progress",
    "Recorded",
    "VoteEvent",
]

LAST_TIME: Final = 253_402_300_000.0

EventChoice = Literal[Choice, "undo"]
"""What an event says: a choice, or that the vote before it is taken back."""


@dataclass(frozen=True, slots=True)
class Item:
    """A pair as it is shown to one annotator."""

    id: str
    """Says nothing of what it is: it may be told to the annotator."""
    pair: LabelPair
    is_turned: bool
    """Whether `second` stands on the left."""
    is_repeat: bool = False
    """Whether the annotator saw the pair before, the other way round; not for their eyes."""
    is_gold: bool = False
    """Whether the answer is known; not for their eyes."""


@dataclass(frozen=True, slots=True)
class VoteEvent:
    """A vote as it arrives."""

    key: str
    """Made by whoever sends it, once a vote: the same key again is the same vote."""
    annotator: str
    choice: Choice
    item: str = ""
    """`Item.id` where the store served it; else empty, with `pair`."""
    pair: str = ""
    """`LabelPair.id` where there is no item, as for labels from a file."""
    strength: int = 1
    """1: better, 2: much better."""
    is_turned: bool | None = None
    """As in `Vote`; of an item the store knows it."""
    seconds: float | None = None
    """From being shown to the vote; kept to the millisecond."""
    supersedes: str | None = None
    """Key of the annotator's vote that this one corrects, also where that is still to arrive."""
    note: str = ""
    flag: bool = False
    """Whether the annotator wants the owner to look at the pair."""
    is_repeat: bool = False
    """With `pair`: whether it was the pair's second showing, the other way round."""
    at: float | None = None
    """Seconds since 1970, for a vote given elsewhere; None: now."""

    def __post_init__(self) -> None:
        if not self.key or not self.key.isprintable() or len(self.key) > 200:
            raise FormatError(f"expected a key of 1 to 200 visible characters, got {self.key!r}")
        if bool(self.item) == bool(self.pair):
            raise FormatError("expected a vote on an item or on a pair, and not on both")
        if self.choice not in CHOICES:
            raise FormatError(f"expected a choice of {', '.join(CHOICES)}, got {self.choice!r}")
        if self.strength not in (1, 2):
            raise FormatError(f"expected a strength of 1 or 2, got {self.strength!r}")
        if self.seconds is not None and not (
            math.isfinite(self.seconds) and 0 <= self.seconds < 1e9
        ):
            raise FormatError(f"expected seconds of 0 or more, got {self.seconds!r}")
        if self.at is not None and not 0 <= self.at < LAST_TIME:
            raise FormatError(f"expected a time between 1970 and 9999, got {self.at!r}")


@dataclass(frozen=True, slots=True)
class LabelContent:
    """Pairs, known answers, annotators and votes, as they go from one place to another."""

    pairs: tuple[LabelPair, ...]
    gold: Mapping[str, Choice]
    """Pair id -> known answer."""
    annotators: Mapping[str, AnnotatorKind]
    """Name -> kind, of everybody who voted."""
    votes: tuple[VoteEvent, ...]
    """Each on a `pair`, in the order of pairs and then of votes."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """What became of a vote that is now durable."""

    is_new: bool
    """False where the key was there before: nothing was added."""
    revision: int
    """1, 2, ... over all events of the annotator on the pair."""


@dataclass(frozen=True, slots=True)
class Event:
    """One row of the append-only table: a vote or its taking back, as it was stored."""

    number: int
    key: str
    pair: str
    annotator: str
    showing: int
    """0: the first showing of the pair to the annotator, 1: the mirrored repeat."""
    revision: int
    choice: EventChoice
    strength: int
    is_turned: bool | None
    lead_ms: int | None
    at: float
    """Seconds since 1970."""
    supersedes: str | None
    """Key of the annotator's event that this one takes the place of."""
    corrects: str | None
    """`VoteEvent.supersedes`, as it was sent."""
    is_outdated: bool
    """Whether it arrived after its own correction, or after the batch of the answer that it would
    have corrected was closed, so that it never counted."""
    note: str
    flag: bool


@dataclass(frozen=True, slots=True)
class Annotator:
    """Who votes, and since when."""

    name: str
    kind: AnnotatorKind
    at: float
    """Seconds since 1970."""
    num_votes: int = 0
    """Votes that count, skips included."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far one annotator is."""

    num_votes: int
    """Votes that count, gold items, repeats and skips included."""
    num_skipped: int
    num_today: int
    """Of `num_votes`, those since midnight (UTC)."""
    num_left: int
    """Pairs that still want a vote, and could get it from this annotator."""
    median_seconds: float | None
    """Of the votes whose time was measured."""
    batch: int = 1
    """Number of the annotator's open batch."""
    num_in_batch: int = 0
    """Answers in it, of all kinds."""
    batch_size: int = 0
    """Answers that make a batch; 0: there are no batches."""
