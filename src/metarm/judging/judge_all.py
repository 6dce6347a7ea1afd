# SPDX-License-Identifier: Apache-2.0
"""A judge and all comparisons of a folder: both orders asked, what needs no judge left out."""

from collections.abc import Callable, Sequence
from typing import Any

from metarm.errors import DataError
from metarm.judging.comparisons import Comparison, Judgement
from metarm.protocols import Judge
from metarm.resolve import resolve_name
from metarm.schema import VERDICTS, Prompt, Verdict

__all__ = ["judge_all", "load_judge"]


def judge_all(
    comparisons: Sequence[Comparison], judge: Judge, *, both_orders: bool
) -> list[Judgement]:
    """What a judge says of each comparison.

    Two responses that are the same are a tie without being asked about. Both orders of a comparison
    are asked one after the other, so that a cap leaves whole comparisons.

    Args:
        comparisons: In any number.
        judge: Any judge.
        both_orders: Ask also with the second arm's response first.
    """
    prompts: list[Prompt] = []
    sides: list[tuple[str, str]] = []
    for comparison in comparisons:
        if not comparison.is_same:
            shown = [(comparison.first, comparison.second), (comparison.second, comparison.first)]
            sides += shown if both_orders else shown[:1]
            prompts += [comparison.prompt] * (2 if both_orders else 1)
    asked = judge(prompts, [first for first, _ in sides], [second for _, second in sides])
    verdicts = iter(asked)
    return [
        Judgement("tie", "tie" if both_orders else None)
        if comparison.is_same
        else Judgement.of_orders(next(verdicts), next(verdicts) if both_orders else None)
        for comparison in comparisons
    ]


def load_judge(name: str, *, what: str = "--judge") -> Judge:
    """The user's own judge called `module:function`, with every answer checked.

    Raises:
        ConfigError: When there is none; `what` names the setting in the message.
    """
    return _CheckedJudge(name, resolve_name(name, {}, what=what))


class _CheckedJudge:
    """A judge of the user's whose mistakes become one clear error."""

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        self._name = name
        self._function = function

    def __call__(
        self, prompts: Sequence[Prompt], first: Sequence[str], second: Sequence[str]
    ) -> list[Verdict]:
        """One verdict for each two responses."""
        expected = f"{self._name}: expected {len(prompts)} verdicts of {', '.join(VERDICTS)}, got"
        try:
            verdicts = list(self._function(list(prompts), list(first), list(second)))
        # Code that is not ours may raise anything: the line must name it, whatever it was.
        except Exception as error:
            raise DataError(
                f"{expected} {type(error).__name__}: {error} "
                "(--debug shows where). Mend the function."
            ) from error
        if len(verdicts) != len(prompts):
            raise DataError(f"{expected} {len(verdicts)}. Mend the function.")
        for verdict in verdicts:
            if verdict not in VERDICTS:
                raise DataError(f"{expected} {verdict!r}. Mend the function.")
        return verdicts
