# SPDX-License-Identifier: Apache-2.0
"""The few settings that a method has left to tune, and the range each is searched in."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from types import MappingProxyType
from typing import Any, Final

from metarm.bench.recipes import Recipe
from metarm.bench.settings import HEAD_LEARNING_RATE, HeadSettings, RangeSettings
from metarm.errors import ConfigError, nearest_names

__all__ = ["RANGES", "Dimension", "apply_settings", "search_space"]

RANGES: Final[Mapping[str, tuple[float, float]]] = MappingProxyType(
    {
        "strength": (0.1, 10.0),
        "reward_fraction": (0.1, 10.0),
        "learning_rate": (1e-4, 1e-2),
        "weight_decay": (1e-4, 1.0),
        "num_groups": (8, 128),
    }
)
"""Name -> lowest and highest value; `MULTIPLES` are in multiples of the method's own value."""
MULTIPLES: Final = frozenset({"strength", "reward_fraction"})
WHOLE: Final = frozenset({"num_groups"})
GROUP_STEPS: Final = frozenset({"ascent", "descent", "joint", "random"})
"""Steps that look at groups."""


@dataclass(frozen=True, slots=True)
class Dimension:
    """One setting and where it is searched, on a log scale."""

    low: float
    high: float
    default: float
    """What the method and the head have without tuning."""
    is_whole: bool = False


def search_space(
    recipe: Recipe, head: HeadSettings, ranges: Mapping[str, RangeSettings]
) -> dict[str, Dimension]:
    """The settings that do anything in this recipe, by name.

    Args:
        recipe: The method; its own strength is the default.
        head: The other defaults.
        ranges: Ranges that replace those of the table.

    Raises:
        ConfigError: When a range is given for a setting that is not there, or a default lies
            outside its range.
    """
    defaults: dict[str, float] = {}
    # With both, the fraction bounds what the strength asks for.
    if recipe.strength > 0.0:
        defaults["strength"] = recipe.strength
    elif recipe.reward_fraction is not None:
        defaults["reward_fraction"] = recipe.reward_fraction
    defaults["learning_rate"] = head.learning_rate or HEAD_LEARNING_RATE
    own_decay = recipe.weight_decay
    defaults["weight_decay"] = head.weight_decay if own_decay is None else own_decay
    if recipe.step in GROUP_STEPS or recipe.domain_weight:
        defaults["num_groups"] = head.num_groups
    for name in ranges:
        if name not in defaults:
            raise ConfigError(
                f"space.{name}: this method has no such setting: {nearest_names(name, defaults)}"
            )
    space = {}
    for name, default in defaults.items():
        unit = default if name in MULTIPLES else 1.0
        low, high = (unit * bound for bound in RANGES[name])
        if name in ranges:
            low, high = ranges[name].low, ranges[name].high
        if name in WHOLE:
            low, high = float(round(low)), float(round(high))
        if not low <= default <= high:
            raise ConfigError(
                f"space.{name}: expected a range with the default {default:g} in it, which is the "
                f"first trial, got {low:g} to {high:g}; widen it, or change the default"
            )
        space[name] = Dimension(low, high, default, name in WHOLE)
    return space


def apply_settings(
    recipe: Recipe, head: HeadSettings, values: Mapping[str, float]
) -> tuple[Recipe, HeadSettings]:
    """The recipe and the head with the values of a trial in place of their own."""
    # A recipe that decays weights by itself has its say: the head's value would change nothing.
    own = {name for name, value in asdict(recipe).items() if value is not None}
    for_recipe: dict[str, Any] = {name: value for name, value in values.items() if name in own}
    for_head = {
        name: round(value) if name in WHOLE else value
        for name, value in values.items()
        if name not in own
    }
    return replace(recipe, **for_recipe), head.model_copy(update=for_head)
