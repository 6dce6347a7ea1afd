# SPDX-License-Identifier: Apache-2.0
"""Draws are functions of seed, stream and step, and of nothing else."""

import itertools

import torch
from hypothesis import given
from hypothesis import strategies as st

from metarm.streams import draw_seed, generator

SEEDS = st.integers(0, 2**32 - 1)
STEPS = st.lists(st.integers(0, 2**40), max_size=3)


@given(SEEDS, st.text(max_size=20), STEPS)
def test_a_seed_is_one_that_torch_takes(seed, stream, steps):
    drawn = draw_seed(seed, stream, *steps)
    assert 0 <= drawn < 2**63
    assert drawn == draw_seed(seed, stream, *steps)
    torch.Generator().manual_seed(drawn)


def test_the_seeds_are_written_in_stone():
    """Other numbers would be other results of every run that is taken up again."""
    assert draw_seed(0, "prompts", 0) == 4220158679764674107
    assert draw_seed(1, "prompts", 0, 3) == 6824669607177745189


def test_every_argument_counts():
    seeds = [
        draw_seed(seed, stream, *steps)
        for seed, stream, steps in itertools.product(
            (0, 1, 12), ("prompts", "texts", "1"), ((), (0,), (1,), (0, 0), (0, 1), (10,), (1, 0))
        )
    ]
    assert len(set(seeds)) == len(seeds)


def test_a_generator_draws_from_its_seed_and_leaves_the_global_state_alone():
    before = torch.get_rng_state()
    first = torch.rand(3, generator=generator(5, "texts", 2))
    assert torch.equal(first, torch.rand(3, generator=generator(5, "texts", 2)))
    assert not torch.equal(first, torch.rand(3, generator=generator(5, "texts", 3)))
    assert torch.equal(before, torch.get_rng_state())
