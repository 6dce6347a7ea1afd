# SPDX-License-Identifier: Apache-2.0
"""What a reward model makes of the probes' responses: rewards, states under the head, lengths."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from metarm.evaluation.scorecard import score_groups
from metarm.models.ensemble import EnsembleScore
from metarm.models.head_states import head_states
from metarm.models.reward_model import RewardModelScore
from metarm.protocols import ScoreFunction
from metarm.schema import ResponseGroup
from metarm.storage import build_stage

__all__ = ["Measured", "last_states", "measure", "measure_once"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """Responses to the probe prompts as a reward model sees them; a row is a prompt."""

    scores: Floats
    """Rewards, shape (prompts, k)."""
    lengths: Floats
    """Characters of each response, shape (prompts, k)."""
    states: Floats | None
    """Hidden states where the reward is read, shape (prompts, k, size); None of a callable."""
    members: Floats | None
    """Rewards by each member of an ensemble, shape (members, prompts, k)."""


def measure(score: ScoreFunction, groups: Sequence[ResponseGroup]) -> Measured:
    """Score groups of one size.

    Args:
        score: A reward model, an ensemble (whose first member gives the states), or any callable,
            of which rewards and lengths alone are known.
        groups: Of the same number of responses each.

    Raises:
        DataError: When sizes differ, or a response does not fit the model.
    """
    lengths = np.array([[len(text) for text in group.responses] for group in groups], np.float64)
    parts = score.members if isinstance(score, EnsembleScore) else ()
    members = np.stack([score_groups(one, groups) for one in parts]) if len(parts) > 1 else None
    model = parts[0] if parts else score
    states = last_states(model, groups) if isinstance(model, RewardModelScore) else None
    return Measured(score_groups(score, groups), lengths, states, members)


def measure_once(
    groups: Sequence[ResponseGroup], folder: Path, score: ScoreFunction, name: str
) -> Measured:
    """The same, kept in a folder: the responses that every look is compared with.

    Args:
        groups: As in `measure`.
        folder: Gets a folder for each name.
        score: The reward model.
        name: Stands for model and groups: a hash of their files.

    Writes:
        `measured_NAME/figures.safetensors` in `folder`.
    """

    def build(place: Path) -> None:
        found = measure(score, groups)
        columns = {column: getattr(found, column) for column in Measured.__slots__}
        kept = {key: np.ascontiguousarray(x) for key, x in columns.items() if x is not None}
        save_file(kept, place / "figures.safetensors")

    stage = build_stage(folder / f"measured_{name}", {"name": name}, [], build)
    saved = load_file(stage.folder / "figures.safetensors")
    return Measured(saved["scores"], saved["lengths"], saved.get("states"), saved.get("members"))


def last_states(score: RewardModelScore, groups: Sequence[ResponseGroup]) -> Floats:
    """States of `head_states` of groups of one size, shape (groups, k, size)."""
    prompts = [group.prompt for group in groups for _ in group.responses]
    responses = [text for group in groups for text in group.responses]
    states = head_states(score, prompts, responses).states
    return states.reshape(len(groups), -1, states.shape[1])
