# SPDX-License-Identifier: Apache-2.0
"""Names become recipes; what they want must go together."""

from dataclasses import replace

import pytest

from metarm.bench.recipes import METHODS, Recipe, read_recipe
from metarm.errors import ConfigError


def test_every_name_is_a_recipe_of_its_own() -> None:
    words = {name for name, changes in METHODS.items() if "label_choice" in changes}
    recipes = {n: read_recipe(f"9-labels+{n}" if n in words else n) for n in METHODS}
    assert len(set(recipes.values())) == len(recipes)
    assert recipes["plain"] == Recipe()


def test_parts_are_combined() -> None:
    found = read_recipe("descent+ensemble-mean+70-labels")
    assert (found.step, found.members, found.num_labels) == ("descent", 4, 70)
    assert read_recipe("ensemble-mean+descent+70-labels") == found


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("descnt", "unknown method 'descnt': did you mean 'descent'"),
        ("descent+", "unknown method ''"),
        ("0-labels", "unknown method '0-labels'"),
        ("descent+joint", "want step=descent and step=joint"),
        ("30-labels+50-labels", "want num_labels=30 and num_labels=50"),
        ("ensemble-uncertainty+weight-average", "averaged weights are one head"),
        ("oracle+100-labels", "the oracle has all labels already"),
        ("mix", "mix chooses labels, and it has none to choose; .* as in 100-labels[+]mix"),
        ("joint+d-optimal", "d-optimal chooses labels"),
        ("oracle+mix", "mix chooses labels, and it has none"),
        ("every-0", "unknown method 'every-0'"),
        ("joint+every-2+every-4", "want every=2 and every=4"),
        ("joint+every-4+stored-4", "want between=plain and between=stored"),
        ("joint+exact", "exact is about a look-ahead, and joint has none"),
        ("descent+finite-difference+stored-4", "leave stored-N and head-only out"),
        ("descent+exact+head-only", "leave stored-N and head-only out"),
    ],
)
def test_what_does_not_go_together_is_refused(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_recipe(name)


def test_a_meta_step_by_choice() -> None:
    assert read_recipe("joint+every-4") == replace(read_recipe("joint"), every=4)
    stored = replace(read_recipe("joint-auto"), every=8, between="stored", group_share=0.25)
    assert read_recipe("joint-auto+stored-8+quarter-groups") == stored
    exact = replace(read_recipe("descent@1"), every=2, order="exact", num_labels=30)
    assert read_recipe("descent@1+exact+every-2+30-labels") == exact
    assert exact.without_step == Recipe(num_labels=30)


def test_a_strength_of_ones_own() -> None:
    assert read_recipe("joint@0.1") == Recipe(step="joint", strength=0.1)
    assert read_recipe("descent@1+100-labels") == Recipe(
        step="descent", strength=1.0, num_labels=100
    )
    for name in ("plain@1", "joint@", "joint@-1", "joint@much", "joint@inf", "100-labels@2"):
        with pytest.raises(ConfigError, match="behind the @"):
            read_recipe(name)
