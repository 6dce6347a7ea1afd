# SPDX-License-Identifier: Apache-2.0
"""The front door to policy optimisation: a table of optimisers by name, or a user's own."""

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

from metarm.config import OptimizeSettings
from metarm.errors import ConfigError
from metarm.policy.best_of_n import optimize_best_of_n
from metarm.policy.ppo import optimize_ppo
from metarm.protocols import IterationObserver, PolicyOptimizer
from metarm.resolve import resolve_name

__all__ = ["OPTIMIZERS", "build_optimizer"]

OPTIMIZERS: Final[Mapping[str, Callable[..., Mapping[str, float]]]] = {
    "ppo": optimize_ppo,
    "best_of_n": optimize_best_of_n,
}


def build_optimizer(
    settings: OptimizeSettings, observer: IterationObserver | None = None
) -> PolicyOptimizer:
    """The optimiser that `settings.algo` names.

    A built-in one has its settings bound; so has a user's own that takes `settings`. An observer
    goes to one that takes `observer`.

    Raises:
        ConfigError: When the name is neither in the table nor an importable `module:function`, or
            there is an observer and the optimiser takes none.
    """
    function: Any = resolve_name(settings.algo, OPTIMIZERS, what="optimize.algo")
    takes = inspect.signature(function).parameters
    bound: dict[str, Any] = {"settings": settings} if "settings" in takes else {}
    if observer is not None:
        if "observer" not in takes:
            raise ConfigError(
                f"algo={settings.algo} takes no observer and cannot be watched on its way: leave "
                "the watch out, and look at the policy it has made with `metarm watch --policy`"
            )
        bound["observer"] = observer
    return partial(function, **bound) if bound else function
