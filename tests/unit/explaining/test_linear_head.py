# SPDX-License-Identifier: Apache-2.0
"""A linear head: its optimum, its influences against fits without a label, its mistakes found."""

import numpy as np
import pytest
from scipy import optimize
from scipy.special import expit

from metarm.errors import DataError, EmptySetError, ShapeError
from metarm.explaining.linear_head import fit_head, refit_without


def labels(count: int = 120, size: int = 6, seed: int = 0, flips: int = 0):
    """Differences that a true head mostly agrees with, states of very different sizes."""
    draw = np.random.default_rng(seed)
    found = draw.normal(size=(count, size)) * np.array([1.0, 50.0, 0.01, 2.0, 1.0, 1.0])
    true = np.array([1.5, 0.02, 60.0, 0.0, -1.0, 0.5])
    sign = np.where(draw.uniform(size=count) < expit(2 * found @ true), 1.0, -1.0)
    found *= sign[:, None]
    found[:flips] *= -1
    return found, draw.normal(size=(7, size)) * np.array([1.0, 50.0, 0.01, 2.0, 1.0, 1.0])


def test_the_fit_is_the_minimum() -> None:
    raw, _ = labels()
    head = fit_head(raw)

    def loss(w):
        margins = head.differences @ w
        return np.logaddexp(0, -margins).sum() + head.penalty / 2 * w @ w

    theirs = optimize.minimize(loss, np.zeros(6), method="BFGS", options={"gtol": 1e-10})
    assert head.weights == pytest.approx(theirs.x, abs=1e-5)
    gradient = head.penalty * head.weights - head.differences.T @ head.residuals
    assert np.abs(gradient).max() < 1e-9


def test_the_curvature_is_that_of_differences() -> None:
    raw, _ = labels()
    head = fit_head(raw)

    def gradient(w):
        return head.penalty * w - head.differences.T @ expit(-head.differences @ w)

    step = 1e-5
    columns = [
        (gradient(head.weights + step * e) - gradient(head.weights - step * e)) / (2 * step)
        for e in np.eye(6)
    ]
    assert np.linalg.inv(head.covariance) == pytest.approx(np.array(columns).T, rel=1e-6, abs=1e-6)


def test_influences_are_those_of_fits_without_the_label() -> None:
    raw, asked = labels(300)
    head = fit_head(raw)
    exact = np.array(
        [head.predict(asked) - refit_without(head, row).predict(asked) for row in range(len(raw))]
    ).T
    newton, first = head.influences(asked), head.influences(asked, is_first_order=True)
    assert np.corrcoef(newton.ravel(), exact.ravel())[0, 1] > 0.998
    assert np.abs(newton - exact).max() < 0.1 * np.abs(exact).max()
    assert np.corrcoef(first.ravel(), exact.ravel())[0, 1] > 0.998
    # The leverage makes the largest ones right.
    assert np.abs(newton - exact).max() < 0.8 * np.abs(first - exact).max()


def test_what_others_say_of_a_label_is_the_fit_without_it() -> None:
    raw, _ = labels(300)
    head = fit_head(raw)
    exact = [float(refit_without(head, row).predict(raw[row])) for row in range(len(raw))]
    assert head.margins_without == pytest.approx(exact, abs=0.05)
    assert (head.self_influences >= 0).all()
    own = np.diag(head.influences(raw))
    assert head.self_influences == pytest.approx(own, abs=1e-9)


def test_two_labels_by_hand() -> None:
    # One state: w solves 2 p = penalty w with p = sigmoid(-w), and H = 2 p (1 - p) + penalty.
    head = fit_head([[3.0], [3.0]], penalties=[0.5])
    w = optimize.brentq(lambda x: 2 * expit(-x) - x, 0, 2)
    p = expit(-w)
    assert head.scale.tolist() == [3.0]
    assert head.weights.tolist() == pytest.approx([w], abs=1e-10)
    curvature = 2 * p * (1 - p) + 1.0
    influence = head.influences([[6.0]], is_first_order=True)[0]
    assert influence.tolist() == pytest.approx([2 * p / curvature] * 2, abs=1e-10)


def test_turned_labels_are_found() -> None:
    raw, _ = labels(count=300, flips=15)
    order = np.argsort(fit_head(raw).margins_without)
    found = set(order[:15].tolist())
    assert len(found & set(range(15))) >= 8


def test_a_constant_state_and_a_turned_question_change_nothing() -> None:
    raw, asked = labels()
    wide = fit_head(np.column_stack([raw, np.zeros(len(raw))]))
    assert wide.weights[:6] == pytest.approx(fit_head(raw).weights, abs=1e-9)
    head = fit_head(raw)
    assert head.influences(-asked) == pytest.approx(-head.influences(asked), abs=1e-12)


def test_wrong_labels_are_refused() -> None:
    with pytest.raises(EmptySetError):
        fit_head(np.zeros((0, 3)))
    with pytest.raises(ShapeError):
        fit_head([1.0, 2.0])
    with pytest.raises(DataError):
        fit_head([[np.nan]])
