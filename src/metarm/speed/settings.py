# SPDX-License-Identifier: Apache-2.0
"""The knobs of `metarm bench`, one description per field; no torch."""

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from metarm.config_base import STRICT, Count, PathText, Seed

__all__ = ["BenchSettings"]


class BenchSettings(BaseModel):
    """What an optimiser step costs: which models, lengths and methods are timed."""

    model_config = STRICT

    output_dir: PathText
    """Folder of the measurements; finished ones are kept."""
    sizes: Annotated[list[str], Field(min_length=1)] = ["30m"]
    """Models of random weights: `tiny`, `4m`, `30m`, `120m`; for a GPU `0.5b`, `1.5b`, `3b`."""
    lengths: Annotated[list[str], Field(min_length=1)] = ["256/64/5", "64/64/5", "64/256/5"]
    """`P/R/k`: tokens of a prompt, tokens of a response, responses of a group."""
    num_pairs: Count = 4
    """Pairs per step."""
    num_groups: Count = 4
    """Groups per step."""
    length_spread: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Lengths are drawn evenly from 1 - spread to 1 + spread times P and R."""
    methods: Annotated[list[str], Field(min_length=1)] | None = None
    """What is timed; None: all that docs/speed.md lists."""
    repeats: Count = 5
    """Repeats of each method, in alternating order; median and quartiles are over them."""
    steps: Count = 10
    """Timed steps per repeat, after one that is not timed; every tenth step logs."""
    sweeps: list[Literal["k", "ratio", "spread", "size"]] = []
    """Also responses a group, P / R, length spread, and model size, one at a time."""
    sweep_size: str = "4m"
    """Model of the sweeps over k, ratio and spread."""
    inference: bool = True
    """Also time scoring and sampling several responses to a prompt."""
    threads: Count | None = None
    """Torch threads; None: as torch sees fit."""
    bf16: bool = False
    """Autocast to bfloat16, in every method."""
    seed: Seed = 0
    """Seed of weights and texts."""
