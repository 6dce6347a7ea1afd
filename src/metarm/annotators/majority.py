# SPDX-License-Identifier: Apache-2.0
"""The majority of votes as the truth: the control that better models are held against."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from metarm.annotators.beliefs import UNTOLD, AnnotatorBelief, Belief, Interval, share_interval
from metarm.annotators.dawid_skene import Confusions, codes_of
from metarm.annotators.vote_table import VoteTable

__all__ = ["fit_majority"]

Floats = NDArray[np.float64]


def fit_majority(table: VoteTable, features: Floats | None, gold: Mapping[str, int]) -> Belief:
    """Labels of 1, 0 or 1/2, by what most votes on a pair say; everybody counts the same.

    Args:
        table: The votes.
        features: Not used.
        gold: Pair -> 1 (first), -1 (second) or 0 (tie), known answers; they outweigh all votes.

    Returns:
        Reliability is how much oftener an annotator agrees with the others' majority than not;
        side bias, the share of left votes less that of right ones.
    """
    sums = np.bincount(table.pair, table.direction, minlength=len(table.pairs))
    for place, pair in enumerate(table.pairs):
        if pair in gold:
            sums[place] = gold[pair] * (table.num_votes + 1)
    others = np.sign(sums[table.pair] - table.direction)
    agrees = others * table.direction
    lean = table.side * table.direction
    annotators, errors = [], []
    for w, name in enumerate(table.annotators):
        own = table.annotator == w
        reliability, error = _mean_sign(agrees[own & (agrees != 0)])
        side_bias, _ = _mean_sign(lean[own & (lean != 0)])
        annotators.append(AnnotatorBelief(name, int(own.sum()), reliability, side_bias, error))
        errors.append(error)
    labels = (np.sign(sums) + 1.0) / 2.0
    size = 3 if table.has_ties else 2
    # A vote beforehand for either side: information is in what one vote may still change.
    counts = table.votes_of_pair
    first = (sums + counts).clip(0, 2 * counts) / 2.0 + 1.0
    share = first / (counts + 2.0)
    weights = np.zeros((len(table.pairs), size))
    weights[:, 0], weights[:, 1] = share, 1.0 - share
    return Belief(
        model="majority",
        table=table,
        labels=labels,
        annotators=tuple(annotators),
        covariance=np.diag(np.square(errors)),
        states=codes_of(table),
        weights=weights,
        answers=Confusions(_matrices(annotators, size)),
    )


def _mean_sign(signs: NDArray[np.int64] | Floats) -> tuple[Interval, float]:
    """The mean of signs with its interval and error, one of each sign added for the error."""
    count = len(signs)
    if not count:
        return UNTOLD, 1.0
    share = ((signs > 0).sum() + 1.0) / (count + 2.0)
    error = 2.0 * float(np.sqrt(share * (1.0 - share) / count))
    smooth = share_interval(2.0 * float(share) - 1.0, error)
    return Interval(float(np.mean(signs)), smooth.low, smooth.high), error


def _matrices(annotators: list[AnnotatorBelief], size: int) -> Floats:
    """Each annotator as right, or wrong, as often as the majority finds."""
    matrices = np.zeros((len(annotators), size, size))
    for w, one in enumerate(annotators):
        right = min(max((1.0 + one.reliability.value) / 2.0, 0.01), 0.99)
        matrices[w, :, :2] = 0.5
        matrices[w, 0, :2] = right, 1.0 - right
        matrices[w, 1, :2] = 1.0 - right, right
    return matrices
