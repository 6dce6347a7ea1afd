# SPDX-License-Identifier: Apache-2.0
"""What may still be spent: a call begins only where its largest cost fits under every cap."""

import asyncio
from typing import NamedTuple

from metarm.config_judge import EndpointSettings
from metarm.endpoint.answers import AnswerFile, TokenBound
from metarm.endpoint.call_ledger import CallLedger
from metarm.endpoint.caps import Caps

__all__ = ["Begun", "Budget"]


class Begun(NamedTuple):
    """A call that may be sent."""

    number: int
    """In the file of answers."""
    name: str | None
    """In the ledger; None where there is none."""


class Budget:
    """The caps of a file of answers, over all starts, and of a ledger that it shares with others.

    Used by the calls of one event loop.
    """

    def __init__(
        self, file: AnswerFile, settings: EndpointSettings, ledger: CallLedger | None = None
    ) -> None:
        self._file = file
        self._caps = Caps.of_endpoint(settings)
        self._ledger = ledger
        self._changed = asyncio.Condition()
        self._under_way = 0
        self.exhausted: str | None = None
        """The cap that ended the asking, in words."""

    @property
    def needs_tokens(self) -> bool:
        """Whether a cap is kept by the server's counts of tokens."""
        return self._caps.needs_tokens or (
            self._ledger is not None and self._ledger.caps.needs_tokens
        )

    async def begin(self, key: str, bound: TokenBound) -> Begun | None:
        """Begin a call, or None where a cap leaves no room for it.

        Where room depends on what calls under way will take, it waits for them; not for those of
        other processes.

        Raises:
            RunError: When file or ledger cannot be written.
        """
        async with self._changed:
            while True:
                reached = self._caps.reached(self._file.spent.plus(bound, calls=1))
                name = None
                if reached is None and self._ledger is not None:
                    name, reached = self._ledger.begin(bound)
                if reached is None:
                    self._under_way += 1
                    return Begun(self._file.begin(key, bound), name)
                if not self._under_way:
                    self.exhausted = reached
                    return None
                await self._changed.wait()

    async def end(self, begun: Begun, took: TokenBound) -> None:
        """A call that was begun has ended, and took so much."""
        async with self._changed:
            self._under_way -= 1
            self._changed.notify_all()
            if self._ledger is not None and begun.name is not None:
                self._ledger.end(begun.name, took)
