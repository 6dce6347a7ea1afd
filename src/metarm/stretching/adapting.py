# SPDX-License-Identifier: Apache-2.0
"""A few labels of another distribution: keep the model, or adapt its head, an adapter, or all.

Each way is judged by cross-validation on the few labels, by prompt, and by the model that all of
them make on original pairs. Which is taken is said in `ways`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import torch

from metarm.chunk_log import ChunkLog
from metarm.config import RewardSettings
from metarm.data.derived import check_apart, without_kin_of
from metarm.data.preferences import prompt_key, without_prompts_of
from metarm.errors import ConfigError, EmptySetError, nearest_names
from metarm.models.loading import load_encoder, load_reward_model
from metarm.models.reward_model import RewardModelScore, load_score_function
from metarm.models.saving import copy_model_folder, save_reward_model
from metarm.protocols import ProgressReporter
from metarm.schema import PreferencePair
from metarm.storage import build_stage, fingerprint, write_json
from metarm.stretching.pseudo_labels import gaps_of
from metarm.stretching.settings import AdaptSettings
from metarm.stretching.ways import Adaptation, Evidence, WayGaps, judge_ways
from metarm.training import train_reward_model

__all__ = [
    "ADAPTATIONS",
    "ADAPT_FILE",
    "GAPS_FILE",
    "AdaptReport",
    "adapt_reward_model",
    "split_into_folds",
]

ADAPT_FILE: Final = "adapt.json"
GAPS_FILE: Final = "gaps.json"
"""All that the ways were judged by: `ways.Evidence`."""
FOLDS_FILE: Final = "fold_gaps.log"
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


@dataclass(frozen=True, slots=True)
class _FewLabels:
    """What is adapted to, in parts."""

    whole: Sequence[PreferencePair]
    labelled: Sequence[PreferencePair]
    """Those that are tested on."""
    derived: Sequence[PreferencePair]
    """Rows made from others: trained on, never tested on."""
    folds: Sequence[Sequence[int]]
    """Places of `labelled`."""
    original: Sequence[PreferencePair]
    num_left_out: int


@dataclass(frozen=True, slots=True)
class _Trainer:
    """What every training of an adaptation shares."""

    model: str
    seed: int
    progress: ProgressReporter

    def train(
        self,
        pairs: Sequence[PreferencePair],
        test_pairs: Sequence[PreferencePair],
        settings: RewardSettings,
        folder: Path,
    ) -> None:
        """`test_pairs` is a single one, since what the model is good for is measured here."""
        train_reward_model(
            model=self.model,
            pairs=pairs,
            test_pairs=test_pairs,
            groups=(),
            settings=settings,
            output_dir=folder,
            seed=self.seed,
            progress=self.progress,
        )


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
    """Adapt a reward model to a few labels in the way that does best on labels it has not seen.

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
        `output_dir`: a reward model, `adapt.json` and `gaps.json`.
    """
    for name in settings.candidates:
        if name not in ADAPTATIONS:
            raise ConfigError(f"unknown candidate {name!r}: {nearest_names(name, ADAPTATIONS)}")
    score = load_score_function(model)
    parts = _part(score, few, original, settings.folds)
    gaps = {NONE: WayGaps(gaps_of(score, parts.labelled), gaps_of(score, parts.original))}
    trainer = _Trainer(model, seed, progress)
    for name in (name for name in ADAPTATIONS if name in settings.candidates):
        own = settings.reward.model_copy(update=dict(ADAPTATIONS[name]))
        gaps[name] = _measure(name, parts, own, trainer, place)
    evidence = Evidence(
        gaps,
        np.array([1.0 if pair.p is None else pair.p for pair in parts.labelled]),
        _prompts(parts.labelled),
        _prompts(parts.original),
    )
    taken, reason, found = judge_ways(evidence, settings)
    if taken == NONE:
        _copy_model(model, output_dir)
    else:
        copy_model_folder(place / taken, output_dir)
    report = AdaptReport(
        taken,
        reason,
        found,
        len(parts.labelled),
        len(parts.original),
        parts.num_left_out,
        len(parts.folds),
    )
    write_json(output_dir / ADAPT_FILE, report.to_json())
    write_json(output_dir / GAPS_FILE, evidence.to_json())
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


def _part(
    score: RewardModelScore,
    few: Sequence[PreferencePair],
    original: Sequence[PreferencePair],
    folds: int,
) -> _FewLabels:
    """What fits the model, in folds, with no original pair of a few label's prompt."""
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
    fitting = score.fitting_pairs(few)
    labelled = [pair for pair in fitting if not pair.parent_id]
    return _FewLabels(
        fitting,
        labelled,
        [pair for pair in fitting if pair.parent_id],
        split_into_folds(labelled, folds),
        score.fitting_pairs(apart),
        len(original) - len(apart),
    )


def _measure(
    name: str, parts: _FewLabels, settings: RewardSettings, trainer: _Trainer, place: Path
) -> WayGaps:
    """Gaps of one way; each finished fold and the whole training are kept in the place."""
    kept = ChunkLog(place / FOLDS_FILE)
    few = np.zeros(len(parts.labelled))
    for number, held_out in enumerate(parts.folds):
        key = f"{name} {number}"
        if kept.get(key) is None:
            kept.put(key, _cross_validate(parts, held_out, settings, trainer))
        few[held_out] = kept.get(key)

    def build(partial: Path) -> None:
        trainer.train(parts.whole, parts.original[:1], settings, partial)

    build_stage(place / name, {"candidate": name}, [], build)
    return WayGaps(few, gaps_of(load_score_function(place / name), parts.original))


def _cross_validate(
    parts: _FewLabels, held_out: Sequence[int], settings: RewardSettings, trainer: _Trainer
) -> list[float]:
    """Gaps of the held-out labels, by a model of all that is no kin of theirs."""
    tested = [parts.labelled[place] for place in held_out]
    prompts = {prompt_key(pair.prompt) for pair in tested}
    others = [pair for pair in parts.labelled if prompt_key(pair.prompt) not in prompts]
    with TemporaryDirectory() as folder:
        pairs = [*others, *without_kin_of(parts.derived, tested)]
        trainer.train(pairs, tested[:1], settings, Path(folder))
        return list(gaps_of(load_score_function(folder), tested).tolist())


def _prompts(pairs: Sequence[PreferencePair]) -> tuple[str, ...]:
    """Of each pair a name of its prompt, one of prompts that are alike."""
    return tuple(fingerprint(prompt_key(pair.prompt)) for pair in pairs)


def _copy_model(model: str, output_dir: Path) -> None:
    encoder = load_encoder(model)
    loaded = load_reward_model(model, encoder, seed=None, device=torch.device("cpu"))
    save_reward_model(loaded, encoder, RewardSettings(meta_mode="off"), output_dir)
