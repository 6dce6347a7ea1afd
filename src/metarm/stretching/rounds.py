# SPDX-License-Identifier: Apache-2.0
"""Semi-supervised rounds: teacher, calibration, pseudo-labels, student; until accuracy drops.

Held-out labelled pairs are of two kinds: the temperature is fitted on some, the others say when to
stop. No pseudo-label is of a prompt of either.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from metarm.data.derived import check_apart, split_labelled
from metarm.data.preferences import prompt_key, save_preferences, split_by_prompt
from metarm.errors import EmptySetError
from metarm.metrics import accuracy_estimate, pair_accuracy
from metarm.models.reward_model import load_score_function
from metarm.models.saving import copy_model_folder
from metarm.protocols import ProgressReporter
from metarm.schema import Estimate, PreferencePair, ResponseGroup, prompt_text
from metarm.storage import build_stage, write_json
from metarm.streams import draw_seed
from metarm.stretching.calibration import Calibration, fit_temperature
from metarm.stretching.pseudo_labels import (
    PairedChange,
    draw_candidates,
    gaps_of,
    most_pseudo_labels,
    paired_change,
    pseudo_label,
    take_confident,
    without_known,
)
from metarm.stretching.settings import PseudoLabelSettings
from metarm.training import train_reward_model

__all__ = [
    "PSEUDO_FILE",
    "ROUNDS_FILE",
    "Round",
    "RoundsReport",
    "best_round",
    "train_on_pseudo_labels",
]

Right = NDArray[np.float64]

PSEUDO_FILE: Final = "pseudo_labels.jsonl"
ROUNDS_FILE: Final = "rounds.json"


@dataclass(frozen=True, slots=True)
class Round:
    """One reward model, and what it was trained on."""

    number: int
    """0: labelled pairs alone."""
    num_pseudo: int
    """Pseudo-labels beside the labelled pairs."""
    mean_confidence: float | None
    """Of them; None where there are none."""
    accuracy: Estimate
    """On the held-out pairs that stop, clustered by prompt."""
    change: PairedChange | None
    """Against the best round before it, on the same pairs; None in round 0."""
    calibration: Calibration
    """Of this model, by the held-out pairs that calibrate."""


@dataclass(frozen=True, slots=True)
class RoundsReport:
    """All rounds, and which was kept."""

    rounds: tuple[Round, ...]
    kept: int
    """The best on held-out pairs."""
    reason: str
    num_labelled: int
    num_calibration: int
    num_stop: int
    num_left_out_groups: int
    """Groups of prompts that are held out."""

    def to_json(self) -> dict[str, Any]:
        """Nested plain JSON values."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class _Sets:
    train: list[PreferencePair]
    calibration: list[PreferencePair]
    stop: list[PreferencePair]
    groups: list[ResponseGroup]


def train_on_pseudo_labels(
    *,
    model: str,
    pairs: Sequence[PreferencePair],
    groups: Sequence[ResponseGroup],
    settings: PseudoLabelSettings,
    output_dir: Path,
    place: Path,
    seed: int,
    progress: ProgressReporter,
) -> RoundsReport:
    """Train a reward model on labelled pairs and, in rounds, on what it is sure of.

    Args:
        model: Folder or hub id that every round begins from.
        pairs: Labelled ones; derived rows among them are trained on alone.
        groups: Unlabelled responses: what is pseudo-labelled.
        settings: See `settings.PseudoLabelSettings`.
        output_dir: Where the kept reward model goes.
        place: Where finished rounds are kept until all is done.
        seed: Splits, draws, trainings.
        progress: Gets bars.

    Raises:
        EmptySetError: When labelled pairs of fewer than three prompts are given, or no group is
            left whose prompt is not held out, or none of those has two responses to compare.

    Writes:
        `output_dir`: the reward model, `pseudo_labels.jsonl` (what it was trained on beside the
        labelled pairs) and `rounds.json`.
    """
    sets = _split(pairs, groups, settings, seed)
    rounds: list[Round] = []
    rights: list[Right] = []
    pseudo: list[PreferencePair] = []
    reason = f"all {settings.num_rounds} rounds are done"
    for number in range(settings.num_rounds + 1):
        if rounds:
            teacher, calibration = place / f"round_{number - 1}", rounds[-1].calibration
            pseudo = _pseudo_labels(teacher, sets, calibration, settings, seed)
            if not pseudo:
                reason = f"round {number - 1}'s model is sure of no pair"
                break
        folder = place / f"round_{number}"
        _train(folder, model, sets, pseudo, settings, seed, progress)
        found, own = _measure(folder, sets)
        change = (
            paired_change(own, rights[best_round(rights)], _prompts(sets.stop)) if rights else None
        )
        rights.append(own)
        rounds.append(replace(found, number=number, num_pseudo=len(pseudo), change=change,
                              mean_confidence=_mean_confidence(pseudo)))  # fmt: skip
        if change is not None and change.is_drop(settings.alpha):
            reason = f"held-out accuracy dropped in round {number}: {change.change}"
            break
    kept = best_round(rights)
    copy_model_folder(place / f"round_{kept}", output_dir)
    report = RoundsReport(
        tuple(rounds), kept, reason, len(sets.train), len(sets.calibration), len(sets.stop),
        len(groups) - len(sets.groups),
    )  # fmt: skip
    write_json(output_dir / ROUNDS_FILE, report.to_json())
    return report


def best_round(rights: Sequence[Right]) -> int:
    """The round of the highest held-out accuracy, of equal ones the last.

    Each round is tested against it: against the one before, a loss too small to tell could go on
    from round to round for ever.

    Args:
        rights: Of each round, on the same pairs: 1 right, 0 wrong, 0.5 a tie, shape (pairs,).

    Example:
        >>> best_round([np.array([1.0, 0.0]), np.array([0.0, 1.0]), np.array([0.0, 0.0])])
        1
    """
    accuracies = [float(right.mean()) for right in rights]
    return len(rights) - 1 - int(np.argmax(accuracies[::-1]))


def _split(
    pairs: Sequence[PreferencePair],
    groups: Sequence[ResponseGroup],
    settings: PseudoLabelSettings,
    seed: int,
) -> _Sets:
    train, held_out = split_labelled(pairs, settings.test_fraction, seed)
    calibration, stop = split_by_prompt(held_out, 0.5, seed)
    keys = {prompt_key(pair.prompt) for pair in held_out}
    free = [group for group in groups if prompt_key(group.prompt) not in keys]
    if not free:
        raise EmptySetError(
            f"expected groups of prompts that are not held out, got none of {len(groups)}: give "
            "responses to other prompts"
        )
    if not without_known(draw_candidates(free, settings.pairs_per_group, seed), train):
        raise EmptySetError(
            f"expected groups with two different responses that are no labelled pair, got none of "
            f"{len(free)} whose prompts are not held out: sample several responses to a prompt"
        )
    return _Sets(train, calibration, stop, free)


def _pseudo_labels(
    teacher: Path, sets: _Sets, calibration: Calibration, settings: PseudoLabelSettings, seed: int
) -> list[PreferencePair]:
    """What a calibrated teacher is sure of among the groups."""
    candidates = without_known(
        draw_candidates(sets.groups, settings.pairs_per_group, seed), sets.train
    )
    score = load_score_function(teacher)
    as_pairs = [PreferencePair(c.prompt, c.first, c.second) for c in candidates]
    if not as_pairs:
        return []
    fitting = {id(pair) for pair in score.fitting_pairs(as_pairs)}
    candidates = [c for c, p in zip(candidates, as_pairs, strict=True) if id(p) in fitting]
    as_pairs = [pair for pair in as_pairs if id(pair) in fitting]
    chances = calibration.probabilities(gaps_of(score, as_pairs))
    num_labelled = sum(not pair.parent_id for pair in sets.train)
    taken = take_confident(
        chances,
        confidence=settings.confidence,
        most=most_pseudo_labels(num_labelled, settings.most_share),
        seed=draw_seed(seed, "pseudo-labels"),
    )
    return pseudo_label(candidates, chances, taken.tolist())


def _train(
    folder: Path,
    model: str,
    sets: _Sets,
    pseudo: Sequence[PreferencePair],
    settings: PseudoLabelSettings,
    seed: int,
    progress: ProgressReporter,
) -> None:
    """A round's reward model and its pseudo-labels, as a folder that is made once."""
    training = [*sets.train, *pseudo]
    check_apart(training, [*sets.calibration, *sets.stop], "held-out pairs")

    def build(partial: Path) -> dict[str, Any]:
        result = train_reward_model(
            model=model,
            pairs=training,
            test_pairs=sets.stop,
            groups=sets.groups if settings.reward.meta_mode != "off" else (),
            settings=settings.reward,
            output_dir=partial,
            seed=seed,
            progress=progress,
        )
        save_preferences(partial / PSEUDO_FILE, pseudo)
        return dict(result.metrics)

    # What decides everything else decided the folder that this one is in.
    build_stage(folder, {"round": folder.name, "pseudo": len(pseudo)}, [], build)


def _measure(folder: Path, sets: _Sets) -> tuple[Round, Right]:
    """A round's model on both held-out sets."""
    score = load_score_function(folder)
    fitting = score.fitting_pairs(sets.calibration)
    labels = [1.0 if pair.p is None else pair.p for pair in fitting]
    calibration = fit_temperature(gaps_of(score, fitting), labels)
    gaps = np.full(len(sets.stop), math.nan)
    fits = {id(pair) for pair in score.fitting_pairs(sets.stop)}
    places = [place for place, pair in enumerate(sets.stop) if id(pair) in fits]
    gaps[places] = gaps_of(score, [sets.stop[place] for place in places])
    # One that no model can score is a coin's toss for all of them.
    gaps = np.nan_to_num(gaps)
    right = pair_accuracy(gaps, np.ones_like(gaps))
    accuracy = accuracy_estimate(right, _prompts(sets.stop))
    return Round(0, 0, None, accuracy, None, calibration), right


def _prompts(pairs: Sequence[PreferencePair]) -> list[str]:
    return [prompt_text(pair.prompt) for pair in pairs]


def _mean_confidence(pseudo: Sequence[PreferencePair]) -> float | None:
    sure = [pair.p for pair in pseudo if pair.p is not None]
    return float(np.mean(sure)) if sure else None
