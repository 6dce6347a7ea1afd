# SPDX-License-Identifier: Apache-2.0
"""Seeds by stream and step: pinned, apart, and enough of them."""

import hashlib
import itertools

import torch

from metarm.streams import draw_seed, generator


def test_a_seed_is_a_function_of_its_arguments() -> None:
    digest = hashlib.sha256(b'[0, "order", 3]').digest()
    assert draw_seed(0, "order", 3) == int.from_bytes(digest[:8], "big") >> 1
    places = list(itertools.product(range(9), "ab", range(9), (0, 1)))
    seeds = {draw_seed(*place) for place in places}
    assert len(seeds) == len(places)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert draw_seed(0, "a") != draw_seed(0, "a", 0)


def test_a_generator_begins_there() -> None:
    first, second = (torch.rand(3, generator=generator(1, "noise", 2)) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, torch.rand(3, generator=generator(1, "noise", 3)))
