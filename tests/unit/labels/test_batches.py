# SPDX-License-Identifier: Apache-2.0
"""Batches: when one is over, what it came to, what can no longer be undone; and closed queues."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from live_labels import make_store, plain_pairs
from metarm.errors import ConfigError
from metarm.labels.batches import KnownAnswer
from metarm.labels.events import Item, VoteEvent
from metarm.labels.reading import LabelReader
from metarm.labels.settings import LabelSettings
from metarm.labels.store import LabelStore
from metarm.labels.verifying import verify_store

PAIRS = plain_pairs(30)
GOLD = {pair.id: "first" for pair in PAIRS[:12]}
SEED = 2
"""Not the store's secret: by this one what is taken back does not come again in its batch."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    make_store(
        tmp_path / "labels.db", PAIRS, "Ada", "Bo", gold=GOLD, gold_fraction=0.4, batch_size=10,
        seed=SEED,
    )  # fmt: skip
    return tmp_path / "labels.db"


@pytest.fixture
def store(path: Path) -> Iterator[LabelStore]:
    with LabelStore(path) as opened:
        yield opened


def answer(store: LabelStore, number: int, choice: str = "first", name: str = "Ada") -> Item:
    item = store.next_item(name)
    assert item is not None
    store.record(VoteEvent(f"{name} {number}", name, choice, item=item.id, seconds=2.0))
    return item


def test_a_batch_by_hand(store: LabelStore) -> None:
    choices = ["first", "second", "tie", "skip", *["first"] * 6]
    items = [answer(store, number, choice) for number, choice in enumerate(choices)]
    progress = store.progress("Ada")
    assert (progress.batch, progress.num_in_batch, progress.batch_size) == (1, 10, 10)
    assert store.batch("Ada", 1) is None, "nothing is told before it is closed"
    assert store.close_batch("Ada", 1)
    batch = store.batch("Ada", 1)
    assert batch is not None
    assert (batch.num_answers, batch.num_skips, batch.seconds) == (10, 1, 20.0)
    expected = tuple(
        KnownAnswer(item.pair.id, choice, "first")
        for item, choice in zip(items, choices, strict=True)
        if item.is_gold and choice != "skip"
    )
    assert len(expected) >= 2
    assert batch.known == expected
    assert batch.num_right == sum(one.choice == "first" for one in expected)
    # The next one begins at 0, and closing the first again is no news.
    assert (store.progress("Ada").batch, store.progress("Ada").num_in_batch) == (2, 0)
    assert store.close_batch("Ada", 1)
    assert store.batch("Ada", 2) is None
    assert store.batch("Ada", 0) is None
    assert store.batch("Bo", 1) is None


def test_a_batch_is_over_when_it_is_full_or_nothing_is_left(store: LabelStore) -> None:
    assert not store.close_batch("Ada", 1), "an empty one"
    for number in range(9):
        answer(store, number)
        assert not store.close_batch("Ada", 1), "who could close after each answer knew the gold"
    assert not store.close_batch("Ada", 2), "one that is to come"
    answer(store, 9)
    assert store.close_batch("Ada", 1)
    answer(store, 10)
    held = store.next_item("Ada")
    assert held is not None
    store.set_open(False)
    assert not store.close_batch("Ada", 2), "an item is in hand"
    store.record(VoteEvent("held", "Ada", "tie", item=held.id))
    assert store.close_batch("Ada", 2)
    batch = store.batch("Ada", 2)
    assert batch is not None
    assert batch.num_answers == 2
    with pytest.raises(ConfigError):
        store.close_batch("Nobody", 1)


def test_undo_ends_with_its_batch(store: LabelStore) -> None:
    for number in range(10):
        last = answer(store, number)
    # Across the border: the tenth is taken back, so the batch is not over until it is given again.
    assert store.undo("Ada", "Ada 9").id == last.id
    assert store.progress("Ada").num_in_batch == 9
    assert not store.close_batch("Ada", 1)
    assert answer(store, 10, "second").id == last.id
    assert not store.is_in_closed_batch("Ada", "Ada 10")
    assert store.close_batch("Ada", 1)
    assert store.is_in_closed_batch("Ada", "Ada 10")
    events = len(store.events())
    for number in (0, 5, 10):
        store.undo("Ada", f"Ada {number}")
    assert len(store.events()) == events
    assert len(store.votes()) == 10


def test_what_was_taken_back_before_the_border_is_an_answer_of_the_next_batch(path: Path) -> None:
    now = 1e9
    with LabelStore(path, clock=lambda: now) as store:
        number, taken_back = 0, None
        while store.progress("Ada").num_in_batch < 10:
            item = answer(store, number)
            if item.is_gold and taken_back is None:
                taken_back = item
                store.undo("Ada", f"Ada {number}")
                now += 3600  # its lease ends: it is not the next one served
            number += 1
        assert taken_back is not None
        assert taken_back.pair.id not in {vote.pair for vote in store.votes()}
        assert store.close_batch("Ada", 1)
        closed = store.batch("Ada", 1)
        assert closed is not None
        assert closed.num_answers == 10
        for choice in ("first", "second", "tie"):
            key = f"again {choice}"
            store.record(VoteEvent(key, "Ada", choice, item=taken_back.id, seconds=1.0))
            assert store.batch("Ada", 1) == closed, "it would tell the known answer"
            assert store.progress("Ada").num_in_batch == 1
            assert not store.is_in_closed_batch("Ada", key)
            store.undo("Ada", key)
        assert store.progress("Ada").num_in_batch == 0


def test_a_corrected_answer_stays_in_the_batch_of_its_first(path: Path) -> None:
    with LabelStore(path) as store:
        items = [answer(store, number) for number in range(10)]
        assert store.close_batch("Ada", 1)
        plain = next(item for item in items if not item.is_gold)
        store.record(VoteEvent("imported", "Ada", "tie", pair=plain.pair.id))
        assert store.progress("Ada").num_in_batch == 0
        assert store.is_in_closed_batch("Ada", "imported")
        store.undo("Ada", "imported")
        closed = store.batch("Ada", 1)
        assert closed is not None
        assert closed.num_answers == 10


def test_no_answer_of_a_closed_batch_is_given_again(path: Path) -> None:
    now = 1e9
    with LabelStore(path, clock=lambda: now) as store:
        items = [answer(store, number, "second") for number in range(10)]
        gold = next(item for item in items if item.is_gold)
        # Before it is closed a second thought counts, as another tab may have it.
        store.record(VoteEvent("before", "Ada", "tie", item=gold.id))
        assert store.close_batch("Ada", 1)
        votes, now = store.votes(), now + 86_400
        progress = store.progress("Ada")
        assert {item.is_gold for item in items} == {True, False}
        for number, item in enumerate(items):
            recorded = store.record(VoteEvent(f"after {number}", "Ada", "first", item=item.id))
            assert recorded.is_new
            store.undo("Ada", f"after {number}")
            store.undo("Ada", f"Ada {number}")
            assert store.progress("Ada") == progress, "or it told which answers were known"
        assert store.votes() == votes
        assert all(event.is_outdated for event in store.events()[-len(items) :])
        seen = {item.pair.id for item in items}
        while (item := store.next_item("Ada")) is not None:
            assert item.pair.id not in seen
            seen.add(item.pair.id)
            store.record(VoteEvent(f"key {item.id}", "Ada", "first", item=item.id))
        assert len(seen & set(GOLD)) > 2


def test_votes_from_elsewhere_know_no_batches(store: LabelStore) -> None:
    items = [answer(store, number, "second") for number in range(10)]
    assert store.close_batch("Ada", 1)
    imported = [
        VoteEvent(f"after {item.id}", "Ada", "first", pair=item.pair.id, at=1e9) for item in items
    ]
    assert all(recorded.is_new for recorded in store.record_all(imported))
    choices = {vote.pair: vote.choice for vote in store.votes()}
    for item in items:
        # What may have been told cannot be said again, wherever it is said.
        assert choices[item.pair.id] == ("second" if item.is_gold else "first")


def test_a_closed_queue_hands_out_nothing_new(path: Path) -> None:
    with LabelStore(path) as store:
        held = store.next_item("Ada")
        assert held is not None
        assert store.progress("Ada").num_left == 18
        store.set_open(False)
        store.set_open(False)
        assert store.next_item("Bo") is None
        assert store.next_item("Ada") == held, "what is in hand can be answered"
        assert store.next_item("Ada", besides=[held.id]) is None
        assert store.progress("Ada").num_left == 0
        store.record(VoteEvent("held", "Ada", "tie", item=held.id))
        assert store.next_item("Ada") is None
    with LabelStore(path) as store:
        assert not store.settings.is_open
        assert store.next_item("Ada") is None
        store.set_open(True)
        assert store.next_item("Ada") is not None
    with LabelReader(path) as reader:
        assert reader.settings == LabelSettings(
            gold_fraction=0.4, repeat_fraction=0.0, batch_size=10, seed=SEED
        )
    assert verify_store(path).is_whole


def test_a_database_that_is_gone_comes_back_with_its_batches(path: Path) -> None:
    with LabelStore(path) as store:
        for number in range(10):
            answer(store, number)
        assert store.close_batch("Ada", 1)
        before = store.batch("Ada", 1)
    assert verify_store(path).is_whole
    path.unlink()
    with LabelStore(path, replay=True) as store:
        assert store.batch("Ada", 1) == before
        assert store.is_in_closed_batch("Ada", "Ada 0")


def test_without_batches_nothing_is_closed(tmp_path: Path) -> None:
    make_store(tmp_path / "labels.db", PAIRS[:2], "Ada", batch_size=0)
    with LabelStore(tmp_path / "labels.db") as store:
        answer(store, 0)
        answer(store, 1)
        assert store.next_item("Ada") is None
        assert not store.close_batch("Ada", 1)


def test_items_whose_answers_are_on_the_way(store: LabelStore) -> None:
    one, two = answer(store, 0), store.next_item("Ada")
    assert two is not None
    assert store.num_unanswered("Ada", [one.id, two.id, two.id, "none"]) == 1
    assert store.num_unanswered("Bo", [two.id]) == 0
