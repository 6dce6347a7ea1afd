# SPDX-License-Identifier: Apache-2.0
"""The knobs of pseudo-labels, augmentation and adaptation, one description per field; no torch."""

from typing import Annotated, Literal

from pydantic import BaseModel, Field, model_validator

from metarm.config import RewardSettings
from metarm.config_base import STRICT, Count, NonNegative, Positive
from metarm.config_judge import EndpointSettings

__all__ = [
    "AdaptSettings",
    "AugmentSettings",
    "FewLabelSettings",
    "PseudoLabelSettings",
    "RoundRewardSettings",
]


class RoundRewardSettings(RewardSettings):
    """How each round's reward model is trained: as in `metarm reward`, without a meta step."""

    meta_mode: Literal["off", "ascent", "descent", "joint"] = "off"
    """With a mode, the unlabelled groups are the meta set too."""


class FewLabelSettings(RewardSettings):
    """How each candidate is trained: as in `metarm reward`, longer, and drawn back to its start."""

    meta_mode: Literal["off", "ascent", "descent", "joint"] = "off"
    """A few labels are adapted to without a meta step."""
    num_train_epochs: Positive = 5.0
    """Passes over the few labels."""
    start_decay: NonNegative = 1.0
    """Decay towards the weights that adaptation begins from (L2-SP)."""


class PseudoLabelSettings(BaseModel):
    """Rounds of pseudo-labels on unlabelled responses."""

    model_config = STRICT

    num_rounds: Count = 2
    """Rounds at most; fewer where held-out accuracy drops."""
    confidence: Annotated[float, Field(ge=0.5, le=1)] = 0.75
    """Least calibrated probability of the likelier side."""
    most_share: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Share of a training set that pseudo-labels are at most."""
    pairs_per_group: Count = 3
    """Pairs of a group's responses that may be labelled."""
    test_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Prompts held out of the labelled pairs: half to calibrate on, half to stop by."""
    alpha: Annotated[float, Field(gt=0, lt=0.5)] = 0.2
    """Level of the paired test that held-out accuracy has dropped: above 0.05, to stop early."""
    reward: RoundRewardSettings = RoundRewardSettings()


class AugmentSettings(BaseModel):
    """How rows are made from others."""

    model_config = STRICT

    per_prompt: Count = 4
    """Rows of a kind for one prompt, at most."""
    temperature: Annotated[float, Field(ge=0)] = 0.7
    """Kind `paraphrase`: sampling temperature at the endpoint."""
    max_completion_length: Count = 512
    """Kind `paraphrase`: longest paraphrase, in tokens."""
    endpoint: EndpointSettings = EndpointSettings()


class AdaptSettings(BaseModel):
    """Which way of adapting a reward model by a few labels is taken."""

    model_config = STRICT

    candidates: Annotated[list[str], Field(min_length=1)] = ["head", "lora", "full"]
    """Ways to try beside keeping the model: `head`, `lora`, `full`."""
    folds: Annotated[int, Field(ge=2)] = 5
    """Parts of the few labels, by prompt: each is tested by a model that has not seen it."""
    margin: Annotated[float, Field(gt=0, lt=0.5)] = 0.03
    """Accuracy on original pairs that may be lost at most."""
    alpha: Annotated[float, Field(gt=0, lt=0.9)] = 0.5
    """Chance that a way which loses just that much passes; 0.05: it must be shown to lose less."""
    gain_alpha: Annotated[float, Field(gt=0, le=0.5)] = 0.5
    """Level at which a way must be better than simpler ones; 0.5: the best of all is taken."""
    reward: FewLabelSettings = FewLabelSettings()

    @model_validator(mode="after")
    def _named_once(self) -> "AdaptSettings":
        if len(set(self.candidates)) != len(self.candidates):
            raise ValueError("candidates may each be named once only")
        if self.reward.meta_mode != "off":
            raise ValueError("reward.meta_mode: a few labels are adapted to without a meta step")
        if self.reward.use_peft or self.reward.train_head_only:
            raise ValueError("reward: which weights are trained is what the candidates are about")
        return self
