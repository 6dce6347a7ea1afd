# SPDX-License-Identifier: Apache-2.0
"""How many pairs and groups a step has, and how long their prompts and responses are."""

import random
import re
from dataclasses import dataclass

from metarm.errors import ConfigError

__all__ = ["Bundle", "Workload", "read_workload"]


@dataclass(frozen=True, slots=True)
class Bundle:
    """A prompt and its responses, as numbers of tokens: a group, or a pair's two sides."""

    prompt: int
    responses: tuple[int, ...]

    @property
    def padded(self) -> int:
        """Tokens of its longest row."""
        return self.prompt + max(self.responses)


@dataclass(frozen=True, slots=True)
class Workload:
    """What one optimiser step reads."""

    prompt_tokens: int
    response_tokens: int
    group_size: int
    num_pairs: int
    num_groups: int
    length_spread: float = 0.0
    """Lengths are drawn evenly from 1 - spread to 1 + spread times their mean."""

    @property
    def name(self) -> str:
        """P/R/k, as `read_workload` reads it."""
        return f"{self.prompt_tokens}/{self.response_tokens}/{self.group_size}"

    def pairs(self, seed: int) -> list[Bundle]:
        """Lengths of the pairs, the same for the same seed."""
        return self._draw(self.num_pairs, 2, random.Random(f"pairs {seed}"))

    def groups(self, seed: int) -> list[Bundle]:
        """Lengths of the groups, the same for the same seed."""
        return self._draw(self.num_groups, self.group_size, random.Random(f"groups {seed}"))

    def _draw(self, count: int, width: int, numbers: random.Random) -> list[Bundle]:
        def length(mean: int) -> int:
            share = numbers.uniform(1 - self.length_spread, 1 + self.length_spread)
            return max(2, round(mean * share))

        return [
            Bundle(
                length(self.prompt_tokens),
                tuple(length(self.response_tokens) for _ in range(width)),
            )
            for _ in range(count)
        ]


def read_workload(text: str, *, num_pairs: int, num_groups: int, length_spread: float) -> Workload:
    """The workload that `P/R/k` names.

    Raises:
        ConfigError: When the text is not three whole numbers of at least 2.

    Example:
        >>> read_workload("256/64/5", num_pairs=4, num_groups=4, length_spread=0.0).group_size
        5
    """
    numbers = [int(part) for part in text.split("/") if re.fullmatch(r"\d+", part)]
    if text.count("/") != 2 or len(numbers) != 3 or min(numbers) < 2:
        raise ConfigError(
            f"lengths: expected P/R/k such as 256/64/5 (prompt tokens, response tokens, responses "
            f"a group, each at least 2), got {text!r}"
        )
    prompt, response, k = numbers
    return Workload(prompt, response, k, num_pairs, num_groups, length_spread)
