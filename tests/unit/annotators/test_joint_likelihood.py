# SPDX-License-Identifier: Apache-2.0
"""The joint likelihood in float64: votes written out by hand, Rao-Kupper's ties, the gradient."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metarm.annotators.joint_likelihood import GOLD_GAP, JointProblem, answer_probabilities
from metarm.annotators.vote_table import build_table
from metarm.labels.votes import Vote


def sigma(x):
    return 1.0 / (1.0 + math.exp(-x))


def random_votes(draw, *, ties, strengths, count=400):
    choices = ["first", "second", "tie"] if ties else ["first", "second"]
    votes = []
    for _ in range(count):
        choice = str(draw.choice(choices))
        strength = int(draw.integers(1, 3)) if strengths and choice != "tie" else 1
        turned = [None, True, False][draw.integers(3)]
        names = str(draw.integers(8)), str(draw.integers(5))
        votes.append(Vote(*names, choice, strength, turned))
    return votes


@pytest.mark.parametrize("num_nodes", [1, 7], ids=["features alone", "pairs' own differences"])
@pytest.mark.parametrize("can_invert", [False, True])
@pytest.mark.parametrize("strengths", [False, True])
@pytest.mark.parametrize("ties", [False, True])
def test_gradient_is_that_of_differences(ties, strengths, can_invert, num_nodes):
    """8 items, 5 workers, 400 comparisons, a random parameter vector, step 1e-6."""
    draw = np.random.default_rng(0)
    table = build_table(random_votes(draw, ties=ties, strengths=strengths))
    gold = {table.pairs[0]: 1, table.pairs[1]: -1, table.pairs[2]: 0}
    problem = JointProblem(table, draw.normal(size=(8, 3)), gold, can_invert, num_nodes)
    at = problem.start() + 0.7 * draw.normal(size=len(problem.start()))
    _, gradient = problem.loss(at)
    steps = 1e-6 * np.eye(len(at))
    numeric = [(problem.loss(at + s)[0] - problem.loss(at - s)[0]) / 2e-6 for s in steps]
    assert gradient == pytest.approx(np.array(numeric), abs=1e-6)
    assert np.abs(gradient).min() > 0


def test_a_vote_written_out():
    """P = g sigma(d) + c sigma(-d) + u sigma(b), and the penalties of all parameters."""
    table = build_table([Vote("p", "w", "first", is_turned=False)])
    problem = JointProblem(table, np.array([[2.0, -1.0]]))
    theta, informed, inverted, bias = np.array([0.3, 0.1]), 0.4, -0.8, 0.9
    value, _ = problem.loss(np.array([*theta, informed, inverted, bias]))
    d = 2.0 * 0.3 - 0.1
    whole = math.exp(informed) + math.exp(inverted) + 1.0
    chance = (math.exp(informed) * sigma(d) + math.exp(inverted) * sigma(-d) + sigma(bias)) / whole
    penalty = 5e-5 * (theta @ theta) + (informed - 1.5) ** 2 / 8 + (inverted + 1.5) ** 2 / 8
    assert value == pytest.approx(-math.log(chance) + penalty + bias**2 / 8, abs=1e-12)


def test_a_side_that_stood_on_the_right_is_guessed_less_by_who_leans_left():
    values = []
    for turned in (False, None, True):
        table = build_table([Vote("p", "w", "first", is_turned=turned)])
        problem = JointProblem(table, np.zeros((1, 1)), can_invert=False)
        # Nothing is informed: what is left is the side.
        values.append(problem.loss(np.array([0.0, -50.0, 1.0]))[0])
    gaps = np.array(values) - values[1]
    expected = [-math.log(sigma(1.0) / 0.5), 0.0, -math.log(sigma(-1.0) / 0.5)]
    assert gaps == pytest.approx(np.array(expected), abs=1e-9)


def test_a_known_answer_is_a_reward_difference_that_is_known():
    votes = [Vote("p", "w", "second")]
    table = build_table(votes)
    free = JointProblem(table, np.array([[1.0]]), {}, can_invert=False)
    known = JointProblem(table, np.array([[1.0]]), {"p": 1}, can_invert=False)
    at = np.array([0.7, 2.0, 0.0])
    g = sigma(2.0)
    told = -math.log(g * sigma(-GOLD_GAP) + (1 - g) / 2) - math.log(sigma(0.7))
    unknown = -math.log(g * sigma(-0.7) + (1 - g) / 2)
    assert known.loss(at)[0] - free.loss(at)[0] == pytest.approx(told - unknown, abs=1e-12)


@settings(deadline=None, derandomize=True, max_examples=100)
@given(st.floats(-30, 30), st.floats(0, 5), st.floats(0, 5))
def test_answers_are_a_partition_of_the_line(d, tie, more):
    bounds = [-np.inf, -tie - more, -tie, tie, tie + more, np.inf]
    whole = 0.0
    for low, high in itertools.pairwise(bounds):
        found = answer_probabilities(np.array([[d]]), np.array([[low]]), np.array([[high]]))
        mirrored = answer_probabilities(np.array([[-d]]), np.array([[-high]]), np.array([[-low]]))
        assert found.probability.item() >= 0
        assert found.probability == pytest.approx(mirrored.probability, abs=1e-14)
        whole += found.probability.item()
    assert whole == pytest.approx(1.0, abs=1e-12)


@settings(deadline=None, derandomize=True, max_examples=50)
@given(st.floats(-20, 20), st.floats(1, 9))
def test_ties_are_rao_and_kuppers(d, nu):
    """P(first) = pi_1 / (pi_1 + nu pi_2) with log pi_1 - log pi_2 = d."""
    low = np.array([[math.log(nu)]])
    found = answer_probabilities(np.array([[d]]), low, np.array([[np.inf]])).probability.item()
    assert found == pytest.approx(math.exp(d) / (math.exp(d) + nu), rel=1e-9)
    tie = answer_probabilities(np.array([[d]]), -low, low).probability.item()
    first, second = math.exp(d) / (math.exp(d) + nu), 1 / (1 + nu * math.exp(d))
    assert tie == pytest.approx(1 - first - second, abs=1e-9)


def test_a_pairs_own_difference_is_integrated_over():
    """Against a fine sum over a normal density."""
    votes = [Vote("p", "w", "first"), Vote("p", "v", "first"), Vote("p", "u", "second")]
    problem = JointProblem(build_table(votes), np.zeros((1, 0)), {}, False, 21)
    at = np.array([1.2, 0.4, 0.7, 0.0, 0.0, 0.0, math.log(1.3)])
    grid = np.linspace(-9, 9, 20001) * 1.3
    density = np.exp(-(grid**2) / (2 * 1.3**2))
    density /= density.sum()
    g, h, k = sigma(1.2), sigma(0.4), sigma(0.7)
    up, down = 1 / (1 + np.exp(-grid)), 1 / (1 + np.exp(grid))
    whole = (g * up + (1 - g) / 2) * (h * up + (1 - h) / 2) * (k * down + (1 - k) / 2)
    bare = problem.loss(at)[0] - (0.3**2 + 1.1**2 + 0.8**2) / 8 - (math.log(1.3) - 0.7) ** 2 / 2
    assert bare == pytest.approx(-math.log((density * whole).sum()), abs=1e-6)
