# SPDX-License-Identifier: Apache-2.0
"""Methods by name: each a recipe, a small set of choices; names joined by + are combined.

`descent+ensemble-mean+100-labels` is a look-ahead in each member of an ensemble that also sees 100
labels, `joint@0.1` is joint with another strength, `joint+stored-4` measures J's gradient at each
fourth step; `module:function` is the user's own.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Final, Literal

from metarm.errors import ConfigError, nearest_names
from metarm.meta_strength import FULL_FRACTION, FULL_WEIGHT, LEAST_RANK_CORRELATION
from metarm.schema import RANDOM

__all__ = ["METHODS", "PLAIN", "Recipe", "read_recipe"]


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a reward head is trained and used; the defaults are plain training."""

    step: Literal["off", "ascent", "descent", "joint", "random", "sam"] = "off"
    """Where the preference gradient is taken, or what is added to it."""
    strength: float = 0.0
    """eta of a look-ahead, weight of J in `joint`."""
    reward_fraction: float | None = None
    """Strength in reward units: a look-ahead that changes rewards by this share of their spread, or
    a weight of J at which it moves rewards this much as fast as the preference loss does.
    """
    least_rank_correlation: float | None = None
    """Guard: `strength.StrengthGuard` on watched groups, against the plain network at that step."""
    every: int = 1
    """Steps from one meta step to the next."""
    between: Literal["plain", "stored"] = "plain"
    """What those between are: plain, or with J's gradient of the last meta step."""
    group_share: float = 1.0
    """Share of a step's groups that J is measured on."""
    moves: Literal["all", "head"] = "all"
    """What J moves: all that is trained, or only what stands on the pretrained model."""
    order: Literal["first", "exact", "finite-difference"] = "first"
    """Whether the gradient flows through the look-ahead: see `metarm.meta_step`."""
    centring: float = 0.0
    """Weight of the squared sum of a pair's scores: TRL's reward centring."""
    batch_sum: float = 0.0
    """Weight of a batch's squared sum of scores over its size (BSR)."""
    domain_weight: float = 0.0
    """Weight of a critic that tells original from shifted hidden states (DIAL)."""
    weighs_pairs: bool = False
    """Whether pairs count by how likely their texts are among the shifted ones (OCRM)."""
    pseudo_confidence: float | None = None
    """West-of-n: best against worst of a group, where plain is at least this sure."""
    pseudo_rounds: int = 0
    """Rounds of calibrated pseudo-labels: see `stretching.pseudo_labels`."""
    augments: tuple[str, ...] = ()
    """Kinds of rows of `stretching.augmenting` that are added."""
    dropout: float = 0.0
    """Share of each hidden layer's units that a training pass leaves out; heads alone."""
    weight_decay: float | None = None
    """Of AdamW; None: that of the settings."""
    reconstruction: float = 0.0
    """Weight of giving the frozen features back from the hidden ones; heads alone."""
    own_head: bool = False
    """Whether labelled shifted pairs have a last layer of their own, which scores in the end."""
    source_floor: float | None = None
    """Groups drawn by source, by what is lost with this floor; None: each group as often."""
    num_labels: int = 0
    """Labelled shifted pairs added to the original ones."""
    label_choice: str = RANDOM
    """Which pairs those are: a strategy of `metarm select`."""
    is_oracle: bool = False
    """All labelled shifted pairs, and no original one."""
    seed_offset: int = 0
    """Added to the seed: what another start alone does."""
    members: int = 1
    """Heads trained from other seeds and on other bootstrap draws."""
    pessimism: float | None = None
    """beta of -beta log E exp(-r / beta) over members; None: their mean."""
    averages_weights: bool = False
    """One head of the members' mean weights (WARM), all trained from one start."""
    deploys_look_ahead: bool = False
    """Scores with theta', the looked-ahead weights, instead of theta."""

    @property
    def uses_labels(self) -> bool:
        """Whether it needs labelled shifted pairs."""
        return self.is_oracle or self.num_labels > 0

    @property
    def needs_features(self) -> bool:
        """Whether it needs frozen features: changes a head on them, or chooses labels by one."""
        chooses = self.label_choice != RANDOM
        return bool(self.dropout or self.reconstruction or self.own_head or chooses)

    @property
    def without_step(self) -> "Recipe":
        """The same, trained without the meta step: a guard compares with it."""
        return replace(self, **{name: getattr(PLAIN, name) for name in STEP_CHOICES})

    @property
    def num_heads(self) -> int:
        """Networks it trains, those that teach or guard among them."""
        teachers = int(self.pseudo_confidence is not None or self.pseudo_rounds > 0)
        tries = 1 if self.least_rank_correlation is None else 2
        # What stays where no round helps is trained too, where that is not plain training.
        stays = int(self.pseudo_rounds > 0 and replace(self, pseudo_rounds=0) != PLAIN)
        return self.members * tries * (max(self.pseudo_rounds, 1) + stays) + teachers


PLAIN: Final = Recipe()
"""Plain training."""
STEP_CHOICES: Final = (
    "step",
    "strength",
    "reward_fraction",
    "least_rank_correlation",
    "every",
    "between",
    "group_share",
    "moves",
    "order",
)
"""What a recipe chooses about the meta step."""
AUTO: Final = {"least_rank_correlation": LEAST_RANK_CORRELATION}

METHODS: Final[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
    {
        "plain": {},
        "plain-again": {"seed_offset": 1},
        "ascent": {"step": "ascent", "strength": 1.0},
        "descent": {"step": "descent", "strength": 3.0},
        "joint": {"step": "joint", "strength": 0.3},
        "descent-auto": AUTO | {"step": "descent", "reward_fraction": FULL_FRACTION["descent"]},
        "ascent-auto": AUTO | {"step": "ascent", "reward_fraction": FULL_FRACTION["ascent"]},
        "joint-auto": AUTO
        | {"step": "joint", "strength": FULL_WEIGHT, "reward_fraction": FULL_FRACTION["joint"]},
        "quarter-groups": {"group_share": 0.25},
        "head-only": {"moves": "head"},
        "exact": {"order": "exact"},
        "finite-difference": {"order": "finite-difference"},
        "even-sources": {"source_floor": 1.0},
        "lost-sources": {"source_floor": 0.25},
        "random-direction": {"step": "random", "strength": 3.0},
        "sam": {"step": "sam", "strength": 0.05},
        "deployed-look-ahead": {"step": "ascent", "strength": 1.0, "deploys_look_ahead": True},
        "reward-centring": {"centring": 0.01},
        "batch-sum": {"batch_sum": 0.01},
        "dropout": {"dropout": 0.2},
        "decay": {"weight_decay": 1.0},
        "reconstruct": {"reconstruction": 0.1},
        "pseudo-labels": {"pseudo_rounds": 1},
        "pseudo-rounds": {"pseudo_rounds": 3},
        **{
            kind: {"augments": (kind,)}
            for kind in (
                "cross-prompt",
                "cross-prompt-policy",
                "neutral",
                "format-only",
                "truncated",
                "stronger-weaker",
            )
        },
        "importance-weighted": {"weighs_pairs": True},
        "west-of-n": {"pseudo_confidence": 0.8},
        "domain-invariant": {"domain_weight": 0.1},
        "ensemble-mean": {"members": 4},
        "ensemble-uncertainty": {"members": 4, "pessimism": 1.0},
        "weight-average": {"members": 4, "averages_weights": True},
        "mix": {"label_choice": "mix"},
        "d-optimal": {"label_choice": "d-optimal"},
        "information-gain": {"label_choice": "information-gain"},
        "disagreement": {"label_choice": "disagreement"},
        "near-tie": {"label_choice": "near-tie"},
        "oracle": {"is_oracle": True},
    }
)
"""Name -> what it changes in a recipe; those of `COUNTED` stand for any number."""

COUNTED: Final[Mapping[str, Callable[[int], dict[str, Any]]]] = MappingProxyType(
    {
        r"([1-9]\d*)-labels": lambda count: {"num_labels": count},
        r"([1-9]\d*)-labels-apart": lambda count: {"num_labels": count, "own_head": True},
        r"every-([1-9]\d*)": lambda count: {"every": count, "between": "plain"},
        r"stored-([1-9]\d*)": lambda count: {"every": count, "between": "stored"},
    }
)
"""Pattern of a name with a number in it -> what it changes in a recipe."""


def read_recipe(name: str) -> Recipe:
    """The recipe called `name`, or those of its parts joined by `+`.

    Raises:
        ConfigError: When a part is unknown, or two parts want different things.
    """
    changes: dict[str, Any] = {}
    for whole in name.split("+"):
        part, at, strength = whole.partition("@")
        wanted = _look_up(part)
        if at:
            wanted["strength"] = _read_strength(whole, strength, wanted)
        for key, value in wanted.items():
            if key == "augments":
                changes[key] = (*changes.get(key, ()), *value)
                continue
            if changes.setdefault(key, value) != value:
                raise ConfigError(
                    f"method {name!r}: its parts want {key}={changes[key]} and {key}={value}; "
                    "combine methods that change different things"
                )
    recipe = replace(Recipe(), **changes)
    if recipe.averages_weights and (recipe.pessimism is not None or recipe.deploys_look_ahead):
        raise ConfigError(
            f"method {name!r}: averaged weights are one head: it has no members to be pessimistic "
            "about, and no look-ahead of its own; leave one of the parts out"
        )
    if recipe.is_oracle and recipe.num_labels:
        raise ConfigError(f"method {name!r}: the oracle has all labels already; leave one out")
    if recipe.label_choice != RANDOM and not recipe.num_labels:
        raise ConfigError(
            f"method {name!r}: {recipe.label_choice} chooses labels, and it has none to choose; "
            f"say how many, as in 100-labels+{recipe.label_choice}"
        )
    if recipe.pseudo_rounds and recipe.pseudo_confidence is not None:
        raise ConfigError(f"method {name!r}: two ways of pseudo-labelling; leave one out")
    _check_order(name, recipe)
    return recipe


def _look_up(part: str) -> dict[str, Any]:
    """What one part of a name changes."""
    for pattern, change in COUNTED.items():
        if found := re.fullmatch(pattern, part):
            return change(int(found[1]))
    if part not in METHODS:
        known = [*METHODS, "100-labels", "every-4", "stored-4"]
        raise ConfigError(
            f"unknown method {part!r}: {nearest_names(part, known)}; or give your own as "
            "module:function"
        )
    return {**METHODS[part]}


def _check_order(name: str, recipe: Recipe) -> None:
    """Refuse an order of the look-ahead where there is none, or where it would be a wrong one."""
    if recipe.order == "first":
        return
    if recipe.step not in ("off", "ascent", "descent"):
        raise ConfigError(
            f"method {name!r}: {recipe.order} is about a look-ahead, and {recipe.step} has none; "
            "combine it with ascent or descent"
        )
    if recipe.between == "stored" or recipe.moves == "head":
        raise ConfigError(
            f"method {name!r}: {recipe.order} needs J's whole gradient of that very step; leave "
            "stored-N and head-only out"
        )


def _read_strength(whole: str, text: str, wanted: Mapping[str, Any]) -> float:
    """The number behind an @, in place of the strength that the table has."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if "strength" not in wanted or not 0.0 <= value < float("inf"):
        raise ConfigError(
            f"method {whole!r}: expected a method with a strength of its own and a number >= 0 "
            "behind the @, as in joint@0.1"
        )
    return value
