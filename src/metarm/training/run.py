# SPDX-License-Identifier: Apache-2.0
"""Training a reward model from pairs and groups to a saved folder, with its plain twin as guard."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

import datasets
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.trainer_callback import PrinterCallback

from metarm.checkpoints import CheckpointPlace
from metarm.config import RewardSettings
from metarm.data.derived import check_apart
from metarm.data.encoding import Encoder, EncodingReport, encode_pairs
from metarm.data.tasks import TaskPairs, check_tasks
from metarm.errors import ConfigError, DataError
from metarm.launched import is_sharded_launch, num_processes
from metarm.meta_step import SIGNS
from metarm.meta_strength import META_NUMBERS, resolve_strength
from metarm.models.loading import (
    default_learning_rate,
    load_encoder,
    load_language_head,
    load_reward_model,
    lora_config,
    pick_device,
    read_context_length,
)
from metarm.models.reporting import StepReporter, count_steps, last_metrics
from metarm.models.reward_model import RewardModelScore
from metarm.models.safe_checkpoints import NEWEST
from metarm.models.saving import merge_adapter, save_reward_model
from metarm.models.task_heads import alone, give_task_heads
from metarm.protocols import ProgressReporter
from metarm.schema import Estimate, PreferencePair, ResponseGroup
from metarm.storage import write_json_lines, write_text
from metarm.strength import choose_by_probe
from metarm.training.plain_training import copy_weights, put_weights
from metarm.training.regularised_trainer import StartDecay
from metarm.training.settings import MetaRewardConfig
from metarm.training.sharding import whole_model
from metarm.training.task_trainer import NO_COMMON_ZERO
from metarm.training.tasks import (
    TaskReport,
    check_held_out,
    encode_tasks,
    finish_tasks,
    measure_pairs,
    to_rows,
)
from metarm.training.trainer import MetaRewardTrainer

__all__ = ["GuardReport", "RewardTrainingResult", "train_reward_model"]

PLACES: Final = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Between the plain model's weights and the adapted one's, where a probe looks."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class GuardReport:
    """What the guard, and a probe where there was one, did to the strength of the meta step."""

    strength: float
    """Share of its full strength that the meta step ended with; 0: turned off."""
    rank_correlation: float | None
    """With the plain reward model on watched groups, at the end; None where nothing was watched."""
    lowest_rank_correlation: float | None
    """Of all checks."""
    kept: float
    """Place of the saved weights between the plain model's (0) and the adapted one's (1)."""
    num_probe_pairs: int
    """Labelled pairs that chose `kept`; 0: the guard alone."""

    def summary(self) -> str:
        """In words."""
        what = "the adapted model" if self.kept == 1.0 else "the PLAIN model"
        if 0.0 < self.kept < 1.0:
            what = f"{self.kept:g} of the way from the plain model to the adapted one"
        why = f"chosen by {self.num_probe_pairs} labelled pairs" if self.num_probe_pairs else ""
        if self.rank_correlation is not None:
            seen = (
                f"the meta step ended at {self.strength:g} of its strength, rank correlation with "
                f"plain training {self.rank_correlation:.2f}, {self.lowest_rank_correlation:.2f} "
                "at its lowest"
            )
            why = f"{why}; {seen}" if why else seen
        return f"kept {what} ({why or 'not guarded: too few groups'})"


@dataclass(frozen=True, slots=True)
class RewardTrainingResult:
    """What a training run gives back beside the saved model."""

    metrics: dict[str, float]
    accuracy: Estimate
    """On held-out pairs, with its 95 % interval, clustered by prompt."""
    encoding: EncodingReport
    """Of the pairs."""
    meta_encoding: EncodingReport | None
    """Of the meta set's groups; None with `meta_mode="off"`."""
    num_test_too_long: int
    """Held-out pairs left out of the accuracy: longer than the model's context."""
    guard: GuardReport | None = None
    """With `meta_strength="auto"` and its guard."""
    tasks: Mapping[str, TaskReport] = field(default_factory=dict)
    """By name, the tasks beside the main one."""


def train_reward_model(
    *,
    model: str,
    pairs: Sequence[PreferencePair],
    test_pairs: Sequence[PreferencePair],
    groups: Sequence[ResponseGroup],
    settings: RewardSettings,
    output_dir: Path,
    seed: int,
    progress: ProgressReporter,
    probe: Sequence[PreferencePair] = (),
    checkpoints: CheckpointPlace | None = None,
    tasks: Sequence[TaskPairs] = (),
) -> RewardTrainingResult:
    """Train a reward model on pairs (and groups), save it, measure it on held-out pairs.

    With `meta_strength="auto"` and its guard the plain reward model is trained first, in the same
    order of the same pairs; it stands in where the adapted one ends too far from it. Started in
    several processes, all of them train and the first one writes.

    Args:
        model: Folder or hub id of a language model or of a reward model to go on from.
        pairs: Labelled pairs to train on.
        test_pairs: Held-out pairs; at least one.
        groups: The meta set; may be empty with `meta_mode="off"`.
        settings: See `config.RewardSettings`.
        output_dir: Where to save.
        seed: New score head, order of pairs and groups.
        progress: Gets a bar for each part.
        probe: Labelled pairs of the shifted policy's responses. They choose how far to go from the
            plain model to the adapted one, down to not at all; `meta_strength="auto"` only.
        checkpoints: Where both passes keep what they go on from, and find what an earlier try has
            kept; the result is the same, bit for bit on a CPU.
        tasks: Others that train the same trunk, each with a last layer of its own; the meta step,
            its guard and a probe are about the main one's. Empty: as without them, bit for bit.

    Raises:
        DataError: When nothing is left to train or test on, or no held-out pair of a task fits the
            model; when a derived row is held out, or one that is trained on was made from what is
            held out; when a task's training pair has a prompt that any task holds out.
        ConfigError: When a probe is given and nothing is there that it could choose.
        ModelError: When the model cannot be loaded or training diverged.

    Writes:
        `output_dir` in Hugging Face format, loadable with `AutoModelForSequenceClassification`;
        `metarm.json` with the settings and the encoding rule; `train_log.jsonl`; where a
        step was not finite, what led to it: `not_finite_STEP.json`; `tasks/NAME`, the same
        trunk with the last layer of another task.
    """
    if not test_pairs:
        raise DataError("no held-out pairs: give a test file or a larger test_fraction")
    trained_on = [*pairs, *(pair for task in tasks for pair in task.pairs)]
    check_apart(trained_on, [*test_pairs, *probe], "held-out pairs")
    check_tasks(pairs, test_pairs, tasks)
    if tasks and settings.batch_sum_coefficient:
        raise ConfigError(f"several tasks on one trunk do not go along with {NO_COMMON_ZERO}")
    is_guarded = _is_guarded(settings)
    if probe and not is_guarded:
        raise ConfigError(
            "a probe chooses between the plain and the adapted reward model: it needs "
            "meta_strength='auto', meta_guard=true and a meta_mode other than off"
        )
    datasets.disable_progress_bars()
    encoder, context = load_encoder(model), read_context_length(model)
    check_held_out(
        encoder,
        context,
        {"the pairs": test_pairs, "the probe": probe}
        | {f"task {task.name!r}": task.test_pairs for task in tasks},
    )
    limit = min(settings.max_length, context)
    # A model sees nothing sensible beyond its context, whatever max_length asks for.
    settings = settings.model_copy(update={"max_length": limit})
    with progress.stage("encode the pairs", len(pairs)) as bar:
        encoded, report = encode_pairs(encoder, pairs, limit, bar)
    others, task_reports = encode_tasks(encoder, tasks, limit)
    trainer = _train(
        model,
        encoder,
        to_rows(encoded, others),
        groups,
        settings,
        output_dir,
        seed,
        progress,
        keep_plain=bool(probe),
        checkpoints=checkpoints,
        num_tasks=1 + len(tasks),
    )
    settings = settings.model_copy(update={"learning_rate": trainer.args.learning_rate})
    guard = _guard_report(trainer, probe, encoder) if is_guarded else None
    if guard is not None:
        logger.info("%s", guard.summary())
    trained, saved = _trained(trainer, partial(_make_model, model, encoder, settings, seed))
    writes = trainer.is_world_process_zero()
    by_task = finish_tasks(
        trained, encoder, tasks, task_reports, settings, output_dir if writes else None, progress
    )
    if saved is not None and writes:
        with alone(saved, 0):
            save_reward_model(saved, encoder, settings, output_dir)
        write_json_lines(output_dir / "train_log.jsonl", trainer.state.log_history)
        for bundle in Path(trainer.args.output_dir).glob("not_finite_*.json"):
            write_text(output_dir / bundle.name, bundle.read_text(encoding="utf-8"))
    with alone(trained, 0):
        accuracy, num_too_long = measure_pairs(
            trained, encoder, test_pairs, progress, "score held-out pairs"
        )
    return RewardTrainingResult(
        last_metrics(trainer.state.log_history),
        accuracy,
        report,
        trainer.meta_report,
        num_too_long,
        guard,
        by_task,
    )


def _trained(
    trainer: MetaRewardTrainer, make: Callable[[], nn.Module]
) -> tuple[PreTrainedModel, PreTrainedModel | None]:
    """What this process scores with, and what is saved: a whole model, an adapter merged into it.

    Shards are scored with as they are, by all processes; who does not save them has no whole model.
    """
    if not trainer.is_sharded:
        merged = merge_adapter(_unwrapped(trainer))
        return merged, merged
    whole = whole_model(trainer.accelerator, trainer.model, make)
    return _unwrapped(trainer), None if whole is None else merge_adapter(whole)


def _make_model(name: str, encoder: Encoder, settings: RewardSettings, seed: int) -> nn.Module:
    """The model that was trained, as it was before, on the CPU."""
    model = load_reward_model(name, encoder, seed=seed, device=torch.device("cpu"))
    if not settings.use_peft:
        return model
    from peft import get_peft_model

    adapted: nn.Module = get_peft_model(model, lora_config(settings.lora_r, has_score_head=True))
    return adapted


def _is_guarded(settings: RewardSettings) -> bool:
    numbers = {name: getattr(settings, name) for name in META_NUMBERS}
    is_auto = resolve_strength(settings.meta_strength, numbers) == "auto"
    return is_auto and settings.meta_guard and settings.meta_mode != "off"


def _train(
    name: str,
    encoder: Encoder,
    rows: datasets.Dataset,
    groups: Sequence[ResponseGroup],
    settings: RewardSettings,
    output_dir: Path,
    seed: int,
    progress: ProgressReporter,
    *,
    keep_plain: bool,
    checkpoints: CheckpointPlace | None,
    num_tasks: int,
) -> MetaRewardTrainer:
    """A trainer that has trained, with a bar for each pass."""
    is_exact = settings.meta_order == "exact" and settings.meta_mode in SIGNS
    model = load_reward_model(
        name,
        encoder,
        seed=seed,
        attn_implementation="eager" if is_exact else None,
        # Whole, it need not fit one device.
        device=torch.device("cpu") if is_sharded_launch() else None,
    )
    if num_tasks > 1:
        give_task_heads(model, num_tasks)
    if settings.train_head_only:
        model.base_model.requires_grad_(False)
    language_head = None
    if settings.text_loss_coefficient:
        language_head = load_language_head(name, model)
    num_steps = settings.max_steps
    if num_steps <= 0:
        num_steps = count_steps(settings, len(rows), num_processes())
    passes = 2 if _is_guarded(settings) else 1
    what = f"train the reward model ({settings.meta_mode}{', guarded' if passes > 1 else ''})"
    with progress.stage(what, passes * num_steps) as bar:
        trainer = MetaRewardTrainer(
            model,
            _trainer_arguments(settings, output_dir, seed),
            train_dataset=rows,
            meta_dataset=groups if settings.meta_mode != "off" else None,
            plain_callbacks=[StepReporter(bar)],
            keep_plain=keep_plain,
            language_head=language_head,
            callbacks=[StepReporter(bar)],
            processing_class=encoder.tokenizer,
            peft_config=lora_config(settings.lora_r, has_score_head=True)
            if settings.use_peft
            else None,
        )
        trainer.remove_callback(PrinterCallback)
        if settings.learning_rate is None:
            trainer.args.learning_rate = default_learning_rate(trainer.model)
        if settings.start_decay:
            # Now: a checkpoint's weights are not those that training began from.
            trainer.add_start_decay(StartDecay(copy_weights(trainer.model), settings.start_decay))
        if checkpoints is not None:
            trainer.keep_checkpoints(checkpoints)
        trainer.train(NEWEST if checkpoints else None)
    return trainer


def _unwrapped(trainer: MetaRewardTrainer) -> PreTrainedModel:
    """The model, without accelerate's wrapper: trained in bf16 it would score in bf16 as well."""
    return trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)


def _guard_report(
    trainer: MetaRewardTrainer, probe: Sequence[PreferencePair], encoder: Encoder
) -> GuardReport:
    """What the guard did; a probe moves the trainer's weights to the place it chooses."""
    guard, plain = trainer.guard, trainer.plain_weights
    kept = 1.0 if guard is None or guard.holds else 0.0
    fitting: Sequence[PreferencePair] = ()
    if probe and plain is not None:
        score = RewardModelScore(_unwrapped(trainer).eval(), encoder)
        fitting = score.fitting_pairs(probe)
        ends = copy_weights(trainer.model)

        def go_to(place: float) -> None:
            between = {name: torch.lerp(plain[name], end, place) for name, end in ends.items()}
            put_weights(trainer.model, between)

        gaps = []
        for place in PLACES:
            go_to(place)
            gaps.append(_gaps(score, fitting))
        chosen = PLACES[choose_by_probe(gaps)]
        go_to(chosen)
        kept *= chosen
    return GuardReport(
        strength=1.0 if guard is None else guard.factor,
        rank_correlation=None if guard is None else guard.newest,
        lowest_rank_correlation=None if guard is None or guard.newest is None else guard.lowest,
        kept=kept,
        num_probe_pairs=len(fitting),
    )


def _gaps(score: RewardModelScore, pairs: Sequence[PreferencePair]) -> Tensor:
    prompts = [pair.prompt for pair in pairs]
    chosen = score(prompts, [pair.chosen for pair in pairs])
    rejected = score(prompts, [pair.rejected for pair in pairs])
    return torch.tensor(chosen, dtype=torch.float64) - torch.tensor(rejected, dtype=torch.float64)


def _trainer_arguments(settings: RewardSettings, output_dir: Path, seed: int) -> MetaRewardConfig:
    on_cpu = pick_device().type == "cpu"
    # TRL's own default stands until the trainable weights can be counted.
    unset = {"learning_rate"} if settings.learning_rate is None else set()
    own = {"use_peft", "lora_r", "start_decay", "train_head_only"}
    shared = settings.model_dump(exclude={*own, *unset})
    arguments = MetaRewardConfig(
        output_dir=str(output_dir),
        seed=seed,
        report_to=[],
        save_strategy="no",
        logging_steps=5,
        disable_tqdm=True,
        use_cpu=on_cpu,
        dataloader_pin_memory=not on_cpu,
        **shared,
    )
    # Not nn.DataParallel: several GPUs take a launcher, and one process each.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments
