# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of a Hugging Face trainer without pickles: whole, verified, exact in mid-epoch.

Verified on transformers 5.23. What differs from the trainer's own:
1. Optimiser, scheduler, loss scale, random states and arguments are safetensors and JSON.
2. `MANIFEST.json`, written last, has the SHA-256 of every file: one without it was never finished.
3. What was counted since the last log is kept too, so that the log of a resumed training is that of
   one that was never stopped.
4. A checkpoint of the last step is gone on from without another step.
"""

import random
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from transformers import TrainerCallback
from transformers.trainer_utils import rotate_checkpoints

from metarm.checkpoints import (
    KEPT_CHECKPOINTS,
    CheckpointPlace,
    Pace,
    read_state,
    write_state,
)
from metarm.errors import CheckpointError
from metarm.interrupts import at_boundaries, stop_if_asked
from metarm.manifest import check_folder, newest_whole, seal_folder
from metarm.storage import remove_folder, write_bytes

__all__ = ["NEWEST", "SafeCheckpoints"]

NEWEST: Final = "newest"
"""For `resume_from_checkpoint`: the newest whole checkpoint, or the beginning where none is."""

_PREFIX: Final = "checkpoint-"
_OPTIMIZER: Final = "optimizer"
_COUNTS: Final = ("_total_loss_scalar", "_globalstep_last_logged", "_initial_global_step")
"""What the trainer counts from log to log and sets anew where a training begins."""


class SafeCheckpoints:
    """To stand before a trainer among the bases of a class.

    Overrides, and why:
        `_save_checkpoint`: what is whole says so, and only then are older ones removed.
        `_save_optimizer_and_scheduler`, `_save_scaler`, `_save_rng_state`, their counterparts, and
            `_save`: no pickles.
        `train`: goes on from a checkpoint only where that is whole.
        `_run_epoch`: nothing is left to do after the last step.
    """

    args: Any
    state: Any
    control: Any
    optimizer: Any
    lr_scheduler: Any
    accelerator: Any
    _tr_loss: Any

    _pace: Pace | None = None
    _place: CheckpointPlace | None = None
    _whole: str | None = None
    _progress: Any = None

    def keep_checkpoints(self, place: CheckpointPlace) -> None:
        """Make checkpoints in `place`, at its pace, whatever `save_strategy` is; before `train`.

        `args.output_dir` becomes the place: what the trainer writes is of use for going on alone.

        Raises:
            CheckpointError: When several processes would each decide by time.
        """
        if place.every is None and self.accelerator.num_processes > 1:
            raise CheckpointError("several processes need checkpoints every so many steps")
        self.args.output_dir = str(place.folder)
        self._pace, self._place = Pace(place.every), place
        self.add_callback(_PaceCallback(self._pace))  # type: ignore[attr-defined]

    def own_state(self) -> dict[str, Any]:
        """What a subclass needs to know again, of values that a checkpoint keeps."""
        return {}

    def take_own_state(self, state: Mapping[str, Any]) -> None:
        """The reverse, before the first step of a training that goes on."""

    def find_checkpoint(self, asked: str | bool | None) -> str | None:
        """The folder that `resume_from_checkpoint` means, verified.

        Args:
            asked: A folder; True: the newest whole one of `output_dir`; `NEWEST`: that, or none.

        Raises:
            CheckpointError: When it is not whole, or there is none.
        """
        if not asked:
            return None
        if asked == self._whole:
            return self._whole
        folder = Path(self.args.output_dir)
        if asked is not True and asked != NEWEST:
            check_folder(Path(asked))
            self._whole = str(asked)
            return self._whole
        found = newest_whole(_checkpoints(folder))
        if found is not None:
            self._whole = str(found[0])
            return self._whole
        if asked is True:
            raise CheckpointError(
                f"{folder}: expected a whole checkpoint to go on from, got none. Leave "
                "resume_from_checkpoint out to begin anew."
            )
        # Half-made ones of an earlier try would be counted as ones to keep.
        for place in _checkpoints(folder):
            remove_folder(place)
        return None

    def train(self, resume_from_checkpoint: Any = None, *arguments: Any, **options: Any) -> Any:
        """The parent's, from a checkpoint that is whole, and with one where a stop is asked for."""
        found = self.find_checkpoint(resume_from_checkpoint)
        self._progress = self._whole = None
        callback = _TakeUp(self._take_up)
        self.add_callback(callback)  # type: ignore[attr-defined]
        block: AbstractContextManager[None] = at_boundaries() if self._pace else nullcontext()
        try:
            with block:
                return super().train(found, *arguments, **options)  # type: ignore[misc]
        finally:
            self.remove_callback(callback)  # type: ignore[attr-defined]

    def _run_epoch(self, *arguments: Any, **options: Any) -> None:
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        super()._run_epoch(*arguments, **options)  # type: ignore[misc]

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        started = time.monotonic()
        run_dir = Path(self._get_output_dir(trial))  # type: ignore[attr-defined]
        place = run_dir / f"{_PREFIX}{self.state.global_step}"
        is_writer = self.args.should_save
        if is_writer:
            remove_folder(place)
        self.accelerator.wait_for_everyone()
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            super()._save_checkpoint(model, trial)  # type: ignore[misc]
        finally:
            self.args.save_total_limit = limit
        self.accelerator.wait_for_everyone()
        if is_writer:
            seal_folder(place, {"step": self.state.global_step})
            rotate_checkpoints(
                output_dir=str(run_dir),
                save_total_limit=limit or (KEPT_CHECKPOINTS if self._pace else None),
                best_model_checkpoint=self.state.best_model_checkpoint,
                use_mtime=True,
            )
        if self._pace is not None:
            self._pace.saved(time.monotonic() - started)

    @property
    def _is_sharded(self) -> bool:
        """Whether a package of its own saves the optimiser's shards."""
        return bool(
            getattr(self, "is_deepspeed_enabled", False) or getattr(self, "is_fsdp_enabled", False)
        )

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self._is_sharded:
            super()._save_optimizer_and_scheduler(output_dir)  # type: ignore[misc]
        elif self.args.should_save:
            state = {
                "optimizer": self.optimizer.state_dict(),
                "scheduler": self.lr_scheduler.state_dict(),
            }
            write_state(Path(output_dir) / _OPTIMIZER, state)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or self._is_sharded:
            super()._load_optimizer_and_scheduler(checkpoint)  # type: ignore[misc]
            return
        stem = Path(checkpoint) / _OPTIMIZER
        # A checkpoint of the model alone has none, as with the trainer's own.
        if not stem.with_name(f"{_OPTIMIZER}.json").is_file():
            return
        state = read_state(stem)
        self.optimizer.load_state_dict(state["optimizer"])
        self.lr_scheduler.load_state_dict(state["scheduler"])

    def _save_rng_state(self, output_dir: str) -> None:
        """Random states of this process, and what it has counted since the last log."""
        state = {
            "random": _random_states(),
            "tr_loss": self._tr_loss,
            "counts": {name: getattr(self, name) for name in _COUNTS},
            "metrics": {k: list(v) for k, v in self._open_metrics().items()},
            "num_tokens": getattr(self, "_total_train_tokens", None),
            "own": self.own_state(),
        }
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        write_state(self._process_file(output_dir), state)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if (state := self._read_process(checkpoint)) is not None:
            _put_random_states(state["random"])

    def _process_file(self, folder: str) -> Path:
        return Path(folder) / f"process_{self.args.process_index}"

    def _read_process(self, checkpoint: str | None) -> Any:
        if checkpoint is None:
            return None
        stem = self._process_file(checkpoint)
        return read_state(stem) if stem.with_name(f"{stem.name}.json").is_file() else None

    def _init_training_state(self, *arguments: Any) -> Any:
        found = super()._init_training_state(*arguments)  # type: ignore[misc]
        self._progress = self._read_process(arguments[3])
        return found

    def _take_up(self) -> None:
        """At the begin of a training: what was counted since the last log."""
        if (kept := self._progress) is None:
            return
        self._progress = None
        self._tr_loss = kept["tr_loss"].to(self._tr_loss.device)
        for name, value in kept["counts"].items():
            setattr(self, name, value)
        open_metrics = self._open_metrics()
        for name, values in kept["metrics"].items():
            open_metrics[name].extend(values)
        if kept["num_tokens"] is not None:
            self._total_train_tokens = kept["num_tokens"]
        self.take_own_state(kept["own"])

    def _open_metrics(self) -> Any:
        """TRL's numbers since the last log; others have none."""
        return getattr(self, "_metrics", {}).get("train", {})

    def _save_scaler(self, output_dir: str) -> None:
        if (scaler := getattr(self.accelerator, "scaler", None)) and self.args.should_save:
            write_state(Path(output_dir) / "scaler", scaler.state_dict())

    def _load_scaler(self, checkpoint: str | None) -> None:
        scaler = getattr(self.accelerator, "scaler", None)
        if scaler and checkpoint and (Path(checkpoint) / "scaler.json").is_file():
            scaler.load_state_dict(read_state(Path(checkpoint) / "scaler"))

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        super()._save(output_dir, state_dict)  # type: ignore[misc]
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.args.output_dir)
        (folder / "training_args.bin").unlink(missing_ok=True)
        # Tokens are masked in it.
        write_bytes(folder / "training_args.json", [self.args.to_json_string().encode()])


class _PaceCallback(TrainerCallback):
    """Asks for a checkpoint where one is due, and ends the training after one where it has to."""

    def __init__(self, pace: Pace) -> None:
        self.pace = pace

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Time counts from here."""
        self.pace.begin()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The trainer saves after its log of this step."""
        if self.pace.is_due(state.global_step):
            control.should_save = True

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """All that was done is kept."""
        stop_if_asked()


class _TakeUp(TrainerCallback):
    """Calls a function where a training begins, after the trainer has set its counts anew."""

    def __init__(self, take_up: Callable[[], None]) -> None:
        self.take_up = take_up

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Nothing was counted yet."""
        self.take_up()


def _checkpoints(folder: Path) -> list[Path]:
    """A trainer's checkpoints, newest first."""
    found = [
        (int(number), place)
        for place in folder.glob(f"{_PREFIX}*")
        if (number := place.name.removeprefix(_PREFIX)).isdecimal()
    ]
    return [place for _, place in sorted(found, reverse=True)]


def _random_states() -> dict[str, Any]:
    states = {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "torch": torch.random.get_rng_state(),
    }
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def _put_random_states(states: Mapping[str, Any]) -> None:
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    torch.random.set_rng_state(states["torch"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
