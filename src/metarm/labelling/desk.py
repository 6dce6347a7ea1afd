# SPDX-License-Identifier: Apache-2.0
"""The label store behind a server: one thread owns it, and all requests ask through that."""

import asyncio
import json
import logging
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, TypeVar

from metarm.errors import ConfigError, DataError, RunError
from metarm.labelling.batches import BatchTold, tell_batch
from metarm.labelling.refusals import refusal
from metarm.labelling.wire import UndoAnswer, VoteRequest, Wait, event_of, progress_answer
from metarm.labels.events import Item, Progress, Recorded
from metarm.labels.settings import LabelSettings
from metarm.labels.store import LabelStore
from metarm.streams import draw_seed

__all__ = ["Behaviour", "LabelDesk", "behaviour_path", "read_behaviour"]

logger = logging.getLogger(__name__)

Found = TypeVar("Found")

STRATEGIES: Final[Mapping[str, str]] = {
    "": "Nobody picked it: every pair of the set is asked about.",
    "random": "It was drawn at random: such pairs say how good a reward model is on all of them.",
    "d-optimal": "Its answer tells the reward model about features it has seen little of.",
    "information-gain": "Its answer is expected to teach the reward model much.",
    "disagreement": "Several reward models disagree about it.",
    "near-tie": "The reward model sees hardly a difference between the two.",
    "thompson": "Two guesses at the reward, each as good as the other, disagree about it.",
}
"""Strategy -> what an annotator is told of it; others are told by their name."""


@dataclass(frozen=True, slots=True)
class Behaviour:
    """How a vote came about, as far as the page can tell; reported, never acted upon."""

    key: str
    """Of the vote."""
    changes: int
    blurs: int
    away_seconds: float
    pastes: int
    left_seconds: float | None = None
    """That the left response was in view; None where the page did not tell."""
    right_seconds: float | None = None


def behaviour_path(store: Path) -> Path:
    """Where the server keeps what it saw beside a store."""
    return store.with_name(f"{store.name}.behaviour.jsonl")


def read_behaviour(path: Path) -> dict[str, Behaviour]:
    """Key of a vote -> how it came about; lines that are torn are left out."""
    found: dict[str, Behaviour] = {}
    if path.exists():
        for line in path.read_bytes().splitlines():
            try:
                row = Behaviour(**json.loads(line))
            except (TypeError, ValueError):
                continue
            found[row.key] = row
    return found


class LabelDesk:
    """Hands out items and takes votes.

    Args:
        path: The store.
        settings: As of `LabelStore`.
    """

    def __init__(self, path: Path, settings: LabelSettings | None = None) -> None:
        self.path = path
        self._store = LabelStore(path, settings)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="label-store")
        self._descriptor: int | None = None

    def open(self) -> None:
        """Take the store.

        Raises:
            RunError: When another process has it, or it cannot be used.
        """
        self._thread.submit(self._store.__enter__).result()
        self._descriptor = os.open(
            behaviour_path(self.path), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666
        )

    def close(self) -> None:
        """Give the store back, after all that is under way."""
        if self._descriptor is not None:
            self._thread.submit(self._store.__exit__, None, None, None).result()
            os.close(self._descriptor)
            self._descriptor = None
        self._thread.shutdown()

    async def ask(self, call: Callable[[LabelStore], Found]) -> Found:
        """What `call` makes of the store, on its thread.

        Raises:
            RefusedError: When the store cannot be written.
        """
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._thread, call, self._store)
        except RunError as error:
            logger.error("%s", error)
            raise refusal(
                "store_failed", "the store cannot be written now: try again", retry_seconds=5
            ) from error

    async def annotator_of(self, token: str) -> str | None:
        """Whom a token invites; None where it is unknown, over or revoked."""
        return await self.ask(lambda store: store.annotator_of(token))

    async def next_items(
        self, annotator: str, besides: list[str], count: int
    ) -> tuple[list[Item], Progress, Wait | None]:
        """Up to `count` items besides those, how far the annotator is, and why there are fewer."""

        def find(store: LabelStore) -> tuple[list[Item], Progress, Wait | None]:
            progress = store.progress(annotator)
            wait: Wait | None = None
            room = count
            if progress.batch_size:
                given = progress.num_in_batch + store.num_unanswered(annotator, besides)
                room = max(0, progress.batch_size - given)
                wait = "batch" if room < count else None
            items: list[Item] = []
            while len(items) < min(room, count):
                held = [*besides, *(item.id for item in items)]
                item = store.next_item(annotator, besides=held)
                if item is None:
                    wait = "none" if store.settings.is_open else "closed"
                    break
                items.append(item)
            return items, progress, wait

        return await self.ask(find)

    async def record(self, vote: VoteRequest) -> tuple[Recorded, Progress]:
        """Take a vote; it is durable when this returns.

        Raises:
            RefusedError: When the item was never served to the annotator.
        """

        def take(store: LabelStore) -> tuple[Recorded, Progress]:
            item = store.item(vote.annotator, vote.item)
            if item is None:
                raise refusal("no_such_item", "expected an item that was served to you")
            recorded = store.record(event_of(vote, item))
            if recorded.is_new:
                self._remember(vote)
            return recorded, store.progress(vote.annotator)

        return await self._judged(take)

    def _remember(self, vote: VoteRequest) -> None:
        assert self._descriptor is not None, "it is open while votes are taken"
        row = Behaviour(
            vote.key,
            vote.changes,
            vote.blurs,
            vote.away_seconds,
            vote.pastes,
            vote.left_seconds,
            vote.right_seconds,
        )
        os.write(self._descriptor, f"{json.dumps(asdict(row))}\n".encode())

    async def undo(self, annotator: str, key: str) -> UndoAnswer:
        """Take a vote back, where it is the one that counts and its batch is open.

        Raises:
            RefusedError: When there is no such vote.
        """

        def take(store: LabelStore) -> UndoAnswer:
            store.undo(annotator, key)
            return UndoAnswer(
                is_undone=store.is_taken_back(annotator, key),
                is_closed=store.is_in_closed_batch(annotator, key),
                progress=progress_answer(store.progress(annotator)),
            )

        return await self._judged(take)

    async def why(self, annotator: str, key: str) -> str:
        """Why the pair of a vote had been chosen.

        Of a pair with a known answer that was chosen as no other is, a reason of the others is
        told: its own would say what it is before the batch is over.

        Raises:
            RefusedError: When there is no such vote: before it nothing is told.
        """

        def find(store: LabelStore) -> str:
            event = store.event(key)
            pair = None if event is None else store.pair(event.pair)
            if event is None or pair is None or event.annotator != annotator:
                raise refusal("no_such_item", "expected the key of an answer of yours")
            # Asked of every pair: it takes as long for one as for another.
            strategy, others = pair.chosen_by, store.strategies()
            if store.is_gold(event.pair) and others and strategy not in others:
                drawn = draw_seed(store.seed, f"why {event.pair}")
                strategy = others[drawn % len(others)]
            return STRATEGIES.get(strategy, f"It was chosen by the strategy {strategy!r}.")

        return await self.ask(find)

    async def close_batch(self, annotator: str, number: int) -> bool:
        """Close a batch, where it is over; whether it is closed now."""
        return await self._judged(lambda store: store.close_batch(annotator, number))

    async def batch(self, annotator: str, number: int) -> BatchTold | None:
        """What may be told of a closed batch; None where there is none."""
        return await self.ask(lambda store: tell_batch(store, annotator, number))

    async def set_open(self, is_open: bool) -> None:
        """Open the queue, or close it."""
        await self.ask(lambda store: store.set_open(is_open))

    async def invite(self, name: str, days: float) -> str:
        """A new invitation's token.

        Raises:
            RefusedError: When the name cannot be one.
        """

        def add(store: LabelStore) -> str:
            try:
                return store.invite(name, days=days)
            except ConfigError as error:
                raise refusal(
                    "invalid", "expected a name of visible characters that a person may have"
                ) from error

        return await self.ask(add)

    async def revoke(self, name: str) -> None:
        """End all invitations of somebody.

        Raises:
            RefusedError: When there is nobody of that name.
        """

        def end(store: LabelStore) -> None:
            try:
                store.revoke(name)
            except ConfigError as error:
                raise refusal("invalid", "expected the name of an annotator") from error

        await self.ask(end)

    async def _judged(self, call: Callable[[LabelStore], Found]) -> Found:
        """As `ask`, for calls that the store may find wrong."""
        try:
            return await self.ask(call)
        except DataError as error:
            raise refusal("no_such_item", "expected an answer of yours to an item") from error
        except ConfigError as error:
            raise refusal("not_signed_in", "expected an annotator of the store") from error
