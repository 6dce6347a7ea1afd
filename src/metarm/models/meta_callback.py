# SPDX-License-Identifier: Apache-2.0
"""What the MetaRM step does around each optimiser step of a Hugging Face trainer."""

from collections.abc import Callable
from typing import Any, Final

from transformers import TrainerCallback

from metarm.data.meta_mixture import GroupMixture

__all__ = ["MetaCallback"]

KEY: Final = "metarm.GroupMixture"


class MetaCallback(TrainerCallback):
    """Calls `begin` before a step's first micro-batch and `end` after; keeps a mixture's state.

    The state goes into a checkpoint's `trainer_state.json`. Not by `ExportableState`: callbacks of
    that kind are put back only where `restore_callback_states_from_checkpoint` is set.
    """

    def __init__(
        self,
        begin: Callable[[int], None] = lambda step: None,
        end: Callable[[int, int], None] = lambda step, num_steps: None,
        mixture: GroupMixture | None = None,
    ) -> None:
        self.begin = begin
        self.end = end
        self.mixture = mixture

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The state is a checkpoint's where training is resumed."""
        if self.mixture is not None:
            self.mixture.restore(state.stateful_callbacks.get(KEY))

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Once per optimiser step, before any micro-batch."""
        self.begin(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Before a checkpoint of this step is written."""
        self.end(state.global_step, state.max_steps)
        if self.mixture is not None and self.mixture.is_mixed:
            state.stateful_callbacks[KEY] = self.mixture.state()
