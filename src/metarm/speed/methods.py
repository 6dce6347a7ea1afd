# SPDX-License-Identifier: Apache-2.0
"""The ways to make a step that are compared, each with what the cost law says of it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

from metarm.speed.peers import PEERS, STEP_SIZE, run_peer
from metarm.speed.problem import Problem
from metarm.speed.results import Block
from metarm.speed.trainers import run_metarm, run_trl

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["METHODS", "Method", "Run"]

Run = Callable[[Problem, "PreTrainedModel", int, int, Callable[[], None]], Block]
"""Problem, model, first step, timed steps, and what to call after each step."""

LOG_EVERY: Final = 10
"""Steps, as TRL's defaults have it."""


@dataclass(frozen=True, slots=True)
class Method:
    """One way to make a step."""

    run: Run
    attention: str = "sdpa"
    cycle: int = 1
    """Steps after which its cost repeats."""
    is_peer: bool = False
    """Of another package, or without one: it may be missing or fail."""

    @property
    def first_step(self) -> int:
        """Number of a block's first step, which is not timed: a meta step that logs.

        So what a training checks at its first log is behind it; every tenth step logs.
        """
        return LOG_EVERY - 1 - (LOG_EVERY - 1) % self.cycle


def _meta(*, share_prompts: bool = True, meta_every: int = 1, between: str = "plain") -> Run:
    return partial(
        run_metarm,
        share_prompts=share_prompts,
        meta_every=meta_every,
        meta_between=between,
        meta_mode="descent",
        meta_strength="fixed",
        meta_learning_rate=STEP_SIZE,
    )


METHODS: Final[Mapping[str, Method]] = {
    "trl-default": Method(run_trl),
    "trl": Method(partial(run_trl, gradient_checkpointing=False)),
    "plain": Method(partial(run_metarm, meta_mode="off", share_prompts=True)),
    "meta": Method(_meta()),
    "meta-naive": Method(_meta(share_prompts=False)),
    "meta-every-4": Method(_meta(meta_every=4), cycle=4),
    "meta-stored-4": Method(_meta(meta_every=4, between="stored"), cycle=4),
    **{
        name: Method(
            partial(run_peer, prepare=prepare),
            attention="eager" if name == "torchopt" else "sdpa",
            is_peer=True,
        )
        for name, prepare in PEERS.items()
    },
}
"""By name; `metarm.speed.summary.LABELS` says what each is."""
