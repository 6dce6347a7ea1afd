# SPDX-License-Identifier: Apache-2.0
"""What strategies take, against brute force; near-duplicates; offsets of members."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit

from metarm.choosing.pool import (
    PRIOR_GAP,
    Basis,
    bootstrap_members,
    build_pool,
    member_deviations,
)
from metarm.choosing.posterior import information_gain
from metarm.choosing.strategies import choose
from metarm.errors import DataError, ShapeError
from metarm.models.linear_head import head_covariance


def make_pool(seed=0, num_pairs=30, size=4, num_past=6):
    draw = np.random.default_rng(seed)
    theta = draw.standard_normal(size)
    gaps, past = draw.standard_normal((num_pairs, size)), draw.standard_normal((num_past, size))
    return build_pool(
        gaps,
        np.arange(num_pairs),
        means=gaps @ theta,
        labelled=past,
        labelled_means=past @ theta,
        members=draw.standard_normal((3, num_pairs)),
    ), (past, past @ theta)


@pytest.mark.parametrize("seed", range(3))
def test_d_optimal_is_the_largest_log_determinant_each_time(seed) -> None:
    pool, (past, past_means) = make_pool(seed)
    found = choose(pool, "d-optimal", 6, seed=0)

    def log_det(rows):
        gaps = np.concatenate([past, pool.gaps[rows]])
        means = np.concatenate([past_means, pool.means[rows]])
        p = expit(means)
        return np.linalg.slogdet((gaps.T * (p * (1 - p))) @ gaps + np.eye(gaps.shape[1]))[1]

    taken: list[int] = []
    for row, value in zip(found.indices, found.values, strict=True):
        gains = {
            other: log_det([*taken, other]) - log_det(taken)
            for other in range(len(pool))
            if other not in taken
        }
        assert row == max(gains, key=gains.__getitem__)
        assert value == pytest.approx(gains[row], rel=1e-9)
        taken.append(row)


def test_information_is_that_beyond_what_was_taken() -> None:
    pool, (past, past_means) = make_pool(4)
    found = choose(pool, "information-gain", 4, seed=0)
    for number, (row, value) in enumerate(zip(found.indices, found.values, strict=True)):
        taken = list(found.indices[:number])
        covariance = head_covariance(
            np.concatenate([past, pool.gaps[taken]]),
            np.concatenate([past_means, pool.means[taken]]),
        )
        gains = information_gain(
            pool.means, np.einsum("nd,de,ne->n", pool.gaps, covariance, pool.gaps)
        )
        gains[taken] = -1
        assert row == gains.argmax()
        assert value == pytest.approx(gains[row], rel=1e-9)


def test_what_is_labelled_is_not_asked_again() -> None:
    draw = np.random.default_rng(0)
    gaps = np.zeros((10, 2))
    gaps[:5, 0], gaps[5:, 1] = 3.0, 2.0
    gaps += 0.01 * draw.standard_normal(gaps.shape)
    past = np.tile([[3.0, 0.0]], (50, 1))
    fresh = choose(build_pool(gaps, np.arange(10)), "d-optimal", 1, seed=0)
    aware = choose(build_pool(gaps, np.arange(10), labelled=past), "d-optimal", 1, seed=0)
    assert fresh.indices[0] < 5 <= aware.indices[0]


@pytest.mark.parametrize("strategy", ["d-optimal", "information-gain", "disagreement"])
def test_of_near_duplicates_few_are_taken(strategy) -> None:
    draw = np.random.default_rng(2)
    gaps = draw.standard_normal((60, 6))
    gaps[:40] = 1.5 * gaps[0] + 0.01 * draw.standard_normal((40, 6))
    heads = draw.standard_normal((12, 6))
    pool = build_pool(gaps, np.arange(60), members=heads @ gaps.T)
    greedy = choose(pool, strategy, 8, seed=0)
    assert sum(row < 40 for row in greedy.indices) <= 3
    assert greedy.indices[0] < 40
    # One after the other by the same value without updates, nearly all are duplicates.
    assert (np.argsort(-pool.variances)[:8] < 40).sum() >= 6


@given(offsets=st.lists(st.floats(-1e3, 1e3), min_size=9, max_size=9))
@settings(max_examples=30, deadline=None)
def test_an_offset_of_a_member_on_a_prompt_is_no_disagreement(offsets) -> None:
    draw = np.random.default_rng(0)
    scores = draw.standard_normal((3, 3, 4))  # members, prompts, responses
    moved = scores + np.reshape(offsets, (3, 3, 1))
    pairs = [(i, j) for i in range(4) for j in range(i)]

    def deviations(values):
        gaps = np.stack([values[:, :, i] - values[:, :, j] for i, j in pairs], axis=-1)
        return member_deviations(gaps.reshape(3, -1))

    np.testing.assert_allclose(deviations(moved), deviations(scores), atol=1e-9)
    spread = (deviations(scores) ** 2).sum(axis=1)
    gaps = scores[:, 0, 1] - scores[:, 0, 0]
    assert spread[0] == pytest.approx(gaps.var())


def test_the_half_that_is_chosen_knows_of_the_random_half() -> None:
    pool, _ = make_pool(1, num_pairs=40, size=3, num_past=0)
    found = choose(pool, "mix", 10, seed=3)
    rows = list(found.indices)
    known = head_covariance(pool.gaps[rows[:5]], pool.means[rows[:5]])
    weights = expit(pool.means) * expit(-pool.means)
    gains = weights * np.einsum("nd,de,ne->n", pool.gaps, known, pool.gaps)
    gains[rows[:5]] = -1
    assert rows[5] == gains.argmax()


def test_thompson_takes_the_best_of_two_heads() -> None:
    """Where the heads are sure, a prompt's best response meets none: chance takes over."""
    sides = np.array([[1, 0], [2, 0], [2, 1]])
    gaps = np.array([[1.0], [2.0], [1.0]])
    unsure = build_pool(gaps, np.zeros(3), means=[0.0, 0.0, 0.0], sides=sides)
    taken = [choose(unsure, "thompson", 1, seed=s).indices[0] for s in range(20)]
    # One axis: the best is response 2 or 0, so the pair of both.
    assert set(taken) == {1}
    sure = replace(unsure, means=np.array([50.0, 100.0, 50.0]))
    assert "at random" in choose(sure, "thompson", 1, seed=0).reasons[0]


def test_thompson_knows_the_best_response_by_the_pairs_that_are_left() -> None:
    """Of A = 3, B = 6, C = 0 and E = 6 + x, B has lost its pairs with A and C to earlier labels."""
    rewards, x = np.array([3.0, 6.0, 0.0, 6.0]), np.array([0.0, 0.0, 0.0, 1.0])
    sides = np.array([[0, 2], [0, 3], [1, 3], [2, 3]])
    pool = build_pool(
        (x[sides[:, 0]] - x[sides[:, 1]])[:, None],
        np.zeros(4),
        means=rewards[sides[:, 0]] - rewards[sides[:, 1]],
        sides=sides,
    )
    found = [choose(pool, "thompson", 1, seed=seed) for seed in range(20)]
    assert {one.indices for one in found} == {(2,)}
    assert {one.reasons for one in found} == {("best by two drawn heads",)}


def test_near_ties_come_first() -> None:
    pool, _ = make_pool(2)
    found = choose(pool, "near-tie", 3, seed=0)
    assert list(found.indices) == np.argsort(abs(pool.means))[:3].tolist()


def test_heads_of_bootstrap_draws_differ_where_nothing_is_known() -> None:
    draw = np.random.default_rng(0)
    known = np.zeros((200, 2))
    known[:, 0] = draw.standard_normal(200)
    outcomes = (draw.random(200) < expit(2 * known[:, 0])).astype(float)
    members = bootstrap_members(
        np.eye(2), known, outcomes, num_members=60, generator=np.random.default_rng(1)
    )
    told, untold = members.std(axis=0)
    assert told < 0.5
    assert untold == pytest.approx(1.0, abs=0.3)


def test_the_basis_is_in_the_unit_of_the_prior() -> None:
    draw = np.random.default_rng(0)
    raw = draw.standard_normal((50, 3)) @ draw.standard_normal((3, 8)) * 100
    basis = Basis.of(raw)
    gaps = basis(raw)
    assert gaps.shape == (50, 3)
    assert (gaps**2).sum(axis=1).mean() == pytest.approx(PRIOR_GAP**2)
    ratio = (gaps**2).sum(axis=1) / (raw**2).sum(axis=1)
    np.testing.assert_allclose(ratio, ratio[0])
    assert Basis.of(raw, max_size=2)(raw).shape == (50, 2)
    assert Basis.of(np.zeros((4, 3)))(np.zeros((4, 3))).shape == (4, 0)


def test_a_pool_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ShapeError, match="means"):
        build_pool(np.zeros((3, 2)), np.arange(3), means=[0.0])
    with pytest.raises(DataError, match="finite gaps"):
        build_pool([[np.inf]], [0])
    with pytest.raises(DataError, match="two members"):
        member_deviations([[1.0, 2.0]])
