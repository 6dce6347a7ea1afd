# SPDX-License-Identifier: Apache-2.0
"""What the page asks of a store: how many steps of SQLite it takes where there are ten times more.

Steps of SQLite's virtual machine are counted: they are the same on every machine.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from metarm.labels.events import LabelContent, VoteEvent
from metarm.labels.settings import LabelSettings
from metarm.labels.store import LabelStore
from metarm.labels.votes import LabelPair

OTHERS: Final = [f"other {number}" for number in range(10)]
GRAIN: Final = 10
"""Steps that are counted together."""


def fill(path: Path, num_pairs: int) -> LabelStore:
    """A store with two votes of others on most pairs, and ten of Ada's."""
    pairs = [
        LabelPair(f"q{n}", "a", "b", chosen_by=("mix", "random")[n % 2]) for n in range(num_pairs)
    ]
    votes = [
        VoteEvent(f"{n} {by}", OTHERS[(n + by) % 10], "first", pair=pairs[n].id, seconds=1.0)
        for n in range(num_pairs - 40)
        for by in range(2)
    ]
    votes += [VoteEvent(f"own {n}", "Ada", "second", pair=pairs[n].id) for n in range(10)]
    kinds = dict.fromkeys([*OTHERS, "Ada"], "person")
    store = LabelStore(path, LabelSettings(votes_per_pair=3, seed=0, batch_size=20)).__enter__()
    gold = {pair.id: "first" for pair in pairs[:5]}
    store.add_content(LabelContent(tuple(pairs), gold, kinds, tuple(votes)))
    store.ask_next({pair.id: 2 for pair in pairs[20:60]} | {pair.id: 3 for pair in pairs[-3:]})
    return store


def steps(store: LabelStore, call: Callable[[], object]) -> int:
    """Steps of SQLite that a call takes."""
    counted = 0

    def count() -> int:
        nonlocal counted
        counted += GRAIN
        return 0

    store._connection.set_progress_handler(count, GRAIN)
    call()
    store._connection.set_progress_handler(None, GRAIN)
    return counted


ASKED: Final[dict[str, Callable[[LabelStore], object]]] = {
    "next": lambda store: store.next_item("Ada"),
    "record": lambda store: store.record(
        VoteEvent("new", "Ada", "first", item=store.next_item("Ada").id)
    ),
    "undo": lambda store: store.undo("Ada", "own 7"),
    "unanswered": lambda store: store.num_unanswered("Ada", [store.next_item("Ada").id]),
    "closed": lambda store: store.is_in_closed_batch("Ada", "own 7"),
    "batch": lambda store: (store.close_batch("Ada", 1), store.batch("Ada", 1)),
    "event": lambda store: store.pair(store.event("own 7").pair),
    "strategies": lambda store: store.strategies(),
    "gold": lambda store: store.is_gold("none"),
    "invited": lambda store: store.annotator_of("nobody"),
}


@pytest.mark.parametrize("name", ASKED)
def test_a_request_does_not_take_longer_with_more_votes(tmp_path: Path, name: str) -> None:
    found = []
    for num_pairs in (100, 1000):
        store = fill(tmp_path / f"{num_pairs}.db", num_pairs)
        found.append(steps(store, lambda store=store: ASKED[name](store)))
        store.__exit__(None, None, None)
    assert found[1] <= 1.5 * found[0] + 200, found


def test_progress_passes_over_pairs_and_over_no_votes_of_others(tmp_path: Path) -> None:
    store = fill(tmp_path / "labels.db", 1000)
    found = steps(store, lambda: store.progress("Ada"))
    assert found < 12 * 1000
    assert store.progress("Ada").num_left == 1000 - 10
    store.__exit__(None, None, None)


def test_strategies_are_those_of_pairs_without_a_known_answer(tmp_path: Path) -> None:
    pairs = [LabelPair(f"q{n}", "a", "b", chosen_by=name) for n, name in enumerate(["x", "", "y"])]
    with LabelStore(tmp_path / "labels.db") as store:
        assert store.strategies() == []
        store.add_pairs(pairs, gold={pairs[0].id: "tie"})
        assert store.strategies() == ["", "y"]
    with LabelStore(tmp_path / "labels.db") as store:
        assert store.strategies() == ["", "y"]
