# SPDX-License-Identifier: Apache-2.0
"""How often a whole run may cry wolf, and what is left of that for one test of one look."""

import math
from dataclasses import dataclass
from typing import Final

from metarm.errors import ConfigError

__all__ = ["AlarmBudget", "num_relabellings"]

RESERVE: Final = 0.1
"""Share of the budget kept for looks beyond the plan."""
SPARE: Final = 2
"""Relabellings, in units of the least number with which the level can be reached at all."""
MOST_RELABELLINGS: Final = 200_000


@dataclass(frozen=True, slots=True)
class AlarmBudget:
    """The chance of any false alarm in a whole run, spent look by look and test by test.

    Looks share a reference and are not independent; the sum of their levels bounds the chance of
    any alarm all the same (Bonferroni), and the sum over all looks there may ever be is `alpha`.

    Source:
        Lan & DeMets 1983 for spending; alpha / (n (n + 1)) where the end is not known.
    """

    alpha: float = 0.05
    """Chance of one or more false alarms in a run without a shift, in (0, 1)."""
    planned_looks: int | None = 50
    """Looks that share nine tenths of it evenly; None: the end is not known."""

    def __post_init__(self) -> None:
        if not 0.0 < self.alpha < 1.0:
            raise ConfigError(f"alpha is a chance between 0 and 1, got {self.alpha}; usual: 0.05")
        if self.planned_looks is not None and self.planned_looks < 1:
            raise ConfigError(f"planned_looks is 1 or more, or none, got {self.planned_looks}")

    def level(self, look: int, num_tests: int) -> float:
        """The p-value at which a test of that look alarms.

        Args:
            look: 1, 2, ...
            num_tests: Tests that the look makes; they share its part evenly.

        Example:
            >>> AlarmBudget(alpha=0.05, planned_looks=None).level(2, 1) == 0.05 / 6
            True
        """
        if look < 1 or num_tests < 1:
            raise ConfigError(f"expected look and num_tests from 1 on, got {look} and {num_tests}")
        if self.planned_looks is None:
            share = 1.0 / (look * (look + 1))
        elif look <= self.planned_looks:
            share = (1.0 - RESERVE) / self.planned_looks
        else:
            beyond = look - self.planned_looks
            share = RESERVE / (beyond * (beyond + 1))
        return self.alpha * share / num_tests


def num_relabellings(level: float) -> int:
    """Relabellings with which a test at this level has its power; few are drawn without a shift.

    At most 200,000: a level below 1 in as many is never reached.

    Example:
        >>> num_relabellings(0.001)
        2000
    """
    return min(SPARE * math.ceil(1.0 / level), MOST_RELABELLINGS)
