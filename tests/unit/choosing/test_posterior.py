# SPDX-License-Identifier: Apache-2.0
"""The posterior of a linear head, against finite differences, quadrature and recomputation."""

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.special import expit

from metarm.choosing.posterior import (
    add_label,
    gap_variances,
    information_gain,
    laplace_posterior,
)
from metarm.models.linear_head import head_covariance

SIZE, NUM_PAIRS, PENALTY = 5, 40, 0.7


@pytest.fixture
def labelled():
    draw = np.random.default_rng(1)
    gaps = draw.standard_normal((NUM_PAIRS, SIZE))
    outcomes = draw.choice([0.0, 0.3, 0.5, 1.0], size=NUM_PAIRS)
    return gaps, outcomes, draw.standard_normal(SIZE)


def _loss(theta, gaps, outcomes, start):
    z = gaps @ theta
    own = -(outcomes * np.log(expit(z)) + (1 - outcomes) * np.log(expit(-z))).sum()
    return own + PENALTY / 2 * ((theta - start) ** 2).sum()


def test_the_covariance_is_the_inverse_curvature(labelled) -> None:
    gaps, outcomes, _ = labelled
    theta, covariance = laplace_posterior(gaps, outcomes, penalty=PENALTY)
    step = 1e-4 * np.eye(SIZE)
    curvature = np.empty((SIZE, SIZE))
    for i in range(SIZE):
        for j in range(SIZE):
            corners = [
                sign * _loss(theta + a * step[i] + b * step[j], gaps, outcomes, 0 * theta)
                for a, b, sign in ((1, 1, 1), (1, -1, -1), (-1, 1, -1), (-1, -1, 1))
            ]
            curvature[i, j] = sum(corners) / (4 * 1e-8)
    np.testing.assert_allclose(covariance @ curvature, np.eye(SIZE), atol=1e-5)
    variances = gap_variances(gaps, covariance)
    np.testing.assert_allclose(variances, np.diag(gaps @ covariance @ gaps.T), rtol=1e-12)


def test_one_more_label_is_a_recomputed_inverse(labelled) -> None:
    gaps, _, start = labelled
    means = gaps @ start
    before = head_covariance(gaps[1:], means[1:], penalty=PENALTY)
    p = expit(means[0])
    after, step = add_label(before, gaps[0], p * (1 - p))
    np.testing.assert_allclose(
        after, head_covariance(gaps, means, penalty=PENALTY), rtol=1e-9, atol=1e-12
    )
    np.testing.assert_allclose(
        gap_variances(gaps, before) - (gaps @ step) ** 2, gap_variances(gaps, after), rtol=1e-9
    )


@pytest.mark.parametrize("mean", [0.0, 0.8, -2.5, 6.0])
@pytest.mark.parametrize("deviation", [0.1, 1.0, 2.5])
def test_the_information_is_that_of_adaptive_quadrature(mean, deviation) -> None:
    def entropy(p):
        return -(p * np.log(p) + (1 - p) * np.log1p(-p)) if 0 < p < 1 else 0.0

    def expected(function):
        low, high = mean - 10 * deviation, mean + 10 * deviation
        weight = 1 / (deviation * np.sqrt(2 * np.pi))
        return quad(
            lambda z: function(expit(z)) * weight * np.exp(-(((z - mean) / deviation) ** 2) / 2),
            low,
            high,
            limit=200,
        )[0]

    exact = entropy(expected(lambda p: p)) - expected(entropy)
    found = float(information_gain(mean, deviation**2))
    assert found == pytest.approx(exact, abs=2e-5)
    assert found == pytest.approx(float(information_gain(-mean, deviation**2)), abs=1e-12)


def test_what_is_known_tells_nothing() -> None:
    np.testing.assert_allclose(information_gain([0.0, 3.0], [0.0, 0.0]), 0.0, atol=1e-15)
    assert float(information_gain(0.0, 1e6)) == pytest.approx(np.log(2), abs=0.01)
