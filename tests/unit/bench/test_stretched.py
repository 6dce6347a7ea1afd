# SPDX-License-Identifier: Apache-2.0
"""Stretching on the bench: what is trained on, what it costs, and that no test pair is in it."""

from dataclasses import replace

import pytest
import torch

from metarm.bench.fitting import build_network, train_network
from metarm.bench.methods import train_recipe
from metarm.bench.networks import FeatureHead
from metarm.bench.problem import SoftPairs
from metarm.bench.recipes import Recipe, read_recipe
from metarm.bench.settings import HeadSettings
from metarm.bench.stretched import with_made_rows
from metarm.data.derived import check_apart
from metarm.errors import EmptySetError

SETTINGS = HeadSettings(
    hidden=[8], num_steps=40, measure_every=20, batch_size=16, num_groups=8, learning_rate=1e-2
)


def test_names_of_made_rows_are_added_up() -> None:
    found = read_recipe("cross-prompt+neutral+100-labels")
    assert found == Recipe(augments=("cross-prompt", "neutral"), num_labels=100)
    assert read_recipe("30-labels-apart") == Recipe(num_labels=30, own_head=True)
    assert read_recipe("pseudo-rounds").num_heads == 4
    assert read_recipe("reward-centring+pseudo-rounds").num_heads == 5


def test_made_rows_are_of_training_prompts_and_stand_last_among_the_texts(made_up) -> None:
    shift, problem = made_up()
    check_apart(shift.augmented, [*shift.test_original, *shift.test_shifted], "test pairs")
    bare = replace(shift, augmented=())
    assert shift.texts[: len(bare.texts)] == bare.texts
    assert len(shift.texts) > len(bare.texts)
    assert shift.digest() == bare.digest(), "cells of other methods stay what they are"
    tested = {shift.texts[row][0] for row in problem.validation.reshape(-1).tolist()}
    for kind, (rows, labels) in problem.made.items():
        assert len(rows) == len(labels) > 0, kind
        assert tested.isdisjoint(shift.texts[row][0] for row in rows.reshape(-1).tolist())
    assert set(problem.made["neutral"].labels.tolist()) == {0.5}
    assert set(problem.made["cross-prompt"].labels.tolist()) == {1.0}
    rows, labels = problem.made["stronger-weaker"]
    assert labels.tolist() == pytest.approx([0.8] * len(rows))
    strong = {response for group in shift.groups for response in group.responses}
    weak = {side for pair in shift.pairs for side in (pair.chosen, pair.rejected)}
    for better, worse in rows.tolist():
        assert shift.texts[better][1] in strong
        assert shift.texts[worse][1] in weak


def test_made_rows_change_training_and_soft_ties_hold_scores_together(made_up) -> None:
    _, problem = made_up()
    plain = train_recipe(problem, Recipe(), SETTINGS, 0)
    tied = train_recipe(problem, read_recipe("neutral"), SETTINGS, 0)
    rows = problem.made["neutral"].rows
    before, after = (
        (t.scores[-1][rows[:, 0]] - t.scores[-1][rows[:, 1]]).abs().mean()
        / t.scores[-1][problem.unit_rows].std()
        for t in (plain, tied)
    )
    assert after < before
    with pytest.raises(EmptySetError, match="no row of the kind 'neutral'"):
        with_made_rows(replace(problem, made={}), ["neutral"])


def test_a_hard_soft_label_is_a_pair(made_up) -> None:
    """Extra pairs with label 1 are labelled pairs; with label 0 they are turned ones."""
    _, problem = made_up()
    own = problem.own_labels[:10]
    there = replace(problem, extra=SoftPairs(own.repeat(10, 1), torch.ones(100)))
    turned = replace(problem, extra=SoftPairs(own.flip(1).repeat(10, 1), torch.zeros(100)))
    found, other = (train_recipe(p, Recipe(), SETTINGS, 0).scores for p in (there, turned))
    labels = train_recipe(problem, read_recipe("10-labels"), SETTINGS, 0).scores
    assert torch.allclose(found, labels, atol=1e-5)
    assert torch.allclose(other, labels, atol=1e-5)


def test_pseudo_labels_cost_their_teacher_and_look_at_no_label(made_up) -> None:
    _, problem = made_up()
    # Of pairs that it was trained on a teacher is sure.
    problem = replace(problem, validation=problem.pairs, groups=problem.pairs)
    plain = train_recipe(problem, Recipe(), SETTINGS, 0)
    found = train_recipe(problem, read_recipe("pseudo-labels"), SETTINGS, 0)
    given = train_recipe(problem, read_recipe("pseudo-labels"), SETTINGS, 0, plain=plain)
    assert torch.equal(found.scores, given.scores)
    assert found.cost.forward == given.cost.forward == 2 * plain.cost.forward
    blind = replace(problem, own_labels=problem.own_labels.flip(1))
    assert torch.equal(train_recipe(blind, read_recipe("pseudo-labels"), SETTINGS, 0).scores,
                       found.scores)  # fmt: skip
    rounds = train_recipe(problem, read_recipe("pseudo-rounds"), SETTINGS, 0)
    assert 2 <= rounds.cost.forward / plain.cost.forward <= 4


def test_no_pair_is_both_labelled_and_pseudo_labelled(made_up, monkeypatch) -> None:
    """Its label is known: a soft one beside it would say the opposite where the teacher errs."""
    _, problem = made_up()
    pairs = problem.pairs
    # Of pairs that it was trained on a teacher is sure.
    problem = replace(problem, validation=pairs, groups=pairs, own_labels=pairs)
    extras = []

    def see(of, recipe, settings, seed, **options):
        extras.append(of.extra)
        return train_network(of, recipe, settings, seed, **options)

    monkeypatch.setattr("metarm.bench.methods.train_network", see)
    train_recipe(problem, read_recipe("30-labels+pseudo-labels"), SETTINGS, 0)
    labelled = {frozenset(pair) for pair in problem.own_labels[:30].tolist()}
    (pseudo,) = [extra for extra in extras if extra is not None]
    named = {frozenset(pair) for pair in pseudo.rows.tolist()}
    assert named
    assert named.isdisjoint(labelled)
    extras.clear()
    # With all of them labelled there is nothing left to label.
    train_recipe(problem, read_recipe("oracle+pseudo-labels"), SETTINGS, 0)
    assert extras == [None, None]


def test_a_teacher_whose_gaps_say_nothing_labels_nothing(made_up) -> None:
    _, problem = made_up()
    plain = train_recipe(problem, Recipe(), SETTINGS, 0)
    coin = replace(problem, validation=torch.cat([problem.validation, problem.validation.flip(1)]))
    found = train_recipe(coin, read_recipe("pseudo-rounds"), SETTINGS, 0)
    assert torch.equal(found.scores, plain.scores)
    assert found.cost.forward == plain.cost.forward


def test_a_turned_pair_with_the_opposite_label_is_the_same_pair_to_sam_too(made_up) -> None:
    _, problem = made_up()
    rows = problem.pairs[:20]
    told = (SoftPairs(rows, torch.ones(20)), SoftPairs(rows.flip(1), torch.zeros(20)))
    one, other = (
        train_recipe(replace(problem, extra=extra), read_recipe("sam"), SETTINGS, 0).scores[-1]
        for extra in told
    )
    assert torch.allclose(one, other, atol=1e-4, equal_nan=True)


def test_what_stays_where_no_round_helps_is_the_recipe_without_them(made_up) -> None:
    _, problem = made_up()
    coin = replace(problem, validation=torch.cat([problem.validation, problem.validation.flip(1)]))
    for name in ("reward-centring", "5-labels"):
        alone = train_recipe(coin, read_recipe(name), SETTINGS, 0)
        found = train_recipe(coin, read_recipe(f"{name}+pseudo-labels"), SETTINGS, 0)
        assert torch.equal(found.scores, alone.scores)
        assert found.cost.forward == 2 * alone.cost.forward


def test_two_tasks_have_two_last_layers_over_one_trunk(made_up) -> None:
    _, problem = made_up()
    network = build_network(problem, SETTINGS, 0, Recipe(num_labels=5, own_head=True))
    rows = torch.arange(6)
    is_own = torch.tensor([True, False, True, False, True, False])
    hidden = network.hidden(rows)
    expected = [
        (network.own_score if own else network.score)(state).item()
        for own, state in zip(is_own.tolist(), hidden, strict=True)
    ]
    assert network.by_task(rows, is_own).tolist() == pytest.approx(expected)
    assert torch.equal(network(rows), network.own_score(hidden).squeeze(-1))
    apart = train_recipe(problem, read_recipe("10-labels-apart"), SETTINGS, 0)
    together = train_recipe(problem, read_recipe("10-labels"), SETTINGS, 0)
    assert not torch.equal(apart.scores, together.scores)
    assert apart.cost.forward == together.cost.forward


def test_a_member_knows_its_own_rows_in_its_bootstrap_draw(made_up, monkeypatch) -> None:
    """Drawn rows keep their task: every pair of shifted texts goes to the layer of its own."""
    _, problem = made_up()
    shifted = set(problem.own_labels.reshape(-1).tolist())
    seen: list[tuple[list[int], list[bool]]] = []
    by_task = FeatureHead.by_task

    def see(network, rows, is_own):
        seen.append((rows.tolist(), is_own.tolist()))
        return by_task(network, rows, is_own)

    monkeypatch.setattr(FeatureHead, "by_task", see)
    train_recipe(problem, read_recipe("ensemble-mean+10-labels-apart"), SETTINGS, 0)
    tasks = [(row in shifted, own) for both in seen for row, own in zip(*both, strict=True)]
    assert {own for _, own in tasks} == {True, False}
    assert all(is_shifted == own for is_shifted, own in tasks)


def test_regularised_heads_start_as_plain_ones_do(made_up) -> None:
    _, problem = made_up()
    plain = build_network(problem, SETTINGS, 3)
    for name in ("dropout", "reconstruct", "5-labels-apart"):
        network = build_network(problem, SETTINGS, 3, read_recipe(name))
        assert torch.equal(network.trunk[0].weight, plain.trunk[0].weight), name
        assert torch.equal(network.score.weight, plain.score.weight), name
    network = build_network(problem, SETTINGS, 3, read_recipe("reconstruct"))
    rows = torch.arange(4)
    wanted = network.decoder(network.trunk(problem.features[rows]))
    error = (wanted - problem.features[rows]).square().mean().item()
    assert network.reconstruct(rows).item() == pytest.approx(error)
    decayed = train_recipe(problem, replace(Recipe(), weight_decay=50.0), SETTINGS, 0)
    assert decayed.scores[-1].std() < 0.8 * train_recipe(problem, Recipe(), SETTINGS,
                                                         0).scores[-1].std()  # fmt: skip
