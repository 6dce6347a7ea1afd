# SPDX-License-Identifier: Apache-2.0
"""The knobs of `compare`, `tune` and `advise`, one description per field; no torch."""

from typing import Annotated, Final, Literal

from pydantic import BaseModel, Field, model_validator

from metarm.config_base import STRICT, Count, NonNegative, PathText, Positive, Seed

__all__ = [
    "HEAD_LEARNING_RATE",
    "AdviseSettings",
    "CompareSettings",
    "HeadSettings",
    "RangeSettings",
    "SourceSettings",
    "TuneSettings",
]


HEAD_LEARNING_RATE: Final = 1e-3
"""Of a head on frozen features, where none is given."""


class _Settings(BaseModel):
    model_config = STRICT


class HeadSettings(_Settings):
    """How `metarm compare` and `metarm tune` train a reward head, or what stands under it."""

    hidden: Annotated[list[Count], Field(min_length=1)] = [128, 64]
    """Widths of the hidden layers of a head on frozen features."""
    learning_rate: Positive | None = None
    """Of AdamW, constant; None: 1e-3 for a head, as for a reward model of that size otherwise."""
    weight_decay: NonNegative = 0.01
    """Weight decay of AdamW."""
    num_steps: Count = 300
    """Optimiser steps; the stopping rule takes the best of the measured ones."""
    measure_every: Count = 20
    """Steps between two measurements."""
    batch_size: Count = 64
    """Pairs per step."""
    num_groups: Count = 32
    """Groups per step."""
    fit_score_first: bool = False
    """Where a pretrained model is trained: start from a linear score fitted on its states."""


class SourceSettings(_Settings):
    """What a shift is read from."""

    data: str | None = None
    """File of a shift of the table; `hh`: folder of its two files; `world`: a run's folder."""
    preferences: str | None = None
    """Shift `files`: labelled original pairs."""
    groups: str | None = None
    """Shift `files`: unlabelled groups of the shifted policy, as `metarm sample` writes them."""
    preferences_shifted: str | None = None
    """Shift `files`: labelled shifted pairs, where there are any."""
    arm: str = "frozen"
    """Shift `world`: the arm of the run whose policy is the shifted one."""
    round: Count | None = None
    """Shift `world`: after which of its rounds; None: the last."""


class AdviseSettings(_Settings):
    """What to expect of the step on one's own pairs and groups."""

    output_dir: PathText
    """Folder of the advice; finished splits are kept."""
    shift: str = "files"
    """`files` (your own), or another shift of `metarm compare`."""
    source: SourceSettings = SourceSettings()
    """What the shift is read from; labelled shifted pairs are the probe."""
    backbone: str
    """Pretrained model whose frozen hidden states are the features."""
    max_length: Count = 128
    """Longest text, in tokens; what is longer is cut."""
    features_dir: PathText | None = None
    """Where frozen features are kept; None: in `output_dir`."""
    methods: Annotated[list[str], Field(min_length=1)] | None = None
    """Modes with their strengths to consider; None: all that docs/advise.md lists."""
    seeds: Annotated[list[Seed], Field(min_length=1)] = [0, 1, 2, 3, 4]
    """Each is a split of its own."""
    head: HeadSettings = HeadSettings()
    confidence: Annotated[float, Field(ge=0.5, lt=1)] = 0.8
    """How sure it must be that a mode helps, one-sided, before it is advised."""

    @model_validator(mode="after")
    def _named_once(self) -> "AdviseSettings":
        for name in ("seeds", "methods"):
            values = getattr(self, name) or []
            if len(set(values)) != len(values):
                raise ValueError(f"{name} may each be named once only: twice is no more evidence")
        return self


class CompareSettings(_Settings):
    """Methods x shifts x seeds, on paired splits."""

    output_dir: PathText
    """Folder of the comparison; finished cells are kept."""
    shifts: Annotated[list[str], Field(min_length=1)]
    """Names of shifts: `alpaca`, `gsm8k`, `hh`, `world` (a run), `files` (your own)."""
    sources: dict[str, SourceSettings] = {}
    """What each shift is read from, by its name."""
    methods: Annotated[list[str], Field(min_length=1)] = [
        "plain",
        "ascent",
        "descent",
        "joint",
        "random-direction",
        "sam",
        "deployed-look-ahead",
        "reward-centring",
        "batch-sum",
        "importance-weighted",
        "domain-invariant",
        "100-labels",
        "oracle",
    ]
    """Names of methods; `+` combines some, `N-labels` adds N labelled shifted pairs."""
    seeds: Annotated[list[Seed], Field(min_length=1)] = [0, 1, 2, 3, 4]
    """Each is a split of its own, the same for every method."""
    backbone: str
    """Pretrained model, an encoder or a causal one."""
    trained: Literal["head", "top", "lora", "all"] = "head"
    """A small head on its frozen states, its last layers, an adapter, or all of it."""
    top_layers: Count = 2
    """Last layers that `trained=top` moves."""
    lora_r: Count = 16
    """Rank of the adapter of `trained=lora`."""
    max_pairs: Count | None = None
    """Training pairs kept of each side, drawn by the seed; None: all."""
    max_test_pairs: Count | None = None
    """Test pairs kept of each side; None: all."""
    max_length: Count = 128
    """Longest text, in tokens; what is longer is cut."""
    features_dir: PathText | None = None
    """Where frozen features are kept; None: in `output_dir`."""
    head: HeadSettings = HeadSettings()
    workers: Count = 1
    """Splits run at the same time, each in a process of its own."""
    allow_unequal_budgets: bool = False
    """Compare methods that train several heads with methods that train one."""

    @model_validator(mode="after")
    def _named_once(self) -> "CompareSettings":
        for name in ("shifts", "seeds", "methods"):
            values = getattr(self, name)
            if len(set(values)) != len(values):
                raise ValueError(f"{name} may each be named once only: twice is no more evidence")
        return self


class RangeSettings(_Settings):
    """Where a setting is searched for, on a log scale."""

    low: Positive
    """Smallest value."""
    high: Positive
    """Largest value."""


class TuneSettings(_Settings):
    """The few settings of a method on one shift, searched for on paired splits."""

    output_dir: PathText
    """Folder of the search; finished trials are kept in its `tune.sqlite3`."""
    shift: str
    """Name of a shift of `metarm compare`, such as `files` (your own)."""
    source: SourceSettings = SourceSettings()
    method: str = "joint"
    """Name of a method of `metarm compare`; `+` combines some."""
    num_trials: Count = 50
    """Trials to finish, pruned ones too, over all starts; the first is the default setting."""
    max_minutes: Positive | None = None
    """No trial begins later than this after a start; None: only `num_trials` counts."""
    seeds: Annotated[list[Seed], Field(min_length=1)] = [0, 1, 2, 3, 4]
    """Each is a split of its own, the same in every trial."""
    fresh_seeds: Annotated[list[Seed], Field(min_length=2)] = [5, 6, 7, 8, 9, 10, 11, 12, 13, 14]
    """Splits that no trial saw, on which the best setting meets the default."""
    use_labels: int = Field(default=0, ge=0)
    """Labelled shifted pairs of training prompts per seed to judge by; 0: original pairs only."""
    space: dict[str, RangeSettings] = {}
    """Search ranges of your own: `strength`, `learning_rate`, `weight_decay`, `num_groups`."""
    prune: bool = False
    """Stop a trial after two or more seeds where it is below the median of those before it."""
    seed: Seed = 0
    """Seed of the sampler."""
    backbone: str
    """Pretrained model whose frozen hidden states are the features."""
    max_length: Count = 128
    """Longest text, in tokens; what is longer is cut."""
    features_dir: PathText | None = None
    """Where frozen features are kept; None: in `output_dir`."""
    head: HeadSettings = HeadSettings()
    workers: Count = 1
    """Trials run at the same time, each in a process of its own."""

    @model_validator(mode="after")
    def _seeds_apart(self) -> "TuneSettings":
        seeds = [*self.seeds, *self.fresh_seeds]
        if len(set(seeds)) != len(seeds):
            raise ValueError(
                "seeds and fresh_seeds may each be named once only, and have none in common: the "
                "best setting was chosen on `seeds`"
            )
        for name, given in self.space.items():
            if given.low >= given.high:
                raise ValueError(f"space.{name}: low ({given.low}) must be below high")
        return self
