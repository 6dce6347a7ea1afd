# SPDX-License-Identifier: Apache-2.0
"""The headline says what the numbers say: direction, size, and whether zero is inside."""

import json
import re
import shutil
from dataclasses import replace

import pytest

from metarm.reports.headline import arm_description, basis, headline
from metarm.reports.page import summary_table
from metarm.reports.read_run import read_run
from metarm.schema import Estimate


def accuracies(with_accuracy, table, noise=0.002):
    """A change of scorecards: final accuracy by arm, with a little made-up noise by seed."""

    def change(card):
        wobble = noise * ((card.seed * 7 + len(card.arm) * (card.seed + 1)) % 5 - 2)
        return with_accuracy(card, table[card.arm] + wobble)

    return change


def point_of(told, arm):
    (found,) = [point for point in told.points if point.startswith(f"{arm} (")]
    return found


@pytest.mark.parametrize(
    ("meta", "words", "sign"),
    [
        (0.75, "higher, distinguishable from zero", r"\+0\.1\d\d \[\+"),
        (0.45, "lower, distinguishable from zero", r"-0\.1\d\d \[-"),
        (0.60, "not distinguishable from zero", r"[+-]0\.00\d \[-"),
    ],
)
@pytest.mark.parametrize("seeds", [(0,), (0, 1, 2)])
def test_difference_to_plain(make_run, tmp_path, with_accuracy, meta, words, sign, seeds):
    table = {"sft": 0.71, "frozen": 0.58, "plain": 0.60, "meta": meta, "labels": 0.66}
    change = accuracies(with_accuracy, table)
    told = headline(read_run(make_run(tmp_path / "run", seeds=seeds, change=change)))
    sentence = (
        point_of(told, "meta").split("pairs ")[-1].split("; accuracy ")[-1].split("; gold")[0]
    )
    assert re.search(rf"difference to plain {sign}[^:]*: {words}", sentence), sentence
    assert ("not distinguishable" in sentence) == (words == "not distinguishable from zero")


@pytest.mark.parametrize(
    ("start", "verb"), [(0.71, "fell from 0.71"), (0.45, "rose from 0.4"), (0.58, "went from 0.5")]
)
def test_lead_says_which_way_accuracy_went(make_run, tmp_path, with_accuracy, start, verb):
    table = {"sft": start, "frozen": 0.58, "plain": 0.60, "meta": 0.6, "labels": 0.66}
    told = headline(
        read_run(make_run(tmp_path / "run", seeds=(0,), change=accuracies(with_accuracy, table)))
    )
    assert told.lead.startswith("After 3 rounds of frozen (reward model not retrained)")
    accuracy = told.lead.split("; the gold")[0]
    assert f"own pairs {verb}" in accuracy
    assert accuracy.endswith("not distinguishable from zero") == verb.startswith("went")


def test_lead_says_which_way_gold_went(make_run, tmp_path):
    def change(card):
        value = 0.5 if card.arm == "sft" else -0.25
        return replace(card, gold_score=Estimate(value, value - 0.01, value + 0.01, 256))

    told = headline(read_run(make_run(tmp_path / "run", seeds=(0,), change=change)))
    assert "the gold score fell from 0.500 to -0.250, change -0.750" in told.lead


def test_an_arm_of_the_users_own_is_told_by_its_settings(make_run, tmp_path):
    run = read_run(make_run(tmp_path / "run", arms=("sft", "mine", "other"), seeds=(0,)))
    told = headline(run)
    assert run.baseline == "mine"
    assert told.lead.startswith("After 3 rounds of mine (MetaRM, joint loss L - weight * J)")
    assert "difference to mine" in point_of(told, "other")
    assert "joint loss L - weight * J, on the policy's unlabelled" in arm_description(run, "mine")


def test_a_reservoir_is_told(make_run, tmp_path):
    folder = make_run(tmp_path / "run", arms=("sft", "mine", "other"), seeds=(0,))
    settings = json.loads((folder / "config.yaml").read_text("utf-8"))
    settings["custom_arms"]["other"] = {"meta_reservoir": 6}
    (folder / "config.yaml").write_text(json.dumps(settings), encoding="utf-8")
    told = headline(read_run(folder))
    assert point_of(told, "other").startswith(
        "other (MetaRM, joint loss L - weight * J, 6 groups of earlier rounds kept)"
    )
    assert "earlier rounds" not in told.lead


def test_plain_is_compared_with_the_frozen_reward_model(make_run, tmp_path, with_accuracy):
    table = {"sft": 0.71, "frozen": 0.50, "plain": 0.60, "meta": 0.6, "labels": 0.66}
    run = read_run(make_run(tmp_path / "run", change=accuracies(with_accuracy, table)))
    assert run.baselines == ("plain", "frozen")
    assert re.search(
        r"accuracy 0\.\d{3}, difference to frozen \+0\.[01]\d\d \[.*: higher, distinguishable",
        point_of(headline(run), "plain"),
    )


def test_what_labels_get_beside_their_number_is_told(make_run, tmp_path):
    text = arm_description(read_run(make_run(tmp_path / "run", seeds=(0,))), "labels")
    assert "50 more pairs" in text
    assert "without noise" in text
    assert "8 times (so with more optimiser steps)" in text


def test_without_gold_only_label_free_figures_are_told(make_run, tmp_path):
    arms = ("sft", "frozen", "plain", "meta")
    told = headline(read_run(make_run(tmp_path / "run", arms=arms, gold=False)))
    assert "spread of reward gaps" in told.lead
    assert "fell from 1.00" in told.lead
    assert "own pairs" not in told.lead
    assert "cannot be read from these figures" in told.points[-1]


def test_unfinished_rounds_are_counted_against_the_plan(make_run, tmp_path):
    told = headline(read_run(make_run(tmp_path / "run", rounds=2, planned_rounds=5, seeds=(0,))))
    assert told.lead.startswith("After 2 of 5 planned rounds")


def test_only_a_start(make_run, tmp_path):
    told = headline(read_run(make_run(tmp_path / "run", arms=("sft",), seeds=(0,))))
    assert told.lead.startswith("No arm has finished a round")


def test_basis_says_what_an_interval_leaves_out(make_run, tmp_path):
    one = basis(read_run(make_run(tmp_path / "one", seeds=(4,))))
    assert "one seed (4), 256 prompts" in one
    assert "leave out the randomness of training" in one
    three = basis(read_run(make_run(tmp_path / "three", seeds=(0, 1, 5))))
    assert "3 seeds (0, 1, 5)" in three
    assert "paired by seed" in three
    assert "randomness of training" not in three
    assert "share one drawn true reward (world.seed=0)" in three


def test_basis_names_the_arms_that_only_one_seed_has_finished(make_run, tmp_path):
    def change(card):
        return None if (card.arm, card.seed, card.round) == ("meta", 1, 3) else card

    told = basis(read_run(make_run(tmp_path / "run", seeds=(0, 1), change=change)))
    assert "Only one seed has got this far in meta:" in told


def test_a_new_task_is_told_beside_the_original_one(make_run, tmp_path, with_accuracy):
    """Policies are optimised on it: what became of it is the result, not a table further down."""

    def lose(card):
        return with_accuracy(card, 0.9 - 0.2 * card.round)

    arms = ("sft", "frozen", "plain")
    folder = make_run(tmp_path / "run", arms=arms)
    new = make_run(tmp_path / "new", arms=arms, change=lose)
    for path in new.glob("seed_*/arms/*/round_*/evaluation"):
        target = folder / path.relative_to(new).with_name("evaluation_new_task")
        shutil.copytree(path, target)
    told = headline(read_run(folder))
    assert told.lead.startswith("Original task: after 3 rounds of frozen")
    lead, plain = (text for text in told.points if text.startswith("New task: "))
    assert "after 3 rounds of frozen" in lead
    assert "own pairs fell from 0.900 to 0.300" in lead
    assert plain.startswith("New task: plain (retrained on original pairs)")
    table, text = summary_table(folder).split("On the new task, which policies were optimised on:")
    assert [line.split(",")[0] for line in text.split("\n\n")[0].splitlines()[2:]] == list(arms)
    assert "accuracy, original" in table
    assert "0.300" in text.split("\n\n")[0]
