# SPDX-License-Identifier: Apache-2.0
"""What the MetaRM step does around each optimiser step of a Hugging Face trainer."""

from collections.abc import Callable
from typing import Any, Final

from transformers import TrainerCallback

from metarm.data.meta_mixture import GroupMixture

__all__ = ["MetaCallback"]

KEY: Final = "metarm.GroupMixture"


class MetaCallback(TrainerCallback):
    """Measures before a step's first micro-batch, and keeps the mixture in the trainer's state.

    The state goes into a checkpoint's `trainer_state.json`. Not by `ExportableState`: callbacks of
    that kind are put back only where `restore_callback_states_from_checkpoint` is set.
    """

    def __init__(
        self, measure: Callable[[int], None], end_step: Callable[[], None], mixture: GroupMixture
    ) -> None:
        self.measure = measure
        self.end_step = end_step
        self.mixture = mixture

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The state is a checkpoint's where training is resumed."""
        self.mixture.restore(state.stateful_callbacks.get(KEY))

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Once per optimiser step, before any micro-batch."""
        self.measure(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Before a checkpoint of this step is written."""
        self.end_step()
        if self.mixture.is_mixed:
            state.stateful_callbacks[KEY] = self.mixture.state()
