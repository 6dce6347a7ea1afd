# SPDX-License-Identifier: Apache-2.0
"""TRL's `RewardTrainer` with the MetaRM step.

The mathematics is in `meta_step.py`, `strength.py` and `objectives.py`; this file only wires it
into the hooks of the installed trainer (verified on trl 1.16, transformers 5.23).
"""

import copy
import gc
import logging
import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, TrainerCallback
from transformers.trainer_callback import PrinterCallback
from transformers.trainer_utils import IntervalStrategy, SaveStrategy
from trl import RewardTrainer

from metarm.data.encoding import (
    EncodedGroup,
    Encoder,
    EncodingReport,
    PaddedBatch,
    encode_groups,
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
    check_precision,
    gradient_norm,
    look_ahead,
    measure_direction,
    through_look_ahead,
)
from metarm.models.meta_callback import Kept, MetaCallback
from metarm.objectives import difference_loss
from metarm.strength import NUM_REFERENCE_PAIRS, StrengthGuard
from metarm.training.control import StrengthControl, gradient_cosine, keep_watched
from metarm.training.plain_training import (
    PLAIN_FILE,
    PlainTraining,
    copy_weights,
    noise_put_back,
    put_weights,
)
from metarm.training.settings import MetaRewardConfig
from metarm.training.support import refuse_unsupported

__all__ = ["MetaRewardTrainer"]

MEASURE_BATCH: Final = 64

logger = logging.getLogger(__name__)


class MetaRewardTrainer(RewardTrainer):
    """`RewardTrainer` whose preference gradients are taken where the MetaRM step looks ahead.

    Give it a `meta_dataset` with the columns `prompt` and `responses` (a list of texts, or of
    conversations' last messages) beside everything `RewardTrainer` takes. With `meta_mode="off"`
    it is TRL's trainer, bit for bit. With `meta_strength="auto"`, the default, `train` first trains
    plainly, without callbacks or checkpoints, and then from the same weights with the meta step,
    whose strength is guarded by the comparison; `guard` says what it saw, and where it fails in
    the end the plain weights are kept. `keep_plain` asks for the plain training, and its weights in
    `plain_weights`, also where there are too few groups to guard with.

    Overrides, and why:
        A callback's `on_step_begin`: J's gradient, once per optimiser step, outside `no_sync`;
        its `on_step_end`: the mixture of sources, and the guard.
        `train`: the plain training before, where the guard needs it.
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
        plain_callbacks: Sequence[TrainerCallback] = (),
        keep_plain: bool = False,
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
        self._control: StrengthControl | None = None
        self._is_ahead = False
        self._plain_callbacks = plain_callbacks
        self._keeps_plain = keep_plain
        self._options = options
        self.meta_report: EncodingReport | None = None
        self.plain_weights: dict[str, Tensor] | None = None
        """After a guarded training: the trainable weights that plain training gave, on the CPU."""
        if args.meta_mode == "off" or meta_dataset is None:
            return
        refuse_unsupported(args, self.accelerator, self.model)
        check_precision(p for p in self.model.parameters() if p.requires_grad)
        self._encoder = Encoder(self.processing_class)
        self._groups, self.meta_report = encode_groups(
            self._encoder, read_meta_dataset(meta_dataset), args.max_length
        )
        watched: list[EncodedGroup] = []
        if self._is_guarded():
            self._groups, watched = keep_watched(self._groups)
        self._mixture = GroupMixture(
            [group.source for group in self._groups], floor=args.meta_source_floor, seed=args.seed
        )
        in_units = args.meta_reward_fraction is not None or args.meta_strength == "auto"
        self._control = StrengthControl(
            args,
            score=self._measure_scores,
            reference=self._read_reference_pairs() if in_units else None,
            watched=watched,
            pad_token_id=self._encoder.pad_token_id,
            agree=self._mean,
        )
        # First of all callbacks: a user's own may read metrics that this one writes.
        kept: dict[str, Kept] = {
            "metarm.GroupMixture": self._mixture,
            "metarm.StrengthGuard": self._control,
        }
        callback = MetaCallback(self._measure_direction, self._end_step, kept)
        self.callback_handler.callbacks.insert(0, callback)

    @property
    def guard(self) -> StrengthGuard | None:
        """What the guard has seen; None where nothing is guarded."""
        return self._control.guard if self._control is not None else None

    def _is_guarded(self) -> bool:
        return self.args.meta_strength == "auto" and self.args.meta_guard

    def train(self, resume_from_checkpoint: Any = None, *arguments: Any, **options: Any) -> Any:
        """The parent's; with a guard, after a plain training from the same weights."""
        control = self._control if self._is_guarded() else None
        plain_file = Path(self.args.output_dir) / PLAIN_FILE
        resumes_guard = bool(resume_from_checkpoint) and self._mean(plain_file.is_file()) == 1.0
        too_few = "the meta set has fewer than 50 groups, too few to keep some for it"
        why_not = {
            too_few: control is not None and not control.can_guard,
            f"training goes on from a checkpoint, and {plain_file} is not there": bool(
                resume_from_checkpoint
            )
            and not resumes_guard,
            "there is an optimiser already": self.optimizer is not None,
            "a model_init makes the model": self.model_init is not None,
        }
        reasons = [reason for reason, holds in why_not.items() if holds]
        if control is not None and reasons:
            logger.warning(
                "the meta step is bounded in reward units, but not guarded: %s", reasons[0]
            )
        # Of an earlier call: its plain training is not this one's.
        self.plain_weights = None
        if self._control is not None:
            self._control.end_guard()
        if control is not None and (not reasons or (self._keeps_plain and reasons == [too_few])):
            (self._resume_plain if resumes_guard else self._train_plain)(plain_file)
        result = super().train(resume_from_checkpoint, *arguments, **options)
        if self.plain_weights is not None:
            self._end_guarded(plain_file, self.plain_weights)
        return result

    def _end_guarded(self, plain_file: Path, plain_weights: Mapping[str, Tensor]) -> None:
        """Keep the plain weights where those that training ended with are too far from them."""
        step = self.state.global_step
        if self.args.load_best_model_at_end and self.state.best_global_step:
            step = self.state.best_global_step
        if not self._strength.judge(step):
            logger.warning(
                "the plain weights are kept: with the meta step rewards ended too far from them; "
                "checkpoints of this training hold the others"
            )
            put_weights(self.model, plain_weights)
        if self.is_world_process_zero():
            plain_file.unlink(missing_ok=True)

    def _train_plain(self, file: Path) -> None:
        """Train without the meta step, keep what came out, and go back to the first weights."""
        first = copy_weights(self.model)
        args = copy.copy(self.args)
        args.meta_mode = "off"
        args.save_strategy, args.eval_strategy = SaveStrategy.NO, IntervalStrategy.NO
        args.load_best_model_at_end, args.push_to_hub, args.report_to = False, False, []
        # Not what belongs to this one's run alone.
        options = {
            key: value
            for key, value in self._options.items()
            if key not in ("callbacks", "compute_metrics", "optimizers")
        }
        # Both trainings draw the same dropout; a trainer seeds anew where it is made.
        with noise_put_back(self.accelerator.device):
            with noise_put_back(self.accelerator.device):
                plain = MetaRewardTrainer(
                    self.model,
                    args,
                    train_dataset=self.train_dataset,
                    processing_class=self.processing_class,
                    **options,
                )
            plain.remove_callback(PrinterCallback)
            for callback in (*self._plain_callbacks, MetaCallback(end=self._record)):
                plain.add_callback(callback)
            plain.train()
        self.plain_weights = copy_weights(self.model)
        # Its autocast goes with it; this one's own is put on when training begins.
        plain.accelerator.unwrap_model(plain.model, keep_fp32_wrapper=False)
        # It and its callbacks point at each other: its optimiser's moments would stay.
        plain.optimizer = plain.lr_scheduler = None
        plain.accelerator.free_memory()
        del plain
        gc.collect()
        put_weights(self.model, first)
        self.model.zero_grad(set_to_none=True)
        self._strength.begin_guard()
        if self.args.save_strategy != SaveStrategy.NO and self.is_world_process_zero():
            PlainTraining(self.plain_weights, *self._strength.recorded).save(file)

    def _resume_plain(self, file: Path) -> None:
        """What `_train_plain` left, in place of training again."""
        plain = PlainTraining.read(file)
        self.plain_weights = dict(plain.weights)
        self._strength.resume_guard(plain.scores, plain.num_steps)

    def _record(self, step: int, num_steps: int) -> None:
        self._strength.record(step, num_steps)

    @property
    def _strength(self) -> StrengthControl:
        assert self._control is not None, "only with a meta step"
        return self._control

    def _read_reference_pairs(self) -> PaddedBatch:
        """A few original pairs, always the same, whose scores' spread is the unit of a step."""
        if not hasattr(self.train_dataset, "select"):
            raise ConfigError(
                "a strength in reward units is measured on a few training pairs, and a streamed "
                "data set has no rows to pick: give a Dataset, or set meta_step_length or "
                "meta_weight"
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
        if self._strength.factor == 0.0:
            return  # the guard has turned the meta step off
        self.model.train()
        self._batch, self._share = self._meta_batch(step)
        with noise_put_back(
            self.accelerator.device
        ):  # the preference loss draws its own dropout, as without J
            local = measure_direction(self._difference() * self._share, self._trainable())
        self._direction = self._over_processes(local)
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
        self._step = self._strength.signed_step(self._direction, self._trainable())
        if self.args.meta_mode in SIGNS:
            metrics["meta/step_size"].append(abs(self._step))

    def _end_step(self, step: int, num_steps: int) -> None:
        """After an optimiser step: what the mixture and the guard have seen, into the log."""
        measured = self._mixture.end_step(lambda sums: self.accelerator.reduce(sums, "sum"))
        for name, value in (measured | self._strength.watch(step, num_steps)).items():
            self._metrics["train"][name].append(value)

    def compute_loss(self, *arguments: Any, return_outputs: bool = False, **options: Any) -> Any:
        """The parent's, whose scores are looked at on the way where they are those of theta."""
        loss, outputs = super().compute_loss(*arguments, return_outputs=True, **options)
        if self._direction is not None and self.model.training and not self._is_ahead:
            self._mixture.see_pairs(*outputs.logits.squeeze(-1).chunk(2))
        return (loss, outputs) if return_outputs else loss

    @torch.no_grad()
    def _measure_scores(self, batch: PaddedBatch | MetaBatch) -> Tensor:
        """Scores of any responses at the weights as they are, without a graph or dropout."""
        device = self.accelerator.device
        model = self.accelerator.unwrap_model(self.model)
        # Without accelerate's autocast: bfloat16 would round a small change of the scores away.
        forward = getattr(model, "_original_forward", model)
        was_training = model.training
        # Dropout would be taken for a change of the rewards.
        model.eval()
        found = []
        for ids, mask in zip(
            batch.input_ids.split(MEASURE_BATCH),
            batch.attention_mask.split(MEASURE_BATCH),
            strict=True,
        ):
            logits = forward(
                input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False
            ).logits
            found.append(logits.squeeze(-1).float())
        model.train(was_training)
        return torch.cat(found)

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
                weight = self._strength.joint_weight(direction, parameters)
                self._metrics["train"]["meta/weight"].append(weight)
                add_gradients(parameters, direction.gradients, -weight)
            return loss
        if self._mixture.is_mixed:
            self._see_pairs_at_theta(arguments[1])
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

    @torch.no_grad()
    def _see_pairs_at_theta(self, inputs: Any) -> None:
        """One more forward pass: the groups' gaps are those of theta, not of theta'."""
        inputs = self._prepare_inputs(inputs)
        model = self.accelerator.unwrap_model(self.model)
        with noise_put_back(self.accelerator.device), self.compute_loss_context_manager():
            logits = model(
                input_ids=inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                use_cache=False,
            ).logits
        self._mixture.see_pairs(*logits.squeeze(-1).float().chunk(2))

    def _log_move(self, move: Move) -> None:
        """Once per optimiser step, on its last micro-batch."""
        if not self.accelerator.sync_gradients:
            return
        metrics = self._metrics["train"]
        metrics["meta/move_length"].append(move.length)
        metrics["meta/move_realised_fraction"].append(move.realised_fraction)
        if not self._is_last_before_log():
            return
        with torch.no_grad(), noise_put_back(self.accelerator.device):
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
        if (cosine := gradient_cosine(parameters, direction)) is not None:
            self._metrics["train"]["meta/cosine"].append(cosine)

    def evaluate(self, *arguments: Any, **options: Any) -> dict[str, float]:
        """The parent's, at the kept weights."""
        self._assert_home()
        return dict(super().evaluate(*arguments, **options))

    def _save_checkpoint(self, *arguments: Any, **options: Any) -> None:
        self._assert_home()
        super()._save_checkpoint(*arguments, **options)

    def _assert_home(self) -> None:
        assert not self._is_ahead, "weights are at the look-ahead point outside training_step"
