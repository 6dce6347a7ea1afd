# SPDX-License-Identifier: Apache-2.0
"""Every strategy keeps the laws of choosing."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from metarm.choosing.pool import Pool, build_pool
from metarm.choosing.strategies import STRATEGIES, choose
from metarm.errors import ConfigError, DataError
from metarm.schema import RANDOM

NAMES = [*STRATEGIES, "mix+information-gain", "conformance.test_strategies:longest"]
NUM_PROMPTS, SIZE = 20, 6


def longest(pool, count, generator):
    """A strategy of the user's own: the longest gaps of features first."""
    return np.argsort(-np.linalg.norm(pool.gaps, axis=1), kind="stable")


def boom(pool, count, draw):
    """A function that fails."""
    raise ValueError("boom")


def wrong(pool, count, generator):
    """One that does not keep to what is asked of it."""
    return [0, 0, 1]


@pytest.fixture(scope="module")
def pool() -> Pool:
    """Twenty prompts of four responses each, whose scores are a linear function of features."""
    draw = np.random.default_rng(3)
    features = draw.standard_normal((NUM_PROMPTS * 4, SIZE))
    rows = np.array(
        [(4 * p + i, 4 * p + j) for p in range(NUM_PROMPTS) for i in range(4) for j in range(i)]
    )
    gaps = features[rows[:, 0]] - features[rows[:, 1]]
    heads = draw.standard_normal((5, SIZE))
    return build_pool(
        gaps,
        rows[:, 0] // 4,
        means=gaps @ heads.mean(axis=0),
        sides=rows,
        members=heads @ gaps.T,
    )


@pytest.fixture(params=NAMES)
def strategy(request: pytest.FixtureRequest) -> str:
    return request.param


def test_it_takes_so_many_different_pairs(pool: Pool, strategy: str) -> None:
    for count in (1, 7, len(pool)):
        found = choose(pool, strategy, count, seed=0)
        assert len(set(found.indices)) == len(found.indices) == count
        assert set(found.indices) <= set(range(len(pool)))
        assert len(found.reasons) == len(found.values) == len(found.strategies) == count
        assert all(found.reasons)


def test_the_same_seed_takes_the_same(pool: Pool, strategy: str) -> None:
    assert choose(pool, strategy, 9, seed=5) == choose(pool, strategy, 9, seed=5)
    if strategy in (RANDOM, "thompson") or strategy.startswith("mix"):
        assert choose(pool, strategy, 9, seed=5) != choose(pool, strategy, 9, seed=6)


def test_no_prompt_has_more_than_the_cap(pool: Pool, strategy: str) -> None:
    found = choose(pool, strategy, 16, seed=0, most_per_prompt=1)
    own = [
        pool.prompts[i]
        for i, drawn in zip(found.indices, found.is_random, strict=True)
        if not drawn
    ]
    assert max(Counter(own).values(), default=0) <= 1


def test_a_cap_that_leaves_too_few_is_lifted(pool: Pool, strategy: str) -> None:
    assert len(choose(pool, strategy, 3 * NUM_PROMPTS, seed=0, most_per_prompt=1).indices) == 60


def test_which_response_is_named_first_changes_nothing(pool: Pool, strategy: str) -> None:
    turned = replace(
        pool,
        gaps=-pool.gaps,
        means=-pool.means,
        sides=pool.sides[:, ::-1],
        members=-pool.members,
    )
    assert choose(turned, strategy, 9, seed=2).indices == choose(pool, strategy, 9, seed=2).indices


def test_more_than_there_are_is_refused(pool: Pool, strategy: str) -> None:
    for count in (0, len(pool) + 1):
        with pytest.raises(ConfigError, match="the pairs there are to choose from"):
            choose(pool, strategy, count, seed=0)


def test_the_random_half_of_a_mix_is_drawn_from_all_alike(pool: Pool) -> None:
    drawn = Counter()
    for seed in range(400):
        found = choose(pool, "mix", 9, seed=seed, most_per_prompt=1)
        assert found.strategies == (RANDOM,) * 5 + ("d-optimal",) * 4
        drawn.update(i for i, own in zip(found.indices, found.is_random, strict=True) if own)
    expected = 400 * 5 / len(pool)
    # Each count is about Poisson of 16.7: six standard deviations.
    assert max(abs(drawn[row] - expected) for row in range(len(pool))) < 6 * expected**0.5


def test_wrong_names_and_functions_are_refused(pool: Pool) -> None:
    with pytest.raises(ConfigError, match="did you mean 'd-optimal'"):
        choose(pool, "d-optmal", 5, seed=0)
    with pytest.raises(DataError, match="some row twice"):
        choose(pool, "conformance.test_strategies:wrong", 2, seed=0)
    with pytest.raises(DataError, match=r"test_strategies:boom: .* ValueError: boom .*Mend the"):
        choose(pool, "conformance.test_strategies:boom", 2, seed=0)
    with pytest.raises(ConfigError, match="needs an ensemble"):
        choose(replace(pool, members=None), "disagreement", 2, seed=0)
