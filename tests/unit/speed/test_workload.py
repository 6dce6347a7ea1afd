# SPDX-License-Identifier: Apache-2.0
"""Texts have just the lengths that the workload draws, the same for the same seed."""

import pytest

from metarm.errors import ConfigError
from metarm.speed.problem import Problem
from metarm.speed.shapes import SHAPES
from metarm.speed.workload import Bundle, Workload, read_workload


@pytest.mark.parametrize("spread", [0.0, 0.5])
def test_encoded_texts_have_the_lengths(spread: float) -> None:
    workload = read_workload("12/6/3", num_pairs=4, num_groups=3, length_spread=spread)
    problem = Problem(SHAPES["tiny"], workload)
    for lengths, group in zip(problem.group_lengths, problem.encoded_groups, strict=True):
        assert [len(row) for row in group.response_ids] == [
            lengths.prompt + length for length in lengths.responses
        ]
    for lengths, sides in zip(problem.pair_lengths, problem.encoded_pairs, strict=True):
        assert [len(row) for row in sides] == [
            lengths.prompt + length for length in lengths.responses
        ]
    drawn = {bundle.prompt for bundle in problem.pair_lengths}
    assert (drawn == {12}) == (spread == 0)
    assert workload.groups(0) == workload.groups(0)
    assert (workload.groups(0) == workload.groups(1)) == (spread == 0)
    assert problem.context == max(len(row) for sides in problem.encoded_pairs for row in sides) or (
        problem.context == max(b.padded for b in problem.group_lengths)
    )


def test_a_workload_is_named_as_it_is_read() -> None:
    workload = read_workload("256/64/5", num_pairs=1, num_groups=1, length_spread=0.0)
    assert workload == Workload(256, 64, 5, 1, 1, 0.0)
    assert workload.name == "256/64/5"
    assert workload.pairs(0) == [Bundle(256, (64, 64))]
    assert workload.groups(0) == [Bundle(256, (64,) * 5)]


@pytest.mark.parametrize("text", ["256/64", "256/64/1", "a/64/5", "256/64/5/2", "", "-2/3/4"])
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="P/R/k"):
        read_workload(text, num_pairs=1, num_groups=1, length_spread=0.0)
