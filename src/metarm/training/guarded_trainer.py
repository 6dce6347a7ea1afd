# SPDX-License-Identifier: Apache-2.0
"""A trainer that trains plainly first, and holds the training with the meta step against that."""

import copy
import gc
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback
from transformers.trainer_callback import PrinterCallback
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from metarm.checkpoints import CheckpointPlace
from metarm.errors import CheckpointError, ConfigError
from metarm.models.meta_callback import MetaCallback
from metarm.models.safe_checkpoints import NEWEST
from metarm.storage import remove_folder
from metarm.strength import StrengthGuard
from metarm.training.control import StrengthControl
from metarm.training.plain_training import (
    PLAIN_FOLDER,
    PlainTraining,
    copy_weights,
    noise_put_back,
    plain_file_name,
    put_weights,
)
from metarm.training.processes import mean_over_processes
from metarm.training.steady_trainer import SteadyTrainer
from metarm.training.support import is_sharding

__all__ = ["GuardedTrainer"]

logger = logging.getLogger(__name__)


class GuardedTrainer(SteadyTrainer):
    """What `MetaRewardTrainer` does around its own training with `meta_strength="auto"`."""

    _control: StrengthControl | None
    _keeps_plain: bool
    _options: dict[str, Any]
    _plain_callbacks: Sequence[TrainerCallback]
    plain_weights: dict[str, Tensor] | None
    """After a guarded training: the trainable weights that plain training gave, on the CPU, or
    this process's shards of them."""

    def make_plain(self, args: Any, **options: Any) -> "GuardedTrainer":
        """A trainer of the same model and data without a meta set."""
        raise NotImplementedError

    @property
    def guard(self) -> StrengthGuard | None:
        """What the guard has seen; None where nothing is guarded."""
        return self._control.guard if self._control is not None else None

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

    def _is_guarded(self) -> bool:
        return self.args.meta_strength == "auto" and self.args.meta_guard

    def train(self, resume_from_checkpoint: Any = None, *arguments: Any, **options: Any) -> Any:
        """The parent's; with a guard, after a plain training from the same weights.

        Raises:
            ConfigError: Inside a `torch.autocast` block, which keeps casts of weights that move.
        """
        if torch.is_autocast_enabled(self.args.device.type):
            raise ConfigError(
                "training was started inside a torch.autocast block, which would go on with casts "
                "of weights that have moved: leave the block, and set bf16=True in the arguments"
            )
        goes_on = resume_from_checkpoint == NEWEST
        checkpoint = self.find_checkpoint(resume_from_checkpoint)
        control = self._control if self._is_guarded() else None
        plain_file = Path(self.args.output_dir) / self._plain_file_name
        has_plain = bool(checkpoint or goes_on) and self._mean(plain_file.is_file()) == 1.0
        too_few = "the meta set has fewer than 50 groups, too few to keep some for it"
        why_not = {
            too_few: control is not None and not control.can_guard,
            f"training goes on from a checkpoint, and {plain_file} is not there": bool(checkpoint)
            and not has_plain,
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
        needs_plain = not reasons or (self._keeps_plain and reasons == [too_few])
        if control is not None and needs_plain:
            has_plain = has_plain and self._resume_plain(plain_file, is_begun=bool(checkpoint))
            if not has_plain:
                self._train_plain(plain_file, goes_on=goes_on)
        result = super().train(checkpoint, *arguments, **options)
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
        # A stage that is killed before it is finished still needs it.
        if self._place is None and self._writes_plain:
            plain_file.unlink(missing_ok=True)

    def _train_plain(self, file: Path, *, goes_on: bool = False) -> None:
        """Train without the meta step, keep what came out, and go back to the first weights."""
        # Shards are there when training begins; a checkpoint's weights may be there by then, too.
        first = {} if self.is_sharded else copy_weights(self.model)
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
                plain = self.make_plain(args, **options)
            plain.remove_callback(PrinterCallback)
            kept = {"metarm.PlainScores": self._strength.plain_scores}
            record = MetaCallback(
                end=self._record,
                kept=kept,
                placed=lambda: first.update({} if first else copy_weights(self.model)),
            )
            for callback in (*self._plain_callbacks, record):
                plain.add_callback(callback)
            keeps_inside = self._place is not None and not self.is_sharded
            if self._place is not None and keeps_inside:
                folder = self._place.folder / PLAIN_FOLDER
                plain.keep_checkpoints(CheckpointPlace(folder, self._place.every))
            plain.train(NEWEST if goes_on and keeps_inside else None)
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
        keeps = self._place is not None or self.args.save_strategy != SaveStrategy.NO
        if keeps and self._writes_plain:
            PlainTraining(self.plain_weights, *self._strength.recorded).save(file)
            remove_folder(file.parent / PLAIN_FOLDER)

    def _resume_plain(self, file: Path, *, is_begun: bool) -> bool:
        """What `_train_plain` left, in place of training again; False where that is what to do."""
        try:
            plain = PlainTraining.read(file)
        except CheckpointError as error:
            if is_begun:
                raise
            logger.warning("plain training is done again: %s", error)
            return False
        self.plain_weights = dict(plain.weights)
        self._strength.resume_guard(plain.scores, plain.num_steps, is_begun=is_begun)
        return True

    def _record(self, step: int, num_steps: int) -> None:
        self._strength.record(step, num_steps)

    @property
    def _strength(self) -> StrengthControl:
        assert self._control is not None, "only with a meta step"
        return self._control

    def _mean(self, value: float) -> float:
        return mean_over_processes(self.accelerator, value)
