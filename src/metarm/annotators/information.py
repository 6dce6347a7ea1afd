# SPDX-License-Identifier: Apache-2.0
"""A second vote on this pair, or a new pair? What each next vote would tell, in nats."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import entr

from metarm.annotators.beliefs import Belief
from metarm.errors import DataError, ShapeError

__all__ = ["NextVote", "expected_information", "mutual_information", "rank_next_votes"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class NextVote:
    """A vote that could be asked for."""

    pair: str
    annotator: str
    nats: float
    """Expected information of the vote on what is true of the pair."""
    votes_so_far: int
    """On the pair: 0 is a new pair."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def mutual_information(weights: Floats, chances: Floats) -> Floats:
    """How much an answer tells of the state, on average: H(answer) - H(answer | state).

    Args:
        weights: How likely each state is, shape (pairs, states); rows sum to 1.
        chances: Of each answer in each state, shape (answers, pairs, states).

    Returns:
        Shape (pairs,), in nats, at least 0: log 2 = 0.693 where an answer tells two states apart
        that are as likely as each other.

    Raises:
        ShapeError: When the shapes do not fit.

    Source:
        Lindley 1956, on a measure of the information provided by an experiment.

    Example:
        >>> mutual_information(np.array([[0.5, 0.5]]), np.eye(2)[:, None, :]).round(4).tolist()
        [0.6931]
    """
    if weights.ndim != 2 or chances.shape[1:] != weights.shape:
        raise ShapeError(
            f"expected weights (pairs, states) and chances (answers, pairs, states), got "
            f"{weights.shape} and {chances.shape}"
        )
    answers = (chances * weights).sum(axis=2)
    left = (entr(chances).sum(axis=0) * weights).sum(axis=1)
    found: Floats = np.maximum(entr(answers).sum(axis=0) - left, 0.0)
    return found


def expected_information(
    belief: Belief, annotators: Sequence[str], pairs: Sequence[str] | None = None
) -> Floats:
    """What one more vote of each annotator on each pair is expected to tell of that pair.

    All in one unit: a second vote on a pair tells less than the first, as the pair is known better;
    a new pair tells more where its reward is less certain; a bad annotator tells nothing anywhere.
    Sides are drawn by chance. What a vote says of the annotator, and through theta of other pairs,
    does not count.

    Args:
        belief: A fit; further pairs are those it was given beside those with votes.
        annotators: Names.
        pairs: Ids; None: all of the table.

    Returns:
        Shape (pairs, annotators), in nats, in [0, log 3).

    Raises:
        DataError: When a pair or an annotator is not in the fit.
    """
    table = belief.table
    rows = _places(table.pairs, table.pairs if pairs is None else pairs, "pair")
    columns = _places(table.annotators, annotators, "annotator")
    states, weights = belief.states[rows], belief.weights[rows]
    found = np.zeros((len(rows), len(columns)))
    for column, annotator in enumerate(columns):
        for side in (1, -1):
            chances = belief.answers.chances(annotator, side, states)
            found[:, column] += mutual_information(weights, chances) / 2.0
    return found


def rank_next_votes(
    belief: Belief,
    *,
    annotators: Sequence[str] | None = None,
    pairs: Sequence[str] | None = None,
    done: Iterable[tuple[str, str]] = (),
    limit: int = 20,
) -> list[NextVote]:
    """The next votes that would tell most, each pair once, with the annotator who would tell most.

    Args:
        belief: A fit.
        annotators: Who may be asked; None: everybody in the fit.
        pairs: What may be asked; None: every pair in the fit.
        done: (pair, annotator) that need not be asked again, such as votes that are there.
        limit: How many.
    """
    table = belief.table
    names = list(table.annotators if annotators is None else annotators)
    ids = list(table.pairs if pairs is None else pairs)
    nats = expected_information(belief, names, ids)
    row_of = {pair: row for row, pair in enumerate(ids)}
    column_of = {name: column for column, name in enumerate(names)}
    for pair, name in done:
        if pair in row_of and name in column_of:
            nats[row_of[pair], column_of[name]] = -1.0
    counts = dict(zip(table.pairs, table.votes_of_pair.tolist(), strict=True))
    best = nats.argmax(axis=1)
    told = nats[np.arange(len(ids)), best]
    order = np.argsort(-told, kind="stable")[:limit]
    return [
        NextVote(ids[row], names[best[row]], float(told[row]), counts[ids[row]])
        for row in order
        if told[row] >= 0
    ]


def _places(known: Sequence[str], wanted: Sequence[str], what: str) -> list[int]:
    places = {name: place for place, name in enumerate(known)}
    missing = [name for name in wanted if name not in places]
    if missing:
        raise DataError(
            f"expected each {what} to be in the fit, got {missing[0]!r}: give it to fit_annotators"
        )
    return [places[name] for name in wanted]
