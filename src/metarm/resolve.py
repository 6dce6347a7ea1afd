# SPDX-License-Identifier: Apache-2.0
"""Names to functions: a table's own name, or `module:function` of the user's package."""

import importlib
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metarm.errors import ConfigError, DataError, nearest_names
from metarm.protocols import ScoreFunction
from metarm.schema import Prompt, prompt_text
from metarm.served_score import ServedScore, is_served_url

__all__ = ["load_gold", "resolve_name"]


def resolve_name(
    name: str, table: Mapping[str, Callable[..., Any]], *, what: str
) -> Callable[..., Any]:
    """The function called `name`: from the table, or imported from `module:function`.

    The current folder is searched too, after everything installed, so that a function in a file
    beside the configuration works without installing anything.

    Raises:
        ConfigError: When it is in neither place; `what` names the setting in the message.
    """
    if name in table:
        return table[name]
    module_name, _, function_name = name.partition(":")
    if not module_name or module_name.startswith(".") or not function_name:
        known = f"{nearest_names(name, table)}; or give" if table else "give"
        raise ConfigError(f"{what}: unknown name {name!r}: {known} your own as module:function")
    here = str(Path.cwd())
    if here not in sys.path:
        # Last: a file here must not stand in for a package that is imported later.
        sys.path.append(here)
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ConfigError(
            f"{what}: cannot import module {module_name!r} of {name!r}: {error}. "
            "It is searched in the current folder and in the installed packages."
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        known = nearest_names(function_name, [n for n in vars(module) if not n.startswith("_")])
        place = getattr(module, "__file__", None) or "built in"
        raise ConfigError(
            f"{what}: module {module_name!r} ({place}) has no function {function_name!r}; {known}"
        )
    resolved: Callable[..., Any] = function
    return resolved


def load_gold(name: str, *, what: str) -> ScoreFunction:
    """The user's own score function called `module:function`, with every answer checked.

    The address of a served reward model, `http://HOST:PORT`, is one too.

    Raises:
        ConfigError: When there is none; `what` names the setting in the message.
    """
    if is_served_url(name):
        return ServedScore(name)
    return _CheckedScore(name, resolve_name(name, {}, what=what))


@dataclass(frozen=True, slots=True)
class _CheckedScore:
    """A score function of the user's whose mistakes become one clear error."""

    name: str
    function: Callable[..., Any]

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
        """One finite number per response."""
        expected = f"{self.name}: expected {len(responses)} finite numbers, one per response, got"
        try:
            scores = [float(score) for score in self.function(list(prompts), list(responses))]
        # Code that is not ours may raise anything: the line must name it, whatever it was.
        except Exception as error:
            raise DataError(
                f"{expected} {type(error).__name__}: {error} "
                "(--debug shows where). Mend the function."
            ) from error
        if len(scores) != len(responses):
            raise DataError(f"{expected} {len(scores)} numbers. Mend the function.")
        for prompt, response, score in zip(prompts, responses, scores, strict=True):
            if not math.isfinite(score):
                raise DataError(
                    f"{expected} {score} for the response {response[:60]!r} to "
                    f"{prompt_text(prompt)[:60]!r}. Mend the function."
                )
        return scores
