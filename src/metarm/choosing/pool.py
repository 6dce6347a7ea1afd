# SPDX-License-Identifier: Apache-2.0
"""The pool: pairs that could be labelled, as gaps of features, and what is known of each."""

from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from metarm.choosing.posterior import gap_variances
from metarm.errors import DataError, ShapeError
from metarm.models.linear_head import check_labels, fit_head, head_covariance

__all__ = ["PRIOR_GAP", "Basis", "Pool", "bootstrap_members", "build_pool", "member_deviations"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

PRIOR_GAP: Final = 2.0
"""Standard deviation of a pair's reward gap before any label, in logits: 80 % agreement."""
MAX_SIZE: Final = 256
TINY: Final = 1e-12


@dataclass(frozen=True, eq=False)
class Pool:
    """Pairs to choose from; a row is a pair of two responses to one prompt."""

    gaps: Floats
    """c, shape (pairs, size): scaled features of the first response less those of the second."""
    means: Floats
    """Expected reward gap of first over second, shape (pairs,), in logits."""
    covariance: Floats
    """Of the head's weights, shape (size, size), given the pairs that are labelled already."""
    prompts: Ints
    """Which prompt each pair belongs to, shape (pairs,)."""
    sides: Ints
    """Numbers of the two responses, shape (pairs, 2); the same number is the same response."""
    members: Floats | None = None
    """Reward gaps by each member of an ensemble, shape (members, pairs), in logits; None: none."""

    def __post_init__(self) -> None:
        n, size = self.gaps.shape
        expected = {
            "means": (n,),
            "covariance": (size, size),
            "prompts": (n,),
            "sides": (n, 2),
        }
        for name, shape in expected.items():
            if (found := getattr(self, name).shape) != shape:
                raise ShapeError(f"pool: expected {name} of shape {shape}, got {found}")
        if self.members is not None and self.members.shape[1:] != (n,):
            raise ShapeError(f"pool: expected members of shape (m, {n}), got {self.members.shape}")
        for name in ("gaps", "means", "covariance", "members"):
            values = getattr(self, name)
            if values is not None and not np.isfinite(values).all():
                raise DataError(f"pool: expected finite {name}, got nan or inf")

    def __len__(self) -> int:
        return len(self.means)

    @cached_property
    def variances(self) -> Floats:
        """Of each pair's reward gap, c' H^-1 c, shape (pairs,), in logits^2."""
        return gap_variances(self.gaps, self.covariance)


@dataclass(frozen=True, slots=True, eq=False)
class Basis:
    """Features on their principal axes and in the unit of the prior.

    The axes are those of the pairs' gaps, the largest `MAX_SIZE` of them; one factor for all makes
    the mean squared length of a gap `PRIOR_GAP`^2, so that with a penalty of 1 the reward gap of a
    pair has that standard deviation before any label. Axes keep their own lengths: to whiten them
    would blow up what is noise.
    """

    axes: Floats
    """Shape (features, size)."""

    @classmethod
    def of(cls, gaps: Floats, *, max_size: int = MAX_SIZE) -> "Basis":
        """The basis of some gaps, shape (pairs, features)."""
        square = gaps.T @ gaps / max(len(gaps), 1)
        values, vectors = np.linalg.eigh(square)
        values, vectors = values[::-1][:max_size], vectors[:, ::-1][:, :max_size]
        kept = values > TINY * max(values[0], TINY) if len(values) else values > 0
        total = float(values[kept].sum())
        return cls(vectors[:, kept] * (PRIOR_GAP / np.sqrt(total) if total > 0 else 1.0))

    def __call__(self, gaps: Floats) -> Floats:
        """Gaps of features in this basis, shape (pairs, size)."""
        return gaps @ self.axes


def build_pool(
    gaps: ArrayLike,
    prompts: ArrayLike,
    *,
    means: ArrayLike | None = None,
    sides: ArrayLike | None = None,
    labelled: ArrayLike | None = None,
    labelled_means: ArrayLike | None = None,
    members: ArrayLike | None = None,
    penalty: float = 1.0,
) -> Pool:
    """A pool, and the covariance that the pairs labelled so far leave.

    Args:
        gaps: Of the candidates, shape (pairs, size), in the unit of the prior (`Basis`).
        prompts: Number of each candidate's prompt.
        means: Reward gaps that the model gives them, in logits; None: 0, nothing is known.
        sides: Numbers of the two responses of each; None: all are different.
        labelled: Gaps of the pairs that are labelled, shape (labelled, size); None: none is.
        labelled_means: Their reward gaps by the same model; None: 0.
        members: Reward gaps of the candidates by each member of an ensemble.
        penalty: Precision of the prior.
    """
    x = np.asarray(gaps, np.float64)
    n, size = x.shape
    past = np.zeros((0, size)) if labelled is None else np.asarray(labelled, np.float64)
    past_means = np.zeros(len(past)) if labelled_means is None else labelled_means
    return Pool(
        gaps=x,
        means=np.zeros(n) if means is None else np.asarray(means, np.float64),
        covariance=head_covariance(past, past_means, penalty=penalty),
        prompts=np.asarray(prompts, np.int64),
        sides=np.arange(2 * n).reshape(n, 2) if sides is None else np.asarray(sides, np.int64),
        members=None if members is None else np.asarray(members, np.float64),
    )


def member_deviations(members: ArrayLike) -> Floats:
    """How far each member of an ensemble is from their mean, on each pair's reward *gap*.

    A member's rewards of one prompt have an offset of their own, which no preference fixes: only
    differences within a prompt can disagree.

    Args:
        members: Reward gaps, shape (members, pairs).

    Returns:
        Shape (pairs, members), scaled so that the squared length of a row is the variance of that
        pair's gap over members; 0 where they agree.

    Raises:
        DataError: When there are fewer than two members.

    Example:
        >>> (member_deviations([[1.0, 2.0], [3.0, 2.0]]) ** 2).sum(axis=1)
        array([1., 0.])
    """
    scores = np.asarray(members, np.float64)
    if scores.ndim != 2 or len(scores) < 2:
        raise DataError(f"disagreement takes two members or more, got shape {scores.shape}")
    found: Floats = (scores - scores.mean(axis=0)).T / np.sqrt(len(scores))
    return found


def bootstrap_members(
    gaps: ArrayLike,
    labelled: ArrayLike,
    p: ArrayLike | None = None,
    *,
    num_members: int = 8,
    penalty: float = 1.0,
    generator: np.random.Generator,
) -> Floats:
    """Reward gaps of a pool by heads of other draws of the labelled pairs and other starts.

    Each head is fitted on a bootstrap draw, around a prior mean of its own: where nothing is
    labelled they disagree as much as the prior does.

    Args:
        gaps: Of the candidates, shape (pairs, size).
        labelled: Gaps of labelled pairs, shape (labelled, size).
        p: Their labels, hard or soft, shape (labelled,), as in `fit_head`.
        num_members: Heads.
        penalty: Precision of the prior.
        generator: Draws pairs and prior means.

    Returns:
        Shape (num_members, pairs), in logits.
    """
    x = np.asarray(gaps, np.float64)
    past, y = check_labels(labelled, p)
    found = []
    for _ in range(num_members):
        rows = generator.integers(len(past), size=len(past))
        start = generator.standard_normal(x.shape[1]) / np.sqrt(penalty)
        found.append(x @ fit_head(past[rows], y[rows], penalty=penalty, prior_mean=start))
    return np.stack(found)
