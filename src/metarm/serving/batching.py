# SPDX-License-Identifier: Apache-2.0
"""The queue in front of the model: bounded, first come first served, emptied by one thread.

A batch is whatever waits, of as many requests as fit: nobody waits for a batch to fill. All scores
of a request come from one model. A request that fails takes none of its batch with it.
"""

import asyncio
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Final

from metarm.errors import MetarmError
from metarm.serving.counters import Counters
from metarm.serving.model_slot import ModelSlot
from metarm.serving.refusals import RefusedError
from metarm.serving.served_model import EncodedItem, ItemScore, ScoreItem, ServedModel
from metarm.serving.settings import ServeSettings
from metarm.serving.wire import ModelFacts

__all__ = ["Answer", "ScoreQueue"]

logger = logging.getLogger(__name__)

MOST_RETRY_SECONDS: Final = 30
RATE_MEMORY: Final = 0.9
"""Share of the old rate that each batch leaves in the measured one."""

_FAILURES: Final = (
    *(ArithmeticError, AssertionError, AttributeError, LookupError, MemoryError),
    *(MetarmError, OSError, RuntimeError, TypeError, ValueError),
)
"""What a model may raise; anything else ends the thread, and with it all scores."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The scores of one request, and the model that gave them."""

    scores: list[ItemScore]
    items: list[EncodedItem]
    model: ModelFacts


@dataclass(slots=True, eq=False)
class _Job:
    """One request that waits for its scores."""

    items: Sequence[ScoreItem]
    truncate: bool
    loop: asyncio.AbstractEventLoop
    future: "asyncio.Future[Answer]"
    encoded: list[EncodedItem] = field(default_factory=list)

    def settle(self, outcome: Answer | RefusedError) -> None:
        """Hand the outcome to the event loop; one that has closed wants it no more."""
        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self._settle, outcome)

    def _settle(self, outcome: Answer | RefusedError) -> None:
        if self.future.done():
            return
        if isinstance(outcome, RefusedError):
            self.future.set_exception(outcome)
        else:
            self.future.set_result(outcome)


class ScoreQueue:
    """Requests in, answers out; the model is touched by one thread alone."""

    def __init__(self, slot: ModelSlot, settings: ServeSettings, counters: Counters) -> None:
        self._slot, self._settings, self._counters = slot, settings, counters
        self._jobs: deque[_Job] = deque()
        self._num_waiting = 0
        self._changed = threading.Condition()
        self._is_stopping = False
        self._items_per_second = 0.0
        self._thread = threading.Thread(target=self._run, name="metarm-model", daemon=True)
        counters.read_with("metarm_waiting_items", lambda: {(): self._num_waiting})

    def start(self) -> None:
        """Begin to score."""
        self._thread.start()

    def stop(self) -> None:
        """Refuse what comes now, answer what waits, and end."""
        with self._changed:
            self._is_stopping = True
            self._changed.notify_all()
        self._thread.join()

    @property
    def is_alive(self) -> bool:
        """Whether anybody scores."""
        return self._thread.is_alive()

    def check_room(self, num_items: int = 1) -> None:
        """Refuse where so many more items could not wait.

        Raises:
            RefusedError: When the queue is full, or nobody empties it.
        """
        if self._is_stopping:
            raise RefusedError("stopping", "the server is ending: ask another one", retry_seconds=5)
        if not self._thread.is_alive():
            raise RefusedError("failed", "the thread of the model has died: restart the server")
        is_full = self._num_waiting + num_items > self._settings.max_waiting_items
        if is_full or self._foreseen_seconds() > self._settings.max_wait_seconds:
            raise RefusedError(
                "overloaded",
                f"{self._num_waiting} items wait, about {self._foreseen_seconds():.0f} s of work: "
                "try again later",
                retry_seconds=self._retry_seconds(),
            )

    async def submit(self, items: Sequence[ScoreItem], *, truncate: bool) -> Answer:
        """Wait for the scores of one request.

        Raises:
            RefusedError: When there is no room, an item cannot be scored, or time is up.
        """
        loop = asyncio.get_running_loop()
        job = _Job(items, truncate, loop, loop.create_future())
        with self._changed:
            self.check_room(len(items))
            self._jobs.append(job)
            self._num_waiting += len(items)
            self._changed.notify()
        try:
            async with asyncio.timeout(self._settings.timeout_seconds):
                return await job.future
        except TimeoutError as error:
            raise RefusedError(
                "deadline",
                f"no scores within {self._settings.timeout_seconds:g} s: send fewer items, or try "
                "again later",
                retry_seconds=self._retry_seconds(),
            ) from error
        finally:
            job.future.cancel()
            self._forget(job)

    def _forget(self, job: _Job) -> None:
        """Take out a job that nobody waits for any more."""
        with self._changed:
            if job in self._jobs:
                self._jobs.remove(job)
                self._num_waiting -= len(job.items)

    def _foreseen_seconds(self) -> float:
        """When what waits now will have been scored, at the rate of late; 0 before it is known."""
        return self._num_waiting / self._items_per_second if self._items_per_second else 0.0

    def _retry_seconds(self) -> int:
        return min(MOST_RETRY_SECONDS, max(1, math.ceil(self._foreseen_seconds())))

    def _run(self) -> None:
        try:
            while batch := self._take():
                self._score_batch(batch)
        finally:
            # Reached with jobs only where something raised that no model should.
            with self._changed:
                left, self._num_waiting = list(self._jobs), 0
                self._jobs.clear()
            for job in left:
                job.settle(RefusedError("failed", "the thread of the model has died"))

    def _take(self) -> list[_Job]:
        """The jobs at the head of the queue that make a batch; none when it is over."""
        with self._changed:
            while not self._jobs and not self._is_stopping:
                self._changed.wait()
            batch: list[_Job] = []
            num_items = 0
            while self._jobs and (
                not batch or num_items + len(self._jobs[0].items) <= self._settings.max_batch_items
            ):
                job = self._jobs.popleft()
                self._num_waiting -= len(job.items)
                num_items += len(job.items)
                batch.append(job)
            return batch

    def _score_batch(self, batch: list[_Job]) -> None:
        # One reading: a model that is swapped meanwhile scores the next batch.
        model = self._slot.current
        started = time.monotonic()
        with ExitStack() as deserted:
            # For those that the thread dies on; whoever has an answer keeps it.
            deserted.callback(_desert, batch)
            ready = [job for job in batch if self._encode(model, job)]
            if len(ready) > 1:
                try:
                    self._score(model, ready)
                    ready = []
                except _FAILURES:
                    logger.warning("a batch of %d requests failed: one by one", len(ready))
            for job in ready:
                try:
                    self._score(model, [job])
                except _FAILURES as error:
                    job.settle(_failure(error))
            self._note_rate(sum(len(job.items) for job in batch), time.monotonic() - started)
            deserted.pop_all()

    def _encode(self, model: ServedModel, job: _Job) -> bool:
        """Whether the job's items can be scored; the answer is given where they cannot."""
        most = self._settings.max_request_tokens
        try:
            job.encoded = [model.encode(item, truncate=job.truncate) for item in job.items]
            if (total := sum(item.num_tokens for item in job.encoded)) > most:
                raise RefusedError(
                    "too_many_tokens",
                    f"expected at most {most} tokens a request, got {total}: send fewer items",
                )
        except RefusedError as refusal:
            job.settle(refusal)
            return False
        except _FAILURES as error:
            job.settle(_failure(error))
            return False
        return True

    def _score(self, model: ServedModel, jobs: Sequence[_Job]) -> None:
        """Score these jobs together and answer them."""
        scores = iter(model.score([item for job in jobs for item in job.encoded]))
        for job in jobs:
            own = [next(scores) for _ in job.encoded]
            job.settle(Answer(own, job.encoded, model.facts))
            self._counters.add("metarm_items_total", len(own))
        self._counters.add("metarm_batches_total")

    def _note_rate(self, num_items: int, seconds: float) -> None:
        if num_items:
            rate = num_items / max(seconds, 1e-9)
            old = self._items_per_second or rate
            self._items_per_second = RATE_MEMORY * old + (1 - RATE_MEMORY) * rate


def _failure(error: BaseException) -> RefusedError:
    """What is told of a model's error: its kind, for its words may quote a request."""
    logger.error("no scores: %s", type(error).__name__)
    return RefusedError("failed", f"the model gave no scores ({type(error).__name__})")


def _desert(batch: Sequence[_Job]) -> None:
    for job in batch:
        job.settle(RefusedError("failed", "the thread of the model has died"))
