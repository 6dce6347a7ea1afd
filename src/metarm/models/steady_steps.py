# SPDX-License-Identifier: Apache-2.0
"""A Hugging Face trainer's steps that outlive want of memory, and stop before a broken update.

Out of memory: the micro-batch is halved, the optimiser step begun again, and its update is the same
up to rounding; the smaller size stays for the rest of the training. Not finite: weights are not
touched, what led to it is written down, and the step is tried once more in a plainer way where
there is one.
"""

import contextlib
import gc
import logging
import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from metarm import __version__
from metarm.errors import ModelError, RunError
from metarm.storage import write_json

__all__ = ["SteadySteps", "is_out_of_memory"]

_WORDS: Final = ("out of memory", "can't allocate memory", "not enough memory")

logger = logging.getLogger(__name__)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there was not enough memory, on a device or off it."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(w in str(error).lower() for w in _WORDS)


class SteadySteps:
    """To stand before a trainer among the bases of a class; one process alone splits batches.

    Overrides, and why:
        `train`: begins with an empty step.
        `training_step`: in as many parts as memory asks for.
        `compute_loss`: a part counts by its share.
        `_clip_grad_norm`, `_get_grad_norm`: the last look before the update.
    """

    args: Any
    state: Any
    accelerator: Any
    model_accepts_loss_kwargs: bool

    _most_rows: int | None = None
    """Of a micro-batch, in memory at once; None: all."""
    _share = 1.0
    _retries_left = 1
    _step_seen: int | None = None
    _of_step: list[tuple[dict[str, Any], tuple[Any, ...], dict[str, Any]]]
    _lengths: dict[str, int]
    _tokens_before: int | None
    _loss: Tensor

    def split_rows(
        self, inputs: Mapping[str, Any], most: int
    ) -> Iterator[tuple[dict[str, Any], float]]:
        """A micro-batch in parts of at most `most` rows, and what each counts of its loss."""
        raise NotImplementedError

    def count_rows(self, inputs: Mapping[str, Any]) -> int:
        """How many rows a micro-batch has that can be taken apart."""
        return len(inputs["input_ids"])

    def prepare_plainer(self) -> bool:
        """Get ready to do this step in a plainer way; False where there is none."""
        return False

    def describe_step(self) -> dict[str, Any]:
        """What else a subclass's step was made of, as JSON values."""
        return {}

    def steady_state(self) -> dict[str, Any]:
        """What a checkpoint keeps of all this."""
        return {"most_rows": self._most_rows, "retries_left": self._retries_left}

    def take_steady_state(self, state: Mapping[str, Any]) -> None:
        """The reverse."""
        self._most_rows, self._retries_left = state["most_rows"], state["retries_left"]

    def train(self, *arguments: Any, **options: Any) -> Any:
        """The parent's."""
        self._step_seen = None
        return super().train(*arguments, **options)  # type: ignore[misc]

    def training_step(self, model: Any, inputs: Any, *arguments: Any, **options: Any) -> Tensor:
        """The parent's."""
        inputs = self._prepare_inputs(inputs)  # type: ignore[attr-defined]
        if self._step_seen != self.state.global_step:
            self._step_seen = self.state.global_step
            self._of_step = []
            self._lengths = {k: len(v) for k, v in self._open_numbers().items()}
            self._tokens_before = getattr(self, "_total_train_tokens", None)
        self._of_step.append((dict(inputs), arguments, options))
        error: str | None = None
        try:
            return self._in_parts(model, inputs, arguments, options)
        except (MemoryError, RuntimeError) as caught:
            if not is_out_of_memory(caught) or self.accelerator.num_processes > 1:
                raise
            error = str(caught)
        # Outside of the handler, which holds what the failed pass has allocated.
        return self._step_again(model, error)

    def _in_parts(
        self, model: Any, inputs: Any, arguments: tuple[Any, ...], options: dict[str, Any]
    ) -> Tensor:
        if self._most_rows is None or self.count_rows(inputs) <= self._most_rows:
            return super().training_step(model, dict(inputs), *arguments, **options)  # type: ignore[misc]
        losses = []
        try:
            for part, share in self.split_rows(inputs, self._most_rows):
                self._share = share
                losses.append(super().training_step(model, part, *arguments, **options))  # type: ignore[misc]
        finally:
            self._share = 1.0
        return torch.stack(losses).sum()

    def _step_again(self, model: Any, reason: str | None) -> Tensor:
        """All micro-batches of this optimiser step so far, in smaller parts; the last one's loss.

        Raises:
            ModelError: When one row at a time is too much.
        """
        while reason is not None:
            rows = max(self.count_rows(inputs) for inputs, *_ in self._of_step)
            now = min(self._most_rows or rows, rows)
            if now == 1:
                raise ModelError(
                    "out of memory with one example at a time: lower max_length, or set "
                    f"gradient_checkpointing=true or use_peft=true ({reason.splitlines()[0]})"
                )
            self._most_rows = -(-now // 2)
            logger.warning(
                "step %d: out of memory with %d examples at once: from here on %d at once, with "
                "the same updates",
                self.state.global_step,
                now,
                self._most_rows,
            )
            reason = self._begin_step_again(model)
        return self._loss

    def _begin_step_again(self, model: Any) -> str | None:
        """Run the step's micro-batches from a clean slate; what memory said, where it was short."""
        self._forget_numbers()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        model.zero_grad(set_to_none=True)
        try:
            for inputs, arguments, options in self._of_step:
                self._loss = self._in_parts(model, inputs, arguments, options)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            return str(error) or type(error).__name__
        return None

    def _open_numbers(self) -> Any:
        """TRL's numbers since the last log; other trainers have none."""
        return getattr(self, "_metrics", {}).get("train", {})

    def _forget_numbers(self) -> None:
        """What a pass that is run again has put into the log."""
        for name, values in self._open_numbers().items():
            if name != "num_tokens":
                del values[self._lengths.get(name, 0) :]
        if self._tokens_before is not None:
            self._total_train_tokens = self._tokens_before

    def compute_loss(self, *arguments: Any, **options: Any) -> Any:
        """The parent's, times the share of the rows that it is of."""
        found = super().compute_loss(*arguments, **options)  # type: ignore[misc]
        if self._share == 1.0:
            return found
        if isinstance(found, tuple):
            return found[0] * self._share, *found[1:]
        return found * self._share

    def _clip_grad_norm(self, model: Any) -> Any:
        return self._finite(model, super()._clip_grad_norm)  # type: ignore[misc]

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        if grad_norm is not None:
            return super()._get_grad_norm(model, grad_norm=grad_norm)  # type: ignore[misc]
        return self._finite(model, super()._get_grad_norm)  # type: ignore[misc]

    def _finite(self, model: Any, norm_of: Any) -> Any:
        """The gradient's norm, which has to be a number before the weights are touched.

        Raises:
            ModelError: When it is none, and neither is that of the plainer way.
        """
        norm = norm_of(model)
        if math.isfinite(float(norm)):
            return norm
        bundle = self.write_bundle("the gradient of the loss is not finite")
        if self._retries_left and self.prepare_plainer():
            self._retries_left -= 1
            logger.warning(
                "step %d: the gradient is not finite: no update was made, and the step is done "
                "again without the meta step; what led to it is in %s",
                self.state.global_step,
                bundle,
            )
            self._forget_numbers()
            model.zero_grad(set_to_none=True)
            for inputs, arguments, options in self._of_step:
                self._in_parts(model, inputs, arguments, options)
            norm = norm_of(model)
            if math.isfinite(float(norm)):
                return norm
        model.zero_grad(set_to_none=True)
        raise ModelError(
            f"the gradient is not finite at step {self.state.global_step}: training diverged. No "
            f"update was made from it; what led to it is in {bundle}. Lower learning_rate, or "
            "look for broken examples there."
        )

    def write_bundle(self, what: str, *, of_pairs: bool = True) -> Path:
        """What a step that is not finite was made of, to do it again elsewhere.

        Args:
            what: Is not finite.
            of_pairs: Whether the step's micro-batches have been seen by now.

        Returns:
            `not_finite_STEP.json` in the trainer's output folder.
        """
        path = Path(self.args.output_dir) / f"not_finite_{self.state.global_step}.json"
        batches = [
            {k: v.tolist() if isinstance(v, Tensor) else v for k, v in inputs.items()}
            for inputs, *_ in (self._of_step if of_pairs else ())
        ]
        document = {
            "what": what,
            "step": self.state.global_step,
            "seed": self.args.seed,
            "versions": {"metarm": __version__, "torch": str(torch.__version__)},
            "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "micro_batches": batches,
            **self.describe_step(),
        }
        with contextlib.suppress(RunError):
            write_json(path, document)
        return path
