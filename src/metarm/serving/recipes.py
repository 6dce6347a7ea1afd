# SPDX-License-Identifier: Apache-2.0
"""A score function as other stacks call their rewards; nothing of theirs is imported.

TRL takes a callable, verl a function in a file. OpenRLHF speaks the server's own `/get_reward`.
Any score function will do: `ServedScore` of a server, `load_reward` in the same process.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from metarm.errors import DataError
from metarm.protocols import ScoreFunction
from metarm.schema import Prompt, prompt_from_json

__all__ = ["trl_reward", "verl_reward"]


def trl_reward(score: ScoreFunction, *, name: str = "metarm") -> Callable[..., list[float]]:
    """A function for `reward_funcs` of TRL's `RLOOTrainer` and `GRPOTrainer`.

    Unlike a model given to them, it sees text as reward training did: with the end of sequence, and
    with the reward model's own template.

    Args:
        score: Scores responses.
        name: What TRL calls it in its logs: `rewards/NAME/mean`.
    """

    def reward(*, prompts: Sequence[Any], completions: Sequence[Any], **_: Any) -> list[float]:
        return score([_prompt(prompt) for prompt in prompts], list(map(_response, completions)))

    reward.__name__ = reward.__qualname__ = name
    return reward


def verl_reward(
    score: ScoreFunction, *, prompt_key: str = "prompt"
) -> Callable[..., dict[str, float]]:
    """A `compute_score` for verl's `custom_reward_function`.

    verl hands over the response and the data set's `extra_info`, not the prompt: the data set must
    hold it there.

    Args:
        score: Scores responses.
        prompt_key: Key of `extra_info` that holds the prompt, as text or as messages.

    Raises:
        DataError: When called for a row without a prompt; never a number instead.
    """

    def compute_score(
        data_source: str,
        solution_str: str,
        ground_truth: Any = None,
        extra_info: Mapping[str, Any] | None = None,
        **_: Any,
    ) -> dict[str, float]:
        prompt = (extra_info or {}).get(prompt_key)
        if prompt is None:
            raise DataError(
                f"expected the prompt in extra_info[{prompt_key!r}] of the data set "
                f"{data_source!r}, got none: verl does not hand it over otherwise. Add the column."
            )
        return {"score": score([_prompt(prompt)], [solution_str])[0]}

    return compute_score


def _prompt(prompt: Any) -> Prompt:
    """Text, or messages as a list (or numpy array) of `{"role", "content"}`."""
    return prompt if isinstance(prompt, str) else prompt_from_json(list(prompt))


def _response(completion: Any) -> str:
    """Text, or the messages of one answer."""
    if isinstance(completion, str):
        return completion
    if len(completion) != 1:
        raise DataError(
            f"expected completions of one message, got {len(completion)} messages: conversations "
            "with tools have no single response to score"
        )
    return str(completion[0]["content"])
