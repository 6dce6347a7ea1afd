# SPDX-License-Identifier: Apache-2.0
"""TRL's `RewardTrainer` with the MetaRM step.

The mathematics is in `meta_step.py`, `strength.py` and `objectives.py`; this file only wires it
into the hooks of the installed trainer (verified on trl 1.16, transformers 5.23).
"""

import copy
import gc
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from transformers.trainer_callback import PrinterCallback
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from metarm.data.encoding import (
    EncodedGroup,
    Encoder,
    EncodingReport,
    encode_groups,
)
from metarm.data.meta_batches import MetaBatch, read_meta_dataset, thin_group
from metarm.data.meta_mixture import GroupMixture
from metarm.errors import ConfigError, DataError, ModelError
from metarm.meta_step import (
    SIGNS,
    Direction,
    Move,
    add_curvature,
    add_curvature_by_difference,
    add_gradients,
    check_precision,
    place_ahead,
)
from metarm.models.meta_callback import Kept, MetaCallback
from metarm.objectives import difference_loss
from metarm.placement import hold, standing_at
from metarm.strength import StrengthGuard
from metarm.training.control import (
    StrengthControl,
    gradient_cosine,
    keep_watched,
    read_reference_pairs,
)
from metarm.training.meta_pass import MetaPass, StepState
from metarm.training.plain_training import (
    PlainTraining,
    copy_weights,
    noise_put_back,
    plain_file_name,
    put_weights,
)
from metarm.training.processes import (
    direction_over_processes,
    mean_over_processes,
    most_over_processes,
)
from metarm.training.settings import MetaRewardConfig
from metarm.training.sharding import check_optimizer, gather_in_full_precision
from metarm.training.shared_trainer import SharedPromptTrainer
from metarm.training.support import is_sharding, refuse_unsupported

__all__ = ["MetaRewardTrainer"]

logger = logging.getLogger(__name__)


class MetaRewardTrainer(SharedPromptTrainer):
    """TRL's `RewardTrainer` whose preference gradients are taken where the MetaRM step looks ahead.

    Give it a `meta_dataset` with the columns `prompt` and `responses` (a list of texts, or of
    conversations' last messages) beside everything `RewardTrainer` takes. With `meta_mode="off"`
    it is TRL's trainer, to 1e-6, and bit for bit with `share_prompts=False`. With
    `meta_strength="auto"`, the default, `train` first trains plainly, without callbacks or
    checkpoints, and then from the same weights with the meta step, whose strength is guarded by the
    comparison; `guard` says what it saw, and where it fails in the end the plain weights are kept.
    `keep_plain` asks for the plain training, and its weights in `plain_weights`, also where there
    are too few groups to guard with.

    Overrides, and why:
        A callback's `on_step_begin`: J's gradient, once per optimiser step, outside `no_sync`;
        its `on_step_end`: the mixture of sources, and the guard.
        `train`: the plain training before, where the guard needs it.
        `training_step`: runs the parent's at the look-ahead point, which is found once a step;
            weights are back when it ends.
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
        self._now: StepState | None = None
        self._control: StrengthControl | None = None
        self._is_ahead = False
        self._plain_callbacks = plain_callbacks
        self._keeps_plain = keep_plain
        self._options = options
        self.meta_report: EncodingReport | None = None
        self.plain_weights: dict[str, Tensor] | None = None
        """After a guarded training: the trainable weights that plain training gave, on the CPU, or
        this process's shards of them."""
        if args.meta_mode == "off" or meta_dataset is None:
            return
        refuse_unsupported(args, self.accelerator, self.model)
        if self.is_sharded:
            gather_in_full_precision(self.accelerator, self.model, args)
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
            reference=read_reference_pairs(self.train_dataset, self._encoder.pad_token_id)
            if in_units
            else None,
            watched=watched,
            pad_token_id=self._encoder.pad_token_id,
            agree=self._mean,
        )
        # First of all callbacks: a user's own may read metrics that this one writes.
        kept: dict[str, Kept] = {
            "metarm.GroupMixture": self._mixture,
            "metarm.StrengthGuard": self._control,
        }
        callback = MetaCallback(self._measure_direction, self._end_step, kept, self._check_placed)
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
        plain_file = Path(self.args.output_dir) / self._plain_file_name
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
        if self._writes_plain:
            plain_file.unlink(missing_ok=True)

    def _train_plain(self, file: Path) -> None:
        """Train without the meta step, keep what came out, and go back to the first weights."""
        first: dict[str, Tensor] = {}
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
            own = MetaCallback(
                end=self._record, placed=lambda: first.update(copy_weights(self.model))
            )
            for callback in (*self._plain_callbacks, own):
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
        if self.args.save_strategy != SaveStrategy.NO and self._writes_plain:
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

    @property
    def is_sharded(self) -> bool:
        """Whether the weights are, or will be when training begins, shards of FSDP2."""
        return is_sharding(self.accelerator, self.model)

    @property
    def _plain_file_name(self) -> str:
        accelerator = self.accelerator
        return plain_file_name(
            accelerator.process_index, accelerator.num_processes, is_sharded=self.is_sharded
        )

    @property
    def _writes_plain(self) -> bool:
        return bool(self.is_sharded or self.is_world_process_zero())

    def _check_placed(self) -> None:
        if self.is_sharded:
            check_optimizer(self.optimizer, self.model)

    def _trainable(self) -> list[Tensor]:
        return [
            p for group in self.optimizer.param_groups for p in group["params"] if p.requires_grad
        ]

    def _moved(self) -> Sequence[Tensor]:
        """The weights that J moves."""
        if self.args.meta_parameters == "all":
            return hold(self._trainable(), self.model)
        inner = next(m for m in self.model.modules() if isinstance(m, PreTrainedModel))
        trunk = {id(p) for p in inner.base_model.parameters()}
        return [p for p in self._trainable() if id(p) not in trunk]

    def _measure_direction(self, step: int) -> None:
        """J and its gradient at the kept weights, for all micro-batches of this optimiser step."""
        held, self._now = self._now, None
        if self._strength.factor == 0.0:
            return  # the guard has turned the meta step off
        is_stored = self.args.meta_between == "stored"
        if step % self.args.meta_every:
            if is_stored and held is not None:
                # The guard may have weakened it.
                length = self._strength.signed_step(held.direction, self._moved())
                self._now = StepState(held.direction, length, held.measured, is_fresh=False)
                return
            # A resumed training has stored none.
            if not is_stored:
                return
        self.model.train()
        measured = self._meta_pass(step)
        # The preference loss draws its own dropout, as without J.
        with noise_put_back(self.accelerator.device):
            direction = self._over_processes(measured.measure(self._moved()))
        is_own = measured.mask & (measured.share > 0)
        self._mixture.see_groups(measured.scores, is_own, measured.sources)
        metrics = self._metrics["train"]
        metrics["meta/J"].append(direction.difference)
        metrics["meta/grad_norm"].append(direction.norm)
        if not math.isfinite(direction.norm):
            raise ModelError(
                f"the gradient of the difference loss is not finite at step {step}: training "
                "diverged. Lower learning_rate, or meta_step_length / meta_weight."
            )
        length = self._strength.signed_step(direction, self._moved())
        self._now = StepState(direction, length, measured)
        if self.args.meta_mode in SIGNS:
            metrics["meta/step_size"].append(abs(length))

    def _end_step(self, step: int, num_steps: int) -> None:
        """After an optimiser step: what the mixture and the guard have seen, into the log."""
        measured = self._mixture.end_step(lambda sums: self.accelerator.reduce(sums, "sum"))
        for name, value in (measured | self._strength.watch(step, num_steps)).items():
            self._metrics["train"][name].append(value)

    def compute_loss(self, *arguments: Any, return_outputs: bool = False, **options: Any) -> Any:
        """The parent's, whose scores are looked at on the way where they are those of theta."""
        loss, outputs = super().compute_loss(*arguments, return_outputs=True, **options)
        if self._now is not None and self.model.training and not self._is_ahead:
            self._mixture.see_pairs(*outputs.logits.squeeze(-1).chunk(2))
        return (loss, outputs) if return_outputs else loss

    def _over_processes(self, local: Direction) -> Direction:
        return direction_over_processes(self.accelerator, local)

    def _mean(self, value: float) -> float:
        return mean_over_processes(self.accelerator, value)

    def _most(self, counts: Sequence[int]) -> list[int]:
        return most_over_processes(self.accelerator, counts)

    def _meta_pass(self, step: int) -> MetaPass:
        """This process's groups, and what their mean weighs in the mean over processes."""
        indices = self._mixture.draw(self.args.meta_batch_size, step)
        num_processes = self.accelerator.num_processes
        own = indices[self.accelerator.process_index :: num_processes]
        # A process without a group still takes part in the reductions, with weight 0.
        groups = [
            thin_group(self._groups[i], self.args.meta_group_size, seed=self.args.seed + step)
            for i in own or indices[:1]
        ]
        # Whole groups, as few as have the responses of a batch of pairs.
        k, num_sides = self.args.meta_group_size, 2 * self.args.per_device_train_batch_size
        most = self.args.meta_micro_batch_size or k * math.ceil(num_sides / k)
        return MetaPass(
            groups,
            self._score_responses,
            most_responses=most,
            pad_token_id=self._encoder.pad_token_id,
            device=self.accelerator.device,
            share=len(own) * num_processes / len(indices),
            most=self._most if self.is_sharded else list,
        )

    @contextmanager
    def _score_responses(self, batch: MetaBatch) -> Iterator[Tensor]:
        """Scores of some responses, in fp32 or better, with their graph."""
        # The bare model: DDP's reducer must not see gradients that are not the preference loss's.
        model = self.accelerator.unwrap_model(self.model)
        with self._sharing(batch.input_ids, batch.attention_mask, batch.group_of_row):
            with self.compute_loss_context_manager():
                logits = model(
                    input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False
                ).logits
            yield logits.squeeze(-1).to(torch.promote_types(logits.dtype, torch.float32))

    def training_step(self, model: Any, inputs: Any, *arguments: Any, **options: Any) -> Tensor:
        """The parent's step, at theta' where the mode looks ahead."""
        inputs = self._prepare_inputs(inputs)
        now = self._now if self.args.meta_mode in SIGNS else None
        if now is not None and not now.places:
            self._place_ahead(now, inputs)
        try:
            with standing_at(self._moved(), now.places) if now is not None else nullcontext():
                self._is_ahead = now is not None
                loss = super().training_step(model, inputs, *arguments, **options)
        finally:
            self._is_ahead = False
        if self._now is not None and self.accelerator.sync_gradients:
            self._end_micro_batches(self._now)
        return loss

    def _place_ahead(self, now: StepState, inputs: Any) -> None:
        """Find theta', before the first micro-batch of an optimiser step."""
        if self._mixture.is_mixed:
            # The groups' gaps are those of theta, not of theta'.
            with noise_put_back(self.accelerator.device):
                self._mixture.see_pairs(*self._score_pairs(inputs).chunk(2))
        moved = self._moved()
        now.places, move = place_ahead(moved, now.direction.gradients, now.step, spend=self._spends)
        with standing_at(moved, now.places):
            self._log_move(now, move)

    @property
    def _spends(self) -> bool:
        """Whether J's gradient is needed no more once theta' is found."""
        return self.args.meta_order != "finite-difference" and self.args.meta_between == "plain"

    def _end_micro_batches(self, now: StepState) -> None:
        """After the last micro-batch: the preference gradient is complete."""
        moved = self._moved()
        if self.args.meta_mode == "joint":
            self._log_cosine(moved, now.direction.gradients)
            weight = self._strength.joint_weight(now.direction, moved)
            self._metrics["train"]["meta/weight"].append(weight)
            add_gradients(moved, now.direction.gradients, -weight)
        else:
            # A gradient that is spent is told by the move that was made along it.
            sign = math.copysign(1.0, now.step)
            self._log_cosine(
                moved,
                (
                    None if there is None else sign * (there - home.detach())
                    for home, there in zip(moved, now.places, strict=True)
                ),
            )
            now.places = []
            self._add_curvature(now, moved)
        if self.args.meta_between == "plain":
            self._now = None

    def _add_curvature(self, now: StepState, moved: Sequence[Tensor]) -> None:
        """What the gradient is given for flowing through the look-ahead, by `meta_order`."""
        measured = now.measured
        curvatures: Mapping[str, Callable[[], None]] = {
            "first": lambda: None,
            "exact": lambda: add_curvature(moved, measured.difference, now.step),
            "finite-difference": lambda: add_curvature_by_difference(
                moved,
                lambda: self._over_processes(measured.measure(moved, measured.scores)),
                now.direction,
                now.step,
            ),
        }
        curvatures[self.args.meta_order]()

    def _log_move(self, now: StepState, move: Move) -> None:
        """Once per optimiser step."""
        metrics = self._metrics["train"]
        metrics["meta/move_length"].append(move.length)
        metrics["meta/move_realised_fraction"].append(move.realised_fraction)
        if not (now.is_fresh and self._is_last_before_log()):
            return
        with noise_put_back(self.accelerator.device):
            after = now.measured.table()
        mask, share, before = now.measured.mask, now.measured.share, now.measured.scores
        local = difference_loss(after, mask) - difference_loss(before, mask)
        change = self._mean(share * local.item())
        metrics["meta/J_change"].append(change)
        metrics["meta/J_after"].append(metrics["meta/J"][-1] + change)
        moved = (after - before).abs()[mask].mean().item()
        metrics["meta/score_change_mean"].append(self._mean(share * moved))

    def _is_last_before_log(self) -> bool:
        """Whether no other meta step comes before the next log."""
        if self.args.logging_strategy != IntervalStrategy.STEPS:
            return True  # logged once an epoch, whose last step is not foreseen here
        every = max(1, int(self.state.logging_steps))
        step = self.state.global_step
        return step + self.args.meta_every >= (step // every + 1) * every

    def _log_cosine(self, parameters: Sequence[Tensor], others: Iterable[Tensor | None]) -> None:
        if (cosine := gradient_cosine(parameters, others)) is not None:
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
