# SPDX-License-Identifier: Apache-2.0
"""The settings of the trainer, beside TRL's own, and the metrics that it logs."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, get_args

from trl import RewardConfig

from metarm.errors import ConfigError, nearest_names
from metarm.meta_step import MetaOrder, check_mode
from metarm.meta_strength import META_NUMBERS, resolve_strength

__all__ = ["META_METRICS", "MetaRewardConfig"]

FIXED: Final = {"meta_learning_rate": 5e-6, "meta_weight": 0.1}
"""What `meta_strength="fixed"` takes where no number is given; eta is the paper's."""

LEAST: Final = {
    "meta_batch_size": 1,
    "meta_group_size": 2,
    "meta_every": 1,
    "meta_micro_batch_size": 1,
}
CHOICES: Final = {
    "meta_order": get_args(MetaOrder),
    "meta_between": ("plain", "stored"),
    "meta_parameters": ("all", "head"),
}

META_METRICS: Final[Mapping[str, str]] = {
    "meta/J": "difference loss of the meta batch at the kept weights",
    "meta/J_after": "J at the look-ahead point; one step a log, so compare meta/J_change instead",
    "meta/J_change": "J at the look-ahead point minus J, same batch; above 0 in ascent, below 0 in "
    "descent",
    "meta/grad_norm": "Euclidean length of the gradient of J",
    "meta/step_size": "the multiple of J's gradient that the look-ahead moves by",
    "meta/weight": "the weight of J in joint",
    "meta/strength": "share of its full strength that the guard leaves the meta step; 0 is off",
    "meta/rank_correlation": "mean within-group Spearman correlation with the plain reward model "
    "at the same step, on groups kept for it",
    "meta/move_length": "|theta' - theta| as stored",
    "meta/move_realised_fraction": "share of the intended move that survived rounding; 1 is right",
    "meta/score_change_mean": "mean |change of a meta response's score| by the look-ahead, logits",
    "meta/cosine": "cosine between the gradients of L (where it was taken) and of J (as the "
    "weights moved along it); above 0, descending L lowers J too",
    "meta/weight_<source>": "with several sources: the share of the next meta batch that one gets",
    "meta/spread_<source>": "the gaps within its groups over those of original pairs, smoothed; 1: "
    "nothing lost, 0: blind",
    "tokens/computed_share": "places that the passes of pairs and groups computed, over those of "
    "their padded batches; 1: nothing is shared",
    "tokens/padding_share": "padding among the places that were computed",
}


@dataclass
class MetaRewardConfig(RewardConfig):
    """TRL's `RewardConfig` and the settings of the MetaRM step."""

    share_prompts: bool = field(
        default=True,
        metadata={
            "help": "Compute what a pair's sides, or a group's responses, begin with once: the "
            "same scores and gradients to 1e-6. False: TRL's own pass, bit for bit."
        },
    )
    batch_sum_coefficient: float = field(
        default=0.0,
        metadata={"help": "Weight of a batch's squared sum of scores over its size (BSR)."},
    )
    text_loss_coefficient: float = field(
        default=0.0,
        metadata={
            "help": "Weight of the language-model loss on the chosen texts (GRM), which keeps the "
            "hidden states those of a language model; one more pass of them. GRM: 0.01."
        },
    )
    score_dropout: float = field(
        default=0.0,
        metadata={"help": "Share of the last state's places that the score head does not see."},
    )
    meta_mode: str = field(
        default="joint",
        metadata={
            "help": "off, ascent (Algorithm 1 as printed), descent (its sign turned), or "
            "joint (L - meta_weight * J)."
        },
    )
    meta_strength: str | None = field(
        default=None,
        metadata={
            "help": "auto: set by the data, bounded in reward units. fixed: by the numbers below. "
            "None: fixed where one of them is given, else auto."
        },
    )
    meta_guard: bool = field(
        default=True,
        metadata={
            "help": "auto: train plainly first, and stay near its order of the responses; twice "
            "the time."
        },
    )
    meta_learning_rate: float | None = field(
        default=None,
        metadata={
            "help": "Step of the look-ahead (eta). fixed: 5e-6, the paper's. Not used with "
            "meta_step_length."
        },
    )
    meta_step_length: float | None = field(
        default=None,
        metadata={"help": "Fixed length |theta' - theta| of the look-ahead, instead of eta."},
    )
    meta_reward_fraction: float | None = field(
        default=None,
        metadata={
            "help": "Look-ahead so long that scores of original pairs change by this share of "
            "their spread, instead of eta or a length; joint: J moves them at most this much as "
            "fast as the preference loss does. 0.5 is a strong step."
        },
    )
    meta_weight: float | None = field(
        default=None, metadata={"help": "Weight of J in joint. fixed: 0.1."}
    )
    meta_batch_size: int = field(
        default=16, metadata={"help": "Groups per optimiser step, over all processes. Paper: 16."}
    )
    meta_group_size: int = field(
        default=5,
        metadata={"help": "Responses per group (k); larger groups are thinned. Paper: 5."},
    )
    meta_every: int = field(
        default=1, metadata={"help": "Optimiser steps between two meta steps; others are plain."}
    )
    meta_between: str = field(
        default="plain",
        metadata={
            "help": "What the steps between two meta steps are: plain, or stored: J's gradient of "
            "the last meta step is used again (one more copy of the weights in memory)."
        },
    )
    meta_parameters: str = field(
        default="all",
        metadata={
            "help": "Which weights J moves: all that are trained, or head: the score head alone, "
            "which needs no way back through the model."
        },
    )
    meta_micro_batch_size: int | None = field(
        default=None,
        metadata={
            "help": "Responses of the meta batch in memory at once; same result. None: whole "
            "groups, as many as have the responses of a forward pass of pairs."
        },
    )
    meta_order: str = field(
        default="first",
        metadata={
            "help": "first; exact: the gradient flows through the look-ahead (eager attention); or "
            "finite-difference: nearly so, with any attention, for one more pass of J."
        },
    )
    meta_source_floor: float = field(
        default=0.25,
        metadata={"help": "Least share of a source of groups, in even shares; 1: all even."},
    )

    def __post_init__(self) -> None:
        """Check the meta settings, then everything TRL checks."""
        super().__post_init__()
        check_mode(self.meta_mode)
        for name, low in LEAST.items():
            value = getattr(self, name)
            if value is not None and value < low:
                raise ConfigError(f"{name} must be at least {low}, got {getattr(self, name)}")
        for name in META_NUMBERS:
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise ConfigError(
                    f"{name} must be a finite number >= 0, got {value}; the sign is meta_mode's"
                )
        for name in ("batch_sum_coefficient", "text_loss_coefficient"):
            if not (math.isfinite(value := getattr(self, name)) and value >= 0):
                raise ConfigError(f"{name} must be a finite number >= 0, got {value}")
        if not 0.0 <= self.score_dropout < 1.0:
            raise ConfigError(f"score_dropout is from 0 to below 1, got {self.score_dropout}")
        given = {name: getattr(self, name) for name in META_NUMBERS}
        self.meta_strength = resolve_strength(self.meta_strength, given)
        if self.meta_strength == "fixed":
            for name, value in FIXED.items():
                if getattr(self, name) is None:
                    setattr(self, name, value)
        for name, known in CHOICES.items():
            value = getattr(self, name)
            if value not in known:
                raise ConfigError(f"unknown {name} {value!r}: {nearest_names(value, known)}")
        for name, simple in (("meta_between", "plain"), ("meta_parameters", "all")):
            if self.meta_order != "first" and getattr(self, name) != simple:
                raise ConfigError(
                    f"meta_order={self.meta_order!r} needs {name}={simple!r}: the gradient through "
                    f"a look-ahead with {name}={getattr(self, name)!r} has other terms"
                )
