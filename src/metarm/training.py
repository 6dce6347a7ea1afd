# SPDX-License-Identifier: Apache-2.0
"""Reward-model training: TRL's `RewardTrainer` with the MetaRM step.

`trl` is imported in this file alone. The mathematics is in `meta_step.py` and `objectives.py`;
this file only wires it into the hooks of the installed trainer (verified on trl 1.16,
transformers 5.23).
"""

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import datasets
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.trainer_callback import PrinterCallback
from transformers.trainer_utils import IntervalStrategy
from trl import RewardConfig, RewardTrainer

from metarm.config import RewardSettings
from metarm.data.encoding import (
    Encoder,
    EncodingReport,
    PaddedBatch,
    encode_groups,
    encode_pairs,
    pad_batch,
)
from metarm.data.meta_batches import MetaBatch, collate_groups, read_meta_dataset, thin_group
from metarm.data.meta_mixture import GroupMixture
from metarm.errors import ConfigError, DataError, ModelError
from metarm.meta_step import (
    SIGNS,
    Direction,
    Move,
    add_gradients,
    check_mode,
    check_precision,
    gradient_norm,
    look_ahead,
    measure_direction,
    signed_step,
    step_in_reward_units,
    through_look_ahead,
    widest,
)
from metarm.models.loading import (
    context_length,
    default_learning_rate,
    load_encoder,
    load_reward_model,
    lora_config,
)
from metarm.models.meta_callback import MetaCallback
from metarm.models.pair_evaluation import evaluate_preferences
from metarm.models.reporting import StepReporter, count_steps, last_metrics
from metarm.models.reward_model import RewardModelScore
from metarm.models.saving import merge_adapter, save_reward_model
from metarm.objectives import difference_loss
from metarm.protocols import ProgressReporter
from metarm.schema import (
    Estimate,
    PreferencePair,
    ResponseGroup,
)
from metarm.storage import write_json_lines

__all__ = [
    "META_METRICS",
    "MetaRewardConfig",
    "MetaRewardTrainer",
    "RewardTrainingResult",
    "train_reward_model",
]

NUM_REFERENCE_PAIRS: Final = 32

META_METRICS: Final[Mapping[str, str]] = {
    "meta/J": "difference loss of the meta batch at the kept weights",
    "meta/J_after": "J at the look-ahead point; one step a log, so compare meta/J_change instead",
    "meta/J_change": "J at the look-ahead point minus J, same batch; above 0 in ascent, below 0 in "
    "descent",
    "meta/grad_norm": "Euclidean length of the gradient of J",
    "meta/step_size": "the multiple of J's gradient that the look-ahead moves by",
    "meta/move_length": "|theta' - theta| as stored",
    "meta/move_realised_fraction": "share of the intended move that survived rounding; 1 is right",
    "meta/score_change_mean": "mean |change of a meta response's score| by the look-ahead, logits",
    "meta/cosine": "cosine between the gradients of L (where it was taken) and of J; above 0, "
    "descending L lowers J too",
    "meta/weight_<source>": "with several sources: the share of the next meta batch that one gets",
    "meta/spread_<source>": "the gaps within its groups over those of original pairs, smoothed; 1: "
    "nothing lost, 0: blind",
}


@dataclass
class MetaRewardConfig(RewardConfig):
    """TRL's `RewardConfig` and the settings of the MetaRM step."""

    meta_mode: str = field(
        default="joint",
        metadata={
            "help": "off, ascent (Algorithm 1 as printed), descent (its sign turned), or "
            "joint (L - meta_weight * J)."
        },
    )
    meta_learning_rate: float = field(
        default=5e-6,
        metadata={
            "help": "Step of the look-ahead (eta). Paper: 5e-6. Not used with meta_step_length."
        },
    )
    meta_step_length: float | None = field(
        default=None,
        metadata={"help": "Fixed length |theta' - theta| of the look-ahead, instead of eta."},
    )
    meta_reward_fraction: float | None = field(
        default=None,
        metadata={
            "help": "Look-ahead so long that scores of original pairs change by this share of "
            "their spread, instead of eta or a length. 0.5 is a strong step."
        },
    )
    meta_weight: float = field(default=0.1, metadata={"help": "Weight of J in joint."})
    meta_batch_size: int = field(
        default=16, metadata={"help": "Groups per optimiser step, over all processes. Paper: 16."}
    )
    meta_group_size: int = field(
        default=5,
        metadata={"help": "Responses per group (k); larger groups are thinned. Paper: 5."},
    )
    meta_every: int = field(
        default=1, metadata={"help": "Optimiser steps between two meta steps; others are plain."}
    )
    meta_order: str = field(
        default="first",
        metadata={"help": "first, or exact: the gradient flows through the look-ahead."},
    )
    meta_source_floor: float = field(
        default=0.25,
        metadata={"help": "Least share of a source of groups, in even shares; 1: all even."},
    )

    def __post_init__(self) -> None:
        """Check the meta settings, then everything TRL checks."""
        super().__post_init__()
        check_mode(self.meta_mode)
        for name, low in (("meta_batch_size", 1), ("meta_group_size", 2), ("meta_every", 1)):
            if getattr(self, name) < low:
                raise ConfigError(f"{name} must be at least {low}, got {getattr(self, name)}")
        for name in (
            "meta_learning_rate",
            "meta_step_length",
            "meta_reward_fraction",
            "meta_weight",
        ):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise ConfigError(
                    f"{name} must be a finite number >= 0, got {value}; the sign is meta_mode's"
                )
        if self.meta_order not in ("first", "exact"):
            raise ConfigError(f"meta_order must be 'first' or 'exact', got {self.meta_order!r}")


class MetaRewardTrainer(RewardTrainer):
    """`RewardTrainer` whose preference gradients are taken where the MetaRM step looks ahead.

    Give it a `meta_dataset` with the columns `prompt` and `responses` (a list of texts, or of
    conversations' last messages) beside everything `RewardTrainer` takes. With `meta_mode="off"`
    it is TRL's trainer, bit for bit.

    Overrides, and why:
        A callback's `on_step_begin`: J's gradient, once per optimiser step, outside `no_sync`.
        `training_step`: runs the parent's at the look-ahead point; weights are back when it ends.
        `compute_loss`: the parent's; the gaps of its pairs are what sources are measured by.
        `_save_checkpoint`, `evaluate`: assert that the weights are back.

    The training `loss`, `accuracy` and `margin` that TRL logs are those at the look-ahead point.
    """

    _tag_names = ["trl", "reward-trainer", "metarm"]  # noqa: RUF012 - the parent's type

    def __init__(
        self,
        model: Any,
        args: MetaRewardConfig | None = None,
        *,
        train_dataset: Any = None,
        meta_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        peft_config: Any = None,
        **options: Any,
    ) -> None:
        if args is None:
            name = model if isinstance(model, str) else model.config._name_or_path
            args = MetaRewardConfig(f"{Path(name).name}-Reward")
        if not isinstance(args, MetaRewardConfig):
            raise ConfigError(
                f"args must be a MetaRewardConfig, got a {type(args).__name__}: change the class's "
                "name, its other settings stay as they are"
            )
        if args.meta_mode != "off" and meta_dataset is None:
            raise DataError(
                f"meta_mode={args.meta_mode!r} needs a meta_dataset with columns `prompt` and "
                "`responses`; give one, or set meta_mode='off' for plain training"
            )
        super().__init__(
            model=model,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            peft_config=peft_config,
            **options,
        )
        self._direction: Direction | None = None
        self._is_ahead = False
        self.meta_report: EncodingReport | None = None
        if args.meta_mode == "off":
            return
        self._refuse_unsupported()
        check_precision(p for p in self.model.parameters() if p.requires_grad)
        self._encoder = Encoder(self.processing_class)
        self._groups, self.meta_report = encode_groups(
            self._encoder, read_meta_dataset(meta_dataset), args.max_length
        )
        self._mixture = GroupMixture(
            [group.source for group in self._groups], floor=args.meta_source_floor, seed=args.seed
        )
        if args.meta_reward_fraction is not None and args.meta_mode in SIGNS:
            self._reference_pairs = self._read_reference_pairs()
        # First of all callbacks: a user's own may read metrics that this one writes.
        callback = MetaCallback(self._measure_direction, self._end_step, self._mixture)
        self.callback_handler.callbacks.insert(0, callback)

    def _refuse_unsupported(self) -> None:
        kind = str(self.accelerator.distributed_type).rpartition(".")[2]
        if self.args.n_gpu > 1:
            kind = f"nn.DataParallel over {self.args.n_gpu} GPUs (start with torchrun)"
        if self.accelerator.parallelism_config is not None:
            kind = "a parallelism_config"
        if kind not in ("NO", "MULTI_GPU", "MULTI_CPU"):
            raise ConfigError(
                f"the meta step supports one process and DDP, got {kind}: sharded parameters are "
                "not moved and put back exactly yet. Use DDP, LoRA, or meta_mode='off'."
            )
        if kind != "NO" and self.args.meta_order == "exact":
            raise ConfigError("meta_order='exact' runs in one process only: use 'first' with DDP")
        attention = getattr(self.model.config, "_attn_implementation", None)
        if self.args.meta_order == "exact" and attention not in (None, "eager"):
            raise ConfigError(
                f"meta_order='exact' differentiates twice, which {attention!r} attention cannot: "
                "load the model with attn_implementation='eager'"
            )
        if self.args.fp16:
            raise ConfigError(
                "the meta step does not support fp16: its loss scale would multiply eta. "
                "Use bf16=True or full fp32."
            )
        checkpointing = self.args.gradient_checkpointing_kwargs or {}
        if self.args.gradient_checkpointing and checkpointing.get("use_reentrant"):
            raise ConfigError(
                "the meta step cannot take a gradient through reentrant checkpointing: set "
                "gradient_checkpointing_kwargs={'use_reentrant': False}"
            )

    def _read_reference_pairs(self) -> PaddedBatch:
        """A few original pairs, always the same, whose scores' spread is the unit of a step."""
        if not hasattr(self.train_dataset, "select"):
            raise ConfigError(
                "meta_reward_fraction measures its step on a few training pairs, and a streamed "
                "data set has no rows to pick: give a Dataset, or set meta_step_length"
            )
        count = len(self.train_dataset)
        # Spread over the set: a file may be sorted.
        rows = self.train_dataset.select(range(0, count, -(-count // NUM_REFERENCE_PAIRS)))
        ids = [*rows["chosen_ids"], *rows["rejected_ids"]]
        return pad_batch(ids, self._encoder.pad_token_id, side="right")

    def _trainable(self) -> list[Tensor]:
        return [
            p for group in self.optimizer.param_groups for p in group["params"] if p.requires_grad
        ]

    def _measure_direction(self, step: int) -> None:
        """J and its gradient at the kept weights, for all micro-batches of this optimiser step."""
        self._direction = None
        if step % self.args.meta_every:
            return
        self.model.train()
        self._batch, self._share = self._meta_batch(step)
        self._direction = self._over_processes(
            measure_direction(self._difference() * self._share, self._trainable())
        )
        is_own = self._batch.mask & (self._share > 0)
        self._mixture.see_groups(self._scores_at_theta, is_own, self._batch.sources)
        metrics = self._metrics["train"]
        metrics["meta/J"].append(self._direction.difference)
        metrics["meta/grad_norm"].append(self._direction.norm)
        if not math.isfinite(self._direction.norm):
            raise ModelError(
                f"the gradient of the difference loss is not finite at step {step}: training "
                "diverged. Lower learning_rate, or meta_step_length / meta_weight."
            )
        self._step = self._signed_step(self._direction)
        if self.args.meta_mode in SIGNS:
            metrics["meta/step_size"].append(abs(self._step))

    def _end_step(self) -> None:
        measured = self._mixture.end_step(lambda sums: self.accelerator.reduce(sums, "sum"))
        for name, value in measured.items():
            self._metrics["train"][name].append(value)

    def compute_loss(self, *arguments: Any, return_outputs: bool = False, **options: Any) -> Any:
        """The parent's, whose scores are looked at on the way."""
        loss, outputs = super().compute_loss(*arguments, return_outputs=True, **options)
        if self._direction is not None and self.model.training:
            self._mixture.see_pairs(*outputs.logits.squeeze(-1).chunk(2))
        return (loss, outputs) if return_outputs else loss

    def _signed_step(self, direction: Direction) -> float:
        """The multiple of J's gradient to look ahead by: 0 in `joint`."""
        fraction = self.args.meta_reward_fraction
        if fraction is None or self.args.meta_mode not in SIGNS:
            return signed_step(
                self.args.meta_mode,
                direction,
                step_size=self.args.meta_learning_rate,
                step_length=self.args.meta_step_length,
            )
        # Dropout would be taken for a change of the rewards.
        self.model.eval()
        with torch.no_grad():
            size = step_in_reward_units(
                self._trainable(), direction, self._reference_scores, fraction
            )
        self.model.train()
        return SIGNS[self.args.meta_mode] * size

    def _reference_scores(self) -> Tensor:
        device, pairs = self.accelerator.device, self._reference_pairs
        model = self.accelerator.unwrap_model(self.model)
        # Without accelerate's autocast: bfloat16 would round a small change of the scores away.
        forward = getattr(model, "_original_forward", model)
        logits = forward(
            input_ids=pairs.input_ids.to(device),
            attention_mask=pairs.attention_mask.to(device),
            use_cache=False,
        ).logits
        scores: Tensor = logits.squeeze(-1).float()
        return scores

    def _over_processes(self, local: Direction) -> Direction:
        """The direction of the J of all groups, of which each process has measured its share."""
        if self.accelerator.num_processes == 1:
            return local
        gradients = tuple(
            None if g is None else self.accelerator.reduce(g, reduction="mean")
            for g in local.gradients
        )
        norm = gradient_norm(gradients)
        return Direction(self._mean(local.difference), gradients, norm)

    def _mean(self, value: float) -> float:
        """The mean of a number over all processes."""
        if self.accelerator.num_processes == 1:
            return value
        local = torch.tensor(value, dtype=torch.float32, device=self.accelerator.device)
        return float(self.accelerator.reduce(local, reduction="mean").item())

    def _meta_batch(self, step: int) -> tuple[MetaBatch, float]:
        """This process's groups, and what their mean weighs in the mean over processes."""
        indices = self._mixture.draw(self.args.meta_batch_size, step)
        num_processes = self.accelerator.num_processes
        own = indices[self.accelerator.process_index :: num_processes]
        # A process without a group still takes part in the reductions, with weight 0.
        groups = [
            thin_group(self._groups[i], self.args.meta_group_size, seed=self.args.seed + step)
            for i in own or indices[:1]
        ]
        batch = collate_groups(groups, self._encoder.pad_token_id, self.accelerator.device)
        return batch, len(own) * num_processes / len(indices)

    def _meta_scores(self) -> Tensor:
        """Scores of the meta batch, (groups, k), in fp32 or better, with their graph."""
        batch = self._batch
        # The bare model: DDP's reducer must not see gradients that are not the preference loss's.
        model = self.accelerator.unwrap_model(self.model)
        with self.compute_loss_context_manager():
            logits = model(
                input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False
            ).logits
        flat = logits.squeeze(-1).to(torch.promote_types(logits.dtype, torch.float32))
        scores = flat.new_zeros(batch.mask.shape)
        return scores.masked_scatter(batch.mask, flat)

    def _difference(self) -> Tensor:
        scores = self._meta_scores()
        self._scores_at_theta = scores.detach()
        return difference_loss(scores, self._batch.mask)

    def training_step(self, *arguments: Any, **options: Any) -> Tensor:
        """The parent's step, at theta' where the mode looks ahead."""
        direction = self._direction
        if direction is None:
            return super().training_step(*arguments, **options)
        parameters = self._trainable()
        if self.args.meta_mode == "joint":
            loss = super().training_step(*arguments, **options)
            if self.accelerator.sync_gradients:
                self._log_cosine(parameters, direction)
                add_gradients(parameters, direction.gradients, -self.args.meta_weight)
            return loss
        is_exact = self.args.meta_order == "exact"
        correction = (
            through_look_ahead(parameters, self._difference, self._step)
            if is_exact
            else nullcontext()
        )
        with correction, look_ahead(parameters, direction.gradients, self._step) as move:
            self._is_ahead = True
            try:
                self._log_move(move)
                loss = super().training_step(*arguments, **options)
            finally:
                self._is_ahead = False
        if self.accelerator.sync_gradients:
            self._log_cosine(parameters, direction)
        return loss

    def _log_move(self, move: Move) -> None:
        """Once per optimiser step, on its last micro-batch."""
        if not self.accelerator.sync_gradients:
            return
        metrics = self._metrics["train"]
        metrics["meta/move_length"].append(move.length)
        metrics["meta/move_realised_fraction"].append(move.realised_fraction)
        if not self._is_last_before_log():
            return
        with torch.no_grad():
            after = self._meta_scores()
        mask = self._batch.mask
        local = difference_loss(after, mask) - difference_loss(self._scores_at_theta, mask)
        change = self._mean(self._share * local.item())
        metrics["meta/J_change"].append(change)
        metrics["meta/J_after"].append(metrics["meta/J"][-1] + change)
        moved = (after - self._scores_at_theta).abs()[mask].mean().item()
        metrics["meta/score_change_mean"].append(self._mean(self._share * moved))

    def _is_last_before_log(self) -> bool:
        """Whether no other meta step comes before the next log."""
        if self.args.logging_strategy != IntervalStrategy.STEPS:
            return True  # logged once an epoch, whose last step is not foreseen here
        every = max(1, int(self.state.logging_steps))
        step = self.state.global_step
        return step + self.args.meta_every >= (step // every + 1) * every

    def _log_cosine(self, parameters: Sequence[Tensor], direction: Direction) -> None:
        product = squared = 0.0
        for parameter, gradient in zip(parameters, direction.gradients, strict=True):
            if parameter.grad is None:
                continue
            taken = widest(parameter.grad)
            squared += taken.square().sum().item()
            if gradient is not None:
                product += (taken * gradient).sum().item()
        length = math.sqrt(squared) * direction.norm
        if length > 0:
            self._metrics["train"]["meta/cosine"].append(product / length)

    def evaluate(self, *arguments: Any, **options: Any) -> dict[str, float]:
        """The parent's, at the kept weights."""
        self._assert_home()
        return dict(super().evaluate(*arguments, **options))

    def _save_checkpoint(self, *arguments: Any, **options: Any) -> None:
        self._assert_home()
        super()._save_checkpoint(*arguments, **options)

    def _assert_home(self) -> None:
        assert not self._is_ahead, "weights are at the look-ahead point outside training_step"


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
) -> RewardTrainingResult:
    """Train a reward model on pairs (and groups), save it, measure it on held-out pairs.

    Args:
        model: Folder or hub id of a language model or of a reward model to go on from.
        pairs: Labelled pairs to train on.
        test_pairs: Held-out pairs; at least one.
        groups: The meta set; may be empty with `meta_mode="off"`.
        settings: See `config.RewardSettings`.
        output_dir: Where to save.
        seed: New score head, order of pairs and groups.
        progress: Gets one bar.

    Raises:
        DataError: When nothing is left to train or test on.
        ModelError: When the model cannot be loaded or training diverged.

    Writes:
        `output_dir` in Hugging Face format, loadable with `AutoModelForSequenceClassification`;
        `metarm.json` with the settings and the encoding rule; `train_log.jsonl`.
    """
    if not test_pairs:
        raise DataError("no held-out pairs: give a test file or a larger test_fraction")
    datasets.disable_progress_bars()
    encoder = load_encoder(model)
    is_exact = settings.meta_order == "exact" and settings.meta_mode in SIGNS
    reward_model = load_reward_model(
        model, encoder, seed=seed, attn_implementation="eager" if is_exact else None
    )
    # A model sees nothing sensible beyond its context, whatever max_length asks for.
    limit = min(settings.max_length, context_length(reward_model))
    settings = settings.model_copy(update={"max_length": limit})
    with progress.stage("encode the pairs", len(pairs)) as bar:
        encoded, report = encode_pairs(encoder, pairs, limit, bar)
    has_margin = any(pair.margin is not None for pair in encoded)
    rows = [
        {"chosen_ids": pair.chosen_ids, "rejected_ids": pair.rejected_ids}
        | ({"margin": pair.margin or 0.0} if has_margin else {})
        for pair in encoded
    ]
    arguments = _trainer_arguments(settings, output_dir, seed, reward_model)
    trainer = MetaRewardTrainer(
        reward_model,
        arguments,
        train_dataset=datasets.Dataset.from_list(rows),
        meta_dataset=groups,
        processing_class=encoder.tokenizer,
        peft_config=lora_config(settings) if settings.use_peft else None,
    )
    trainer.remove_callback(PrinterCallback)
    if settings.learning_rate is None:
        trainer.args.learning_rate = default_learning_rate(trainer.model)
        settings = settings.model_copy(update={"learning_rate": trainer.args.learning_rate})
    num_steps = settings.max_steps if settings.max_steps > 0 else count_steps(settings, len(rows))
    with progress.stage(f"train the reward model ({settings.meta_mode})", num_steps) as bar:
        trainer.add_callback(StepReporter(bar))
        trainer.train()
    # Without accelerate's wrapper: after training in bf16 the model would score in bf16 as well.
    trained = merge_adapter(
        trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    )
    save_reward_model(trained, encoder, settings, output_dir)
    write_json_lines(output_dir / "train_log.jsonl", trainer.state.log_history)
    score = RewardModelScore(trained.eval(), encoder)
    fitting = score.fitting_pairs(test_pairs)
    with progress.stage("score held-out pairs", 2 * len(fitting)) as bar:
        accuracy = evaluate_preferences(score.reporting_to(bar), fitting).accuracy
    metrics = last_metrics(trainer.state.log_history)
    return RewardTrainingResult(
        metrics, accuracy, report, trainer.meta_report, len(test_pairs) - len(fitting)
    )


def _trainer_arguments(
    settings: RewardSettings, output_dir: Path, seed: int, model: PreTrainedModel
) -> MetaRewardConfig:
    on_cpu = model.device.type == "cpu"
    # TRL's own default stands until the trainable weights can be counted.
    unset = {"learning_rate"} if settings.learning_rate is None else set()
    shared = settings.model_dump(exclude={"use_peft", "lora_r", *unset})
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
