# SPDX-License-Identifier: Apache-2.0
"""Folds and original pairs keep prompts apart, and a way is taken only where it is shown better."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metarm.data.preferences import prompt_key
from metarm.errors import EmptySetError
from metarm.evaluation.champion import non_inferiority
from metarm.metrics import accuracy_estimate
from metarm.schema import PreferencePair
from metarm.stretching.adapting import (
    Adaptation,
    choose_adaptation,
    split_into_folds,
)
from metarm.stretching.pseudo_labels import paired_change

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


def adaptation(name: str, right: np.ndarray, before: np.ndarray) -> Adaptation:
    prompts = list(range(len(before)))
    held = non_inferiority(before, before, prompts, margin=0.1, alpha=0.05)
    gain = paired_change(right, before)
    return Adaptation(name, accuracy_estimate(right), gain, accuracy_estimate(before), held)


def test_a_way_is_taken_over_a_simpler_one_only_where_it_is_better_and_holds() -> None:
    none = np.tile([0.0, 1.0], 50)
    better, best = np.maximum(none, np.arange(100) < 40), np.ones(100)
    right = {"none": none, "head": better, "lora": better, "full": best}
    clusters = [str(number) for number in range(100)]
    found = [adaptation(name, own, none) for name, own in right.items()]
    taken, reason = choose_adaptation(found, right, clusters, 0.05)
    assert taken == "full"
    assert "lora is not shown to be better than head (+0.000, p 0.5" in reason
    lost = replace(found[3].original, holds=False)
    found[3] = replace(found[3], original=lost)
    taken, reason = choose_adaptation(found, right, clusters, 0.05)
    assert taken == "head"
    assert reason.endswith("full is not shown to hold on original pairs")
    assert choose_adaptation(found[:1], right, clusters, 0.05) == (
        "none",
        "no other way was tried",
    )
