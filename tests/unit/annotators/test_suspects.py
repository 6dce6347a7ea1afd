# SPDX-License-Identifier: Apache-2.0
"""Bad annotators are named with their kind, good ones are not, at the rate that is stated."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from metarm.annotators.fitting import fit_annotators
from metarm.annotators.suspects import name_suspects
from metarm.errors import ConfigError
from metarm.labels.votes import Vote
from metarm.metrics import adjust_by_holm
from unit.annotators.crowds import draw_crowd


def named(crowd, **options):
    return {
        s.name: s.kind
        for s in name_suspects(fit_annotators(crowd.votes, crowd.features), **options)
    }


def test_the_four_bad_ones_are_named_and_no_good_one():
    crowd = draw_crowd(num_pairs=1500, votes_per_pair=1)
    assert named(crowd) == {
        "w6": "random",
        "w7": "random",
        "w8": "always-left",
        "w9": "adversarial",
    }


def test_nobody_is_named_in_a_good_crowd():
    crowds = [draw_crowd(("good",) * 6, num_pairs=300, votes_per_pair=1, seed=s) for s in range(4)]
    assert [named(crowd) for crowd in crowds] == [{}] * 4


def test_one_who_is_just_good_enough_is_seldom_named():
    """At the bound the level is alpha at most: more than 3 of 12 crowds are a chance of 0.002."""
    kinds = (0.9, 0.9, 0.9, 0.9, 0.45)
    hits = 0
    for seed in range(12):
        crowd = draw_crowd(kinds, num_pairs=300, votes_per_pair=1, seed=seed)
        hits += bool(named(crowd, least=0.45))
    assert hits <= 3
    assert stats.binom.sf(3, 12, 0.05) < 0.003


def test_in_a_crowd_that_tells_nothing_nobody_is_named():
    crowd = draw_crowd(("adversarial", "random", "random"), num_pairs=100, votes_per_pair=1)
    belief = fit_annotators(crowd.votes, model="majority")
    assert name_suspects(belief) == ()


def test_strangers_neither_are_named_nor_lower_what_is_typical():
    """Of whom nothing tells; a majority of them leaves the rest as it is."""
    crowd = draw_crowd(("good",) * 4 + ("adversarial",), num_pairs=300, votes_per_pair=3)
    strangers = [
        Vote(f"own {who} {n}", f"stranger {who}", "first") for who in range(8) for n in range(30)
    ]
    found = [
        {one.name: one.kind for one in name_suspects(fit_annotators(votes, model="dawid-skene"))}
        for votes in (crowd.votes, [*crowd.votes, *strangers])
    ]
    assert found == [{"w4": "adversarial"}] * 2
    assert name_suspects(fit_annotators(strangers), least=0.9) == ()


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_is_between_the_p_value_and_bonferronis(p_values):
    values = np.array(p_values)
    adjusted = adjust_by_holm(values)
    assert (adjusted >= values - 1e-12).all()
    assert (adjusted <= np.minimum(values * len(values), 1.0) + 1e-12).all()
    order = np.argsort(values, kind="stable")
    assert (np.diff(adjusted[order]) >= 0).all()


@pytest.mark.parametrize("options", [{"alpha": 0.0}, {"alpha": 1.0}, {"least": 1.0}])
def test_what_is_out_of_range_is_refused(options):
    crowd = draw_crowd(("good",), num_pairs=5, votes_per_pair=1)
    with pytest.raises(ConfigError):
        name_suspects(fit_annotators(crowd.votes, model="majority"), **options)
