# SPDX-License-Identifier: Apache-2.0
"""The exact fit of a linear head to hard and soft labels, against autograd, scipy, closed forms."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import optimize
from scipy.special import expit
from torch.nn.functional import binary_cross_entropy_with_logits

from metarm.errors import DataError, ShapeError
from metarm.models.linear_head import fit_head, head_covariance

SIZE, NUM_PAIRS, PENALTY = 5, 40, 0.7
SEEDS = range(4)


def labels(seed: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gaps, soft and hard labels mixed, and a prior mean."""
    draw = np.random.default_rng(seed)
    gaps = draw.standard_normal((NUM_PAIRS, SIZE))
    drawn = draw.uniform(size=NUM_PAIRS)
    hard = draw.choice([0.0, 0.5, 1.0], size=NUM_PAIRS)
    return gaps, np.where(drawn < 0.5, drawn, hard), draw.standard_normal(SIZE)


def torch_loss(gaps, p, prior_mean):
    x, y, mean = (torch.tensor(value, dtype=torch.float64) for value in (gaps, p, prior_mean))

    def loss(theta: torch.Tensor) -> torch.Tensor:
        fit = binary_cross_entropy_with_logits(x @ theta, y, reduction="sum")
        return fit + PENALTY / 2 * ((theta - mean) ** 2).sum()

    return loss


@pytest.mark.parametrize("seed", SEEDS)
def test_the_gradient_by_autograd_vanishes_at_the_fit(seed: int) -> None:
    gaps, p, mean = labels(seed)
    theta = torch.tensor(fit_head(gaps, p, penalty=PENALTY, prior_mean=mean), requires_grad=True)
    torch_loss(gaps, p, mean)(theta).backward()
    assert theta.grad.abs().max() < 1e-12


@pytest.mark.parametrize("seed", SEEDS)
def test_the_fit_is_scipys_minimum_from_any_start(seed: int) -> None:
    gaps, p, mean = labels(seed)
    loss = torch_loss(gaps, p, mean)

    def value_and_gradient(theta):
        at = torch.tensor(theta, requires_grad=True)
        value = loss(at)
        value.backward()
        return value.item(), at.grad.numpy()

    theirs = optimize.minimize(
        value_and_gradient, np.zeros(SIZE), jac=True, method="BFGS", options={"gtol": 1e-10}
    )
    ours = fit_head(gaps, p, penalty=PENALTY, prior_mean=mean)
    np.testing.assert_allclose(ours, theirs.x, atol=1e-9)
    far = fit_head(gaps, p, penalty=PENALTY, prior_mean=mean, start=mean + 30.0)
    np.testing.assert_allclose(far, ours, atol=1e-11)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_covariance_is_the_inverse_of_autograds_hessian(seed: int) -> None:
    gaps, p, mean = labels(seed)
    theta = fit_head(gaps, p, penalty=PENALTY, prior_mean=mean)
    hessian = torch.autograd.functional.hessian(torch_loss(gaps, p, mean), torch.tensor(theta))
    covariance = head_covariance(gaps, gaps @ theta, penalty=PENALTY)
    np.testing.assert_allclose(covariance @ hessian.numpy(), np.eye(SIZE), atol=1e-12)


def test_hard_labels_are_soft_ones_at_the_end() -> None:
    gaps, _, mean = labels()

    def hard_loss(theta):
        fit = np.logaddexp(0, -gaps @ theta).sum()
        return fit + PENALTY / 2 * ((theta - mean) ** 2).sum()

    theirs = optimize.minimize(hard_loss, mean, method="BFGS", options={"gtol": 1e-9}).x
    hard = fit_head(gaps, penalty=PENALTY, prior_mean=mean)
    np.testing.assert_allclose(hard, theirs, atol=1e-6)
    ones = np.ones(NUM_PAIRS)
    np.testing.assert_array_equal(fit_head(gaps, ones, penalty=PENALTY, prior_mean=mean), hard)
    # The same label from the other side.
    turned = fit_head(-gaps, 1 - ones, penalty=PENALTY, prior_mean=mean)
    np.testing.assert_allclose(turned, hard, atol=1e-12)


def test_a_soft_label_is_a_share_of_hard_ones() -> None:
    gaps, p, _ = labels()
    soft = fit_head([*gaps, *[[0.3, -1.0, 2.0, 0.0, 0.5]] * 10], [*p, *[0.7] * 10])
    hard = fit_head([*gaps, *[[0.3, -1.0, 2.0, 0.0, 0.5]] * 10], [*p, *[1.0] * 7, *[0.0] * 3])
    np.testing.assert_allclose(soft, hard, atol=1e-12)


@pytest.mark.parametrize("p", [0.02, 0.5, 0.9, 1.0])
def test_one_pair_by_hand(p: float) -> None:
    """It solves sigmoid(2 w) - p = -penalty w / 2."""
    expected = optimize.brentq(lambda w: 2 * (expit(2 * w) - p) + PENALTY * w, -3, 3, xtol=1e-14)
    assert fit_head([[2.0]], [p], penalty=PENALTY)[0] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("seed", SEEDS)
def test_ties_pull_gaps_to_zero(seed: int) -> None:
    gaps, _, _ = labels(seed)
    np.testing.assert_array_equal(fit_head(gaps, np.full(NUM_PAIRS, 0.5)), np.zeros(SIZE))
    # The more often a pair is called a tie, the nearer its gap is to zero; it never turns.
    asked = gaps[0]
    drawn = [
        float(fit_head([*gaps, *[asked] * count], [*[1.0] * NUM_PAIRS, *[0.5] * count]) @ asked)
        for count in (0, 1, 3, 10, 300, 30_000)
    ]
    assert all(abs(after) < abs(before) for before, after in pairwise(drawn))
    assert all(after * drawn[0] > 0 for after in drawn)
    assert abs(drawn[-1]) < 0.005 * abs(drawn[0])


def test_turning_pairs_round_changes_nothing() -> None:
    gaps, p, _ = labels()
    is_turned = np.arange(NUM_PAIRS) % 2 == 0
    turned = np.where(is_turned[:, None], -gaps, gaps)
    other = np.where(is_turned, 1 - p, p)
    np.testing.assert_allclose(fit_head(turned, other), fit_head(gaps, p), atol=1e-12)


def test_a_separable_set_has_a_finite_fit() -> None:
    theta = fit_head([[100.0], [200.0]], penalty=1e-6)
    assert np.isfinite(theta).all()
    assert theta[0] > 0


def test_without_labels_there_is_the_prior() -> None:
    empty = np.zeros((0, 3))
    np.testing.assert_array_equal(fit_head(empty, [], prior_mean=[1.0, 2.0, 3.0]), [1, 2, 3])
    np.testing.assert_array_equal(fit_head(empty), [0, 0, 0])
    np.testing.assert_allclose(head_covariance(empty, [], penalty=4.0), np.eye(3) / 4)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ShapeError, match="a number for each"):
        fit_head([[1.0, 2.0]], [1.0, 0.0])
    with pytest.raises(ShapeError, match="a number for each"):
        fit_head([1.0, 2.0])
    for wrong in (2.0, -0.1):
        with pytest.raises(DataError, match=r"labels p in \[0, 1\]"):
            fit_head([[1.0]], [wrong])
    with pytest.raises(DataError, match="got nan or inf"):
        head_covariance([[np.nan]], [0.0])
    for fit in (fit_head, head_covariance):
        with pytest.raises(DataError, match="penalty above 0"):
            fit([[1.0]], [1.0], penalty=0.0)
    with pytest.raises(ShapeError, match="prior mean"):
        fit_head([[1.0]], [1.0], prior_mean=[1.0, 2.0])
    with pytest.raises(ShapeError, match="a start"):
        fit_head([[1.0]], [1.0], start=[1.0, 2.0])
