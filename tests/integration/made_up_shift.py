# SPDX-License-Identifier: Apache-2.0
"""A made-up shift as files and a tiny model, as a user of `compare` or `tune` has them."""

import random
from pathlib import Path
from typing import Any, Final

from metarm.data.meta_sets import save_groups
from metarm.data.preferences import save_preferences
from metarm.schema import PreferencePair, ResponseGroup
from tiny_models import WORDS, save_causal_lm

TINY_TRAINING: Final[dict[str, Any]] = {
    "backbone": "model",
    "max_length": 16,
    "head": {"hidden": [4], "num_steps": 4, "measure_every": 2, "batch_size": 8, "num_groups": 4},
}
"""Settings that all three verbs share: a head of a few weights, trained for a moment."""


def save_shift(folder: Path, *, num_prompts: int = 60) -> None:
    """`pairs.jsonl`, `shifted.jsonl`, `groups.jsonl` and `model` in `folder`."""
    draw = random.Random(0)
    prompts = [f"a {' '.join(draw.choices(WORDS, k=3))} {WORDS[n % 6]}" for n in range(num_prompts)]
    prompts = list(dict.fromkeys(prompts))
    for name in ("pairs", "shifted"):
        pairs = [PreferencePair(p, " a" + _text(draw), " b" + _text(draw)) for p in prompts]
        save_preferences(folder / f"{name}.jsonl", pairs)
    groups = [ResponseGroup(p, tuple(_text(draw) for _ in range(3))) for p in prompts]
    save_groups(folder / "groups.jsonl", groups)
    save_causal_lm(folder / "model")


def _text(draw: random.Random) -> str:
    return "".join(f" {word}" for word in draw.choices(WORDS, k=4))
