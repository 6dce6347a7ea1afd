# SPDX-License-Identifier: Apache-2.0
"""Recipes do what they say: signs, costs, guards, and no look at what is tested."""

import math
from dataclasses import replace

import pytest
import torch

from metarm.bench.methods import train_recipe
from metarm.bench.recipes import METHODS, Recipe, read_recipe
from metarm.bench.settings import HeadSettings
from metarm.bench.trajectory import Cost, Trajectory
from metarm.errors import EmptySetError
from metarm.objectives import difference_loss

SETTINGS = HeadSettings(
    hidden=[8], num_steps=40, measure_every=20, batch_size=16, num_groups=8, learning_rate=1e-2
)


def difference_at_the_end(problem, recipe: Recipe, seed: int = 0) -> float:
    """J of the watched groups, in units of the spread of scores on original pairs."""
    scores = train_recipe(problem, recipe, SETTINGS, seed).scores[-1]
    groups = problem.watched_groups
    unit = scores[problem.pairs.unique()].std()
    return difference_loss(scores[groups.clamp(min=0)] / unit, groups >= 0).item()


def runnable(name: str) -> str:
    """A word that says which labels, with labels."""
    return f"20-labels+{name}" if "label_choice" in METHODS[name] else name


@pytest.mark.parametrize("name", map(runnable, METHODS))
def test_every_method_scores_every_text_and_repeats(made_up, name: str) -> None:
    _, problem = made_up()
    settings = SETTINGS.model_copy(update={"num_steps": 4, "measure_every": 2})
    found = train_recipe(problem, read_recipe(name), settings, 3)
    assert found.scores.shape == (2, len(problem.features))
    assert found.scores.isfinite().all()
    assert found.steps == (2, 4)
    assert found.cost.forward >= found.cost.backward > 0
    again = train_recipe(problem, read_recipe(name), settings, 3)
    assert torch.equal(found.scores, again.scores)
    other = train_recipe(problem, read_recipe(name), settings, 4)
    assert not torch.equal(found.scores, other.scores)


def test_signs_are_those_of_the_findings(made_up) -> None:
    """Ascent leaves the kept weights with less difference than plain, descent and joint more."""
    found = {}
    for name, step in (("plain", {}), ("ascent", {"step": "ascent", "strength": 1.0}),
                       ("descent", {"step": "descent", "strength": 1.0}),
                       ("joint", {"step": "joint", "strength": 0.5})):  # fmt: skip
        recipe = replace(Recipe(), **step)
        values = [difference_at_the_end(made_up(seed)[1], recipe, seed) for seed in range(4)]
        found[name] = sum(values) / 4
    assert found["ascent"] < found["plain"] < found["descent"]
    assert found["plain"] < found["joint"]


def test_no_strength_is_plain_training_bit_for_bit(made_up) -> None:
    _, problem = made_up()
    plain = train_recipe(problem, Recipe(), SETTINGS, 0)
    for step in ("ascent", "descent", "joint", "sam", "random"):
        found = train_recipe(problem, Recipe(step=step, strength=0.0), SETTINGS, 0)
        assert torch.equal(found.scores, plain.scores), step


def test_a_fraction_of_the_rewards_spread_does_not_depend_on_their_scale(made_up) -> None:
    """Features three times as large change eta's meaning, not that of a share of the spread."""
    _, problem = made_up()

    def gain(recipe: Recipe, scale: float) -> float:
        scaled = replace(problem, features=problem.features * scale)
        return difference_at_the_end(scaled, recipe) / difference_at_the_end(scaled, Recipe())

    shares, raws = (
        [gain(recipe, scale) for scale in (1.0, 3.0)]
        for recipe in (Recipe(step="descent", reward_fraction=0.3), Recipe("descent", 1.0))
    )
    assert min(*shares, *raws) > 1.0
    assert abs(shares[1] / shares[0] - 1) < abs(raws[1] / raws[0] - 1)


def test_ensembles_that_differ_in_how_they_are_put_together_share_their_members(made_up) -> None:
    _, problem = made_up()
    names = ("ensemble-mean", "ensemble-uncertainty", "weight-average")
    known: dict = {}
    sizes = []
    for name in names:
        alone = train_recipe(problem, read_recipe(name), SETTINGS, 0)
        shared = train_recipe(problem, read_recipe(name), SETTINGS, 0, known=known)
        assert torch.equal(alone.scores, shared.scores), name
        assert alone.cost.forward == shared.cost.forward, "each is charged for all of its members"
        sizes.append(len(known))
    assert sizes == [4, 4, 8]


def test_a_teacher_that_is_there_already_is_not_trained_again(made_up) -> None:
    _, problem = made_up()
    plain = train_recipe(problem, Recipe(), SETTINGS, 0)
    alone = train_recipe(problem, read_recipe("west-of-n"), SETTINGS, 0)
    given = train_recipe(problem, read_recipe("west-of-n"), SETTINGS, 0, plain=plain)
    assert torch.equal(alone.scores, given.scores)
    assert alone.cost.forward == given.cost.forward


def test_a_guarded_training_that_diverges_is_not_held(made_up) -> None:
    """Scores that are not finite agree with nothing; the mean rank correlation refuses them."""
    _, problem = made_up()
    recipe = Recipe(step="joint", strength=math.inf, least_rank_correlation=0.7)
    found = train_recipe(problem, recipe, SETTINGS, 0)
    assert torch.equal(found.scores, train_recipe(problem, Recipe(), SETTINGS, 0).scores)
    assert set(found.strength) == {0.0}


def test_the_guard_gives_plain_where_nothing_passes_it(made_up) -> None:
    _, problem = made_up()
    plain = train_recipe(problem, Recipe(), SETTINGS, 0)
    recipe = Recipe(step="joint", strength=50.0, least_rank_correlation=1.1)
    found = train_recipe(problem, recipe, SETTINGS, 0)
    assert torch.equal(found.scores, plain.scores)
    assert found.cost.forward == 3 * plain.cost.forward, "the plain twin is paid for too"
    loose = replace(recipe, least_rank_correlation=-1.0)
    assert not torch.equal(train_recipe(problem, loose, SETTINGS, 0).scores, plain.scores)


def test_the_guard_leaves_the_other_parts_of_a_recipe_alone(made_up) -> None:
    _, problem = made_up()
    strict = Recipe(step="joint", strength=50.0, least_rank_correlation=1.1, num_labels=20)
    found = train_recipe(problem, strict, SETTINGS, 0)
    labels = train_recipe(problem, Recipe(num_labels=20), SETTINGS, 0)
    assert torch.equal(found.scores, labels.scores)
    again = replace(strict, seed_offset=1)
    assert torch.equal(
        train_recipe(problem, again, SETTINGS, 0).scores,
        train_recipe(problem, Recipe(num_labels=20), SETTINGS, 1).scores,
    )


def test_labels_are_used_where_they_are_asked_for(made_up) -> None:
    _, problem = made_up()
    without = replace(problem, own_labels=problem.own_labels[:0])
    for name, words in (("oracle", "uses all labelled"), ("5-labels", "uses 5 labelled")):
        with pytest.raises(EmptySetError, match=f"{words} shifted pairs, and there are 0"):
            train_recipe(without, read_recipe(name), SETTINGS, 0)
    with pytest.raises(EmptySetError, match="uses 9000 labelled shifted pairs, and there are 80"):
        train_recipe(problem, read_recipe("9000-labels"), SETTINGS, 0)
    for name in ("plain", "descent", "joint", "west-of-n", "ensemble-mean", "importance-weighted"):
        assert torch.equal(
            train_recipe(problem, read_recipe(name), SETTINGS, 0).scores,
            train_recipe(without, read_recipe(name), SETTINGS, 0).scores,
        ), f"{name} looked at labels"


def test_pessimism_lies_between_minimum_and_mean(made_up) -> None:
    _, problem = made_up()
    mean, *soft = (
        train_recipe(problem, Recipe(members=3, pessimism=beta), SETTINGS, 0).scores[-1]
        for beta in (None, 10.0, 1.0, 0.01)
    )
    for milder, stronger in zip([mean, *soft], soft, strict=False):
        assert (stronger <= milder + 1e-5).all()


def test_groups_by_source_change_nothing_but_which_groups_are_drawn(made_up) -> None:
    _, problem = made_up()
    names = tuple("wide" if row % 3 else "blind" for row in range(len(problem.groups)))
    mixed = replace(problem, sources=names)
    joint = train_recipe(problem, read_recipe("joint"), SETTINGS, 0)
    for name in ("even-sources", "lost-sources"):
        alone = train_recipe(mixed, read_recipe(name), SETTINGS, 0)
        assert torch.equal(alone.scores, train_recipe(mixed, Recipe(), SETTINGS, 0).scores)
        one = train_recipe(problem, read_recipe(f"joint+{name}"), SETTINGS, 0)
        assert torch.equal(one.scores, joint.scores), "one source is as if there were none"
        several = train_recipe(mixed, read_recipe(f"joint+{name}"), SETTINGS, 0)
        assert not torch.equal(several.scores, joint.scores)
        assert several.cost.forward > joint.cost.forward, "measuring costs forward passes"
        assert several.cost.backward == joint.cost.backward


def test_no_point_is_taken_where_the_guard_does_not_hold() -> None:
    scores = torch.zeros(3, 2)
    free = Trajectory((1, 2, 3), scores, (0.5, 0.6, 0.9), Cost())
    assert free.best == 2
    assert replace(free, held=(True, True, False)).best == 1
    assert replace(free, held=(True, False, False)).best == 0
