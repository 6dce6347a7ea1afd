# SPDX-License-Identifier: Apache-2.0
"""Whether the next labels are worth their cost: what they would change in simulated futures."""

from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit

from metarm.choosing.pool import Pool
from metarm.errors import ConfigError
from metarm.streams import draw_seed

__all__ = ["Forecast", "StopRule", "forecast_gain", "update_gaps"]

Floats = NDArray[np.float64]

NUM_FUTURES: Final = 400
MOST_PAIRS: Final = 2000
"""Pairs of the pool that accuracy is worked out on."""
MOST_STEPS: Final = 500
TOLERANCE: Final = 1e-6
QUANTILES: Final = (0.05, 0.95)


@dataclass(frozen=True, slots=True)
class StopRule:
    """When to go on."""

    least_gain: float = 0.005
    """Accuracy that a batch must be expected to add, where `worth_per_point` is None."""
    cost_per_label: float | None = None
    """In any unit of money or time; None: not known."""
    worth_per_point: float | None = None
    """What a point of accuracy (0.01) is worth, in the unit of `cost_per_label`."""

    def __post_init__(self) -> None:
        for name in ("least_gain", "cost_per_label", "worth_per_point"):
            value = getattr(self, name)
            if value is not None and not (np.isfinite(value) and value >= 0):
                raise ConfigError(f"expected a {name} of 0 or more, got {value}")
        if self.worth_per_point is not None and self.cost_per_label is None:
            raise ConfigError(
                "what a point is worth can only be held against a cost: give cost_per_label too"
            )


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a batch of labels is expected to do to the order of the pool's pairs."""

    count: int
    """Labels of the batch."""
    accuracy: float
    """Share of the pool's pairs that the model is expected to order rightly as it is."""
    gain: float
    """Expected change of it, in accuracy; never below 0 but for the simulation's own noise."""
    low: float
    """5 % quantile of the simulated changes."""
    high: float
    """95 % quantile."""
    cost: float | None
    goes_on: bool

    @property
    def sentence(self) -> str:
        """The same for people to read."""
        text = (
            f"the next {self.count} labels are expected to change accuracy on these pairs by "
            f"{100 * self.gain:+.1f} points (9 of 10 simulated futures: {100 * self.low:+.1f} to "
            f"{100 * self.high:+.1f})"
        )
        if self.cost is not None:
            text += f" at a cost of {self.cost:g}"
            if self.gain > 0:
                text += f", {self.cost / (100 * self.gain):.3g} a point"
        return f"{text}: {'go on' if self.goes_on else 'stop'}"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "sentence": self.sentence}


def forecast_gain(
    pool: Pool,
    rows: ArrayLike,
    rule: StopRule,
    *,
    seed: int,
    num_futures: int = NUM_FUTURES,
) -> Forecast:
    """Simulate what labels of some pairs would do: draw a truth, its labels, and learn from them.

    A truth is a head drawn from the posterior. It labels the batch by Bradley-Terry; the posterior
    is moved to its new maximum; accuracy is the share of the pool's pairs whose order agrees with
    the truth, after less before. The mean over truths is the expected value of the labels.

    It believes the posterior: that reward is linear in the features, and as unknown as the prior
    and the labelled pairs say. What holds it against labels is accuracy on pairs drawn at random
    (`data.preferences.without_picked`).

    Args:
        pool: What is known.
        rows: Of the pool, the batch.
        rule: When to go on.
        seed: Draws the futures.
        num_futures: How many.

    Source:
        Expected value of sample information, as in Raiffa & Schlaifer 1961; the maximum in the
        space of the labels, by the bound of Böhning & Lindsay 1988 on the curvature.
    """
    batch = np.asarray(rows, np.int64)
    draw = np.random.default_rng(draw_seed(seed, "futures", len(batch)))
    measured = np.arange(len(pool))
    if len(pool) > MOST_PAIRS:
        measured = np.sort(draw.choice(len(pool), size=MOST_PAIRS, replace=False))
    factor = np.linalg.cholesky(pool.covariance)
    noise = factor @ draw.standard_normal((factor.shape[1], num_futures))
    truth = pool.means[measured, None] + pool.gaps[measured] @ noise
    batch_truth = pool.means[batch, None] + pool.gaps[batch] @ noise
    outcomes = (draw.random(batch_truth.shape) < expit(batch_truth)).astype(np.float64)
    after = update_gaps(pool, measured, batch, outcomes)
    right = truth > 0
    was_right = (pool.means[measured, None] > 0) == right
    changes = ((after > 0) == right).mean(axis=0) - was_right.mean(axis=0)
    gain = float(changes.mean())
    low, high = (float(q) for q in np.quantile(changes, QUANTILES))
    cost = None if rule.cost_per_label is None else rule.cost_per_label * len(batch)
    if rule.worth_per_point is not None and cost is not None:
        goes_on = 100 * gain * rule.worth_per_point > cost
    else:
        goes_on = gain >= rule.least_gain
    return Forecast(len(batch), float(was_right.mean()), gain, low, high, cost, goes_on)


def update_gaps(pool: Pool, rows: ArrayLike, batch: ArrayLike, outcomes: ArrayLike) -> Floats:
    """Reward gaps of some pairs once others are labelled: the new maximum of the posterior.

    Args:
        pool: What is known before.
        rows: Of the pool, pairs whose gaps are asked for.
        batch: Of the pool, pairs that are labelled, shape (labels,).
        outcomes: 1 where the first response was preferred, shape (labels, futures).

    Returns:
        Shape (rows, futures), in logits.
    """
    x, taken = pool.gaps[np.asarray(rows)], pool.gaps[np.asarray(batch)]
    start = pool.means[np.asarray(batch)][None, :]
    y = np.asarray(outcomes, np.float64).T
    along = pool.covariance @ taken.T
    kernel = taken @ along
    # f = K a is what the batch's own gaps have moved by; a solves a = y - sigmoid(start + K a).
    # As p (1 - p) <= 1 / 4, one matrix serves every step, and no step overshoots.
    step = np.linalg.inv(np.eye(len(kernel)) + kernel / 4)
    a = np.zeros_like(y)
    for _ in range(MOST_STEPS):
        residual = a - y + expit(start + a @ kernel)
        if np.abs(residual).max(initial=0.0) < TOLERANCE:
            break
        a = a - residual @ step
    found: Floats = pool.means[np.asarray(rows), None] + x @ (along @ a.T)
    return found
