# SPDX-License-Identifier: Apache-2.0
"""What a fit of annotators gives: a soft label of each pair, and how far each is believed."""

from dataclasses import asdict, dataclass
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from metarm.annotators.vote_table import VoteTable

__all__ = [
    "CONFIDENCE",
    "UNTOLD",
    "AnnotatorBelief",
    "AnswerModel",
    "Belief",
    "Interval",
    "share_interval",
]

Floats = NDArray[np.float64]

CONFIDENCE: Final = 0.9
"""Of every interval of an annotator."""


class Interval(NamedTuple):
    """A number with its 90 % interval."""

    value: float
    low: float
    high: float

    @property
    def is_told(self) -> bool:
        """Whether it leaves anything out: votes that nobody else's are beside tell nothing."""
        return self.low > -1.0 or self.high < 1.0

    def __str__(self) -> str:
        if not self.is_told:
            return "cannot be told"
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"

    def to_json(self) -> dict[str, float] | None:
        """Nested plain JSON values; None where nothing is told."""
        return self._asdict() if self.is_told else None


UNTOLD: Final = Interval(0.0, -1.0, 1.0)
"""Of an annotator of whom nothing tells: the prior of a model is not to be taken for a finding."""


class AnswerModel(Protocol):
    """How an annotator answers where the truth of a pair is known."""

    def chances(self, annotator: int, side: int, states: Floats) -> Floats:
        """Chances of each answer in each state of the truth.

        Args:
            annotator: Place in the table.
            side: 1 where `first` stands on the left, -1 where it stands on the right.
            states: Of each pair, shape (pairs, states).

        Returns:
            Shape (answers, pairs, states); sums over answers are 1.
        """
        ...


@dataclass(frozen=True, slots=True)
class AnnotatorBelief:
    """How far one annotator is believed; all shares are of the annotator's votes."""

    name: str
    num_votes: int
    reliability: Interval
    """Share of votes that say what is true less that of those that say the reverse, in [-1, 1]:
    1 always informed, 0 tells nothing, -1 always the reverse."""
    side_bias: Interval
    """Share of votes given to the left for being left, less that given to the right, in [-1, 1]."""
    reliability_error: float
    """Standard error of `reliability`."""

    def to_json(self) -> dict[str, Any]:
        """Nested plain JSON values."""
        return asdict(self) | {
            "reliability": self.reliability.to_json(),
            "side_bias": self.side_bias.to_json(),
        }


@dataclass(frozen=True, slots=True, eq=False)
class Belief:
    """Whom to believe, and what their votes say together."""

    model: str
    """The name in `fitting.MODELS`."""
    table: VoteTable
    labels: Floats
    """Probability that `first` is the better one, shape (pairs,), in the table's order."""
    annotators: tuple[AnnotatorBelief, ...]
    """In the table's order."""
    covariance: Floats
    """Of the reliabilities, shape (annotators, annotators)."""
    states: Floats
    """Points that a pair's truth may stand at, shape (pairs, states): reward differences in logits,
    or 1, -1 and 0 for first, second and tie."""
    weights: Floats
    """How likely each is, shape (pairs, states); rows sum to 1."""
    answers: AnswerModel
    weights_of_features: Floats | None = None
    """theta of the joint model on features as they were given; None elsewhere."""

    def label_of(self, pair: str) -> float:
        """The soft label of one pair."""
        return float(self.labels[self.table.pairs.index(pair)])

    def annotator(self, name: str) -> AnnotatorBelief:
        """The one of that name."""
        return self.annotators[self.table.annotators.index(name)]


def share_interval(value: float, error: float) -> Interval:
    """The 90 % interval of a difference of shares, in [-1, 1], by Fisher's transform.

    Args:
        value: In (-1, 1).
        error: Its standard error.

    Example:
        >>> str(share_interval(0.0, 0.1))
        '0.00 [-0.16, 0.16]'
    """
    inside = min(max(value, -1.0 + 1e-9), 1.0 - 1e-9)
    reach = stats.norm.ppf(0.5 + CONFIDENCE / 2) * error / (1.0 - inside**2)
    middle = np.arctanh(inside)
    return Interval(value, float(np.tanh(middle - reach)), float(np.tanh(middle + reach)))
