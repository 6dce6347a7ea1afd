# SPDX-License-Identifier: Apache-2.0
"""Weights of sources by what is lost, the batches they lead to, and what a resumed one draws."""

import itertools
import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metarm.data.meta_batches import draw_group_indices
from metarm.data.meta_mixture import DECAY, GroupMixture, share_batch, source_weights
from metarm.data.meta_mixture import sum_squared_gaps as gap_sums
from metarm.errors import ConfigError

SPREADS = st.lists(st.none() | st.floats(0, 5), min_size=1, max_size=6)
NAMES = ["a", "b", "b", "a", "b", "b", "b"]


@pytest.mark.parametrize(
    ("spreads", "floor", "weights"),
    [
        ([0.3], 0.25, [1.0]),
        ([1.0, 1.0], 0.25, [0.5, 0.5]),
        ([1.0, 0.5], 0.0, [1 / 3, 2 / 3]),
        ([1.0, 0.25], 0.5, [0.35, 0.65]),
        # Nothing lost is nothing lost, however wide; what is not known counts so too.
        ([4.0, None], 0.25, [0.5, 0.5]),
        # Blind: all but the others' floors, which are 1/4 of an even share.
        ([1.0, 0.0], 0.25, [0.125, 0.875]),
        ([0.0, 0.0, 1.0], 0.25, [11 / 24, 11 / 24, 1 / 12]),
        ([0.1, 0.9, 0.4], 1.0, [1 / 3, 1 / 3, 1 / 3]),
    ],
)
def test_weights_in_closed_form(spreads, floor, weights):
    assert source_weights(spreads, floor) == pytest.approx(weights, abs=1e-5)


@settings(deadline=None)
@given(SPREADS, st.floats(0, 1))
def test_weights_sum_to_one_above_the_floor_and_grow_with_what_is_lost(spreads, floor):
    weights = source_weights(spreads, floor)
    assert sum(weights) == pytest.approx(1.0)
    assert min(weights) >= floor / len(spreads) - 1e-12
    known = [(1.0 if s is None else s, w) for s, w in zip(spreads, weights, strict=True)]
    for (first, heavy), (second, light) in itertools.permutations(known, 2):
        assert first > second or heavy >= light - 1e-12


@settings(deadline=None)
@given(
    st.lists(st.floats(0.01, 1), min_size=1, max_size=5),
    st.integers(1, 40),
    st.integers(0, 99),
    st.integers(0, 2**32 - 1),
)
def test_shares_are_whole_and_next_to_the_weights(raw, batch_size, step, seed):
    weights = [value / sum(raw) for value in raw]
    counts = share_batch(weights, batch_size, step=step, seed=seed)
    assert sum(counts) == batch_size
    for weight, count in zip(weights, counts, strict=True):
        assert count >= 0
        assert abs(count - batch_size * weight) < 1 + 1e-9
    assert counts == share_batch(weights, batch_size, step=step, seed=seed)


def test_shares_are_the_weights_on_average():
    weights = [0.05, 0.6, 0.35]
    counts = torch.tensor([share_batch(weights, 4, step=s, seed=0) for s in range(4000)])
    means = counts.double().mean(0)
    # A count's standard deviation is at most 1/2: four standard errors are 0.032.
    assert means.tolist() == pytest.approx([4 * w for w in weights], abs=0.032)


def test_squared_gaps_by_hand():
    scores = torch.tensor([[1.0, 3.0, 99.0], [0.0, 1.0, -1.0]], dtype=torch.float64)
    mask = torch.tensor([[True, True, False], [True, True, True]])
    # Pairs: 2; then 1, 1, 2.
    assert gap_sums(scores, mask).tolist() == [4 + 1 + 1 + 4, 4]
    assert gap_sums(scores, mask & False).tolist() == [0, 0]


def feed(mixture, scores, sources, gaps):
    scores = torch.tensor(scores, dtype=torch.float64)
    mixture.see_groups(scores, torch.ones_like(scores, dtype=torch.bool), sources)
    # One side is not 0, so that the sides' order and what is shared are seen not to matter.
    rejected = torch.full((len(gaps),), 7.0, dtype=torch.float64)
    mixture.see_pairs(rejected + torch.tensor(gaps, dtype=torch.float64), rejected)
    return mixture.end_step()


def test_spreads_are_in_units_of_original_gaps_and_smoothed():
    mixture = GroupMixture(NAMES, floor=0.0, seed=0)
    assert mixture.spreads() == [None, None]
    first = feed(mixture, [[0, 1], [0, 2]], ["a", "b"], [2.0, -2.0])
    assert mixture.spreads() == pytest.approx([0.5, 1.0])
    assert first == pytest.approx(
        {"meta/weight_a": 2 / 3, "meta/weight_b": 1 / 3, "meta/spread_a": 0.5, "meta/spread_b": 1.0}
    )
    # All scores times ten: another unit, the same spreads.
    scaled = GroupMixture(NAMES, floor=0.0, seed=0)
    assert feed(scaled, [[0, 10], [0, 20]], ["a", "b"], [20.0, 20.0]) == pytest.approx(first)
    # Source a is wider now; b was not drawn and keeps its mean square.
    feed(mixture, [[0, 3]], ["a"], [2.0])
    squares = [(DECAY * 1 + 9) / (DECAY + 1), 4.0]
    unit = (DECAY * 8 + 4) / (DECAY * 2 + 1)
    assert mixture.spreads() == pytest.approx([math.sqrt(s / unit) for s in squares])


def test_a_source_without_a_name_is_called_unnamed():
    found = feed(GroupMixture(["", "b"], floor=0.5, seed=0), [[0, 1]], [""], [1.0])
    assert set(found) == {"meta/weight_unnamed", "meta/weight_b", "meta/spread_unnamed"}


def test_one_source_draws_what_was_drawn_before_there_were_any():
    for names in ([""] * 7, ["maths"] * 7):
        mixture = GroupMixture(names, floor=0.25, seed=5)
        for step in (0, 1, 4, 9):
            assert mixture.draw(4, step) == draw_group_indices(7, 4, step=step, seed=5)
            assert feed(mixture, [[0, 1]], names[:1], [1.0]) == {}


def test_each_sources_groups_come_in_passes():
    mixture = GroupMixture(NAMES, floor=1.0, seed=0)
    drawn = [index for step in range(30) for index in mixture.draw(4, step)]
    for name, size in (("a", 2), ("b", 5)):
        own = [index for index in drawn if NAMES[index] == name]
        assert len(own) == 60
        for start in range(0, len(own), size):
            assert len(set(own[start : start + size])) == size


def test_more_of_a_batch_goes_where_more_is_lost():
    mixture = GroupMixture(NAMES, floor=0.25, seed=0)
    feed(mixture, [[0, 0], [0, 2]], ["a", "b"], [2.0])
    drawn = [NAMES[index] for step in range(50) for index in mixture.draw(8, step)]
    assert drawn.count("b") == 50, "a blind source leaves the other its floor of 1/8"


def test_a_restored_mixture_draws_the_same():
    def go(mixture, steps):
        batches = []
        for step in steps:
            batches.append(mixture.draw(5, step))
            scores = [[0.0, float(i + step % 3)] for i in batches[-1]]
            feed(mixture, scores, [NAMES[i] for i in batches[-1]], [1.5 + step])
        return batches

    whole = GroupMixture(NAMES, floor=0.25, seed=3)
    go(whole, range(4))
    saved = json.loads(json.dumps(whole.state()))
    rest = go(whole, range(4, 12))
    again = GroupMixture(NAMES, floor=0.25, seed=3)
    again.restore(saved)
    assert go(again, range(4, 12)) == rest
    again.restore(None)
    assert again.spreads() == [None, None]
    other = GroupMixture(["a", "c"], floor=0.25, seed=3)
    other.restore(saved)
    assert other.spreads() == [None, None], "of other sources: begins anew"


def test_what_is_seen_outside_a_meta_step_does_not_count():
    mixture = GroupMixture(NAMES, floor=0.25, seed=0)
    mixture.see_pairs(torch.ones(3), torch.zeros(3))
    assert mixture.end_step() == {}
    assert mixture.spreads() == [None, None]


@pytest.mark.parametrize("floor", [-0.1, 1.1, math.nan])
def test_a_floor_outside_its_range_is_refused(floor):
    with pytest.raises(ConfigError, match="meta_source_floor"):
        GroupMixture(NAMES, floor=floor, seed=0)
