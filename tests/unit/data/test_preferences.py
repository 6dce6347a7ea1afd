# SPDX-License-Identifier: Apache-2.0
import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metarm.data.preferences import (
    load_preferences,
    save_preferences,
    split_by_prompt,
    unseen_prompts,
    without_picked,
    without_prompts_of,
)
from metarm.errors import ConfigError, EmptySetError
from metarm.schema import Message, PreferencePair
from strategies import pairs


def pair_row(prompt="p", chosen="good", rejected="bad", **more):
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **more}


def write_rows(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_every_row_is_counted_once(tmp_path):
    source = write_rows(
        tmp_path / "pairs.jsonl",
        pair_row(),
        pair_row(chosen="same", rejected="same"),
        pair_row(),
        pair_row(chosen="bad", rejected="good"),
        pair_row(rejected=" \n"),
        pair_row(prompt="", chosen="x"),
        pair_row(prompt="q", margin=2),
    )
    loaded = load_preferences(source)
    report = loaded.report
    assert [(pair.prompt, pair.chosen, pair.margin) for pair in loaded.pairs] == [
        ("p", "good", None),
        ("p", "bad", None),
        ("q", "good", 2.0),
    ]
    assert (report.num_read, report.num_kept) == (7, 3)
    assert report.num_identical == report.num_duplicates == report.num_contradictions == 1
    assert report.num_empty == 2
    assert report.num_ties == report.num_diverged == 0
    assert report.summary() == (
        "7 pairs read (trl-explicit), 3 kept; left out: 1 identical sides, 1 duplicates, "
        "2 with an empty prompt or side; 1 contradictions kept"
    )
    assert [example.removeprefix(f"{source}:") for example in report.examples] == [
        "2: identical sides",
        "3: duplicates",
        "4: contradictions",
        "5: with an empty prompt or side",
        "6: with an empty prompt or side",
    ]


def test_a_clean_file_has_a_short_summary(tmp_path):
    report = load_preferences(write_rows(tmp_path / "pairs.jsonl", pair_row())).report
    assert report.summary() == "1 pairs read (trl-explicit), 1 kept"
    assert report.source == str(tmp_path / "pairs.jsonl")


def test_ties_and_conversations_that_diverge_are_counted(tmp_path):
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}]
    other = [turns[0], {"role": "assistant", "content": "What?"}]
    scores = {"score_chosen": 2, "score_rejected": 2}
    source = write_rows(
        tmp_path / "rated.jsonl",
        {"chosen": turns, "rejected": other, **scores},
        {"chosen": turns + turns, "rejected": other, **scores, "score_rejected": 1},
        {"chosen": turns, "rejected": other, **scores, "score_rejected": 1},
        {"instruction": "i", "completions": [{"response": r, "overall_score": 1} for r in "ab"]},
    )
    report = load_preferences(source).report
    assert (report.num_read, report.num_kept) == (4, 1)
    assert (report.num_ties, report.num_diverged) == (2, 1)
    assert "1 conversations that differ before the last message" in report.summary()


def test_the_lower_rated_response_is_drawn_from_all_of_them(tmp_path):
    rated = [{"response": r, "overall_score": s} for r, s in [("c", 1), ("a", 9), ("b", 2)]]
    rows = [{"instruction": f"prompt {n}", "completions": rated} for n in range(30)]
    source = write_rows(tmp_path / "rated.jsonl", *rows)
    loaded = load_preferences(source).pairs
    assert {pair.chosen for pair in loaded} == {"a"}
    assert {pair.rejected for pair in loaded} == {"b", "c"}
    assert load_preferences(source).pairs == loaded


def test_a_file_without_a_usable_pair_is_an_error(tmp_path):
    source = write_rows(tmp_path / "pairs.jsonl", pair_row(chosen="a", rejected="a"))
    with pytest.raises(EmptySetError, match=r"1 identical sides .*pairs\.jsonl:1"):
        load_preferences(source)


@pytest.mark.parametrize(
    ("name", "num_read"),
    [("hh_harmless_base_test", 2312), ("hh_helpful_base_test", 2343)],
)
def test_real_transcripts_are_all_accounted_for(shared, name, num_read):
    loaded = load_preferences(shared / "data" / f"{name}.jsonl.gz")
    report = loaded.report
    assert report.data_format == "hh-rlhf"
    assert report.num_read == num_read
    assert report.num_kept == len(loaded.pairs) == num_read - sum(report.left_out().values())
    assert report.num_empty == 4
    assert all(pair.prompt.endswith("\n\nAssistant:") for pair in loaded.pairs)
    assert all(pair.prompt.startswith("\n\nHuman:") for pair in loaded.pairs)
    train, test = split_by_prompt(loaded.pairs, 0.1, seed=0)
    assert not {pair.prompt for pair in train} & {pair.prompt for pair in test}


def test_real_transcripts_are_kept_to_the_letter(shared):
    import gzip

    source = shared / "data" / "hh_harmless_base_test.jsonl.gz"
    with gzip.open(source, "rt", encoding="utf-8") as stream:
        texts = {(row["chosen"], row["rejected"]) for row in map(json.loads, stream)}
    for pair in load_preferences(source).pairs:
        assert (pair.prompt + pair.chosen, pair.prompt + pair.rejected) in texts


def pair_key(pair):
    return pair.prompt, pair.chosen, pair.rejected


@settings(max_examples=60, deadline=None)
@given(st.lists(pairs(), min_size=1, max_size=5, unique_by=pair_key))
def test_saved_pairs_load_the_same(saved):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pairs.jsonl"
        save_preferences(path, saved)
        assert list(load_preferences(path).pairs) == saved
        assert list(load_preferences(path, "trl-explicit").pairs) == saved


FRACTIONS = st.floats(0.01, 0.99)


@settings(max_examples=60, deadline=None)
@given(st.lists(pairs(), min_size=2, max_size=12), FRACTIONS, st.integers(0, 5), st.randoms())
def test_a_split_keeps_every_pair_and_leaks_no_prompt(some, fraction, seed, random):
    some = (
        some
        + [PreferencePair(pair.prompt, "x", "y") for pair in some]
        + [pair_of("p"), pair_of("q")]
    )
    train, test = split_by_prompt(some, fraction, seed)
    assert train
    assert test
    assert sorted(map(repr, train + test)) == sorted(map(repr, some))
    assert not {pair.prompt for pair in train} & {pair.prompt for pair in test}
    shuffled = random.sample(some, len(some))
    assert {p.prompt for p in split_by_prompt(shuffled, fraction, seed)[1]} == {
        p.prompt for p in test
    }


def pair_of(prompt):
    return PreferencePair(prompt, "good", "bad")


def test_a_split_has_the_asked_share_and_follows_the_seed():
    some = [pair_of(f"prompt {number}") for number in range(200)]
    train, test = split_by_prompt(some, 0.1, seed=0)
    assert (len(train), len(test)) == (180, 20)
    assert split_by_prompt(some, 0.1, seed=0) == (train, test)
    assert split_by_prompt(some, 0.1, seed=1)[1] != test
    assert [pair for pair in some if pair in test] == test
    moved = {p.prompt for p in split_by_prompt(some[1:], 0.1, seed=0)[1]} ^ {p.prompt for p in test}
    assert len(moved) <= 2


@pytest.mark.parametrize("fraction", [0.01, 0.99])
def test_each_side_of_a_split_has_a_prompt(fraction):
    assert [len(part) for part in split_by_prompt([pair_of("p"), pair_of("q")], fraction, 0)] == [
        1,
        1,
    ]


def test_prompts_that_differ_in_case_and_spacing_stay_together():
    same = [pair_of(prompt) for prompt in ["Name a  tree.", " name a tree.\n", "NAME A\tTREE."]]
    for seed in range(10):
        train, test = split_by_prompt([*same, pair_of("Name a bird.")], 0.5, seed)
        assert {len(train), len(test)} == {1, 3}


def test_the_role_of_a_message_makes_a_prompt_another():
    two = [pair_of((Message(role, "Hi"),)) for role in ("user", "system")]
    assert [len(part) for part in split_by_prompt(two, 0.5, 0)] == [1, 1]


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, 1.5])
def test_a_share_out_of_range_is_refused(fraction):
    with pytest.raises(ConfigError, match="test_fraction between 0 and 1"):
        split_by_prompt([pair_of("p"), pair_of("q")], fraction, 0)


def test_one_prompt_cannot_be_split():
    with pytest.raises(EmptySetError, match="at least 2 prompts to split, got 1"):
        split_by_prompt([pair_of("p"), pair_of("P")], 0.5, 0)


def test_blank_responses_of_a_policy_are_kept_where_asked(tmp_path):
    pairs = (PreferencePair("p", "good", ""), PreferencePair("p", " \n", "bad"))
    save_preferences(tmp_path / "pairs.jsonl", [*pairs, PreferencePair(" ", "a", "b")])
    loaded = load_preferences(tmp_path / "pairs.jsonl", keep_blank=True)
    assert loaded.pairs == pairs
    assert loaded.report.num_empty == 1


def test_pairs_whose_prompt_is_tested_are_left_out():
    turns = (Message("user", "Which way?"),)
    train = [PreferencePair(p, "c", "r") for p in ("a", "b  C", turns, "d")]
    tested = [PreferencePair(p, "x", "y") for p in ("B c\n", (Message("user", "which  way?"),))]
    assert [pair.prompt for pair in without_prompts_of(train, tested)] == ["a", "d"]
    assert without_prompts_of(train, []) == train
    with pytest.raises(EmptySetError, match="all 2 share theirs"):
        without_prompts_of(train[1:3], tested)


def test_unseen_prompts_keep_their_order_and_come_once():
    assert unseen_prompts(["d", "a", "A", "c", "b b"], ["B  B"]) == ["d", "a", "c"]
    assert unseen_prompts([], ["a"]) == []


def test_accuracy_is_told_by_pairs_that_no_strategy_picked(tmp_path):
    by = ["random", "d-optimal", "", "package.module:mine", "random"]
    pairs = [PreferencePair(f"q{n}", "a", "b", chosen_by=name) for n, name in enumerate(by)]
    save_preferences(tmp_path / "chosen.jsonl", pairs)
    loaded = list(load_preferences(tmp_path / "chosen.jsonl").pairs)
    assert loaded == pairs
    assert without_picked(loaded, "labels") == [pairs[0], pairs[2], pairs[4]]
    with pytest.raises(EmptySetError, match=r"labels: .*got 1 .*d-optimal.* Choose with `mix`"):
        without_picked(pairs[1:2], "labels")


def test_a_column_of_numbers_is_no_choice(tmp_path):
    row = {"prompt": "q", "chosen": "a", "rejected": "b", "chosen_by": 3}
    rows = write_rows(tmp_path / "rows.jsonl", row)
    assert load_preferences(rows).pairs == (PreferencePair("q", "a", "b"),)
