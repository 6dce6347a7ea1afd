# SPDX-License-Identifier: Apache-2.0
"""The front door to policy optimisation: a table of optimisers by name, or a user's own."""

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

from metarm.config import OptimizeSettings
from metarm.policy.best_of_n import optimize_best_of_n
from metarm.policy.ppo import optimize_ppo
from metarm.protocols import PolicyOptimizer
from metarm.resolve import resolve_name

__all__ = ["OPTIMIZERS", "build_optimizer"]

OPTIMIZERS: Final[Mapping[str, Callable[..., Mapping[str, float]]]] = {
    "ppo": optimize_ppo,
    "best_of_n": optimize_best_of_n,
}


def build_optimizer(settings: OptimizeSettings) -> PolicyOptimizer:
    """The optimiser that `settings.algo` names.

    A built-in one has its settings bound; so has a user's own that takes `settings`.

    Raises:
        ConfigError: When the name is neither in the table nor an importable `module:function`.
    """
    function: Any = resolve_name(settings.algo, OPTIMIZERS, what="optimize.algo")
    if "settings" in inspect.signature(function).parameters:
        return partial(function, settings=settings)
    return function
