# SPDX-License-Identifier: Apache-2.0
"""What may still be spent: a call begins only where its largest cost fits under every cap."""

import asyncio

from metarm.config_judge import EndpointSettings
from metarm.endpoint.answers import AnswerFile, Spent, TokenBound

__all__ = ["Budget", "cost_of"]

MILLION = 1e6


def cost_of(spent: Spent, settings: EndpointSettings) -> float:
    """The price of so many tokens, in the prices' currency.

    Example:
        >>> cost_of(Spent(1, 2_000_000, 500_000), EndpointSettings(price_prompt=1.0,
        ...     price_answer=4.0))
        4.0
    """
    return (
        spent.prompt_tokens * settings.price_prompt + spent.answer_tokens * settings.price_answer
    ) / MILLION


class Budget:
    """The caps of a file of answers, over all starts. Used by the calls of one event loop."""

    def __init__(self, file: AnswerFile, settings: EndpointSettings) -> None:
        self._file = file
        self._settings = settings
        self._changed = asyncio.Condition()
        self._under_way = 0
        self.exhausted: str | None = None
        """The cap that ended the asking, in words."""

    async def begin(self, key: str, bound: TokenBound) -> int | None:
        """Begin a call: its number, or None where a cap leaves no room for it.

        Where room depends on what calls under way will take, it waits for them.
        """
        async with self._changed:
            while (reached := self._reached(bound)) is not None and self._under_way:
                await self._changed.wait()
            if reached is not None:
                self.exhausted = reached
                return None
            self._under_way += 1
            return self._file.begin(key, bound)

    async def end(self) -> None:
        """A call that was begun has ended."""
        async with self._changed:
            self._under_way -= 1
            self._changed.notify_all()

    def _reached(self, bound: TokenBound) -> str | None:
        """The first cap that one more call could break; None where all hold."""
        settings = self._settings
        after = self._file.spent.plus(bound, calls=1)
        tokens = after.prompt_tokens + after.answer_tokens
        caps: tuple[tuple[str, float, float | None], ...] = (
            ("max_calls", after.calls, settings.max_calls),
            ("max_total_tokens", tokens, settings.max_total_tokens),
            ("max_cost", cost_of(after, settings), settings.max_cost),
        )
        for name, value, cap in caps:
            if cap is not None and value > cap:
                return f"endpoint.{name}={cap:g} leaves no room for another call"
        return None
