# SPDX-License-Identifier: Apache-2.0
"""Heads trained together come out as they do one at a time, in float64 to the last digits."""

from dataclasses import replace

import pytest
import torch

from metarm.bench.methods import train_recipe
from metarm.bench.recipes import Recipe, read_recipe
from metarm.bench.settings import HeadSettings
from metarm.bench.stacked_heads import train_stacked
from metarm.errors import ConfigError, ShapeError

RECIPES = {
    "plain": Recipe(),
    "ascent": Recipe(step="ascent", strength=1.0),
    "descent": Recipe(step="descent", strength=2.0),
    "reward units": Recipe(step="descent", reward_fraction=0.5),
    "more of them": Recipe(step="ascent", reward_fraction=0.1),
    "joint": Recipe(step="joint", strength=0.5),
}


@pytest.fixture
def problems(made_up):
    """Two problems in float64, some of whose groups are smaller than the others."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    found = []
    for seed in range(2):
        problem = made_up(seed)[1]
        groups = problem.groups.clone()
        groups[::3, -1] = -1
        found.append(replace(problem, features=problem.features.double(), groups=groups))
    yield found
    torch.set_default_dtype(before)


@pytest.mark.parametrize("hidden", [[5], [6, 4]])
def test_stacked_heads_are_those_trained_alone(problems, hidden: list[int]) -> None:
    settings = HeadSettings(
        hidden=hidden, num_steps=25, measure_every=10, batch_size=16, num_groups=8,
        learning_rate=1e-2,
    )  # fmt: skip
    stacked = train_stacked(problems, list(RECIPES.values()), settings, [3, 8])
    for problem, seed, own in zip(problems, (3, 8), stacked, strict=True):
        for (name, recipe), found in zip(RECIPES.items(), own, strict=True):
            alone = train_recipe(problem, recipe, settings, seed)
            assert found.steps == alone.steps == (10, 20, 25)
            torch.testing.assert_close(found.scores, alone.scores, rtol=1e-7, atol=1e-9, msg=name)
            assert found.validation == alone.validation
            assert found.best == alone.best


def test_plain_heads_alone_are_stacked_too(problems) -> None:
    settings = HeadSettings(hidden=[5], num_steps=4, measure_every=2)
    ((found,), _) = train_stacked(problems, [Recipe()], settings, [1, 2])
    alone = train_recipe(problems[0], Recipe(), settings, 1)
    torch.testing.assert_close(found.scores, alone.scores, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "name", ["descent-auto", "sam", "ensemble-mean", "100-labels", "deployed-look-ahead"]
)
def test_what_is_more_than_a_step_is_refused(problems, name: str) -> None:
    with pytest.raises(ConfigError, match="train it with train_recipe"):
        train_stacked(problems, [read_recipe(name)], HeadSettings(), [0, 1])


def test_problems_of_two_sizes_are_refused(problems) -> None:
    smaller = replace(problems[0], pairs=problems[0].pairs[1:])
    with pytest.raises(ShapeError, match="of one size"):
        train_stacked([smaller, problems[1]], [Recipe()], HeadSettings(), [0, 1])
