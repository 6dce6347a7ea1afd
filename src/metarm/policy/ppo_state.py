# SPDX-License-Identifier: Apache-2.0
"""What changes while PPO runs, as an object and as values that a checkpoint keeps.

With the seed it is all there is: draws are functions of seed and place, so that a run goes on bit
for bit from the middle of a batch.
"""

import gc
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from metarm.errors import ModelError
from metarm.models.steady_steps import is_out_of_memory
from metarm.policy.control import KlBudget
from metarm.policy.sampling import Conversation
from metarm.policy.score_scale import ScoreScale

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["PpoState", "Rollout"]

Found = TypeVar("Found")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Rollout:
    """One iteration's responses and what they were worth when they were written."""

    batch: Conversation
    old_log_probs: Tensor
    old_values: Tensor
    advantages: Tensor
    returns: Tensor
    metrics: dict[str, float]

    def to_values(self) -> dict[str, Any]:
        """Tensors and plain values; `from_values` gives it back the same."""
        kept = {name: getattr(self, name) for name in self.__slots__ if name != "batch"}
        return {**kept, "batch": tuple(self.batch)}

    @classmethod
    def from_values(cls, values: Mapping[str, Any], device: torch.device) -> "Rollout":
        """The inverse of `to_values`, on a device."""
        kept: dict[str, Any] = {
            name: value.to(device) if isinstance(value, Tensor) else value
            for name, value in values.items()
            if name != "batch"
        }
        return cls(batch=Conversation(*(t.to(device) for t in values["batch"])), **kept)


@dataclass(eq=False)
class PpoState:
    """All that changes while PPO runs: with the seed, all that a checkpoint must hold."""

    policy: "PreTrainedModel"
    value_model: "PreTrainedModel"
    optimizer: torch.optim.Optimizer
    scale: ScoreScale
    budget: KlBudget
    kl_coef: float
    rows_at_once: int | None = None
    """Responses in memory at once; None: all of a step's."""
    iteration: int = 0
    """Iterations that are over."""
    rollout: Rollout | None = None
    """The responses that are being learnt from; None between two iterations."""
    num_updates: int = 0
    """Optimiser steps taken on them."""
    totals: dict[str, float] = field(default_factory=dict)
    """Sums over those steps of what is logged as their mean."""
    log: list[dict[str, Any]] = field(default_factory=list)
    """The lines of `metrics.jsonl` so far: the file is made anew by a run that goes on."""

    def within_memory(self, num_rows: int, compute: Callable[[], Found]) -> Found:
        """What `compute` gives of so many rows; again with half at once where memory is short.

        Raises:
            ModelError: When one row at a time is too much.
        """
        while True:
            try:
                return compute()
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                reason = (str(error) or type(error).__name__).splitlines()[0]
            # Outside of the handler, which holds what the failed pass has allocated.
            self._halve(num_rows, reason)

    def _halve(self, num_rows: int, reason: str) -> None:
        now = min(self.rows_at_once or num_rows, num_rows)
        if now == 1:
            raise ModelError(
                "out of memory with one response at a time: lower optimize.max_completion_length, "
                f"or set optimize.use_peft=true ({reason})"
            )
        self.rows_at_once = -(-now // 2)
        logger.warning(
            "iteration %d: out of memory with %d responses at once: from here on %d at once, with "
            "the same updates",
            self.iteration + 1,
            now,
            self.rows_at_once,
        )
        self.optimizer.zero_grad(set_to_none=True)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def to_values(self) -> dict[str, Any]:
        """Tensors and plain values, of the weights those that are trained."""
        return {
            "policy": _trained(self.policy),
            "value_model": _trained(self.value_model),
            "optimizer": self.optimizer.state_dict(),
            "scale": self.scale.to_json(),
            "budget": {"kept": self.budget.kept, "metrics": self.budget.metrics},
            "kl_coef": self.kl_coef,
            "rows_at_once": self.rows_at_once,
            "iteration": self.iteration,
            "rollout": None if self.rollout is None else self.rollout.to_values(),
            "num_updates": self.num_updates,
            "totals": self.totals,
            "log": self.log,
        }

    @torch.no_grad()
    def take_values(self, values: Mapping[str, Any]) -> None:
        """The reverse, into models that are as they were before the first iteration."""
        for name in ("policy", "value_model"):
            weights = _trained(getattr(self, name))
            for key, weight in weights.items():
                weight.copy_(values[name][key])
        self.optimizer.load_state_dict(values["optimizer"])
        self.scale = ScoreScale.from_json(values["scale"])
        self.budget.kept = dict(values["budget"]["kept"])
        self.budget.metrics = dict(values["budget"]["metrics"])
        if (rollout := values["rollout"]) is not None:
            self.rollout = Rollout.from_values(rollout, self.policy.device)
        for name in ("kl_coef", "rows_at_once", "iteration", "num_updates", "totals", "log"):
            setattr(self, name, values[name])


def _trained(model: nn.Module) -> dict[str, Tensor]:
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
