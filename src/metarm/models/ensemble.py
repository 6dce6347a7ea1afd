# SPDX-License-Identifier: Apache-2.0
"""Several reward models as one score: the mean of their standardised scores, less their spread."""

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from metarm.models.reward_model import RewardModelScore, load_score_function
from metarm.protocols import StageProgress
from metarm.schema import PreferencePair, Prompt
from metarm.storage import read_json, write_json

__all__ = [
    "ENSEMBLE_FILE",
    "Combined",
    "EnsembleScore",
    "first_member",
    "load_reward",
    "member_folders",
    "save_ensemble",
]

ENSEMBLE_FILE: Final = "ensemble.json"
TINY_SPREAD: Final = 1e-12


@dataclass(frozen=True, slots=True)
class _Member:
    """A reward model of the ensemble, and the unit that its scores are taken in."""

    folder: str
    """Relative to the ensemble's own folder."""
    mean: float
    spread: float


class Combined(NamedTuple):
    """What members say together of each response."""

    scores: list[float]
    spreads: list[float]
    """Standard deviation over members of their standardised scores: 0 where they agree."""


class EnsembleScore:
    """Mean over members of their standardised scores, minus `pessimism` times their spread.

    Satisfies `protocols.ScoreFunction`. Members have scales of their own, which mean nothing:
    each is standardised by its mean and standard deviation on the same responses.

    Source:
        Coste et al. 2310.02743: the mean, and uncertainty-weighted optimisation. Differs: the
        standard deviation of the members, not the variance, so that `pessimism` has no unit.
    """

    def __init__(
        self,
        members: Sequence[RewardModelScore],
        means: Sequence[float],
        spreads: Sequence[float],
        *,
        pessimism: float = 0.0,
    ) -> None:
        self.members = tuple(members)
        self.means = tuple(means)
        self.spreads = tuple(spreads)
        self.pessimism = pessimism

    def reporting_to(self, bar: StageProgress) -> "EnsembleScore":
        """The same, which moves `bar` by one for each response that all members have scored."""
        *others, last = self.members
        reporting = (*others, last.reporting_to(bar))
        return EnsembleScore(reporting, self.means, self.spreads, pessimism=self.pessimism)

    def fitting_pairs(self, pairs: Sequence[PreferencePair]) -> list[PreferencePair]:
        """The pairs whose both sides fit the members' context.

        Raises:
            EmptySetError: When none does.
        """
        return self.members[0].fitting_pairs(pairs)

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
        """Score each response, in standard deviations of a member's scores.

        Raises:
            DataError: When a prompt and its response are longer than the members' context.
            ModelError: When a score is not finite.
        """
        return self.combine([member(prompts, responses) for member in self.members]).scores

    def combine(self, raw: Sequence[Sequence[float]]) -> Combined:
        """Scores and disagreement of responses, from one list of logits a member."""
        logits = np.array(raw, dtype=np.float64)
        scores = (logits - np.array(self.means)[:, None]) / np.array(self.spreads)[:, None]
        spreads = scores.std(axis=0)
        return Combined((scores.mean(axis=0) - self.pessimism * spreads).tolist(), spreads.tolist())


def save_ensemble(
    folder: Path,
    members: Sequence[Path],
    pairs: Sequence[PreferencePair],
    *,
    pessimism: float = 0.0,
) -> None:
    """Measure the members' units on both sides of `pairs` and write down who they are.

    Raises:
        ModelError: When a member is not a reward model.
        EmptySetError: When no pair fits the members' context.

    Writes:
        `ensemble.json` in `folder`; the members stay where they are.
    """
    rows = []
    for member in members:
        score = load_score_function(member)
        fitting = score.fitting_pairs(pairs)
        sides = [side for pair in fitting for side in (pair.chosen, pair.rejected)]
        scores = np.array(score([pair.prompt for pair in fitting for _ in range(2)], sides))
        place = os.path.relpath(member.resolve(), folder.resolve())
        rows.append(_Member(place, float(scores.mean()), max(float(scores.std()), TINY_SPREAD)))
    document = {"members": [asdict(row) for row in rows], "pessimism": pessimism}
    write_json(folder / ENSEMBLE_FILE, document)


def load_reward(model: str | Path) -> RewardModelScore | EnsembleScore:
    """The score function of a folder that holds one reward model or names several.

    Raises:
        ModelError: When a model is missing or of another kind.
    """
    members, pessimism = _read(model)
    if not members:
        return load_score_function(model)
    return EnsembleScore(
        [load_score_function(Path(model) / member.folder) for member in members],
        [member.mean for member in members],
        [member.spread for member in members],
        pessimism=pessimism,
    )


def first_member(model: str | Path) -> str | Path:
    """The reward model itself; of an ensemble, its first member."""
    return member_folders(model)[0]


def member_folders(model: str | Path) -> list[str | Path]:
    """The reward model itself; of an ensemble, all its members."""
    members, _ = _read(model)
    return [Path(model) / member.folder for member in members] or [model]


def _read(model: str | Path) -> tuple[list[_Member], float]:
    path = Path(model) / ENSEMBLE_FILE
    if not path.exists():
        return [], 0.0
    document = read_json(path)
    return [_Member(**row) for row in document["members"]], document["pessimism"]
