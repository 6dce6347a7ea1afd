# SPDX-License-Identifier: Apache-2.0
"""A few labels of another distribution: keep the model, or adapt its head, an adapter, or all.

Each way is judged by cross-validation on the few labels, by prompt, and must not lose on original
pairs by more than a margin. A way is taken over a simpler one only if it is shown to be better.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from metarm.chunk_log import ChunkLog
from metarm.config import RewardSettings
from metarm.data.derived import check_apart, without_kin_of
from metarm.data.preferences import prompt_key, without_prompts_of
from metarm.errors import ConfigError, EmptySetError, nearest_names
from metarm.evaluation.champion import NonInferiority, non_inferiority
from metarm.metrics import accuracy_estimate, pair_accuracy
from metarm.models.loading import load_encoder, load_reward_model
from metarm.models.reward_model import RewardModelScore, load_score_function
from metarm.models.saving import copy_model_folder, save_reward_model
from metarm.protocols import ProgressReporter
from metarm.schema import Estimate, PreferencePair, prompt_text
from metarm.storage import build_stage, fingerprint, write_json
from metarm.stretching.pseudo_labels import PairedChange, gaps_of, paired_change
from metarm.stretching.settings import AdaptSettings
from metarm.training import train_reward_model

__all__ = [
    "ADAPTATIONS",
    "ADAPT_FILE",
    "AdaptReport",
    "Adaptation",
    "adapt_reward_model",
    "choose_adaptation",
    "split_into_folds",
]

ADAPT_FILE: Final = "adapt.json"
NONE: Final = "none"
"""Keeping the model as it is: always tried, and the simplest way."""

ADAPTATIONS: Final[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
    {
        "head": {"train_head_only": True},
        "lora": {"use_peft": True},
        "full": {},
    }
)
"""Way of adapting -> what it changes in `RewardSettings`, the simplest first."""

Right = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Adaptation:
    """One way, and its figures."""

    name: str
    accuracy: Estimate
    """On the few labels, each scored by a model that has not seen it, clustered by prompt."""
    gain: PairedChange
    """The same against keeping the model, on the same pairs."""
    accuracy_original: Estimate
    """Of the model adapted to all few labels, on original pairs, clustered by prompt."""
    original: NonInferiority
    """Whether it is not worse there than the model as it is."""


@dataclass(frozen=True, slots=True)
class AdaptReport:
    """All ways, which was taken, and why."""

    taken: str
    reason: str
    candidates: tuple[Adaptation, ...]
    num_few: int
    num_original: int
    num_original_left_out: int
    """Of prompts that few labels are of: every way would have been trained on them."""
    folds: int

    def to_json(self) -> dict[str, Any]:
        """Nested plain JSON values."""
        return asdict(self)


def adapt_reward_model(
    *,
    model: str,
    few: Sequence[PreferencePair],
    original: Sequence[PreferencePair],
    settings: AdaptSettings,
    output_dir: Path,
    place: Path,
    seed: int,
    progress: ProgressReporter,
) -> AdaptReport:
    """Adapt a reward model to a few labels in the way that is shown to be worth it.

    Args:
        model: Folder or hub id of a reward model.
        few: Labelled pairs of what it will judge.
        original: Labelled pairs of what it has judged so far, which it was not trained on; those
            of a few label's prompt are left out, and counted.
        settings: See `settings.AdaptSettings`.
        output_dir: Where the model goes.
        place: Where finished trainings are kept until all is done.
        seed: Trainings; folds are by the prompts' hashes.
        progress: Gets bars.

    Raises:
        ConfigError: When a candidate is unknown.
        EmptySetError: When the few labels are of fewer than two prompts, or all original pairs are
            of their prompts.
        DataError: When an original pair is derived, or a few-label row was made from one.

    Writes:
        `output_dir`: a reward model and `adapt.json`.
    """
    for name in settings.candidates:
        if name not in ADAPTATIONS:
            raise ConfigError(f"unknown candidate {name!r}: {nearest_names(name, ADAPTATIONS)}")
    try:
        # Few labels are dear, original pairs are many: it is these that give way.
        apart = without_prompts_of(original, few)
    except EmptySetError as error:
        raise EmptySetError(
            f"expected original pairs of prompts that no few label is of, got none of "
            f"{len(original)}: every way is trained on those prompts. Give original pairs of "
            "others, or take some of these prompts out of the few labels"
        ) from error
    check_apart(few, apart, "original pairs")
    num_left_out = len(original) - len(apart)
    score = load_score_function(model)
    few, original = score.fitting_pairs(few), score.fitting_pairs(apart)
    labelled = [pair for pair in few if not pair.parent_id]
    derived = [pair for pair in few if pair.parent_id]
    folds = split_into_folds(labelled, settings.folds)
    clusters = [prompt_text(pair.prompt) for pair in labelled]
    before, before_original = _right(score, labelled), _right(score, original)
    kept = ChunkLog(place / "folds.log")
    found = [_judge(NONE, before, before, before_original, before_original, clusters, original,
                    settings)]  # fmt: skip
    scores_of = {NONE: before}
    for name in (name for name in ADAPTATIONS if name in settings.candidates):
        own = settings.reward.model_copy(update=dict(ADAPTATIONS[name]))
        right = np.zeros(len(labelled))
        for number, held_out in enumerate(folds):
            key = f"{name} {number}"
            if kept.get(key) is None:
                told = _cross_validate(model, labelled, derived, held_out, own, seed, progress)
                kept.put(key, told)
            right[held_out] = kept.get(key)
        folder = place / name
        _train_whole(folder, model, few, original, own, seed, progress)
        after = _right(load_score_function(folder), original)
        scores_of[name] = right
        found.append(_judge(name, right, before, after, before_original, clusters, original,
                            settings))  # fmt: skip
    taken, reason = choose_adaptation(found, scores_of, clusters, settings.gain_alpha)
    if taken == NONE:
        _copy_model(model, output_dir)
    else:
        copy_model_folder(place / taken, output_dir)
    report = AdaptReport(
        taken, reason, tuple(found), len(labelled), len(original), num_left_out, len(folds)
    )
    write_json(output_dir / ADAPT_FILE, report.to_json())
    return report


def split_into_folds(pairs: Sequence[PreferencePair], count: int) -> list[list[int]]:
    """Places of pairs in parts of nearly as many prompts, none of them in two parts.

    Args:
        pairs: Few labels.
        count: Parts; as many as there are prompts at most.

    Raises:
        EmptySetError: When there are fewer than two prompts.
    """
    of: dict[str, list[int]] = {}
    for place, pair in enumerate(pairs):
        of.setdefault(fingerprint("fold", prompt_key(pair.prompt)), []).append(place)
    if len(of) < 2:
        raise EmptySetError(
            f"expected labels on responses to two prompts at least, got {len(of)}: which way to "
            "adapt is tested on prompts that were not trained on"
        )
    parts: list[list[int]] = [[] for _ in range(min(count, len(of)))]
    for number, key in enumerate(sorted(of)):
        parts[number % len(parts)] += of[key]
    return [sorted(part) for part in parts]


def choose_adaptation(
    candidates: Sequence[Adaptation],
    right: Mapping[str, Right],
    clusters: Sequence[str],
    alpha: float,
) -> tuple[str, str]:
    """The way that is taken, and why: from the simplest on, where a further one is shown better.

    Args:
        candidates: The simplest first; the first one keeps the model.
        right: Of each, the few labels in order: 1, 0 or 0.5.
        clusters: The prompt of each label.
        alpha: Level of each paired test.
    """
    taken = candidates[0].name
    told = []
    for candidate in candidates[1:]:
        if not candidate.original.holds:
            told.append(f"{candidate.name} is not shown to hold on original pairs")
            continue
        # A gain is a drop the other way round.
        change = paired_change(right[taken], right[candidate.name], clusters)
        gain = 0.0 - change.change.value
        if change.is_drop(alpha):
            told.append(f"{candidate.name} gains {gain:+.3f} over {taken} (p {change.p_value:.3f})")
            taken = candidate.name
        else:
            told.append(
                f"{candidate.name} is not shown to be better than {taken} ({gain:+.3f}, p "
                f"{change.p_value:.3f})"
            )
    return taken, "; ".join(told) or "no other way was tried"


def _judge(
    name: str,
    right: Right,
    before: Right,
    right_original: Right,
    before_original: Right,
    clusters: Sequence[str],
    original: Sequence[PreferencePair],
    settings: AdaptSettings,
) -> Adaptation:
    prompts = [prompt_text(pair.prompt) for pair in original]
    return Adaptation(
        name,
        accuracy_estimate(right, list(clusters)),
        paired_change(right, before, clusters),
        accuracy_estimate(right_original, prompts),
        non_inferiority(
            right_original,
            before_original,
            prompts,
            margin=settings.margin,
            alpha=settings.alpha,
        ),
    )


def _cross_validate(
    model: str,
    labelled: Sequence[PreferencePair],
    derived: Sequence[PreferencePair],
    held_out: Sequence[int],
    settings: RewardSettings,
    seed: int,
    progress: ProgressReporter,
) -> list[float]:
    """Of the held-out labels 1 right, 0 wrong, 0.5 a tie, by a model of all that is no kin."""
    tested = [labelled[place] for place in held_out]
    prompts = {prompt_key(pair.prompt) for pair in tested}
    others = [pair for pair in labelled if prompt_key(pair.prompt) not in prompts]
    with TemporaryDirectory() as folder:
        pairs = [*others, *without_kin_of(derived, tested)]
        _fit(model, pairs, tested[:1], settings, Path(folder), seed, progress)
        return list(_right(load_score_function(folder), tested).tolist())


def _train_whole(
    folder: Path,
    model: str,
    few: Sequence[PreferencePair],
    original: Sequence[PreferencePair],
    settings: RewardSettings,
    seed: int,
    progress: ProgressReporter,
) -> None:
    """The model adapted to all few labels, as a folder that is made once."""

    def build(partial: Path) -> None:
        _fit(model, few, original[:1], settings, partial, seed, progress)

    build_stage(folder, {"candidate": folder.name}, [], build)


def _fit(
    model: str,
    pairs: Sequence[PreferencePair],
    test_pairs: Sequence[PreferencePair],
    settings: RewardSettings,
    folder: Path,
    seed: int,
    progress: ProgressReporter,
) -> None:
    """A training; `test_pairs` are one, since what it is good for is measured here, once."""
    train_reward_model(
        model=model,
        pairs=pairs,
        test_pairs=test_pairs,
        groups=(),
        settings=settings,
        output_dir=folder,
        seed=seed,
        progress=progress,
    )


def _right(score: RewardModelScore, pairs: Sequence[PreferencePair]) -> Right:
    gaps = gaps_of(score, pairs)
    return pair_accuracy(gaps, np.ones_like(gaps))


def _copy_model(model: str, output_dir: Path) -> None:
    encoder = load_encoder(model)
    loaded = load_reward_model(model, encoder, seed=None, device=torch.device("cpu"))
    save_reward_model(loaded, encoder, RewardSettings(meta_mode="off"), output_dir)
