# SPDX-License-Identifier: Apache-2.0
"""Folds keep prompts apart."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metarm.data.preferences import prompt_key
from metarm.errors import EmptySetError
from metarm.schema import PreferencePair
from metarm.stretching.adapting import split_into_folds

PROMPTS = st.lists(st.sampled_from(["p", "P ", "q", "r", "s  t", "S t"]), max_size=20)


def pairs_of(prompts: list[str]) -> list[PreferencePair]:
    return [PreferencePair(prompt, f" {n}", " x") for n, prompt in enumerate(prompts)]


@given(PROMPTS, st.integers(2, 6))
def test_folds_are_of_whole_prompts(prompts, count) -> None:
    pairs = pairs_of(prompts)
    if len({prompt_key(prompt) for prompt in prompts}) < 2:
        with pytest.raises(EmptySetError, match="two prompts at least"):
            split_into_folds(pairs, count)
        return
    folds = split_into_folds(pairs, count)
    assert sorted(place for fold in folds for place in fold) == list(range(len(pairs)))
    keys = [{prompt_key(pairs[place].prompt) for place in fold} for fold in folds]
    assert sum(map(len, keys)) == len(set.union(*keys))
    assert max(map(len, keys)) - min(map(len, keys)) <= 1
