# SPDX-License-Identifier: Apache-2.0
"""A linear head: its optimum, its influences against fits without a label, its mistakes found."""

import numpy as np
import pytest
from scipy import optimize
from scipy.special import expit

from metarm.errors import DataError, EmptySetError, ShapeError
from metarm.explaining.linear_head import learn_head, refit_without


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
    head = learn_head(raw)

    def loss(w):
        margins = head.differences @ w
        return np.logaddexp(0, -margins).sum() + head.penalty / 2 * w @ w

    theirs = optimize.minimize(loss, np.zeros(6), method="BFGS", options={"gtol": 1e-10})
    assert head.weights == pytest.approx(theirs.x, abs=1e-5)
    gradient = head.penalty * head.weights - head.differences.T @ head.residuals
    assert np.abs(gradient).max() < 1e-9


def test_the_curvature_is_that_of_differences() -> None:
    raw, _ = labels()
    head = learn_head(raw)

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
    head = learn_head(raw)
    exact = np.array(
        [head.predict(asked) - refit_without(head, row).predict(asked) for row in range(len(raw))]
    ).T
    newton, first = head.influences(asked), head.influences(asked, is_first_order=True)
    assert np.corrcoef(newton.ravel(), exact.ravel())[0, 1] > 0.998
    assert np.abs(newton - exact).max() < 0.1 * np.abs(exact).max()
    assert np.corrcoef(first.ravel(), exact.ravel())[0, 1] > 0.998
    # The leverage makes the largest ones right.
    assert np.abs(newton - exact).max() < 0.8 * np.abs(first - exact).max()


def soften(raw: np.ndarray, seed: int = 3) -> np.ndarray:
    """Soft labels of any strength, ties and hard ones among them, some for the other side."""
    draw = np.random.default_rng(seed)
    return np.where(
        draw.uniform(size=len(raw)) < 0.3,
        draw.choice([0.0, 0.5, 1.0], size=len(raw), p=[0.1, 0.4, 0.5]),
        draw.beta(4.0, 2.0, size=len(raw)),
    )


def test_influences_of_soft_labels_are_those_of_fits_without_them() -> None:
    raw, asked = labels(300)
    p = soften(raw)
    head = learn_head(raw, p)
    exact = np.array(
        [head.predict(asked) - refit_without(head, row).predict(asked) for row in range(len(raw))]
    ).T
    found = head.influences(asked)
    assert np.corrcoef(found.ravel(), exact.ravel())[0, 1] > 0.999
    assert np.abs(found - exact).max() < 0.05 * np.abs(exact).max()
    # Each by itself too: a label that says less than the head already believes pulls it back.
    largest = np.abs(exact).max(axis=0)
    moved = largest > 0.1 * largest.max()
    assert moved.sum() > 50
    worst = (np.abs(found - exact).max(axis=0) / largest)[moved].max()
    assert worst < 0.1
    back = (head.residuals < 0) & (p > 0.5)
    assert back.sum() > 5
    assert (head.self_influences[back] < 0).all()
    exact_without = [float(refit_without(head, row).predict(raw[row])) for row in range(len(raw))]
    assert head.margins_without == pytest.approx(exact_without, abs=0.05)


def test_ties_move_nothing_where_all_are_ties_and_pull_where_not() -> None:
    raw, asked = labels(100)
    ties = learn_head(raw, np.full(100, 0.5))
    assert np.abs(ties.weights).max() == 0.0
    assert np.abs(ties.influences(asked)).max() == 0.0
    assert np.abs(ties.surprises).max() < 1e-12
    hard = learn_head(raw)
    mixed = learn_head(np.concatenate([raw, raw]), [*np.ones(100), *np.full(100, 0.5)])
    assert np.abs(mixed.predict(asked)).mean() < 0.8 * np.abs(hard.predict(asked)).mean()
    own = mixed.self_influences[100:] * np.sign(mixed.margins[100:])
    assert (own <= 0).all()


def test_a_label_is_as_surprising_as_it_is_unlikely() -> None:
    raw, _ = labels(300, flips=5)
    hard = learn_head(raw)
    said = expit(hard.margins_without)
    assert hard.surprises == pytest.approx(-np.log(said), rel=1e-9)
    p = soften(raw)
    soft = learn_head(raw, p)
    q = expit(soft.margins_without)
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = [a * np.log(a / b) for a, b in ((p, q), (1 - p, 1 - q))]
    assert soft.surprises == pytest.approx(np.nansum(terms, axis=0), abs=1e-12)


def test_what_others_say_of_a_label_is_the_fit_without_it() -> None:
    raw, _ = labels(300)
    head = learn_head(raw)
    exact = [float(refit_without(head, row).predict(raw[row])) for row in range(len(raw))]
    assert head.margins_without == pytest.approx(exact, abs=0.05)
    assert (head.self_influences >= 0).all()
    own = np.diag(head.influences(raw))
    assert head.self_influences == pytest.approx(own, abs=1e-9)


def test_two_labels_by_hand() -> None:
    # One state: w solves 2 p = penalty w with p = sigmoid(-w), and H = 2 p (1 - p) + penalty.
    head = learn_head([[3.0], [3.0]], penalties=[0.5])
    w = optimize.brentq(lambda x: 2 * expit(-x) - x, 0, 2)
    p = expit(-w)
    assert head.scale.tolist() == [3.0]
    assert head.weights.tolist() == pytest.approx([w], abs=1e-10)
    curvature = 2 * p * (1 - p) + 1.0
    influence = head.influences([[6.0]], is_first_order=True)[0]
    assert influence.tolist() == pytest.approx([2 * p / curvature] * 2, abs=1e-10)


def test_turned_labels_are_found() -> None:
    raw, _ = labels(count=300, flips=15)
    order = np.argsort(learn_head(raw).margins_without)
    found = set(order[:15].tolist())
    assert len(found & set(range(15))) >= 8


def test_a_constant_state_and_a_turned_question_change_nothing() -> None:
    raw, asked = labels()
    wide = learn_head(np.column_stack([raw, np.zeros(len(raw))]))
    assert wide.weights[:6] == pytest.approx(learn_head(raw).weights, abs=1e-9)
    head = learn_head(raw)
    assert head.influences(-asked) == pytest.approx(-head.influences(asked), abs=1e-12)


def test_wrong_labels_are_refused() -> None:
    with pytest.raises(EmptySetError):
        learn_head(np.zeros((0, 3)))
    with pytest.raises(ShapeError):
        learn_head([1.0, 2.0])
    with pytest.raises(DataError):
        learn_head([[np.nan]])
    with pytest.raises(DataError, match="labels p"):
        learn_head([[1.0]], [1.5])
