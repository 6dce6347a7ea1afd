# SPDX-License-Identifier: Apache-2.0
"""What an annotator is told of a batch that is over: never more than the owner allows."""

from dataclasses import dataclass
from typing import Final

from metarm.labels.batches import Batch, KnownAnswer
from metarm.labels.queue import item_id
from metarm.labels.store import LabelStore
from metarm.labels.votes import Choice
from metarm.schema import Prompt

__all__ = ["LEAST_TOLD", "BatchTold", "ShownAnswer", "tell_batch"]

LEAST_TOLD: Final = 10
"""Answers in a batch of which known ones are told: among fewer their number would say which."""
_SAID: Final[dict[tuple[Choice, bool], str]] = {
    ("first", False): "A",
    ("second", False): "B",
    ("first", True): "B",
    ("second", True): "A",
    ("tie", False): "equally good",
    ("tie", True): "equally good",
}
"""Choice, and whether `second` stood on the left -> what it was on the screen."""


@dataclass(frozen=True, slots=True)
class ShownAnswer:
    """A pair with a known answer, as the annotator saw it."""

    prompt: Prompt
    left: str
    right: str
    said: str
    known: str
    is_right: bool


@dataclass(frozen=True, slots=True)
class BatchTold:
    """A batch that is over, and what may be told of its known answers."""

    batch: Batch
    is_told: bool
    """Whether anything is told of known answers."""
    is_too_short: bool
    """Whether it would be, were there more answers."""
    shown: tuple[ShownAnswer, ...]
    """Where the owner allows it."""

    @property
    def num_known(self) -> int:
        """Known answers, where they are told."""
        return len(self.batch.known) if self.is_told else 0


def tell_batch(store: LabelStore, annotator: str, number: int) -> BatchTold | None:
    """What may be told of a closed batch; None where it is not closed."""
    batch = store.batch(annotator, number)
    if batch is None:
        return None
    feedback = store.settings.gold_feedback
    is_wanted, is_long = feedback != "none", batch.num_answers >= LEAST_TOLD
    shown: tuple[ShownAnswer, ...] = ()
    if feedback == "which" and is_long and batch.known:
        shown = tuple(_shown(store, annotator, one) for one in batch.known)
    return BatchTold(batch, is_wanted and is_long, is_wanted and not is_long, shown)


def _shown(store: LabelStore, annotator: str, one: KnownAnswer) -> ShownAnswer:
    pair = store.pair(one.pair)
    assert pair is not None, "it has been answered"
    item = store.item(annotator, item_id(store.seed, pair.id, annotator, 0))
    is_turned = item is not None and item.is_turned
    left, right = (pair.second, pair.first) if is_turned else (pair.first, pair.second)
    return ShownAnswer(
        pair.prompt,
        left,
        right,
        _SAID[one.choice, is_turned],
        _SAID[one.known, is_turned],
        one.choice == one.known,
    )
