# SPDX-License-Identifier: Apache-2.0
"""Rounds that wait for people: what is handed out, what is counted as answered."""

from contextlib import closing
from functools import partial
from itertools import count
from pathlib import Path

import pytest

from crashes import die_at_call
from metarm.errors import RunError
from metarm.labels.events import VoteEvent
from metarm.labels.reading import LabelReader
from metarm.labels.store import LabelStore
from metarm.labels.tables import migrate, open_writer
from metarm.labels.verifying import verify_store
from metarm.labels.votes import LabelPair
from metarm.round_labels.waiting import (
    STORE_FILE,
    Waiting,
    hand_out,
    mend_store,
    read_known_answers,
    read_store_votes,
    read_waiting,
    waiting_text,
)
from metarm.storage import build_stage, write_json_lines

PAIRS = [LabelPair(f"p{n}", " x", " y", "here", "random") for n in range(4)]


def ask(run: Path, arm: str, pairs, *, who: str = "people", votes: int = 1) -> Path:
    """A round whose pairs are asked."""
    place = run / f"seed_3/arms/{arm}/round_02"

    def build(folder: Path) -> dict[str, object]:
        write_json_lines(folder / "pairs.jsonl", [pair.to_json() for pair in pairs])
        return {"num_asked": len(pairs), "labels_from": who, "votes_per_pair": votes}

    build_stage(place / "asked", {}, [], build)
    return place


def vote(run: Path, annotator: str, pair: LabelPair, choice: str, kind: str = "person") -> None:
    with LabelStore(run / STORE_FILE) as store:
        store.add_annotator(annotator, kind)
        store.record(VoteEvent(f"{annotator} {pair.id}", annotator, choice, pair=pair.id))


def test_pairs_of_all_arms_are_handed_out_once(tmp_path: Path) -> None:
    ask(tmp_path, "a", PAIRS[:3])
    ask(tmp_path, "b", PAIRS[1:])
    ask(tmp_path, "c", [LabelPair("q", "1", "2")], who="gold")
    assert hand_out(tmp_path) == 4
    assert hand_out(tmp_path) == 0
    with LabelReader(tmp_path / STORE_FILE) as store:
        assert {pair.id for pair in store.pairs()} == {pair.id for pair in PAIRS}
    assert read_waiting(tmp_path) == [Waiting("a", 3, 2, 3, 0), Waiting("b", 3, 2, 3, 0)]


def test_arms_take_turns_in_the_order_of_their_strategy(tmp_path: Path) -> None:
    """Else all pairs of the last arm were answered last, by people who had learnt meanwhile."""
    of = {
        arm: [LabelPair(f"{arm} {n}", " x", " y", "here", "d-optimal") for n in range(number)]
        for arm, number in (("a", 3), ("b", 5))
    }
    for arm, pairs in of.items():
        ask(tmp_path, arm, pairs)
    assert hand_out(tmp_path) == 8
    with LabelStore(tmp_path / STORE_FILE) as store:
        store.add_annotator("ann")
        served: dict[str, str] = {}
        while (item := store.next_item("ann", besides=list(served))) is not None:
            served[item.id] = str(item.pair.prompt)
    assert list(served.values()) == ["a 0", "b 0", "a 1", "b 1", "a 2", "b 2", "b 3", "b 4"]


def test_a_page_that_serves_the_store_is_not_disturbed(tmp_path: Path) -> None:
    ask(tmp_path, "a", PAIRS)
    hand_out(tmp_path)
    with LabelStore(tmp_path / STORE_FILE):
        assert hand_out(tmp_path) == 0
        assert read_waiting(tmp_path) == [Waiting("a", 3, 2, 4, 0)]


def test_new_pairs_for_a_store_that_a_page_has_say_what_to_do(tmp_path: Path) -> None:
    ask(tmp_path, "a", PAIRS[:3])
    hand_out(tmp_path)
    ask(tmp_path, "b", PAIRS)
    with LabelStore(tmp_path / STORE_FILE), pytest.raises(RunError, match="stop `metarm label"):
        hand_out(tmp_path)
    assert hand_out(tmp_path) == 1


def test_each_round_waits_for_the_votes_that_held_when_it_asked(tmp_path: Path) -> None:
    """More votes a pair, told later, are wanted by later rounds alone: and of a shared pair."""
    ask(tmp_path, "a", PAIRS[:2])
    hand_out(tmp_path)
    vote(tmp_path, "ann", PAIRS[0], "first")
    ask(tmp_path, "b", PAIRS[1:], votes=2)
    assert hand_out(tmp_path) == 2
    with LabelReader(tmp_path / STORE_FILE) as store:
        assert store.wanted() == {p.id: n for p, n in zip(PAIRS, (1, 2, 2, 2), strict=True)}
        assert store.counts().num_done == 1, "the first round's pair is not opened again"
    with LabelStore(tmp_path / STORE_FILE) as store:
        store.add_annotator("bob")
        served = []
        while (item := store.next_item("bob", besides=served)) is not None:
            served.append(item.id)
        assert len(served) == 3, "without the pair that has what its round asked for"
    vote(tmp_path, "ann", PAIRS[1], "tie")
    waiting = [Waiting("a", 3, 2, 2, 2), Waiting("b", 3, 2, 3, 0)]
    assert read_waiting(tmp_path) == waiting, "the first round has all that it asked for"
    # To ask for fewer later takes none away from those that ask for more.
    ask(tmp_path, "c", PAIRS[1:3], votes=1)
    with LabelStore(tmp_path / STORE_FILE):
        assert hand_out(tmp_path) == 0, "nothing is new: a page is not disturbed"
    assert read_waiting(tmp_path) == [*waiting, Waiting("c", 3, 2, 2, 1)]


def test_people_are_waited_for_and_a_skip_is_an_answer(tmp_path: Path) -> None:
    place = ask(tmp_path, "a", PAIRS, votes=1)
    hand_out(tmp_path)
    vote(tmp_path, "ann", PAIRS[0], "first")
    vote(tmp_path, "ann", PAIRS[1], "skip")
    vote(tmp_path, "a model", PAIRS[2], "second", kind="model")
    (waiting,) = read_waiting(tmp_path)
    assert (waiting.num_answered, waiting.num_left) == (2, 2)
    assert "waiting for 2 labels (a): metarm label serve" in waiting_text(tmp_path, [waiting])
    found = read_store_votes(tmp_path / STORE_FILE, {PAIRS[2].id}, 1)
    assert [v.annotator for v in found.votes] == ["a model"], "it votes, and is not waited for"
    assert found.kinds == {"a model": "model"}
    build_stage(place / "labels", {}, [], lambda folder: {"num_labels": 1})
    assert read_waiting(tmp_path) == []


def test_two_votes_a_pair_are_of_two_people(tmp_path: Path) -> None:
    ask(tmp_path, "a", PAIRS[:2], votes=2)
    hand_out(tmp_path)
    for name, pair in (("ann", PAIRS[0]), ("bob", PAIRS[0]), ("ann", PAIRS[1])):
        vote(tmp_path, name, pair, "first")
    assert read_waiting(tmp_path) == [Waiting("a", 3, 2, 2, 1)]


def test_the_order_in_which_votes_came_changes_nothing(tmp_path: Path) -> None:
    cast = [(name, pair) for name in ("ann", "bob") for pair in PAIRS]
    found = []
    for number, order in enumerate((cast, cast[::-1])):
        run = tmp_path / str(number)
        ask(run, "a", PAIRS, votes=2)
        hand_out(run)
        for name, pair in order:
            vote(run, name, pair, "first" if name == "ann" else "tie")
        found.append(read_store_votes(run / STORE_FILE, {pair.id for pair in PAIRS}, 2))
    assert found[0].votes == found[1].votes
    assert len(found[0].answered) == len(PAIRS)


def test_known_answers_are_read_with_the_votes_on_them(tmp_path: Path) -> None:
    gold = LabelPair("known", " x", " y")
    ask(tmp_path, "a", PAIRS[:1])
    hand_out(tmp_path)
    with LabelStore(tmp_path / STORE_FILE) as store:
        store.add_pairs([gold], gold={gold.id: "second"})
    for name, choice in (("bob", "first"), ("ann", "second")):
        vote(tmp_path, name, gold, choice)
        vote(tmp_path, name, PAIRS[0], "first")
    found = read_known_answers(tmp_path / STORE_FILE)
    assert found.pairs == (gold,)
    assert [(v.pair, v.annotator, v.choice) for v in found.votes] == [
        (gold.id, "ann", "second"),
        (gold.id, "bob", "first"),
    ]
    assert found.answers == {gold.id: "second"}


def test_without_a_store_nothing_is_answered(tmp_path: Path) -> None:
    assert read_known_answers(tmp_path / STORE_FILE) == ((), (), {})
    assert read_store_votes(tmp_path / STORE_FILE, {"x"}, 1) == ((), {}, frozenset())
    assert read_waiting(tmp_path) == []
    assert hand_out(tmp_path) == 0
    assert not (tmp_path / STORE_FILE).exists()


@pytest.mark.parametrize("num_kept", [0, 1])
def test_a_store_whose_making_was_cut_off_is_made_by_the_next_start(
    tmp_path: Path, num_kept: int
) -> None:
    """Killed before the first table, or with all tables and no settings yet."""
    ask(tmp_path, "a", PAIRS)
    store = tmp_path / STORE_FILE
    with closing(open_writer(store)) as connection:
        if num_kept:
            migrate(connection, store)
    assert read_waiting(tmp_path) == [Waiting("a", 3, 2, 4, 0)]
    with pytest.raises(RunError, match="no such label store"):
        LabelReader(store)
    mend_store(tmp_path)
    assert hand_out(tmp_path) == 4
    assert verify_store(store).is_whole


def test_killed_at_any_call_while_pairs_are_handed_out_the_next_start_hands_out_the_rest(
    tmp_path: Path,
) -> None:
    """At every call of Python's while store, journal and pairs are written; SQLite's own syncs:
    tests/unit/labels/test_store_kills.py."""
    for point in count(1):
        run = tmp_path / str(point)
        ask(run, "a", PAIRS)
        died = die_at_call(point, partial(hand_out, run))
        mend_store(run)
        hand_out(run)
        with LabelReader(run / STORE_FILE) as store:
            assert store.pairs() == PAIRS
            assert store.wanted() == {pair.id: 1 for pair in PAIRS}
        assert verify_store(run / STORE_FILE).is_whole
        if not died:
            break
    assert point > 5, "a few deaths at least"
