# SPDX-License-Identifier: Apache-2.0
"""The account of a store against counts by hand, and alpha against the one that is there."""

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest

from live_labels import make_store, plain_pairs
from metarm.annotators.label_data import read_label_data
from metarm.annotators.report import build_report
from metarm.errors import EmptySetError, FormatError
from metarm.labelling.account import Account, account_of, read_votes_of
from metarm.labelling.changed import measure_change, read_gaps
from metarm.labelling.desk import Behaviour, read_behaviour
from metarm.labelling.figures import FIGURES, draw_svg
from metarm.labels.events import VoteEvent
from metarm.labels.exchange.preferences import read_preferences
from metarm.labels.reading import LabelReader
from metarm.labels.settings import LabelSettings
from metarm.labels.store import LabelStore
from metarm.labels.votes import LabelPair
from metarm.metrics import mean_estimate
from metarm.storage import write_json_lines


@pytest.fixture
def account(tmp_path: Path) -> Account:
    path = tmp_path / "labels.db"
    pairs = plain_pairs(6)
    gold = {pairs[0].id: "first"}
    make_store(path, pairs, "Ada", "Bo", gold=gold, votes_per_pair=2)
    told = {
        "Ada": ("first", "first", "second", "tie", "skip"),
        "Bo": ("second", "first", "first", "tie", "first"),
    }
    with LabelStore(path) as store:
        for name, choices in told.items():
            for pair, choice in zip(pairs, choices, strict=False):
                store.record(
                    VoteEvent(
                        key=f"{name} {pair.prompt}",
                        annotator=name,
                        choice=choice,
                        pair=pair.id,
                        is_turned=name == "Bo",
                        seconds=10.0 if name == "Ada" else 20.0,
                        note="<b>" if choice == "tie" else "",
                    )
                )
    behaviour = {"Ada question 1": Behaviour("Ada question 1", 2, 1, 5.0, 1)}
    with LabelReader(path) as reader:
        return account_of(read_votes_of(reader), behaviour)


def test_counts_by_hand(account: Account) -> None:
    ada, bo = account.rows
    assert (ada.own.num_votes, ada.own.num_skips, bo.own.num_votes) == (4, 1, 5)
    assert ada.own.gold_accuracy.value == 1.0
    assert bo.own.gold_accuracy.value == 0.0
    # Ada saw first on the left and chose it twice of three; Bo saw second there and chose it once.
    assert (ada.own.left_fraction.value, ada.own.left_fraction.count) == (pytest.approx(2 / 3), 3)
    assert (bo.own.left_fraction.value, bo.own.left_fraction.count) == (pytest.approx(1 / 4), 4)
    assert ada.others.value == bo.others.value == pytest.approx(2 / 3)
    assert ada.own.self_agreement is None
    assert ada.belief.num_votes == 4
    assert account.model == "majority"
    assert account.alpha.count == 3
    assert (ada.num_changes, ada.num_pastes, ada.away_fraction) == (2, 1, 0.5)
    assert bo.away_fraction is None
    assert account.matrix["Ada", "Bo"].value == pytest.approx(2 / 3)
    assert account.matrix["Ada", "Bo"].count == 3
    # Five pairs want two votes each; they have 2, 2, 2, 1 and 0.
    assert account.num_left == 3
    assert account.num_paid == 9
    assert account.median_seconds == 20.0
    assert account.votes_per_day == 9.0
    assert {row.pair.prompt for row in account.disputed} == {"question 2"}
    assert account.labels == {
        pair.id: choice
        for pair, choice in zip(plain_pairs(5), (None, "first", None, "tie", "first"), strict=True)
        if choice
    }
    assert [row.note for row in account.flagged] == ["<b>", "<b>"]
    [strategy] = account.strategies
    assert (strategy.name, strategy.num_pairs, strategy.num_votes) == ("d-optimal", 6, 7)


@pytest.mark.parametrize("is_dark", [True, False])
@pytest.mark.parametrize("name", FIGURES)
def test_figures(account: Account, name: str, is_dark: bool) -> None:
    svg = draw_svg(name, account, is_dark=is_dark)
    assert svg is not None
    assert svg.startswith(b"<?xml")
    assert b"<script" not in svg
    assert svg == draw_svg(name, account, is_dark=is_dark)


def test_mirrored_repeats_are_judged_by_what_was_said_before(tmp_path: Path) -> None:
    path = tmp_path / "labels.db"
    settings = LabelSettings(gold_fraction=0.0, repeat_fraction=0.5, seed=0)
    shown = []
    with LabelStore(path, settings) as store:
        store.add_pairs(plain_pairs(40))
        store.add_annotator("Left")
        for number in range(40):
            item = store.next_item("Left")
            if item is None:
                break
            shown.append(item.is_repeat)
            choice = "second" if item.is_turned else "first"
            store.record(VoteEvent(f"key {number}", "Left", choice, item=item.id))
    with LabelReader(path) as reader:
        [row] = account_of(read_votes_of(reader), {}).rows
    assert row.own.left_fraction.value == 1.0
    assert (row.own.self_agreement.value, row.own.self_agreement.count) == (0.0, sum(shown))


def test_what_labels_changed(tmp_path: Path) -> None:
    pairs = [replace(pair, chosen_by="random") for pair in plain_pairs(4)]
    labels = dict(zip((p.id for p in pairs), ("first", "second", "first", "tie"), strict=True))
    before = {pair.id: -1.0 for pair in pairs}
    after = {pair.id: 1.0 for pair in pairs} | {pairs[2].id: 0.0}
    known = {pair.id: pair for pair in pairs}
    found = measure_change(labels, known, before, after)
    assert (found.num_pairs, found.before.value) == (3, pytest.approx(1 / 3))
    assert found.after.value == pytest.approx(0.5)
    assert found.difference.value == pytest.approx(1 / 6)
    with pytest.raises(EmptySetError):
        measure_change({}, known, before, after)
    path = tmp_path / "scored.jsonl"
    rows = [
        {"prompt": p.prompt, "responses": [p.first, p.second], "scores": [0.5, 2.0]} for p in pairs
    ]
    write_json_lines(path, rows)
    assert read_gaps(path) == {pair.id: -1.5 for pair in pairs}
    write_json_lines(path, [{"prompt": "p", "response": "r", "score": 1.0}])
    with pytest.raises(FormatError, match="metarm score"):
        read_gaps(path)


def test_models_are_not_paid_like_people(tmp_path: Path) -> None:
    path = tmp_path / "labels.db"
    [pair] = plain_pairs(1)
    make_store(path, [pair], "Ada")
    with LabelStore(path) as store:
        store.add_annotator("judge", "model")
        for name in ("Ada", "judge"):
            store.record(VoteEvent(f"key of {name}", name, "first", pair=pair.id))
    with LabelReader(path) as reader:
        assert account_of(read_votes_of(reader), {}).num_paid == 1


@pytest.mark.parametrize("scores", [[None, 1.0], ["x", 0.0], [True, 0.0]])
def test_a_score_that_is_no_number_is_named(tmp_path: Path, scores: list[object]) -> None:
    path = tmp_path / "scored.jsonl"
    row = {"prompt": "p", "responses": ["a", "b"], "scores": scores}
    path.write_text(f"{json.dumps(row)}\n", encoding="utf-8")
    with pytest.raises(FormatError, match="scores"):
        read_gaps(path)


def test_time_in_view(tmp_path: Path) -> None:
    path = tmp_path / "labels.db"
    pairs = plain_pairs(5)
    make_store(path, pairs, "Ada")
    in_view = [(4.0, 1.0), (2.0, 0.0), (9.0, 3.0), (None, None), (0.0, 0.0)]
    with LabelStore(path) as store:
        for number, pair in enumerate(pairs):
            choice = "skip" if number == 4 else "first"
            store.record(VoteEvent(f"key {number}", "Ada", choice, pair=pair.id))
    behaviour = {
        f"key {number}": Behaviour(f"key {number}", 0, 0, 0.0, 0, left, right)
        for number, (left, right) in enumerate(in_view)
    }
    with LabelReader(path) as reader:
        votes = read_votes_of(reader)
    # The skip is no decision, and of the fourth nothing was told.
    [row] = account_of(votes, behaviour).rows
    assert (row.left_seconds, row.right_seconds, row.num_unseen) == (4.0, 1.0, 1)
    [row] = account_of(votes, {}).rows
    assert (row.left_seconds, row.right_seconds, row.num_unseen) == (None, None, 0)


def test_behaviour_outlives_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "seen.jsonl"
    path.write_bytes(
        b'{"key": "a", "changes": 1, "blurs": 0, "away_seconds": 0.5, "pastes": 0}\n{"key": "b", '
    )
    assert read_behaviour(path) == {"a": Behaviour("a", 1, 0, 0.5, 0)}
    assert read_behaviour(tmp_path / "none") == {}


def test_what_labels_changed_is_told_of_no_chosen_pair_and_by_prompt() -> None:
    """Of ten prompts each has ten pairs, all alike: ten observations, not a hundred."""
    pairs = [
        LabelPair(f"p{n // 10}", f"a{n}", f"b{n}", chosen_by="random" if n < 100 else "d-optimal")
        for n in range(150)
    ]
    known = {pair.id: pair for pair in pairs}
    labels = {pair.id: "first" for pair in pairs}
    before = {pair.id: 1.0 if n // 10 < 6 else -1.0 for n, pair in enumerate(pairs)}
    found = measure_change(labels, known, before, dict.fromkeys(known, 1.0))
    assert (found.num_pairs, found.num_left_out) == (100, 50)
    assert found.before.value == pytest.approx(0.6)
    alone = mean_estimate([1.0] * 6 + [0.0] * 4)
    assert (found.before.low, found.before.high) == pytest.approx((alone.low, alone.high))
    assert found.difference.value == pytest.approx(0.4)


def test_known_answers_say_nothing_of_agreement(tmp_path: Path) -> None:
    """Three people right on known pairs, which are all they share, and alone on the others."""
    path, pairs = tmp_path / "l.db", plain_pairs(12)
    with LabelStore(path) as store:
        store.add_pairs(pairs, gold={pair.id: "first" for pair in pairs[:6]})
        for place, name in enumerate(("Ada", "Bo", "Cy")):
            store.add_annotator(name)
            for pair in (*pairs[:6], *pairs[6 + 2 * place : 8 + 2 * place]):
                store.record(VoteEvent(f"{name} {pair.id}", name, "first", pair=pair.id))
    with LabelReader(path) as reader:
        found = account_of(read_votes_of(reader), {})
    assert found.alpha is None
    assert found.matrix == {}
    assert [row.others for row in found.rows] == [None] * 3
    assert found.moments == []
    assert set(found.labels) == {pair.id for pair in pairs[6:]}


def test_two_pages_show_one_alpha_of_a_store(tmp_path: Path) -> None:
    """That of people, without known answers, whatever models say beside them."""
    path, pairs = tmp_path / "l.db", plain_pairs(30)
    draw = random.Random(5)
    with LabelStore(path) as store:
        store.add_pairs(pairs, gold={pair.id: "first" for pair in pairs[:5]})
        for name, kind in {"Ada": "person", "judge": "model", "Bo": "person"}.items():
            store.add_annotator(name, kind)
            for pair in pairs:
                choice = "first" if draw.random() < 0.7 else "second"
                store.record(VoteEvent(f"{name} {pair.id}", name, choice, pair=pair.id))
    with LabelReader(path) as reader:
        dashboard = account_of(read_votes_of(reader), {})
    believed = build_report(read_label_data(path)).agreement
    assert dashboard.alpha == believed.alpha_of_people
    assert dashboard.alpha.count == 25
    assert dashboard.alpha != believed.alpha
    assert dashboard.moments[-1].alpha.value == dashboard.alpha.value


def test_imported_preferences_do_not_hide_that_a_judge_agrees(tmp_path: Path) -> None:
    """Their chosen response is always the first one; the judge is right in 9 of 10."""
    rows = [{"prompt": f"q{n}", "chosen": f"good {n}", "rejected": f"bad {n}"} for n in range(50)]
    write_json_lines(tmp_path / "old.jsonl", rows)
    content = read_preferences(tmp_path / "old.jsonl", "people")
    with LabelStore(tmp_path / "l.db") as store:
        store.add_content(content)
        store.add_annotator("judge", "model")
        for number, pair in enumerate(content.pairs):
            choice = "second" if number % 10 == 0 else "first"
            store.record(VoteEvent(f"judge {number}", "judge", choice, pair=pair.id))
    report = build_report(read_label_data(tmp_path / "l.db"))
    (against,) = report.comparisons
    assert against.agreement.value == pytest.approx(0.9)
    # By chance, one half.
    assert against.kappa.value == pytest.approx(0.8)
    assert report.agreement.alpha.value == pytest.approx(0.8, abs=0.01)
