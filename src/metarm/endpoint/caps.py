# SPDX-License-Identifier: Apache-2.0
"""Caps on calls, tokens and cost, and the one that is in the way of another call."""

from dataclasses import dataclass

from metarm.config_judge import EndpointSettings
from metarm.endpoint.answers import Spent

__all__ = ["Caps", "cost_of"]

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


@dataclass(frozen=True, slots=True)
class Caps:
    """The most that may be spent; None: no cap."""

    place: str
    """What the settings stand in: `endpoint`, say."""
    prices: EndpointSettings
    max_calls: int | None = None
    max_total_tokens: int | None = None
    max_cost: float | None = None

    @classmethod
    def of_endpoint(cls, settings: EndpointSettings) -> "Caps":
        """The endpoint's own, over one file of answers."""
        caps = (settings.max_calls, settings.max_total_tokens, settings.max_cost)
        return cls("endpoint", settings, *caps)

    @property
    def needs_tokens(self) -> bool:
        """Whether they are kept by the server's counts of tokens."""
        return (self.max_total_tokens, self.max_cost) != (None, None)

    def reached(self, after: Spent) -> str | None:
        """The first cap that so much would break, in words; None where all hold.

        Example:
            >>> Caps("endpoint", EndpointSettings(), max_calls=2).reached(Spent(3, 0, 0))
            'endpoint.max_calls=2 leaves no room for another call'
        """
        tokens = after.prompt_tokens + after.answer_tokens
        found: tuple[tuple[str, float, float | None], ...] = (
            ("max_calls", after.calls, self.max_calls),
            ("max_total_tokens", tokens, self.max_total_tokens),
            ("max_cost", cost_of(after, self.prices), self.max_cost),
        )
        for name, value, cap in found:
            if cap is not None and value > cap:
                return f"{self.place}.{name}={cap:g} leaves no room for another call"
        return None
