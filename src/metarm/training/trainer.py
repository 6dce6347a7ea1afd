# SPDX-License-Identifier: Apache-2.0
"""TRL's `RewardTrainer` with the MetaRM step.

The mathematics is in `meta_step.py`, `strength.py` and `objectives.py`; this file only wires it
into the hooks of the installed trainer (verified on trl 1.16, transformers 5.23).
"""

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from transformers.trainer_utils import IntervalStrategy

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
from metarm.models.steady_steps import is_out_of_memory
from metarm.objectives import difference_loss
from metarm.placement import hold, standing_at
from metarm.training.control import (
    StrengthControl,
    gradient_cosine,
    keep_watched,
    read_reference_pairs,
)
from metarm.training.guarded_trainer import GuardedTrainer
from metarm.training.meta_pass import MetaPass, StepState
from metarm.training.plain_training import noise_put_back
from metarm.training.processes import direction_over_processes, most_over_processes
from metarm.training.regularised_trainer import StartDecay
from metarm.training.settings import MetaRewardConfig
from metarm.training.sharding import check_optimizer, gather_in_full_precision
from metarm.training.support import refuse_unsupported
from metarm.training.task_trainer import main_rows, main_sides

__all__ = ["MetaRewardTrainer"]

logger = logging.getLogger(__name__)


class MetaRewardTrainer(GuardedTrainer):
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
        language_head: nn.Module | None = None,
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
        self._most_responses: int | None = None
        self._plain_callbacks = plain_callbacks
        self._keeps_plain = keep_plain
        self.language_head = language_head
        self._options = options
        self.meta_report: EncodingReport | None = None
        self.plain_weights: dict[str, Tensor] | None = None
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
            reference=read_reference_pairs(
                main_rows(self.train_dataset) if self.has_tasks else self.train_dataset,
                self._encoder.pad_token_id,
            )
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
        if self._control.units is not None:
            kept["metarm.RewardUnits"] = self._control.units
        callback = MetaCallback(self._measure_direction, self._end_step, kept, self._check_placed)
        self.callback_handler.callbacks.insert(0, callback)

    def make_plain(self, args: Any, **options: Any) -> GuardedTrainer:
        """Without a meta set."""
        return MetaRewardTrainer(
            self.model,
            args,
            train_dataset=self.train_dataset,
            processing_class=self.processing_class,
            language_head=self.language_head,
            **options,
        )

    def add_start_decay(self, decay: StartDecay) -> None:
        """Draw the weights back to their start, in plain training as well."""
        self.add_callback(decay)
        self._plain_callbacks = [*self._plain_callbacks, decay]

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
            # What was stored may have led nowhere, and been left out.
            if not is_stored:
                return
        self.model.train()
        now = self._now = self._measure_groups(self._meta_pass(step))
        direction, measured = now.direction, now.measured
        assert measured is not None
        if not math.isfinite(direction.norm):
            self._leave_out(step)
            return
        is_own = measured.mask & (measured.share > 0)
        self._mixture.see_groups(measured.scores, is_own, measured.sources)
        metrics = self._metrics["train"]
        metrics["meta/J"].append(direction.difference)
        metrics["meta/grad_norm"].append(direction.norm)
        now.step = self._strength.signed_step(direction, self._moved())
        if self.args.meta_mode in SIGNS:
            metrics["meta/step_size"].append(abs(now.step))

    def _end_step(self, step: int, num_steps: int) -> None:
        """After an optimiser step: what the mixture and the guard have seen, into the log."""
        measured = self._mixture.end_step(lambda sums: self.accelerator.reduce(sums, "sum"))
        for name, value in (measured | self._strength.watch(step, num_steps)).items():
            self._metrics["train"][name].append(value)

    def compute_loss(
        self, model: Any, inputs: Any, *arguments: Any, return_outputs: bool = False, **options: Any
    ) -> Any:
        """The parent's, whose scores are looked at on the way where they are those of theta."""
        loss, outputs = super().compute_loss(
            model, inputs, *arguments, return_outputs=True, **options
        )
        if self._now is not None and self.model.training and not self._is_ahead:
            self._mixture.see_pairs(*main_sides(outputs.logits.squeeze(-1), inputs))
        return (loss, outputs) if return_outputs else loss

    def _over_processes(self, local: Direction) -> Direction:
        return direction_over_processes(self.accelerator, local)

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
        return MetaPass(
            groups,
            self._score_responses,
            most_responses=self._most_at_once(),
            pad_token_id=self._encoder.pad_token_id,
            device=self.accelerator.device,
            share=len(own) * num_processes / len(indices),
            most=self._most if self.is_sharded else list,
        )

    def _measure_groups(self, measured: MetaPass) -> StepState:
        """J of groups and its gradient, fewer responses at a time where memory is short."""
        while True:
            try:
                # The preference loss draws its own dropout, as without J.
                with noise_put_back(self.accelerator.device):
                    direction = self._over_processes(measured.measure(self._moved()))
                return StepState(direction, 0.0, measured)
            except (MemoryError, RuntimeError) as error:
                can_split = self._most_at_once() > 1 and self.accelerator.num_processes == 1
                if not (is_out_of_memory(error) and can_split):
                    raise
            self._most_responses = -(-self._most_at_once() // 2)
            measured.split(self._most_responses)
            logger.warning(
                "out of memory: from here on %d responses of the meta batch at once, with the "
                "same updates",
                self._most_responses,
            )

    def _most_at_once(self) -> int:
        """Responses of the meta batch in memory together."""
        # Whole groups, as few as have the responses of a batch of pairs.
        k, num_sides = self.args.meta_group_size, 2 * self.args.per_device_train_batch_size
        asked = self.args.meta_micro_batch_size or k * math.ceil(num_sides / k)
        return self._most_responses or asked

    def _leave_out(self, step: int) -> None:
        """A step whose J is not finite is done without it, once in a training.

        Raises:
            ModelError: The second time.
        """
        bundle = self.write_bundle("the gradient of J is not finite", of_pairs=False)
        self._now = None
        if not self._retries_left:
            raise ModelError(
                f"the gradient of the difference loss is not finite at step {step}: training "
                f"diverged; what led to it is in {bundle}. Lower learning_rate, or "
                "meta_step_length / meta_weight."
            )
        self._retries_left -= 1
        logger.warning(
            "step %d: the gradient of the difference loss is not finite: the step is done without "
            "it, once; what led to it is in %s",
            step,
            bundle,
        )

    def prepare_plainer(self) -> bool:
        """Without the meta step, where there is one."""
        held, self._now = self._now, None
        return held is not None

    def describe_step(self) -> dict[str, Any]:
        """The meta batch."""
        if self._control is None:
            return {"meta_mode": "off"}
        measured = None if self._now is None else self._now.measured
        parts = [] if measured is None else measured.parts
        batches = [batch.input_ids.tolist() for part in parts for batch in part.batches]
        return {"meta_mode": self.args.meta_mode, "meta_batches": batches}

    def own_state(self) -> dict[str, Any]:
        """Also J's gradient of the last meta step, where the next steps use it."""
        kept = None
        if self.args.meta_between == "stored" and self._now is not None:
            stored = self._now.direction
            kept = (stored.difference, stored.gradients, stored.norm)
        return {**super().own_state(), "responses": self._most_responses, "direction": kept}

    def take_own_state(self, state: Mapping[str, Any]) -> None:
        """The reverse."""
        super().take_own_state(state)
        self._most_responses = state["responses"]
        if state["direction"] is not None:
            difference, gradients, norm = state["direction"]
            device = self.accelerator.device
            gradients = tuple(None if g is None else g.to(device) for g in gradients)
            self._now = StepState(Direction(difference, gradients, norm), 0.0, None)

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
                self._mixture.see_pairs(*main_sides(self._score_pairs(inputs), inputs))
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
            now.release()

    def _add_curvature(self, now: StepState, moved: Sequence[Tensor]) -> None:
        """What the gradient is given for flowing through the look-ahead, by `meta_order`."""
        if self.args.meta_order == "first":
            return
        measured = now.measured
        assert measured is not None, "settings refuse a stored direction in other orders"
        curvatures: Mapping[str, Callable[[], None]] = {
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
        measured = now.measured
        if not (now.is_fresh and self._is_last_before_log()) or measured is None:
            return
        with noise_put_back(self.accelerator.device):
            after = measured.table()
        mask, share, before = measured.mask, measured.share, measured.scores
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
