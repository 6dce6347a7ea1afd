# SPDX-License-Identifier: Apache-2.0
"""Annotators who tell little or lie, named with a bound on how often a good one is among them."""

from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

import numpy as np
from scipy import stats

from metarm.annotators.beliefs import Belief
from metarm.errors import ConfigError
from metarm.metrics import adjust_by_holm

__all__ = ["ALPHA", "Suspect", "SuspectKind", "check_alpha", "name_suspects"]

SuspectKind = Literal["random", "always-left", "always-right", "adversarial"]

ALPHA: Final = 0.05
SHARE_OF_TYPICAL: Final = 0.5
"""Of the crowd's median reliability: an annotator who tells less than that is a bad one."""
SIDED: Final = 0.5
"""Side bias from which on a bad annotator is said to vote by the side."""


@dataclass(frozen=True, slots=True)
class Suspect:
    """An annotator who is less reliable than one must be."""

    name: str
    kind: SuspectKind
    """What the votes look most like."""
    p_value: float
    """Of being reliable enough, adjusted for the number of annotators."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def name_suspects(
    belief: Belief, *, alpha: float = ALPHA, least: float | None = None
) -> tuple[Suspect, ...]:
    """The annotators whose reliability is below the least that is wanted, by a test.

    H0 of each: the reliability is `least` or more. Rejected where the Laplace interval says so, on
    Fisher's scale, at a level that Holm's method keeps for all annotators together: with chance
    `alpha` at most (to the order of Laplace's approximation) somebody who is reliable enough is
    named. What kind of bad one it is, is then the nearest profile, without a test.

    Args:
        belief: A fit of any model.
        alpha: In (0, 1).
        least: Reliability in (-1, 1); None: half the median of those that are told, so that the
            rule is the same for models that measure against the reward and against the truth.

    Returns:
        In the table's order; nobody where the median is not above 0, and nobody of whom nothing is
        told.

    Raises:
        ConfigError: When `alpha` or `least` is out of range.

    Source:
        Holm 1979.
    """
    check_alpha(alpha)
    if least is not None and not -1 < least < 1:
        raise ConfigError(f"expected a reliability between -1 and 1, got {least}")
    told = [one for one in belief.annotators if one.reliability.is_told]
    if not told:
        return ()
    if least is None:
        typical = float(np.median([one.reliability.value for one in told]))
        if typical <= 0:
            return ()
        least = SHARE_OF_TYPICAL * typical
    adjusted = adjust_by_holm(
        [_p_value(one.reliability.value, one.reliability_error, least) for one in told]
    )
    return tuple(
        Suspect(one.name, _kind(one.reliability.value, one.side_bias.value, least), float(p))
        for one, p in zip(told, adjusted, strict=True)
        if p <= alpha
    )


def check_alpha(alpha: float) -> None:
    """Refuse a level of a test that is none.

    Raises:
        ConfigError: When it is not in (0, 1).
    """
    if not 0 < alpha < 1:
        raise ConfigError(f"expected alpha above 0 and below 1, got {alpha}: 0.05, for example")


def _p_value(value: float, error: float, least: float) -> float:
    """One-sided, on Fisher's scale."""
    inside = min(max(value, -1.0 + 1e-9), 1.0 - 1e-9)
    distance = np.arctanh(inside) - np.arctanh(least)
    return float(stats.norm.cdf(distance * (1.0 - inside**2) / error))


def _kind(reliability: float, side_bias: float, least: float) -> SuspectKind:
    if abs(side_bias) >= SIDED:
        return "always-left" if side_bias > 0 else "always-right"
    return "adversarial" if reliability < -abs(least) else "random"
