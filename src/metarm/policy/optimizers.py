# SPDX-License-Identifier: Apache-2.0
"""The front door to policy optimisation: a table of optimisers by name, or a user's own."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final

from metarm.checkpoints import CheckpointPlace
from metarm.config_optimize import OptimizeSettings
from metarm.errors import ConfigError
from metarm.policy.best_of_n import optimize_best_of_n
from metarm.policy.ppo import optimize_ppo
from metarm.policy.trl_optimizers import optimize_dpo, optimize_grpo, optimize_rloo
from metarm.protocols import IterationObserver, PolicyOptimizer
from metarm.resolve import resolve_name
from metarm.schema import PreferencePair, Prompt

__all__ = ["OPTIMIZERS", "build_optimizer"]

OPTIMIZERS: Final[Mapping[str, Callable[..., Mapping[str, float]]]] = {
    "ppo": optimize_ppo,
    "rloo": optimize_rloo,
    "grpo": optimize_grpo,
    "best_of_n": optimize_best_of_n,
    "dpo": optimize_dpo,
}


def build_optimizer(
    settings: OptimizeSettings,
    *,
    pairs: Sequence[PreferencePair] = (),
    demonstrations: Sequence[tuple[Prompt, str]] = (),
    observer: IterationObserver | None = None,
    checkpoints: CheckpointPlace | None = None,
) -> PolicyOptimizer:
    """The optimiser that `settings.algo` names.

    What the protocol does not bring is bound here, to those whose signature asks for it by name: a
    built-in optimiser or a user's own.

    Args:
        settings: For a parameter `settings`.
        pairs: The original preference pairs, for a parameter `pairs`.
        demonstrations: What SFT was trained on, for a parameter `demonstrations`.
        observer: For a parameter `observer`.
        checkpoints: Where to go on from, for a parameter `checkpoints`.

    Raises:
        ConfigError: When the name is neither in the table nor an importable `module:function`, or
            there is an observer and the optimiser takes none.
    """
    function: Any = resolve_name(settings.algo, OPTIMIZERS, what="optimize.algo")
    offered = {
        "settings": settings,
        "pairs": pairs,
        "demonstrations": demonstrations,
        **({} if observer is None else {"observer": observer}),
        **({} if checkpoints is None else {"checkpoints": checkpoints}),
    }
    asked = inspect.signature(function).parameters
    if observer is not None and "observer" not in asked:
        raise ConfigError(
            f"algo={settings.algo} takes no observer and cannot be watched on its way: leave "
            "the watch out, and look at the policy it has made with `metarm watch --policy`"
        )
    return partial(function, **{name: value for name, value in offered.items() if name in asked})
