# SPDX-License-Identifier: Apache-2.0
"""A watch that goes along with a training: an observer for PPO, a callback for TRL's trainers.

watcher = PolicyWatcher(probes, watch, score)
trainer = RLOOTrainer(..., callbacks=[WatchCallback(watcher)])
"""

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback

from metarm.data.encoding import Encoder
from metarm.errors import ConfigError
from metarm.protocols import ScoreFunction
from metarm.watching.measuring import measure
from metarm.watching.probes import FreshResponses, Probes, draw_fresh
from metarm.watching.watch import Look, Watch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["Adapt", "PolicyWatcher", "WatchCallback"]

logger = logging.getLogger(__name__)

Adapt = Callable[[Look, FreshResponses], ScoreFunction | None]
"""Called at `adapt`: trains the reward model again and returns it, or None to go on as it was."""


class PolicyWatcher:
    """Looks at a policy while it is trained: a `protocols.IterationObserver`.

    Nothing of the training changes by a look: weights, gradients and random state are left alone,
    so that a watched run and another are the same, bit for bit, up to where one is stopped.

    Args:
        probes: Prompts and reference responses.
        watch: Where looks go.
        score: The reward model that the policy is optimised against.
        reference: The policy that KL is measured to; None: not measured.
        every: Iterations (optimiser steps) between two looks.
        adapt: Called at `adapt`, see `Adapt`; None: only said.
        stop: Whether `stop` ends the training.
        since: Looks that the watch had when this training first began. One that an earlier try of
            it has taken since is not taken again, which would spend the alarm budget twice; None:
            this is the first try.
    """

    def __init__(
        self,
        probes: Probes,
        watch: Watch,
        score: ScoreFunction,
        *,
        reference: "PreTrainedModel | None" = None,
        every: int = 10,
        adapt: Adapt | None = None,
        stop: bool = True,
        since: int | None = None,
    ) -> None:
        if every < 1:
            raise ConfigError(f"expected every from 1 on, got {every}")
        self.probes = probes
        self.watch = watch
        self.score = score
        self.reference = reference
        self.every = every
        self.adapt = adapt
        self.stop = stop
        self.since = len(watch.looks) if since is None else since

    def __call__(self, *, iteration: int, policy: "PreTrainedModel", encoder: Encoder) -> bool:
        """Look where it is due; whether the training is to end."""
        if iteration % self.every:
            return False
        own = self.watch.looks[self.since :]
        taken = next((look for look in own if look.step == iteration), None)
        if taken is not None:
            return taken.state == "stop" and self.stop
        fresh = draw_fresh(
            self.probes,
            (policy, encoder),
            look=len(self.watch.looks) + 1,
            reference=self.reference,
        )
        look = self.watch.look(measure(self.score, fresh.groups), step=iteration, kl=fresh.kl_nats)
        if look.state != "fine":
            logger.warning("step %d: %s", iteration, "; ".join(look.reasons))
        if look.state == "adapt" and self.adapt is not None:
            adapted = self.adapt(look, fresh)
            if adapted is not None:
                self.score = adapted
                # Where the policy is now is what the new reward model was trained for.
                self.watch.compare_with(measure(adapted, fresh.groups))
        return look.state == "stop" and self.stop


class WatchCallback(TrainerCallback):
    """A `PolicyWatcher` in a Hugging Face trainer; made for TRL's RLOO and GRPO trainers.

    Raises:
        ConfigError: When a training begins whose model lies in pieces (DeepSpeed, FSDP): it cannot
            be sampled by one process.
    """

    def __init__(self, watcher: PolicyWatcher) -> None:
        self.watcher = watcher

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Refuse what a look could not sample."""
        if getattr(args, "deepspeed", None) or getattr(args, "fsdp", None):
            raise ConfigError(
                "WatchCallback samples the policy in one process, and DeepSpeed or FSDP hold it in "
                "pieces: save checkpoints and run `metarm watch --policy CHECKPOINT` on each"
            )

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Look where it is due, in the first process; the others wait, and stop with it."""
        if state.global_step % self.watcher.every:
            return
        ends = False
        if state.is_world_process_zero:
            tokenizer = kwargs["processing_class"]
            encoder = Encoder(getattr(tokenizer, "tokenizer", tokenizer))
            ends = self.watcher(
                iteration=state.global_step, policy=kwargs["model"], encoder=encoder
            )
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            told = torch.tensor([int(ends)], device=args.device)
            torch.distributed.broadcast(told, src=0)
            ends = bool(told.item())
        control.should_training_stop = control.should_training_stop or ends
