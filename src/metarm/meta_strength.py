# SPDX-License-Identifier: Apache-2.0
"""Who sets the strength of the meta step, and the constants of the automatic one; no torch."""

from collections.abc import Mapping
from typing import Final

from metarm.errors import ConfigError, nearest_names

__all__ = [
    "FULL_FRACTION",
    "FULL_WEIGHT",
    "LEAST_RANK_CORRELATION",
    "META_NUMBERS",
    "resolve_strength",
]

FULL_FRACTION: Final = {"ascent": 0.5, "descent": 0.5, "joint": 0.25}
"""`meta_strength=auto`: share of the rewards' spread, or of the preference loss's speed."""
FULL_WEIGHT: Final = 0.3
"""`meta_strength=auto`: the largest weight of J in `joint`."""
LEAST_RANK_CORRELATION: Final = 0.7
"""`meta_strength=auto`: with plain training, below which the guard halves the strength."""
META_NUMBERS: Final = (
    "meta_learning_rate",
    "meta_step_length",
    "meta_reward_fraction",
    "meta_weight",
)
"""Settings that fix the strength of the meta step."""


def resolve_strength(strength: str | None, numbers: Mapping[str, float | None]) -> str:
    """`auto` or `fixed`: what was asked for, or `fixed` where a number is given.

    Raises:
        ConfigError: When it is neither, or a number is given beside `auto`.
    """
    given = [name for name, value in numbers.items() if value is not None]
    if strength is None:
        return "fixed" if given else "auto"
    if strength not in ("auto", "fixed"):
        raise ConfigError(
            f"unknown meta_strength {strength!r}: {nearest_names(strength, ('auto', 'fixed'))}"
        )
    if strength == "auto" and given:
        raise ConfigError(
            f"meta_strength='auto' sets the strength itself, and {given[0]} is given too: leave it "
            "out, or set meta_strength='fixed'"
        )
    return strength
