# SPDX-License-Identifier: Apache-2.0
"""Dawid and Skene's model of several votes on a pair, with a coin for each side shown."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from metarm.annotators.beliefs import AnnotatorBelief, Belief, share_interval
from metarm.annotators.curvature import laplace_covariance
from metarm.annotators.vote_table import Ints, VoteTable

__all__ = ["Confusions", "class_of", "codes_of", "fit_dawid_skene"]

Floats = NDArray[np.float64]

MAX_STEPS: Final = 200
TOLERANCE: Final = 1e-8
RIGHT, WRONG = 2.0, 1.0
"""Beta(2, 1): votes that each annotator is taken to have given beforehand, a class of truth."""
CODES: Final = np.array([1.0, -1.0, 0.0])
"""First, second, tie."""
TURNED: Final = np.array([1, 0, 2])
"""Where each class stands when the sides are exchanged."""


@dataclass(frozen=True, slots=True, eq=False)
class Confusions:
    """How annotators answer what is true, in terms of the sides shown."""

    matrices: Floats
    """Chance of each answer given the truth, shape (annotators, truths, answers): left, right, tie
    where there are ties."""

    def chances(self, annotator: int, side: int, states: Floats) -> Floats:
        """First, second and tie where there is one, shape (answers, pairs, states)."""
        own = self.matrices[annotator]
        if side < 0:
            turn = TURNED[: len(own)]
            own = own[np.ix_(turn, turn)]
        return np.moveaxis(own[class_of(states)], -1, 0)


def class_of(codes: Floats) -> Ints:
    """Class 0, 1 or 2 of first (1), second (-1) or tie (0)."""
    return np.where(codes > 0, 0, np.where(codes < 0, 1, 2))


def codes_of(table: VoteTable) -> Floats:
    """The classes that there are, as codes, for each pair; shape (pairs, classes)."""
    codes = CODES[: 3 if table.has_ties else 2]
    return np.broadcast_to(codes, (len(table.pairs), len(codes)))


def fit_dawid_skene(table: VoteTable, features: Floats | None, gold: Mapping[str, int]) -> Belief:
    """Fit what is true of each pair and how each annotator answers it, by EM.

    The truth is a side, left or right, or a tie where anybody says so; an annotator has a chance of
    each answer for each truth, smoothed by Beta(2, 1), so that a habit of the left is no error of
    the right. Left and right are equally likely to be true. Where a side is unknown both are tried.

    Args:
        table: The votes; with one a pair nothing can be learnt, and labels stay near the votes.
        features: Not used.
        gold: Pair -> 1 (first), -1 (second) or 0 (tie), known answers.

    Returns:
        Soft labels are the chance of first, and half that of a tie.

    Source:
        Dawid & Skene 1979. Differs: symmetric sides, smoothing, 200 steps or a change of 1e-8.
    """
    model = _Model(table, gold)
    truth = model.first_guess()
    matrices = model.matrices(truth, None)
    for _ in range(MAX_STEPS):
        before = truth
        matrices = model.matrices(truth, matrices)
        truth = model.truths(matrices, model.prior(truth))
        if np.abs(truth - before).max() < TOLERANCE:
            break
    prior = model.prior(truth)
    covariance = laplace_covariance(lambda at: model.gradient(at, prior), model.to_logits(matrices))
    return _belief(table, truth, matrices, covariance)


def _belief(table: VoteTable, truth: Floats, matrices: Floats, covariance: Floats) -> Belief:
    reliability, bias = _contrasts(matrices)
    slopes = _slopes(matrices)
    of_reliability = slopes[0] @ covariance @ slopes[0].T
    errors = np.sqrt(np.diag(of_reliability))
    bias_errors = np.sqrt(np.diag(slopes[1] @ covariance @ slopes[1].T))
    counts = table.votes_of_annotator
    return Belief(
        model="dawid-skene",
        table=table,
        labels=truth[:, 0] + truth[:, 2:].sum(axis=1) / 2.0,
        annotators=tuple(
            AnnotatorBelief(
                name,
                int(counts[w]),
                share_interval(float(reliability[w]), float(errors[w])),
                share_interval(float(bias[w]), float(bias_errors[w])),
                float(errors[w]),
            )
            for w, name in enumerate(table.annotators)
        ),
        covariance=of_reliability,
        states=codes_of(table),
        weights=truth,
        answers=Confusions(matrices),
    )


class _Model:
    """The votes in terms of sides, and the steps of EM."""

    def __init__(self, table: VoteTable, gold: Mapping[str, int]) -> None:
        self.table = table
        self.classes = 3 if table.has_ties else 2
        self.answer = class_of(table.direction.astype(float))
        known = np.full((len(table.pairs), self.classes), np.nan)
        for place, pair in enumerate(table.pairs):
            if pair in gold:
                known[place] = _known_truth(gold[pair], self.classes)
        self.known = known

    def first_guess(self) -> Floats:
        """The shares of the votes."""
        counts = np.zeros((len(self.table.pairs), self.classes))
        np.add.at(counts, (self.table.pair, self.answer), 1.0)
        return self._with_known((counts + 0.5) / (counts + 0.5).sum(axis=1, keepdims=True))

    def _with_known(self, truth: Floats) -> Floats:
        return np.where(np.isnan(self.known), truth, self.known)

    def prior(self, truth: Floats) -> Floats:
        """Chances of the classes: first and second are alike."""
        if self.classes == 2:
            return np.array([0.5, 0.5])
        tie = (truth[:, 2].sum() + 1.0) / (len(truth) + 3.0)
        return np.array([(1.0 - tie) / 2.0, (1.0 - tie) / 2.0, tie])

    def matrices(self, truth: Floats, before: Floats | None) -> Floats:
        """The smoothed shares of answers, shape (annotators, truths, answers).

        Args:
            truth: How likely each class is of each pair.
            before: The shares that tell which way a vote of unknown sides was shown; None: even.
        """
        counts = self.counts(truth, before)
        return np.asarray(counts / counts.sum(axis=2, keepdims=True))

    def counts(self, truth: Floats, matrices: Floats | None) -> Floats:
        """Votes as shown, those taken beforehand with them."""
        size = self.classes
        counts = np.full((len(self.table.annotators), size, size), WRONG)
        counts[:, np.arange(size), np.arange(size)] = RIGHT
        straight, turned = self._ways(matrices)
        of_pair, who, turn = truth[self.table.pair], self.table.annotator, TURNED[:size]
        for z in range(size):
            np.add.at(counts[:, z], (who, self.answer), of_pair[:, z] * straight[:, z])
            np.add.at(counts[:, turn[z]], (who, TURNED[self.answer]), of_pair[:, z] * turned[:, z])
        return counts

    def _ways(self, matrices: Floats | None) -> tuple[Floats, Floats]:
        """How likely each vote was shown straight, or turned, for each truth."""
        side = self.table.side[:, None] * np.ones(self.classes)
        straight = np.where(side == 0, 0.5, side > 0).astype(float)
        if matrices is not None:
            one, other = self._chances(matrices)
            unknown = side == 0
            straight[unknown] = (one / (one + other))[unknown]
        return straight, 1.0 - straight

    def _chances(self, matrices: Floats) -> tuple[Floats, Floats]:
        """Chance of each vote for each truth, shown straight and turned; (votes, classes)."""
        who, turn = self.table.annotator, TURNED[: self.classes]
        straight = matrices[who, :, self.answer]
        turned = matrices[who, :, TURNED[self.answer]][:, turn]
        return straight, turned

    def truths(self, matrices: Floats, prior: Floats) -> Floats:
        """How likely each class is of each pair, shape (pairs, classes)."""
        straight, turned = self._chances(matrices)
        side = self.table.side[:, None]
        chance = np.where(side > 0, straight, np.where(side < 0, turned, (straight + turned) / 2.0))
        logs = np.tile(np.log(prior), (len(self.table.pairs), 1))
        np.add.at(logs, self.table.pair, np.log(chance))
        return self._with_known(np.exp(logs - logsumexp(logs, axis=1, keepdims=True)))

    def to_logits(self, matrices: Floats) -> Floats:
        """Free parameters: log odds against the last answer."""
        logs = np.log(matrices)
        return np.asarray((logs[:, :, :-1] - logs[:, :, -1:]).ravel())

    def gradient(self, logits: Floats, prior: Floats) -> Floats:
        """Of the penalised negative log-likelihood, by Fisher's identity."""
        size = self.classes
        shaped = logits.reshape(-1, size, size - 1)
        full = np.concatenate([shaped, np.zeros((*shaped.shape[:2], 1))], axis=2)
        matrices = np.exp(full - logsumexp(full, axis=2, keepdims=True))
        counts = self.counts(self.truths(matrices, prior), matrices)
        slope = counts - counts.sum(axis=2, keepdims=True) * matrices
        return np.asarray(-slope[:, :, :-1].ravel())


def _known_truth(code: int, classes: int) -> Floats:
    """Shares of the classes; without a class for ties, a tie is either."""
    if code == 0 and classes == 2:
        return np.array([0.5, 0.5])
    return np.where(CODES[:classes] == code, 1.0, 0.0)


def _contrasts(matrices: Floats) -> tuple[Floats, Floats]:
    """Reliability and side bias, each of shape (annotators,)."""
    left = matrices[:, 0, 0] - matrices[:, 0, 1]
    right = matrices[:, 1, 1] - matrices[:, 1, 0]
    return (left + right) / 2.0, (left - right) / 2.0


def _slopes(matrices: Floats) -> tuple[Floats, Floats]:
    """Of the same by the logits, shape (annotators, parameters) each."""
    count, size, _ = matrices.shape
    found = []
    for sign in (1.0, -1.0):
        slope = np.zeros((count, count, size, size - 1))
        for z, weight in ((0, 0.5), (1, 0.5 * sign)):
            contrast = np.zeros(size)
            contrast[z], contrast[1 - z] = weight, -weight
            own = matrices[:, z, :]
            mean = own @ contrast
            by_logit = own * (contrast - mean[:, None])
            slope[np.arange(count), np.arange(count), z] = by_logit[:, :-1]
        found.append(slope.reshape(count, -1))
    return found[0], found[1]
