# SPDX-License-Identifier: Apache-2.0
"""The joint model fitted: rewards of features, or of pairs alone, and who can be believed."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit

from metarm.annotators.beliefs import AnnotatorBelief, Belief, share_interval
from metarm.annotators.curvature import laplace_covariance
from metarm.annotators.joint_likelihood import (
    JointProblem,
    Pieces,
    answer_probabilities,
    guessed_ties,
    shares_of,
)
from metarm.annotators.vote_table import VoteTable

__all__ = ["JointAnswers", "fit_joint"]

Floats = NDArray[np.float64]

MAX_ITERATIONS: Final = 300
NUM_NODES: Final = 9
NUM_STATES: Final = 15
MOST_FEATURES: Final = 256
"""More are turned to their principal directions: the fit is cubic in their number."""


@dataclass(frozen=True, slots=True, eq=False)
class JointAnswers:
    """How annotators of the joint model answer at given reward differences."""

    informed: Floats
    inverted: Floats
    guessed: Floats
    """Shares of the three, shape (annotators,) each."""
    bias: Floats
    """Log odds that a guess is the left one, shape (annotators,)."""
    tie: float
    """log nu."""
    guessed_tie: Floats
    """Share of ties among guesses, shape (annotators,)."""

    def chances(self, annotator: int, side: int, states: Floats) -> Floats:
        """First, second and tie, shape (3, pairs, states)."""
        w, bounds = annotator, np.array([self.tie, np.inf, -np.inf, -self.tie])
        rows = []
        lean = expit(side * self.bias[w])
        decided = 1.0 - self.guessed_tie[w]
        guesses = (decided * lean, decided * (1.0 - lean), self.guessed_tie[w])
        for (low, high), guess in zip(((0, 1), (2, 3), (3, 0)), guesses, strict=True):
            right = answer_probabilities(states, bounds[low], bounds[high]).probability
            wrong = answer_probabilities(-states, bounds[low], bounds[high]).probability
            rows.append(
                self.informed[w] * right + self.inverted[w] * wrong + self.guessed[w] * guess
            )
        return np.stack(rows)


def fit_joint(
    table: VoteTable,
    features: Floats | None,
    gold: Mapping[str, int],
    *,
    can_invert: bool = True,
    has_pair_effects: bool | None = None,
) -> Belief:
    """Fit rewards and annotators together, by penalised maximum likelihood.

    P(vote | w) = g_w F(d) + c_w F(-d) + (1 - g_w - c_w) G_w(side),  d = x' theta + e

    F is the logistic function, with Rao-Kupper's ties and a further threshold for `much better`
    where there are such votes; G is a guess, left with log odds b_w. e is a pair's own difference,
    normal with a spread that is fitted, and integrated over.

    Args:
        table: The votes.
        features: First minus second, shape (pairs, features); None: the pair's own e alone.
        gold: Pair -> 1 (first), -1 (second) or 0 (tie), known answers.
        can_invert: Whether c_w is there; without it, it is 0.
        has_pair_effects: Whether e is there; None: where pairs have no features, or several votes.

    Returns:
        Soft labels are the mean of sigma(d) over the posterior; intervals are Laplace's.

    Source:
        Chen et al. 2013 (Crowd-BT, sigma(d) mixed with sigma(-d)) and
        Bugakova et al. 2019, arXiv 1906.03711 (a bias to a side); Rao & Kupper 1967 for ties.
        Deviations: both components at once, a pair's own difference, known answers.
    """
    rows = np.zeros((len(table.pairs), 0)) if features is None else features
    basis, scale = _directions(rows)
    if has_pair_effects is None:
        has_pair_effects = rows.shape[1] == 0 or bool((table.votes_of_pair > 1).any())
    problem = JointProblem(
        table, rows @ basis / scale, gold, can_invert, NUM_NODES if has_pair_effects else 1
    )
    fitted = minimize(
        problem.loss,
        problem.start(),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": MAX_ITERATIONS},
    )
    vector: Floats = fitted.x
    covariance = laplace_covariance(lambda at: problem.loss(at)[1], vector)
    pieces = problem.split(vector)
    states, weights = _states(problem, vector, covariance)
    reliability, bias = _jacobians(problem, pieces)
    of_reliability = reliability @ covariance @ reliability.T
    g, c, u = shares_of(pieces)
    lean = u * (1.0 - guessed_ties(problem.table)) * (2.0 * expit(pieces.bias) - 1.0)
    counts = table.votes_of_annotator
    errors = np.sqrt(np.diag(of_reliability))
    bias_errors = np.sqrt(np.diag(bias @ covariance @ bias.T))
    return Belief(
        model="joint",
        table=table,
        labels=(weights * expit(states)).sum(axis=1),
        annotators=tuple(
            AnnotatorBelief(
                name,
                int(counts[w]),
                share_interval(float(g[w] - c[w]), float(errors[w])),
                share_interval(float(lean[w]), float(bias_errors[w])),
                float(errors[w]),
            )
            for w, name in enumerate(table.annotators)
        ),
        covariance=of_reliability,
        states=states,
        weights=weights,
        answers=JointAnswers(
            g, c, u, pieces.bias, problem.thresholds(pieces)[0], guessed_ties(problem.table)
        ),
        weights_of_features=None if features is None else basis @ pieces.weights / scale,
    )


def _directions(rows: Floats) -> tuple[Floats, float]:
    """Directions to fit in, shape (features, directions), and the unit: a mean square of 1."""
    size = rows.shape[1]
    basis = np.eye(size)
    if size > min(MOST_FEATURES, len(rows)):
        _, _, right = np.linalg.svd(rows, full_matrices=False)
        basis = right[:MOST_FEATURES].T
    spread = float(np.sqrt((rows**2).mean())) if rows.size else 1.0
    return basis, spread or 1.0


def _states(problem: JointProblem, vector: Floats, covariance: Floats) -> tuple[Floats, Floats]:
    """The posterior of each pair's d as points with weights, by matching mean and variance."""
    weights = problem.node_weights(vector)
    values = problem.differences(problem.split(vector))
    mean = (weights * values).sum(axis=1)
    variance = (weights * (values - mean[:, None]) ** 2).sum(axis=1)
    size = problem.features.shape[1]
    of_theta = np.einsum(
        "pi,ij,pj->p", problem.features, covariance[:size, :size], problem.features
    )
    variance = variance + np.where(np.isnan(problem.known), of_theta, 0.0)
    nodes, node_weights = np.polynomial.hermite_e.hermegauss(NUM_STATES)
    states = mean[:, None] + np.sqrt(variance)[:, None] * nodes
    shares = np.broadcast_to(node_weights / node_weights.sum(), states.shape)
    return states, shares


def _jacobians(problem: JointProblem, pieces: Pieces) -> tuple[Floats, Floats]:
    """Slopes of each annotator's reliability and side bias, shape (annotators, parameters)."""
    g, c, u = shares_of(pieces)
    count = len(g)
    starts = np.cumsum((0, *problem.sizes))
    own = np.arange(count)
    lean = 2.0 * expit(pieces.bias) - 1.0
    # A guess may be a tie, which is for no side.
    sided = u * (1.0 - guessed_ties(problem.table))
    reliability = np.zeros((count, int(starts[-1])))
    bias = np.zeros_like(reliability)
    reliability[own, starts[1] + own] = g * (1.0 - g + c)
    bias[own, starts[1] + own] = -sided * g * lean
    if pieces.inverted.size:
        reliability[own, starts[2] + own] = -c * (1.0 - c + g)
        bias[own, starts[2] + own] = -sided * c * lean
    bias[own, starts[3] + own] = sided * (1.0 - lean**2) / 2.0
    return reliability, bias
