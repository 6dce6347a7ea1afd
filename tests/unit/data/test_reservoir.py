# SPDX-License-Identifier: Apache-2.0
"""A reservoir is a uniform sample that depends on nothing but the groups and the seed."""

import random
from collections import Counter

import pytest
from scipy import stats

from metarm.data.reservoir import keep_reservoir
from metarm.schema import ResponseGroup

# Rounds of different sizes: no round may be favoured.
ROUNDS = {"round_1": 4, "round_2": 10, "round_3": 6}
GROUPS = [
    ResponseGroup(f"prompt {number}", (" a", " b"), source=source)
    for source, count in ROUNDS.items()
    for number in range(count)
]


def test_the_order_of_groups_does_not_matter():
    kept = keep_reservoir(GROUPS, 5, seed=0)
    assert len(set(kept)) == 5
    for attempt in range(5):
        shuffled = random.Random(attempt).sample(GROUPS, len(GROUPS))
        assert keep_reservoir(iter(shuffled), 5, seed=0) == kept
    assert keep_reservoir(GROUPS, 5, seed=1) != kept


def test_all_are_kept_where_there_is_room_and_none_where_there_is_none():
    assert set(keep_reservoir(GROUPS, 20, seed=0)) == set(GROUPS)
    assert len(keep_reservoir(GROUPS, 100, seed=0)) == len(GROUPS)
    assert keep_reservoir(GROUPS, 0, seed=0) == []
    assert keep_reservoir([], 3, seed=0) == []


def test_a_later_round_can_keep_only_what_an_earlier_one_kept():
    earlier = [group for group in GROUPS if group.source != "round_3"]
    last = [group for group in GROUPS if group.source == "round_3"]
    for seed in range(20):
        kept = keep_reservoir(earlier, 6, seed=seed)
        assert keep_reservoir([*kept, *last], 6, seed=seed) == keep_reservoir(GROUPS, 6, seed=seed)


@pytest.mark.parametrize("size", [1, 7])
def test_each_group_is_as_likely_and_pairs_are_independent(size):
    draws = 2000
    samples = [keep_reservoir(GROUPS, size, seed=seed) for seed in range(draws)]
    counts = Counter(group for sample in samples for group in sample)
    observed = [counts[group] for group in GROUPS]
    assert sum(observed) == draws * size
    assert stats.chisquare(observed).pvalue > 1e-4
    first, second = (sum(GROUPS[i] in sample for sample in samples) for i in (0, 1))
    both = sum(GROUPS[0] in sample and GROUPS[1] in sample for sample in samples)
    expected = size * (size - 1) / (len(GROUPS) * (len(GROUPS) - 1))
    assert stats.binomtest(both, draws, expected).pvalue > 1e-4 if expected else both == 0
    assert min(first, second) > 0
