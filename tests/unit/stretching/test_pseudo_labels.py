# SPDX-License-Identifier: Apache-2.0
"""What becomes a pseudo-label, and when accuracy counts as dropped."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from metarm.data.derived import group_id
from metarm.errors import ConfigError
from metarm.schema import PreferencePair, ResponseGroup
from metarm.stretching.pseudo_labels import (
    draw_candidates,
    most_pseudo_labels,
    paired_change,
    pseudo_label,
    take_confident,
    without_known,
)
from metarm.stretching.rounds import best_round

GROUPS = [ResponseGroup(f"p{n}", (" a", " b", " c", " c", f" {n}")) for n in range(30)]


def test_candidates_are_pairs_of_one_group_in_an_order_that_says_nothing() -> None:
    found = draw_candidates(GROUPS, 4, 0)
    assert found == draw_candidates(GROUPS, 4, 0)
    assert found != draw_candidates(GROUPS, 4, 1)
    assert len(found) == 120
    of = {group.prompt: group for group in GROUPS}
    for candidate in found:
        group = of[candidate.prompt]
        assert {candidate.first, candidate.second} <= {*group.responses}
        assert candidate.first != candidate.second
        assert candidate.parent_id == group_id(group)
    assert 40 < sum(candidate.first < candidate.second for candidate in found) < 80
    assert len(draw_candidates(GROUPS[:1], 99, 0)) == 6, "equal responses count once"


def test_known_pairs_are_no_candidates_in_either_order_and_others_are_once() -> None:
    twice = [*GROUPS, ResponseGroup("P0", (" b", " a"))]
    found = draw_candidates(twice, 6, 0)
    known = [PreferencePair("p1 ", " b", " a"), PreferencePair("p2", " a", " 2")]
    kept = without_known(found, known)

    def sides(candidates, prompt) -> list[list[str]]:
        own = [c for c in candidates if c.prompt.casefold() == prompt]
        return sorted(sorted((c.first, c.second)) for c in own)

    assert len(sides(found, "p0")) == 7
    assert len(sides(kept, "p0")) == 6
    assert sides(kept, "p1") == [pair for pair in sides(found, "p1") if pair != [" a", " b"]]
    assert sides(kept, "p2") == [pair for pair in sides(found, "p2") if pair != [" 2", " a"]]
    assert len(kept) == len(found) - 3
    assert without_known(kept, known) == kept


@given(
    st.lists(st.floats(0, 1), max_size=40),
    st.floats(0.5, 1),
    st.integers(0, 20),
    st.integers(0, 3),
)
def test_what_is_taken_is_sure_balanced_and_capped(chances, confidence, most, seed) -> None:
    taken = take_confident(chances, confidence=confidence, most=most, seed=seed)
    assert taken.tolist() == sorted(set(taken.tolist()))
    assert len(taken) <= most
    own = np.array(chances)[taken]
    assert (np.maximum(own, 1 - own) >= confidence - 1e-12).all()
    assert (own > 0.5).sum() == (own < 0.5).sum() == len(taken) / 2


def test_the_likelier_side_is_chosen_with_its_probability() -> None:
    candidates = draw_candidates(GROUPS[:2], 2, 0)
    chances = [0.9, 0.2, 0.6, 0.05]
    rows = pseudo_label(candidates, chances, [0, 1, 3])
    for row, place in zip(rows, (0, 1, 3), strict=True):
        candidate = candidates[place]
        first_wins = chances[place] > 0.5
        assert row.chosen == (candidate.first if first_wins else candidate.second)
        assert row.p == pytest.approx(max(chances[place], 1 - chances[place]))
        assert (row.source, row.parent_id) == ("pseudo-label", candidate.parent_id)


@given(st.integers(0, 1000), st.floats(0, 0.99))
def test_the_cap_is_the_largest_that_keeps_the_share(count: int, share: float) -> None:
    most = most_pseudo_labels(count, share)
    assert most <= share * (count + most) + 1e-6
    assert most + 1 > share * (count + most + 1) - 1e-6


def test_the_paired_test_is_the_t_test() -> None:
    draw = np.random.default_rng(0)
    before, after = draw.integers(0, 2, 50), draw.integers(0, 2, 50)
    expected = stats.ttest_rel(after, before, alternative="less").pvalue
    found = paired_change(after, before)
    assert found.p_value == pytest.approx(expected)
    assert found.is_drop(found.p_value)
    assert not found.is_drop(found.p_value / 2)
    assert paired_change([0, 0, 0], [1, 1, 1]).is_drop(0.01)
    assert not paired_change([1, 1], [0, 0]).is_drop(0.4)
    # Prompts, not pairs: ten copies of one prompt's pairs say no more than one.
    same = paired_change(np.tile(after, 10), np.tile(before, 10), [*range(50)] * 10)
    assert same.p_value == pytest.approx(expected, rel=0.05)


def test_what_is_out_of_range_is_refused() -> None:
    with pytest.raises(ConfigError, match="from 0 to below 1"):
        most_pseudo_labels(10, 1.0)
    with pytest.raises(ConfigError, match=r"from 0\.5 to 1"):
        take_confident([0.5], confidence=0.4, most=2, seed=0)


def test_small_losses_do_not_add_up_unseen() -> None:
    """Two of 60 held-out pairs lost a round: never a drop from the round before."""
    draw = np.random.default_rng(0)
    rights, steps, stops = [np.array([1.0] * 42 + [0.0] * 18)], [], []
    for _ in range(6):
        own = rights[-1].copy()
        right, wrong = np.flatnonzero(own == 1), np.flatnonzero(own == 0)
        own[draw.choice(right, 4, replace=False)] = 0
        own[draw.choice(wrong, 2, replace=False)] = 1
        steps.append(paired_change(own, rights[-1]).is_drop(0.2))
        stops.append(paired_change(own, rights[best_round(rights)]).is_drop(0.2))
        rights.append(own)
    assert not any(steps)
    assert stops[-1]
    assert best_round(rights) == 0


def test_of_equal_rounds_the_last_is_best() -> None:
    assert best_round([np.ones(3), np.array([1.0, 0.5, 0.5]), np.ones(3), np.zeros(3)]) == 2
