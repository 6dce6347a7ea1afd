# SPDX-License-Identifier: Apache-2.0
"""A made-up shift in feature space: what its groups vary in is known."""

from collections.abc import Callable

import pytest
import torch

from metarm.bench.problem import Problem, build_problem
from metarm.bench.shifts import Shift
from metarm.bench.stretched import add_made_rows
from metarm.schema import PreferencePair, ResponseGroup


def make_problem(seed: int = 0, size: int = 12, prompts: int = 60) -> tuple[Shift, Problem]:
    """Gold is the sum of the features; shifted responses differ along the last one alone."""
    draw = torch.Generator().manual_seed(seed)
    features, rows = {}, {"original": [], "shifted": []}

    def respond(prompt: str, number: int, side: str) -> str:
        vector = torch.randn(size, generator=draw)
        if side == "shifted":
            vector[:-1] = 1.0
        response = f" {side} {number} of the responses to a prompt."
        features[prompt, response] = vector
        return response

    groups = []
    for place in range(prompts):
        prompt = f"prompt {place}"
        for side, pairs in rows.items():
            texts = [respond(prompt, number, side) for number in range(4)]
            texts.sort(key=lambda text, p=prompt: -float(features[p, text].sum()))
            pairs += [
                PreferencePair(prompt, texts[0], texts[2]),
                PreferencePair(prompt, texts[1], texts[3]),
            ]
            if side == "shifted" and place < 40:
                groups.append(ResponseGroup(prompt, tuple(sorted(texts))))
    train, test = slice(0, 80), slice(80, None)
    shift = Shift(
        "made-up",
        tuple(rows["original"][train]),
        tuple(groups),
        tuple(rows["original"][test]),
        tuple(rows["shifted"][test]),
        tuple(rows["shifted"][train]),
    )
    kinds = [
        "cross-prompt",
        "cross-prompt-policy",
        "neutral",
        "format-only",
        "truncated",
        "stronger-weaker",
    ]
    shift = add_made_rows(shift, kinds)
    for text in shift.texts:
        if text not in features:
            features[text] = torch.randn(size, generator=draw)
    matrix = torch.stack([features[text] for text in shift.texts])
    return shift, build_problem(shift, matrix, seed)


@pytest.fixture(scope="session")
def made_up() -> Callable[..., tuple[Shift, Problem]]:
    """The maker of such shifts."""
    return make_problem
