# SPDX-License-Identifier: Apache-2.0
"""The label store one rule at a time: the queue, events, invitations, and what opening mends."""

import json
import logging
import sqlite3
from collections import Counter
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from metarm.errors import ConfigError, DataError, FormatError, RunError
from metarm.labels import tables
from metarm.labels.entries import add_entry
from metarm.labels.events import VoteEvent
from metarm.labels.journal import journal_path
from metarm.labels.queue import is_gold_turn, is_side_turned, places_of
from metarm.labels.reading import LabelReader
from metarm.labels.settings import LabelSettings
from metarm.labels.store import LabelStore
from metarm.labels.tables import journal_mode, open_writer, schema_version
from metarm.labels.verifying import back_up, verify_store
from metarm.labels.votes import LabelPair

PAIRS = [LabelPair(f"q{number}", "a", "b") for number in range(12)]
PLAIN = LabelSettings(gold_fraction=0, repeat_fraction=0)


def _fill(path: Path, settings: LabelSettings = PLAIN, num_votes: int = 0) -> None:
    with LabelStore(path, settings) as store:
        store.add_pairs(PAIRS)
        store.add_annotator("ann")
        for number in range(num_votes):
            store.record(VoteEvent(f"k{number}", "ann", "first", pair=PAIRS[number].id))


def _answer(store: LabelStore, name: str, key: str) -> str:
    item = store.next_item(name)
    assert item is not None
    store.record(VoteEvent(key, name, "first", item=item.id))
    return item.pair.id


@pytest.mark.parametrize(
    ("version", "mode"),
    [((3, 40, 1), "DELETE"), ((3, 51, 2), "DELETE"), ((3, 51, 3), "WAL"), ((3, 52, 0), "DELETE"),
     ((3, 52, 1), "WAL"), ((3, 9, 100), "DELETE"), ((4, 0, 0), "WAL")],
)  # fmt: skip
def test_the_write_ahead_log_only_where_it_is_sound(
    version, mode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite3, "sqlite_version_info", version)
    assert journal_mode() == mode
    path = tmp_path / "labels.db"
    _fill(path, num_votes=1)
    connection = open_writer(path)
    assert connection.execute("PRAGMA journal_mode").fetchone()[0].upper() == mode
    assert connection.execute("PRAGMA synchronous").fetchone()[0] == 2
    assert connection.execute("PRAGMA mmap_size").fetchone()[0] == 0
    connection.close()
    with LabelReader(path) as reader:
        assert reader.counts().num_votes == 1
    assert verify_store(path).is_whole


def test_one_writer_and_any_readers(tmp_path: Path) -> None:
    path = tmp_path / "labels.db"
    with LabelStore(path) as store:
        store.add_pairs(PAIRS)
        with pytest.raises(RunError, match="in use by another process"), LabelStore(path):
            pass
        with LabelReader(path) as reader:
            assert reader.pairs() == PAIRS
            with pytest.raises(sqlite3.OperationalError, match="readonly"):
                reader._connection.execute("DELETE FROM pair")
    with LabelStore(path) as store:
        assert store.pairs() == PAIRS


def test_events_are_never_changed(tmp_path: Path) -> None:
    path = tmp_path / "labels.db"
    _fill(path, num_votes=1)
    connection = open_writer(path)
    for statement in ("UPDATE event SET choice = 'second'", "DELETE FROM event"):
        with pytest.raises(sqlite3.IntegrityError, match="never"):
            connection.execute(statement)
    connection.close()


def test_pairs_with_the_fewest_votes_come_first_and_leave_when_they_have_enough(
    tmp_path: Path,
) -> None:
    settings = PLAIN.model_copy(update={"votes_per_pair": 2})
    with LabelStore(tmp_path / "labels.db", settings) as store:
        store.add_pairs(PAIRS)
        for name in ("ann", "bob", "cy"):
            store.add_annotator(name)
        first = [_answer(store, "ann", f"a{number}") for number in range(6)]
        second = [_answer(store, "bob", f"b{number}") for number in range(6)]
        assert not set(first) & set(second)
        for number in range(6, 12):
            _answer(store, "ann", f"a{number}")
            _answer(store, "bob", f"b{number}")
        assert store.next_item("cy") is None
        assert store.counts().num_done == len(PAIRS)


def test_a_strategy_keeps_its_order_and_takes_turns_with_the_random_half(tmp_path: Path) -> None:
    path = tmp_path / "labels.db"
    pairs = [
        LabelPair(f"q{name} {number}", "a", "b", chosen_by=name)
        for name in ("random", "d-optimal", "near-tie", "")
        for number in range(60)
    ]

    def order(store: LabelStore) -> list[LabelPair]:
        held: list[str] = []
        found = []
        while (item := store.next_item("ann", besides=held)) is not None:
            held.append(item.id)
            found.append(item.pair)
        return found

    with LabelStore(path, PLAIN.model_copy(update={"seed": 3})) as store:
        store.add_pairs([*pairs, pairs[70]])
        store.add_annotator("ann")
        served = order(store)
    assert sorted(served, key=pairs.index) == pairs
    for strategy in ("d-optimal", "near-tie"):
        of = [pair for pair in served if pair.chosen_by == strategy]
        assert of == [pair for pair in pairs if pair.chosen_by == strategy]
    for strategy in ("random", ""):
        of = [pair for pair in served if pair.chosen_by == strategy]
        assert of != [pair for pair in pairs if pair.chosen_by == strategy]
    # Where the budget ends halfway, each had about its half: a hypergeometric share, 4 sd.
    halfway = Counter(pair.chosen_by for pair in served[: len(pairs) // 2])
    spread = (len(pairs) / 2 * 0.25 * 0.75 * 0.5) ** 0.5
    assert all(abs(count - 30) <= 4 * spread for count in halfway.values())
    # The same from the journal.
    path.unlink()
    with LabelStore(path, replay=True) as store:
        assert order(store) == served


def test_a_place_is_drawn_and_tells_nothing_of_the_strategy() -> None:
    ids = [(f"pair {number}", ("random", "d-optimal")[number % 2]) for number in range(400)]
    places = places_of(7, ids)
    alone = [place for one in ids for place in places_of(7, [one])]
    assert sorted(places) == sorted(alone)
    assert places[::2] == alone[::2]
    assert places[1::2] == sorted(alone[1::2])


def test_models_and_rules_take_nothing_from_people(tmp_path: Path) -> None:
    with LabelStore(tmp_path / "labels.db", PLAIN) as store:
        store.add_pairs(PAIRS[:1])
        store.add_annotator("rule", "rule")
        store.add_annotator("ann")
        store.record(VoteEvent("k", "rule", "first", pair=PAIRS[0].id))
        assert store.progress("ann").num_left == 1
        assert _answer(store, "ann", "a") == PAIRS[0].id


def test_a_skip_is_kept_and_the_pair_stays_for_others(tmp_path: Path) -> None:
    with LabelStore(tmp_path / "labels.db", PLAIN) as store:
        store.add_pairs(PAIRS[:1])
        store.add_annotator("ann")
        store.add_annotator("bob")
        item = store.next_item("ann")
        assert item is not None
        store.record(VoteEvent("k", "ann", "skip", item=item.id, note="what?", flag=True))
        assert store.next_item("ann") is None
        assert _answer(store, "bob", "b") == PAIRS[0].id
        assert (store.counts().num_skips, store.counts().num_flags) == (1, 1)
        assert [event.note for event in store.events()] == ["what?", ""]


def test_gold_items_are_two_of_ten_and_look_like_others(tmp_path: Path) -> None:
    pairs = [LabelPair(f"q{number}", "a", "b") for number in range(40)]
    gold = {pair.id: "tie" for pair in pairs[:5]}
    with LabelStore(tmp_path / "labels.db", LabelSettings(repeat_fraction=0, seed=0)) as store:
        store.add_pairs(pairs, gold=gold)
        store.add_annotator("ann")
        items = []
        for number in range(10):
            item = store.next_item("ann")
            assert item is not None
            items.append(item)
            store.record(VoteEvent(f"k{number}", "ann", "first", item=item.id))
        assert sum(item.is_gold for item in items) == 2
        assert all(item.is_gold == (item.pair.id in gold) for item in items)
        assert len({len(item.id) for item in items}) == 1


@pytest.mark.parametrize("besides", ["made up", "somebody else's", "answered", "the last one"])
def test_what_a_page_says_it_holds_moves_no_gold_item_away(tmp_path: Path, besides: str) -> None:
    """Of an honest page, too: an answer whose reply was lost is in its outbox and in the store."""
    pairs = [LabelPair(f"q{number}", "a", "b") for number in range(60)]
    gold = {pair.id: "tie" for pair in pairs[:5]}
    settings = LabelSettings(repeat_fraction=0, seed=5)
    with LabelStore(tmp_path / "labels.db", settings) as store:
        store.add_pairs(pairs, gold=gold)
        store.add_annotator("ann")
        store.add_annotator("bob")
        others: list[str] = []
        for _ in range(12):
            other = store.next_item("bob", besides=others)
            assert other is not None
            others.append(other.id)
        own: list[str] = []
        told = {
            "made up": lambda: [f"{number:016x}" for number in range(12)],
            "somebody else's": lambda: others,
            "answered": lambda: own,
            "the last one": lambda: own[-1:],
        }[besides]
        was_gold = []
        for number in range(10):
            item = store.next_item("ann", besides=told())
            assert item is not None
            own.append(item.id)
            was_gold.append(item.is_gold)
            store.record(VoteEvent(f"k{number}", "ann", "first", item=item.id))
        turns = [is_gold_turn(5, "ann", number, fraction=0.05) for number in range(10)]
        assert was_gold == turns
        assert sum(turns) == 2


def test_items_in_hand_count_once_also_where_they_were_taken_back(tmp_path: Path) -> None:
    """Three in hand, of which one was answered and undone: the fourth is drawn as the fourth."""
    pairs = [LabelPair(f"q{number}", "a", "b") for number in range(60)]
    gold = {pair.id: "tie" for pair in pairs[:5]}
    for seed in range(20):
        settings = LabelSettings(repeat_fraction=0, seed=seed)
        with LabelStore(tmp_path / f"{seed}.db", settings) as store:
            store.add_pairs(pairs, gold=gold)
            store.add_annotator("ann")
            held: list[str] = []
            for number in range(10):
                item = store.next_item("ann", besides=held)
                assert item is not None
                assert item.is_gold == is_gold_turn(seed, "ann", number, fraction=0.05)
                held.append(item.id)
                if number == 2:
                    store.record(VoteEvent("k", "ann", "first", item=item.id))
                    store.undo("ann", "k")


def test_later_gold_items_come_at_their_share() -> None:
    turns = [
        is_gold_turn(0, f"annotator {who}", number, fraction=0.05)
        for who in range(20)
        for number in range(10, 510)
    ]
    assert sum(turns) / len(turns) == pytest.approx(0.05, abs=4 * (0.05 * 0.95 / len(turns)) ** 0.5)
    assert not any(is_gold_turn(0, "ann", n, fraction=0) for n in range(100))


def test_sides_are_fair_and_stand_the_other_way_round_in_a_repeat() -> None:
    drawn = [is_side_turned(0, f"pair {number}", "ann", 0) for number in range(2000)]
    assert sum(drawn) == pytest.approx(1000, abs=4 * 500**0.5)
    assert all(
        is_side_turned(0, f"pair {number}", "ann", 1) != turned
        for number, turned in enumerate(drawn)
    )
    others = [is_side_turned(0, f"pair {number}", "bob", 0) for number in range(2000)]
    assert sum(a == b for a, b in zip(drawn, others, strict=True)) == pytest.approx(1000, abs=90)


def test_repeats_are_mirrored_and_never_close_behind(tmp_path: Path) -> None:
    with LabelStore(tmp_path / "labels.db", LabelSettings(repeat_fraction=0.5, seed=0)) as store:
        store.add_pairs(PAIRS)
        store.add_annotator("ann")
        order: list[tuple[str, bool]] = []
        while (item := store.next_item("ann")) is not None:
            if item.is_repeat:
                at = order.index((item.pair.id, False))
                assert len({pair for pair, _ in order[at + 1 :]} - {item.pair.id}) >= 5
            order.append((item.pair.id, item.is_repeat))
            store.record(VoteEvent(f"k{len(order)}", "ann", "first", item=item.id))
        repeats = [event for event in store.events() if event.showing]
        assert repeats
        first = {event.pair: event.is_turned for event in store.events() if not event.showing}
        assert all(event.is_turned is not first[event.pair] for event in repeats)
        assert store.counts().num_repeats == len(repeats)


def test_items_whose_answers_are_on_the_way_are_not_served(tmp_path: Path) -> None:
    with LabelStore(tmp_path / "labels.db", PLAIN) as store:
        store.add_pairs(PAIRS[:2])
        store.add_annotator("ann")
        one = store.next_item("ann")
        assert one is not None
        other = store.next_item("ann", besides=[one.id])
        assert other is not None
        assert other.pair != one.pair
        assert store.next_item("ann", besides=[one.id, other.id]) is None
        assert store.next_item("ann", besides=[other.id]) == one


def test_a_correction_that_arrives_first_stays(tmp_path: Path) -> None:
    path = tmp_path / "labels.db"
    _fill(path)
    with LabelStore(path) as store:
        pair = PAIRS[0].id
        store.record(VoteEvent("later", "ann", "second", pair=pair, supersedes="earlier"))
        store.record(VoteEvent("earlier", "ann", "first", pair=pair))
        assert [vote.choice for vote in store.votes()] == ["second"]
        assert [event.is_outdated for event in store.events()] == [False, True]
        assert [event.revision for event in store.events()] == [1, 2]


def test_what_is_no_vote_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "labels.db"
    _fill(path, num_votes=1)
    with LabelStore(path) as store:
        store.add_annotator("bob")
        item = store.next_item("ann")
        assert item is not None
        wrong: list[tuple[VoteEvent, type[Exception], str]] = [
            (VoteEvent("n", "eve", "tie", pair=PAIRS[1].id), ConfigError, "annotator of the store"),
            (VoteEvent("n", "ann", "tie", pair="none"), DataError, "pair of the store"),
            (VoteEvent("n", "bob", "tie", item=item.id), DataError, "item served to bob"),
            (VoteEvent("k0", "bob", "tie", pair=PAIRS[1].id), FormatError, "somebody else"),
            (
                VoteEvent("n", "ann", "tie", item=item.id, is_turned=not item.is_turned),
                FormatError,
                "sides that were shown",
            ),
        ]
        for vote, error, message in wrong:
            with pytest.raises(error, match=message):
                store.record(vote)
        with pytest.raises(DataError):
            store.undo("bob", "k0")
        with pytest.raises(ConfigError, match="of the kind person"):
            store.add_annotator("ann", "model")
        good = VoteEvent("m", "ann", "tie", pair=PAIRS[1].id)
        with pytest.raises(DataError):
            store.record_all([good, wrong[1][0]])
        assert len(store.events()) == 1
    assert verify_store(path).is_whole


def test_halves_of_characters_in_a_note_are_replaced(tmp_path: Path) -> None:
    path = tmp_path / "labels.db"
    _fill(path)
    with LabelStore(path) as store:
        store.record(VoteEvent("k", "ann", "first", pair=PAIRS[0].id, note="a\ud83dz\0 \U0001f600"))
        assert store.events()[0].note == "a\ufffdz\ufffd \U0001f600"
        with pytest.raises(FormatError, match="surrogate"):
            store.add_pairs([LabelPair("q", "\ud83d", "b")])


def test_invitations_end_and_are_revoked(tmp_path: Path) -> None:
    path, now = tmp_path / "labels.db", [1e9]

    def invited() -> list[str]:
        with LabelReader(path) as reader:
            return reader.invited(now[0])

    with LabelStore(path, clock=lambda: now[0]) as store:
        token = store.invite("ann", days=1)
        other = store.invite("bob", days=2)
        assert store.annotator_of(token) == "ann"
        assert store.annotator_of("guess") is None
        assert invited() == ["ann", "bob"]
        now[0] += 86_401
        assert invited() == ["bob"]
        assert store.annotator_of(token) is None
        assert store.annotator_of(other) == "bob"
        store.revoke("bob")
        assert store.annotator_of(other) is None
        assert invited() == []
        assert store.annotator_of(store.invite("bob", days=1)) == "bob"
        assert invited() == ["bob"]
    for file in (path, journal_path(path)):
        assert token.encode() not in file.read_bytes()


def test_settings_are_kept_and_the_seed_stays(tmp_path: Path) -> None:
    path = tmp_path / "labels.db"
    _fill(path)
    with LabelStore(path) as store:
        assert store.settings == PLAIN
    more = PLAIN.model_copy(update={"votes_per_pair": 3})
    with LabelStore(path, more) as store:
        assert store.settings == more
    wrong = pytest.raises(ConfigError, match=r"expected no seed, .* got seed=1")
    with wrong, LabelStore(path, LabelSettings(seed=1)):
        pass
    other = tmp_path / "other.db"
    _fill(other, LabelSettings(seed=7))
    wrong = pytest.raises(ConfigError, match=r"expected seed=7, .* got seed=0")
    with wrong, LabelStore(other, LabelSettings(seed=0)):
        pass
    with LabelStore(other, more) as store:
        assert store.settings == more.model_copy(update={"seed": 7}), "no seed: it stays"


def _sides(path: Path) -> list[bool]:
    """Which sides one annotator is shown all pairs on."""
    with LabelStore(path) as store:
        store.add_annotator("ann")
        store.add_pairs(PAIRS)
        found = []
        while (item := store.next_item("ann")) is not None:
            store.record(VoteEvent(f"k{len(found)}", "ann", "tie", item=item.id))
            found.append((PAIRS.index(item.pair), item.is_turned))
    return [is_turned for _, is_turned in sorted(found)]


def test_sides_follow_from_a_secret_unless_a_seed_is_given(tmp_path: Path) -> None:
    """Nobody who knows the texts can tell the sides; a store made again from its journal can."""
    secrets, drawn = set(), []
    for number in range(8):
        path = tmp_path / f"{number}.db"
        with LabelStore(path, PLAIN) as store:
            secret = store.seed
        secrets.add(secret)
        drawn.append(tuple(_sides(path)))
        back_up(path, tmp_path / f"{number}-copy.db")
        path.unlink()
        with LabelStore(path, replay=True) as store:
            assert store.seed == secret
            assert secret.bit_length() > 64
            expected = [is_side_turned(secret, pair.id, "ann", 0) for pair in PAIRS]
            assert drawn[-1] == tuple(expected)
    assert len(secrets) == 8
    assert len(set(drawn)) > 1, "alike by chance once in 2 ** 84"
    for name in ("a", "b"):
        with LabelStore(tmp_path / f"{name}.db", PLAIN.model_copy(update={"seed": 3})) as store:
            assert store.seed == 3
    assert _sides(tmp_path / "a.db") == _sides(tmp_path / "b.db")


def _make_first_version(path: Path) -> None:
    """A store as schema version 1 had it: every draw by `seed`, no votes wanted by single pairs."""
    settings = {"votes_per_pair": 2, "gold_fraction": 0.0, "repeat_fraction": 0.0}
    settings |= {"lease_minutes": 15.0, "seed": 0}
    rows = [("setting", {"number": 1, "store": "5f3a0e9b1c2d4e6f", "value": settings, "at": 1.0})]
    for number, pair in enumerate(PAIRS, start=1):
        row = {"number": number, "id": pair.id, "place": number, "at": 1.0}
        rows.append(("pair", {**pair.to_json(), "source": "", "chosen_by": "", **row}))
    rows.append(("annotator", {"number": 1, "name": "ann", "kind": "person", "at": 1.0}))
    with closing(open_writer(path)) as connection:
        for statement in tables.MIGRATIONS[0]:
            connection.execute(statement)
        for kind, row in rows:
            add_entry(connection, kind, row)
        connection.execute(f"PRAGMA application_id = {tables.APPLICATION_ID}")
        connection.execute("PRAGMA user_version = 1")


def test_a_store_of_the_first_version_is_read_and_its_sides_stay(tmp_path: Path) -> None:
    path = tmp_path / "labels.db"
    _make_first_version(path)
    with LabelReader(path) as reader:
        assert (reader.counts().num_pairs, reader.counts().num_done) == (len(PAIRS), 0)
        assert reader.wanted() == {}
        assert reader.settings.seed == 0
    with LabelReader(path) as reader, pytest.raises(sqlite3.OperationalError, match="readonly"):
        reader._connection.execute("INSERT INTO annotator VALUES (9, 'eve', 'person', 1.0)")
    assert verify_store(path).problems == ()
    assert schema_version(sqlite3.connect(path)) == 1, "reading has changed nothing"
    assert _sides(path) == [is_side_turned(0, pair.id, "ann", 0) for pair in PAIRS]
    assert schema_version(sqlite3.connect(path)) == len(tables.MIGRATIONS)
    assert path.with_name("labels.db.v1.backup").exists()
    assert verify_store(path).is_whole


def test_a_pair_wants_the_votes_it_was_given_whatever_the_settings_say(tmp_path: Path) -> None:
    path, names = tmp_path / "labels.db", ("ann", "bob", "cid")
    one, two, three = PAIRS[:3]
    with LabelStore(path, PLAIN.model_copy(update={"votes_per_pair": 2})) as store:
        assert store.add_pairs([one, two, three], wanted={one.id: 1, two.id: 3}) == 3
        store.add_pairs([], wanted={two.id: 2, one.id: 1})
        served: Counter[str] = Counter()
        for name in names:
            store.add_annotator(name)
            while (item := store.next_item(name)) is not None:
                store.record(VoteEvent(f"{name} {item.id}", name, "first", item=item.id))
                served[item.pair.id] += 1
        assert served == {one.id: 1, two.id: 3, three.id: 2}
        assert store.counts().num_done == 3
        for wrong, error in (({one.id: 0}, ConfigError), ({"none": 2}, DataError)):
            with pytest.raises(error):
                store.add_pairs([], wanted=wrong)
    with LabelStore(path, PLAIN.model_copy(update={"votes_per_pair": 3})) as store:
        store.add_annotator("dan")
        item = store.next_item("dan")
        assert item is not None
        assert item.pair == three, "the only one that goes by the settings"
        assert store.counts().num_done == 2
    path.unlink()
    with LabelStore(path, replay=True):
        pass
    with LabelReader(path) as reader:
        assert reader.wanted() == {one.id: 1, two.id: 3}
    assert verify_store(path).is_whole


def test_votes_that_are_asked_for_later_come_before_all_others(tmp_path: Path) -> None:
    path = tmp_path / "labels.db"
    one, two, gold = PAIRS[0].id, PAIRS[1].id, PAIRS[2].id
    now = [1e9]
    clocked = partial(LabelStore, path, clock=lambda: now[0])

    def served(store: LabelStore, name: str) -> list[str]:
        now[0] += 10_000  # what others had before them is theirs no more
        store.add_annotator(name)
        held: dict[str, str] = {}
        while (item := store.next_item(name, besides=list(held))) is not None:
            held[item.id] = item.pair.id
        return list(held.values())

    with clocked(PLAIN.model_copy(update={"votes_per_pair": 2})) as store:
        store.add_pairs(PAIRS, gold={gold: "tie"}, wanted={PAIRS[3].id: 2})
        for name in ("ann", "bob"):
            store.add_annotator(name)
            for pair in (one, two):
                store.record(VoteEvent(f"{name} {pair}", name, "first", pair=pair))
        before = served(store, "cid")
        assert set(before) == {pair.id for pair in PAIRS[3:]}, "two have what they want"
        # One vote more on two pairs; a pair that nobody has seen does not want fewer than usual.
        wanted = {one: 3, two: 3, before[-1]: 1, gold: 1}
        assert store.ask_next(wanted) == 4
        assert store.ask_next(wanted) == 0
    for opened in (False, True):
        with clocked(replay=opened) as store:
            first = [before[-1], *sorted((one, two), key=lambda pair: _place(store, pair))]
            name = f"dan {opened}"
            assert served(store, name) == [*first, *before[:-1]]
            assert served(store, "ann")[0] == before[-1], "she has answered the two others"
        path.unlink()
    with clocked(replay=True) as store:
        for name in ("dan", "eve"):
            store.add_annotator(name)
            store.record(VoteEvent(f"{name} again", name, "tie", pair=before[-1]))
        store.record(VoteEvent("once", "dan", "skip", pair=one))
        store.record(VoteEvent("twice", "dan", "tie", pair=two))
        assert served(store, "fay")[0] == one, "a skip is no vote, and two others have theirs"
        assert set(served(store, "gil")[1:]) == set(before[:-1])
        store.undo("dan", "twice")
        assert two in served(store, "fay")[:2]
        with pytest.raises(DataError, match="pair that is there"):
            store.ask_next({"none": 2})
        with pytest.raises(ConfigError, match="1 or more"):
            store.ask_next({one: 0, PAIRS[5].id: -1})
    assert verify_store(path).is_whole


def _place(store: LabelStore, pair: str) -> int:
    """Where a pair stands among those with as many votes."""
    return places_of(store.seed, [(pair, "")])[0]


def test_known_answers_are_for_pairs_that_are_there_and_never_change(tmp_path: Path) -> None:
    with LabelStore(tmp_path / "labels.db") as store:
        pair = PAIRS[0]
        assert store.add_pairs([pair, pair], gold={pair.id: "first"}) == 1
        assert store.add_pairs([pair], gold={pair.id: "first"}) == 0
        with pytest.raises(DataError, match="known answer is first"):
            store.add_pairs([], gold={pair.id: "second"})
        with pytest.raises(DataError, match="a pair that is there"):
            store.add_pairs([], gold={"none": "first"})
        with pytest.raises(FormatError, match="known answer of"):
            store.add_pairs([PAIRS[1]], gold={PAIRS[1].id: "skip"})
        assert store.pairs() == [pair]


def test_a_torn_journal_is_cut_and_filled(tmp_path: Path) -> None:
    path = tmp_path / "labels.db"
    _fill(path, num_votes=3)
    journal = journal_path(path)
    whole = journal.read_bytes()
    journal.write_bytes(whole[:-10])
    found = verify_store(path)
    assert (found.has_torn_line, found.only_database) == (True, ("event k2",))
    with LabelStore(path) as store:
        assert store.opened.num_journalled == 1
    assert verify_store(path).is_whole
    assert journal.read_bytes() == whole


def test_a_damaged_line_is_found_and_its_entry_written_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "labels.db"
    _fill(path, num_votes=3)
    journal = journal_path(path)
    journal.write_bytes(journal.read_bytes().replace(b'"k1"', b'"kx"'))
    found = verify_store(path)
    assert (found.num_damaged_lines, found.only_database) == (1, ("event k1",))
    with caplog.at_level(logging.WARNING), LabelStore(path) as store:
        assert store.opened.num_journalled == 1
    assert "1 damaged lines" in caplog.text


def test_a_backup_gets_from_the_journal_what_came_after(tmp_path: Path) -> None:
    path, copy = tmp_path / "labels.db", tmp_path / "copy.db"
    _fill(path, num_votes=2)
    with LabelStore(path) as store:
        back_up(path, copy)
        store.record(VoteEvent("late", "ann", "tie", pair=PAIRS[5].id))
        events = store.events()
    copy.replace(path)
    assert verify_store(path).only_journal == ("event late",)
    with LabelStore(path) as store:
        assert store.opened.num_replayed == 1
        assert store.events() == events
    assert verify_store(path).is_whole


def test_a_database_that_is_gone_is_made_again_only_where_that_is_wanted(tmp_path: Path) -> None:
    path = tmp_path / "labels.db"
    _fill(path, num_votes=3)
    with LabelReader(path) as reader:
        content = reader.content()
    path.unlink()
    with pytest.raises(RunError, match="--replay"), LabelStore(path):
        pass
    with LabelStore(path, replay=True) as store:
        assert store.content() == content
        assert store.settings == PLAIN


def test_the_journal_of_another_store_is_refused(tmp_path: Path) -> None:
    one, other = tmp_path / "one.db", tmp_path / "other.db"
    _fill(one, num_votes=1)
    _fill(other, num_votes=1)
    journal_path(one).write_bytes(journal_path(other).read_bytes())
    with pytest.raises(RunError, match="that of another one"), LabelStore(one):
        pass


def test_a_full_journal_is_caught_up_before_anything_is_acknowledged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "labels.db"
    _fill(path)
    vote = VoteEvent("k", "ann", "first", pair=PAIRS[0].id)
    with LabelStore(path) as store:
        with monkeypatch.context() as patched:
            patched.setattr("metarm.labels.journal.os.write", _no_space)
            with pytest.raises(RunError, match="No space left"):
                store.record(vote)
            with pytest.raises(RunError, match="No space left"):
                store.record(vote)
        assert store.record(vote).is_new is False
    assert verify_store(path).is_whole


def test_a_queue_whose_journal_was_full_opens_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "labels.db"
    _fill(path)
    with LabelStore(path) as store:
        with monkeypatch.context() as patched:
            patched.setattr("metarm.labels.journal.os.write", _no_space)
            with pytest.raises(RunError, match="No space left"):
                store.set_open(False)
        assert not store.settings.is_open, "as the database says"
        assert store.next_item("ann") is None
        store.set_open(True)
        assert store.next_item("ann") is not None
        with LabelReader(path) as reader:
            assert reader.settings == store.settings
            assert reader.settings.is_open
    assert verify_store(path).is_whole


def _no_space(descriptor: int, data: bytes) -> int:
    raise OSError(28, "No space left on device")


def test_other_files_are_no_label_stores(tmp_path: Path) -> None:
    other = tmp_path / "other.db"
    connection = sqlite3.connect(other)
    connection.execute("CREATE TABLE t (x)")
    connection.close()
    text = tmp_path / "text.db"
    text.write_text("no database at all, but long enough to be one\n" * 100)
    for path in (other, text):
        with pytest.raises(RunError, match="label store"), LabelStore(path):
            pass
        with pytest.raises(RunError, match="label store"):
            LabelReader(path)
    with pytest.raises(RunError, match="no such label store"):
        LabelReader(tmp_path / "none.db")


def test_a_store_of_an_older_version_is_brought_up_to_date_behind_a_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "labels.db"
    _fill(path, num_votes=2)
    now = len(tables.MIGRATIONS)
    later = (*tables.MIGRATIONS, ("ALTER TABLE pair ADD COLUMN topic TEXT NOT NULL DEFAULT ''",))
    monkeypatch.setattr(tables, "MIGRATIONS", later)
    with pytest.raises(RunError, match=f"schema version {now + 1}, got {now}"):
        LabelReader(path)
    with LabelStore(path) as store:
        assert store.counts().num_votes == 2
    with LabelReader(path) as reader:
        assert reader.counts().num_votes == 2
    monkeypatch.undo()
    with pytest.raises(RunError, match="newer metarm"), LabelStore(path):
        pass
    with LabelReader(path.with_name(f"labels.db.v{now}.backup")) as reader:
        assert reader.counts().num_votes == 2


def test_a_store_of_the_first_version_is_brought_up_to_date(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "labels.db"
    monkeypatch.setattr(tables, "MIGRATIONS", tables.MIGRATIONS[:1])
    with closing(tables.open_writer(path)) as connection:
        tables.migrate(connection, path)
    monkeypatch.undo()
    _fill(path, num_votes=2)
    assert path.with_name("labels.db.v1.backup").is_file()
    with LabelStore(path) as store:
        assert store.progress("ann").num_in_batch == 2


def test_the_journal_is_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "labels.db"
    _fill(path, num_votes=1)
    rows = [json.loads(line) for line in journal_path(path).read_text().splitlines()]
    assert [row["entry"] for row in rows] == ["setting"] + ["pair"] * 12 + ["annotator", "event"]
    assert rows[-1]["row"]["key"] == "k0"
