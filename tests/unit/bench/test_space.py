# SPDX-License-Identifier: Apache-2.0
"""What a method has to tune: only settings that do anything in it, around its own values."""

from dataclasses import replace

import pytest

from metarm.bench.recipes import Recipe, read_recipe
from metarm.bench.settings import HeadSettings, RangeSettings
from metarm.bench.space import apply_settings, search_space
from metarm.errors import ConfigError

HEAD = HeadSettings()


@pytest.mark.parametrize(
    ("method", "names"),
    [
        ("plain", ["learning_rate", "weight_decay"]),
        ("joint", ["strength", "learning_rate", "weight_decay", "num_groups"]),
        ("descent+10-labels", ["strength", "learning_rate", "weight_decay", "num_groups"]),
        ("descent-auto", ["reward_fraction", "learning_rate", "weight_decay", "num_groups"]),
        ("sam", ["strength", "learning_rate", "weight_decay"]),
        ("domain-invariant", ["learning_rate", "weight_decay", "num_groups"]),
    ],
)
def test_only_settings_that_do_anything(method: str, names: list[str]) -> None:
    assert list(search_space(read_recipe(method), HEAD, {})) == names


def test_strength_is_searched_around_the_methods_own() -> None:
    found = search_space(read_recipe("descent"), HEAD, {})["strength"]
    assert (found.low, found.default, found.high) == pytest.approx((0.3, 3.0, 30.0))


def test_a_range_of_ones_own_replaces_the_tables() -> None:
    given = {"num_groups": RangeSettings(low=15.6, high=64.2)}
    found = search_space(read_recipe("joint"), HEAD, given)["num_groups"]
    assert (found.low, found.high, found.is_whole) == (16, 64, True)
    with pytest.raises(ConfigError, match=r"the default 32 in it.*got 64 to 128"):
        search_space(read_recipe("joint"), HEAD, {"num_groups": RangeSettings(low=64, high=128.0)})


def test_values_reach_the_recipe_and_the_head() -> None:
    values = {"strength": 0.7, "learning_rate": 0.002, "weight_decay": 0.5, "num_groups": 12.0}
    recipe, head = apply_settings(read_recipe("joint"), HEAD, values)
    assert recipe == replace(Recipe(), step="joint", strength=0.7)
    assert head == HeadSettings(learning_rate=0.002, weight_decay=0.5, num_groups=12)
