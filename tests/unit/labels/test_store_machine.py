# SPDX-License-Identifier: Apache-2.0
"""Any sequence of servings, votes, double posts, undos, lost leases, restarts, tabs and batches.

METARM_LABEL_SEQUENCES=2000 runs as many sequences; without it there are few.
"""

import os
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from metarm.errors import RunError
from metarm.labels.batches import Batch
from metarm.labels.events import Item, Recorded, VoteEvent
from metarm.labels.settings import LabelSettings
from metarm.labels.store import LabelStore
from metarm.labels.verifying import verify_store
from metarm.labels.votes import CHOICES, LabelPair

SEQUENCES = int(os.environ.get("METARM_LABEL_SEQUENCES", "15"))
IN_MEMORY = Path("/dev/shm")
ANNOTATORS = ("ann", "bob", "cy")
LEASE_SECONDS = 15 * 60.0
BATCH_SIZE = 2


@dataclass
class Clock:
    """A clock that stands until it is moved."""

    now: float = 1e9

    def __call__(self) -> float:
        return self.now


class LabelMachine(RuleBasedStateMachine):
    """The store beside a model of it: dicts of what was acknowledged and what is in force."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(dir=IN_MEMORY if IN_MEMORY.is_dir() else None))
        self.path = self.folder / "labels.db"
        self.clock = Clock()
        self.shown: dict[str, list[Item]] = {name: [] for name in ANNOTATORS}
        self.acknowledged: dict[str, tuple[VoteEvent, Recorded]] = {}
        self.in_force: dict[tuple[str, str], str | None] = {}
        self.leases: dict[tuple[str, str], float] = {}
        self.batch_of: dict[tuple[str, str], int] = {}
        self.closed: dict[str, list[Batch]] = {name: [] for name in ANNOTATORS}
        self.number = 0
        self.store: LabelStore | None = None

    @initialize(
        wanted=st.integers(1, 2),
        repeats=st.sampled_from([0.0, 0.5]),
        seed=st.integers(0, 2**16),
    )
    def open_first(self, wanted: int, repeats: float, seed: int) -> None:
        self.wanted = wanted
        self.settings = LabelSettings(
            votes_per_pair=wanted, repeat_fraction=repeats, batch_size=BATCH_SIZE, seed=seed
        )
        self.store = LabelStore(self.path, self.settings, clock=self.clock).__enter__()
        pairs = [LabelPair(f"q{number}", "a", "b") for number in range(8)]
        self.gold = {pairs[0].id: "first", pairs[1].id: "second"}
        self.queue = [pair.id for pair in pairs[2:]]
        self.store.add_pairs(pairs, gold=self.gold)
        for name in ANNOTATORS:
            self.store.add_annotator(name)

    def _open_items(self, name: str) -> set[str]:
        return {
            item
            for (who, item), until in self.leases.items()
            if who == name and until > self.clock.now
        }

    def _is_closed(self, name: str, item: str) -> bool:
        """Whether the answer that is in force stands for good."""
        number = self.batch_of.get((name, item))
        return number is not None and number <= len(self.closed[name])

    def _taken(self, pair: str, besides: str) -> int:
        """Votes on the pair, and leases of everybody else."""
        taken = 0
        for name in ANNOTATORS:
            for item in {one.id: one for one in self.shown[name]}.values():
                if item.pair.id != pair or item.is_repeat:
                    continue
                key = self.in_force.get((name, item.id))
                counts = key is not None and self.acknowledged[key][0].choice != "skip"
                is_leased = name != besides and item.id in self._open_items(name)
                taken += counts + is_leased
        return taken

    def _wanting(self, name: str) -> list[str]:
        """Pairs that want a vote, and could get it from this annotator."""
        own = {one.id: one for one in self.shown[name] if not one.is_repeat}
        answered = {one.pair.id for one in own.values() if self.in_force.get((name, one.id))}
        return [
            pair
            for pair in self.queue
            if pair not in answered and self._taken(pair, name) < self.wanted
        ]

    @rule(name=st.sampled_from(ANNOTATORS))
    def serve(self, name: str) -> None:
        opened = self._open_items(name)
        item = self.store.next_item(name)
        if opened:
            assert item is not None
            assert item.id in opened
        if item is None:
            return
        if not opened:
            assert self.in_force.get((name, item.id)) is None
            if not item.is_repeat and not item.is_gold:
                taken = {pair: self._taken(pair, name) for pair in self._wanting(name)}
                assert taken[item.pair.id] == min(taken.values())
        assert item.is_gold == (item.pair.id in self.gold)
        for before in self.shown[name]:
            if before.pair == item.pair:
                assert (before.is_turned == item.is_turned) == (before.is_repeat == item.is_repeat)
        self.shown[name].append(item)
        self.leases[name, item.id] = self.clock.now + LEASE_SECONDS

    @precondition(lambda self: any(self.shown.values()))
    @rule(data=st.data(), choice=st.sampled_from(CHOICES), is_correction=st.booleans())
    def vote(self, data: st.DataObject, choice: str, is_correction: bool) -> None:
        """On anything ever shown: late, from a second tab, or once more."""
        name = data.draw(st.sampled_from([who for who, items in self.shown.items() if items]))
        self._vote(name, data.draw(st.sampled_from(self.shown[name])), choice, is_correction)

    def _vote(self, name: str, item: Item, choice: str, is_correction: bool) -> None:
        self.number += 1
        before = self.in_force.get((name, item.id))
        vote = VoteEvent(
            f"key {self.number}",
            name,
            choice,
            item=item.id,
            is_turned=item.is_turned,
            seconds=1.5,
            supersedes=before if is_correction else None,
        )
        progress = self.store.progress(name)
        recorded = self.store.record(vote)
        assert recorded.is_new
        self.acknowledged[vote.key] = (vote, recorded)
        if self._is_closed(name, item.id):
            assert self.store.progress(name) == progress
        else:
            self.in_force[name, item.id] = vote.key
            self.batch_of.setdefault((name, item.id), len(self.closed[name]) + 1)
        self.leases.pop((name, item.id), None)

    @precondition(lambda self: self.acknowledged)
    @rule(data=st.data(), choice=st.sampled_from(CHOICES))
    def double_post(self, data: st.DataObject, choice: str) -> None:
        """The same key again, even with other words, is the vote that is there."""
        vote, recorded = self.acknowledged[data.draw(st.sampled_from(sorted(self.acknowledged)))]
        again = self.store.record(replace(vote, choice=choice))
        assert again == replace(recorded, is_new=False)

    @precondition(lambda self: self.acknowledged)
    @rule(data=st.data(), times=st.integers(1, 2))
    def undo(self, data: st.DataObject, times: int) -> None:
        key = data.draw(st.sampled_from(sorted(self.acknowledged)))
        vote, _ = self.acknowledged[key]
        for _ in range(times):
            item = self.store.undo(vote.annotator, key)
        assert item.id == vote.item
        is_closed = self._is_closed(vote.annotator, vote.item)
        if self.in_force[vote.annotator, vote.item] == key and not is_closed:
            self.in_force[vote.annotator, vote.item] = None
            del self.batch_of[vote.annotator, vote.item]
            self.leases[vote.annotator, vote.item] = self.clock.now + LEASE_SECONDS
            assert self.store.next_item(vote.annotator) == item

    @rule(name=st.sampled_from(ANNOTATORS), is_answered=st.booleans())
    def close_batch(self, name: str, is_answered: bool) -> None:
        """As it is, or after what it lacks."""
        number = len(self.closed[name]) + 1
        while is_answered and self._num_in_batch(name, number) < BATCH_SIZE:
            num_shown = len(self.shown[name])
            self.serve(name)
            if len(self.shown[name]) == num_shown:
                break
            self._vote(name, self.shown[name][-1], "first", False)
        size = self._num_in_batch(name, number)
        is_closed = self.store.close_batch(name, number)
        assert is_closed or size < BATCH_SIZE
        batch = self.store.batch(name, number)
        assert (batch is not None) == is_closed
        if batch is not None:
            assert batch.num_answers == size > 0
            self.closed[name].append(batch)

    def _num_in_batch(self, name: str, number: int) -> int:
        return [one for (who, _), one in self.batch_of.items() if who == name].count(number)

    @rule(minutes=st.sampled_from([1, 16]))
    def let_time_pass(self, minutes: int) -> None:
        self.clock.now += minutes * 60

    @rule()
    def restart(self) -> None:
        with pytest.raises(RunError, match="in use"), LabelStore(self.path):
            pass
        self.store.__exit__(None, None, None)
        assert verify_store(self.path).is_whole
        self.store = LabelStore(self.path, clock=self.clock).__enter__()
        assert (self.store.opened.num_replayed, self.store.opened.num_journalled) == (0, 0)
        assert self.store.settings == self.settings

    @invariant()
    def what_is_acknowledged_is_stored_once(self) -> None:
        if not self.acknowledged:
            return
        keys = [event.key for event in self.store.events() if event.choice != "undo"]
        assert sorted(keys) == sorted(self.acknowledged)
        told = {
            (vote.annotator, vote.pair, vote.is_repeat): vote.key
            for vote in self.store.content().votes
        }
        items = {item.id: item for own in self.shown.values() for item in own}
        wanted = {
            (name, items[item].pair.id, items[item].is_repeat): key
            for (name, item), key in self.in_force.items()
            if key is not None
        }
        assert told == wanted
        assert len(self.store.votes()) == len(wanted)

    @invariant()
    def what_a_closed_batch_contains_is_frozen(self) -> None:
        for name in ANNOTATORS if self.store is not None else ():
            for number, batch in enumerate(self.closed[name], 1):
                assert self.store.batch(name, number) == batch
            progress = self.store.progress(name)
            assert progress.num_left == len(self._wanting(name))
            assert progress.batch == len(self.closed[name]) + 1
            assert progress.num_in_batch == self._num_in_batch(name, progress.batch)

    def teardown(self) -> None:
        if self.store is not None:
            self.store.__exit__(None, None, None)
        shutil.rmtree(self.folder)


def test_any_sequence() -> None:
    run_state_machine_as_test(
        LabelMachine,
        settings=settings(
            max_examples=SEQUENCES,
            stateful_step_count=25,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
