# SPDX-License-Identifier: Apache-2.0
"""The joint model of rewards and annotators: how likely the votes are, and the gradient of that.

A vote is informed (by the reward difference d), inverted (by -d) or a guess (by the side shown).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.special import expit, log_expit, logsumexp

from metarm.annotators.vote_table import VoteTable

__all__ = [
    "GOLD_GAP",
    "Answers",
    "JointProblem",
    "Pieces",
    "answer_probabilities",
    "guessed_ties",
    "shares_of",
]

Floats = NDArray[np.float64]

GOLD_GAP: Final = 4.0
"""Reward difference of a pair whose answer is known, in logits: 98 % of informed votes say so."""
RELIABILITY_PRIOR: Final = (1.5, 4.0)
"""Mean and variance of the log odds of an informed vote against a guess."""
INVERTED_PRIOR: Final = (-1.5, 4.0)
"""The same of an inverted vote against a guess."""
BIAS_VARIANCE: Final = 4.0
THRESHOLD_PRIOR: Final = (-0.5, 4.0)
"""Mean and variance of the logarithm of what separates a tie from better, better from much."""
SPREAD_PRIOR: Final = (0.7, 1.0)
"""Mean and variance of the logarithm of the spread of pairs' own differences."""
WEIGHT_PENALTY: Final = 5e-5
"""Of |theta|^2, a vote, for features whose mean square is 1."""
GUESSED_SHARE_VOTES: Final = 4.0
"""Votes of the crowd that each annotator's shares of ties and strengths are smoothed with."""
SMALLEST: Final = 1e-300


class Pieces(NamedTuple):
    """The parameters by name; those that the data say nothing of are empty."""

    weights: Floats
    """theta, shape (features,)."""
    informed: Floats
    """Log odds of an informed vote against a guess, shape (annotators,)."""
    inverted: Floats
    """Log odds of an inverted vote against a guess, shape (annotators,), or empty."""
    bias: Floats
    """Log odds that a guess is the left one, shape (annotators,)."""
    thresholds: Floats
    """Logarithms of log nu (ties) and of what lies between better and much better, as needed."""
    spread: Floats
    """Logarithm of the standard deviation of the pairs' own differences, shape (1,), or empty."""


class Answers(NamedTuple):
    """How likely an answer is of an informed annotator, and its slopes; shape (votes, nodes)."""

    probability: Floats
    by_difference: Floats
    by_low: Floats
    by_high: Floats


def answer_probabilities(difference: Floats, low: Floats, high: Floats) -> Answers:
    """P(low < d + noise < high) for logistic noise: Rao-Kupper's model, with degrees of better.

    With low = log nu and high infinite it is sigma(d - log nu); between -log nu and log nu, a tie.

    Args:
        difference: d, in logits, shape (votes, nodes).
        low: Shape (votes, 1), may be -inf.
        high: Shape (votes, 1), above `low`, may be inf.

    Returns:
        Probabilities in [0, 1]: 1/2 at d = 0 between 0 and infinity.

    Source:
        Rao & Kupper 1967, ties in paired-comparison experiments; Agresti 1992 for more degrees.
    """
    if not (np.isfinite(low) & np.isfinite(high)).any():
        return _one_sided(difference, low, high)
    below, above = low - difference, high - difference
    slope_below = expit(below) * expit(-below)
    slope_above = expit(above) * expit(-above)
    # Each tail as a difference of small numbers: 1 - sigma(x) would round to 0.
    upper = expit(-below) - expit(-above)
    lower = expit(above) - expit(below)
    probability = np.where(below > 0, upper, lower)
    return Answers(probability, slope_below - slope_above, -slope_below, slope_above)


def _one_sided(difference: Floats, low: Floats, high: Floats) -> Answers:
    """The same where one bound is infinite: of its two exponentials one is left."""
    is_up = np.isinf(high)
    sign = np.where(is_up, 1.0, -1.0)
    chance = expit(sign * difference - np.where(is_up, low, -high))
    slope = chance * (1.0 - chance)
    return Answers(chance, sign * slope, np.where(is_up, -slope, 0.0), np.where(is_up, 0.0, slope))


@dataclass(frozen=True, slots=True, eq=False)
class JointProblem:
    """Votes, features and known answers, and the penalised likelihood of parameters for them."""

    table: VoteTable
    features: Floats
    """First minus second, shape (pairs, features); no columns where there are none."""
    gold: Mapping[str, int] = field(default_factory=dict)
    """Pair -> 1, 0 or -1, its known answer."""
    can_invert: bool = True
    """Whether an annotator may be modelled as voting for the worse on purpose."""
    num_nodes: int = 1
    """Of the quadrature over each pair's own difference; 1: pairs have none beside theta's."""
    members: sparse.csr_array = field(init=False)
    """Pair x vote, 1 where the vote is on the pair."""
    known: Floats = field(init=False)
    """d of pairs whose answer is known, NaN elsewhere; shape (pairs,)."""
    nodes: Floats = field(init=False)
    log_weights: Floats = field(init=False)
    guesses: Floats = field(init=False)
    """How likely a guess is of each vote's degree, without its direction; shape (votes,)."""

    def __post_init__(self) -> None:
        table = self.table
        votes = np.arange(table.num_votes)
        members = sparse.csr_array(
            (np.ones(table.num_votes), (table.pair, votes)),
            shape=(len(table.pairs), table.num_votes),
        )
        known = np.full(len(table.pairs), np.nan)
        for place, pair in enumerate(table.pairs):
            if pair in self.gold:
                known[place] = GOLD_GAP * self.gold[pair]
        nodes, node_weights = np.polynomial.hermite_e.hermegauss(self.num_nodes)
        values = {
            "members": members,
            "known": known,
            "nodes": nodes,
            "log_weights": np.log(node_weights / node_weights.sum()),
            "guesses": _guessed_degrees(table),
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Lengths of the pieces of a parameter vector."""
        count = len(self.table.annotators)
        thresholds = int(self.table.has_ties) + int(self.table.has_strengths)
        return (
            self.features.shape[1],
            count,
            count if self.can_invert else 0,
            count,
            thresholds,
            int(self.num_nodes > 1),
        )

    def start(self) -> Floats:
        """Where a fit begins: no reward, everybody as the prior has them."""
        sizes = self.sizes
        values = (0.0, RELIABILITY_PRIOR[0], INVERTED_PRIOR[0], 0.0, THRESHOLD_PRIOR[0], 0.0)
        return np.concatenate([np.full(n, v) for n, v in zip(sizes, values, strict=True)])

    def split(self, vector: Floats) -> Pieces:
        """The pieces of a parameter vector."""
        return Pieces(*np.split(vector, np.cumsum(self.sizes)[:-1]))

    def thresholds(self, pieces: Pieces) -> tuple[float, float]:
        """From where on a vote is for a side (log nu), and for `much better`; 0, inf without."""
        steps = list(np.exp(pieces.thresholds))
        tie = steps.pop(0) if self.table.has_ties else 0.0
        return tie, tie + steps.pop(0) if self.table.has_strengths else np.inf

    def differences(self, pieces: Pieces) -> Floats:
        """Reward difference d of each pair at each node, in logits, shape (pairs, nodes)."""
        mean = self.features @ pieces.weights
        spread = float(np.exp(pieces.spread[0])) if pieces.spread.size else 0.0
        values: Floats = mean[:, None] + spread * self.nodes[None, :]
        is_known = ~np.isnan(self.known)
        values[is_known] = self.known[is_known, None]
        return values

    def node_weights(self, vector: Floats) -> Floats:
        """How likely each node is, given the votes on the pair, shape (pairs, nodes)."""
        pieces = self.split(vector)
        logs = self.members @ np.log(self._vote_terms(pieces)[0]) + self.log_weights
        weights: Floats = np.exp(logs - logsumexp(logs, axis=1, keepdims=True))
        return weights

    def loss(self, vector: Floats) -> tuple[float, Floats]:
        """The penalised negative log-likelihood, in nats, and its gradient."""
        pieces = self.split(vector)
        total, terms, gap_slopes = self._vote_terms(pieces)
        logs = self.members @ np.log(total) + self.log_weights
        of_pair = logsumexp(logs, axis=1, keepdims=True)
        weight = np.exp(logs - of_pair)[self.table.pair]
        is_free = np.isnan(self.known)[self.table.pair]
        by_difference = weight * gap_slopes * is_free[:, None]
        by_mean = self.members @ by_difference.sum(axis=1)
        gradient = np.concatenate(
            [
                self.features.T @ by_mean,
                *(self._by_annotator((weight * term).sum(axis=1)) for term in terms[:-2]),
                self._by_threshold(pieces, *((weight * term).sum(axis=1) for term in terms[-2:])),
                self._by_spread(pieces, by_difference),
            ]
        )
        value, slope = self._penalty(pieces)
        known_value, known_slope = self._known_rewards(pieces)
        slope[: len(pieces.weights)] += known_slope
        return value + known_value - float(of_pair.sum()), slope - gradient

    def _vote_terms(self, pieces: Pieces) -> tuple[Floats, list[Floats], Floats]:
        """P of each vote, and the slopes of log P; each of shape (votes, nodes)."""
        table = self.table
        tie, much = self.thresholds(pieces)
        low, high = _bounds(table, tie, much)
        gap = self.differences(pieces)[table.pair]
        right = answer_probabilities(gap, low, high)
        wrong = answer_probabilities(-gap, low, high)
        g, c, u = (share[table.annotator][:, None] for share in shares_of(pieces))
        way = (table.side * table.direction)[:, None]
        lean = way * pieces.bias[table.annotator][:, None]
        decided = (table.direction != 0)[:, None]
        guess = self.guesses[:, None] * np.where(decided, expit(lean), 1.0)
        by_lean = guess * np.where(decided, expit(-lean), 0.0) * way
        total = np.maximum(g * right.probability + c * wrong.probability + u * guess, SMALLEST)
        terms = [g * (right.probability / total - 1.0)]
        if self.can_invert:
            terms.append(c * (wrong.probability / total - 1.0))
        terms.append(u * by_lean / total)
        terms.append((g * right.by_low + c * wrong.by_low) / total)
        terms.append((g * right.by_high + c * wrong.by_high) / total)
        return total, terms, (g * right.by_difference - c * wrong.by_difference) / total

    def _by_annotator(self, values: Floats) -> Floats:
        count = len(self.table.annotators)
        return np.bincount(self.table.annotator, values, minlength=count).astype(np.float64)

    def _by_threshold(self, pieces: Pieces, by_low: Floats, by_high: Floats) -> Floats:
        """Slopes by the logarithms of the steps, from those by each vote's bounds."""
        table = self.table
        by_bound = np.stack([by_low, by_high], axis=1)
        slopes = [float((by_bound * sign).sum()) for sign in _signs(table)]
        steps = np.exp(pieces.thresholds)
        found = []
        if table.has_ties:
            # The second threshold stands on the first.
            found.append((slopes[0] + slopes[1]) * steps[0])
        if table.has_strengths:
            found.append(slopes[1] * steps[-1])
        return np.array(found)

    def _by_spread(self, pieces: Pieces, by_difference: Floats) -> Floats:
        if not pieces.spread.size:
            return np.empty(0)
        return np.exp(pieces.spread) * float((by_difference * self.nodes).sum())

    def _penalty(self, pieces: Pieces) -> tuple[float, Floats]:
        """Of all parameters, and its gradient."""
        weight = 2.0 * WEIGHT_PENALTY * self.table.num_votes
        priors = (
            (0.0, 1.0 / weight),
            RELIABILITY_PRIOR,
            INVERTED_PRIOR,
            (0.0, BIAS_VARIANCE),
            THRESHOLD_PRIOR,
            SPREAD_PRIOR,
        )
        value, slopes = 0.0, []
        for piece, (mean, variance) in zip(pieces, priors, strict=True):
            value += float(((piece - mean) ** 2).sum() / (2.0 * variance))
            slopes.append((piece - mean) / variance)
        return value, np.concatenate(slopes)

    def _known_rewards(self, pieces: Pieces) -> tuple[float, Floats]:
        """What known answers say of theta: each is one vote by somebody who does not guess."""
        decided = np.nan_to_num(self.known) != 0
        rows = self.features[decided] * np.sign(self.known[decided])[:, None]
        gaps = rows @ pieces.weights
        return -float(log_expit(gaps).sum()), -(rows.T @ expit(-gaps))


def shares_of(pieces: Pieces) -> tuple[Floats, Floats, Floats]:
    """Shares of informed votes, inverted ones and guesses of each annotator; they sum to 1."""
    inverted = pieces.inverted if pieces.inverted.size else np.full_like(pieces.informed, -np.inf)
    logs = np.stack([pieces.informed, inverted, np.zeros_like(pieces.informed)])
    g, c, u = np.exp(logs - logsumexp(logs, axis=0))
    return g, c, u


def _signs(table: VoteTable) -> tuple[Floats, Floats]:
    """Signs with which low and high hold the thresholds `tie` and `much`; (votes, 2) each."""
    way, is_strong = table.direction, table.strength == 2
    tie_low = np.where(way == 0, -1.0, np.where((way > 0) & ~is_strong, 1.0, 0.0))
    tie_high = np.where(way == 0, 1.0, np.where((way < 0) & ~is_strong, -1.0, 0.0))
    weak = table.has_strengths & (way != 0) & ~is_strong
    much_low = np.where(weak & (way < 0), -1.0, np.where(is_strong & (way > 0), 1.0, 0.0))
    much_high = np.where(weak & (way > 0), 1.0, np.where(is_strong & (way < 0), -1.0, 0.0))
    return np.stack([tie_low, tie_high], axis=1), np.stack([much_low, much_high], axis=1)


def _bounds(table: VoteTable, tie: float, much: float) -> tuple[Floats, Floats]:
    """Between which differences each vote is given; shape (votes, 1) each."""
    way, is_strong = table.direction, table.strength == 2
    inner = np.where(is_strong, much, tie)
    outer = np.where(is_strong, np.inf, much)
    low = np.where(way > 0, inner, np.where(way < 0, -outer, -tie))
    high = np.where(way > 0, outer, np.where(way < 0, -inner, tie))
    return low[:, None], high[:, None]


def guessed_ties(table: VoteTable) -> Floats:
    """Share of ties among each annotator's guesses, shape (annotators,)."""
    is_tie = table.direction == 0
    return _smoothed_shares(table, is_tie, np.ones_like(is_tie))


def _smoothed_shares(
    table: VoteTable, event: NDArray[np.bool_], among: NDArray[np.bool_]
) -> Floats:
    """Each annotator's share, drawn to the crowd's by so many of its votes."""
    size = len(table.annotators)
    whole = float(event[among].mean()) if among.any() else 0.0
    hits = np.bincount(table.annotator, event & among, minlength=size)
    counts = np.bincount(table.annotator, among, minlength=size)
    found: Floats = (hits + GUESSED_SHARE_VOTES * whole) / (counts + GUESSED_SHARE_VOTES)
    return found


def _guessed_degrees(table: VoteTable) -> Floats:
    """Chances of a tie or not, of much better or not, in a guess: each annotator's own shares."""
    is_tie, is_strong = table.direction == 0, table.strength == 2
    tie = guessed_ties(table)[table.annotator]
    strong = _smoothed_shares(table, is_strong, ~is_tie)[table.annotator]
    degree = np.where(is_strong, strong, 1.0 - strong)
    return np.where(is_tie, tie, (1.0 - tie) * degree)
