# SPDX-License-Identifier: Apache-2.0
"""What the MetaRM step does around each optimiser step of a Hugging Face trainer."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final, Protocol

from transformers import TrainerCallback

__all__ = ["Kept", "MetaCallback"]

NOTHING: Final[Mapping[str, "Kept"]] = MappingProxyType({})


class Kept(Protocol):
    """What a resumed training has to know again."""

    def state(self) -> dict[str, Any]:
        """As JSON values; empty where there is nothing to keep."""

    def restore(self, saved: Mapping[str, Any] | None) -> None:
        """Take it up where a training begins; None: the checkpoint has none, or there is none."""


class MetaCallback(TrainerCallback):
    """Calls `begin` before a step's first micro-batch and `end` after; keeps states by their keys.

    Before all of them it calls `placed`, once a training: the model is wrapped or sharded by then.

    They go into a checkpoint's `trainer_state.json`. Not by `ExportableState`: callbacks of
    that kind are put back only where `restore_callback_states_from_checkpoint` is set.
    """

    def __init__(
        self,
        begin: Callable[[int], None] = lambda step: None,
        end: Callable[[int, int], None] = lambda step, num_steps: None,
        kept: Mapping[str, Kept] = NOTHING,
        placed: Callable[[], None] = lambda: None,
    ) -> None:
        self.begin = begin
        self.end = end
        self.kept = kept
        self.placed = placed

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Weights are where they will be trained; the state is a resumed checkpoint's."""
        self.placed()
        for key, keeper in self.kept.items():
            keeper.restore(state.stateful_callbacks.get(key))

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Once per optimiser step, before any micro-batch."""
        self.begin(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Before a checkpoint of this step is written."""
        self.end(state.global_step, state.max_steps)
        for key, keeper in self.kept.items():
            if saved := keeper.state():
                state.stateful_callbacks[key] = saved
