# SPDX-License-Identifier: Apache-2.0
"""How often an address may show a wrong token before it has to wait."""

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from metarm.labelling.refusals import refusal

__all__ = ["Attempts"]

MOST_FAILURES: Final = 10
"""In `WINDOW_SECONDS`, by one address."""
WINDOW_SECONDS: Final = 60.0
MOST_ADDRESSES: Final = 10_000


class Attempts:
    """Wrong tokens by address, for a while.

    Args:
        clock: Seconds, never backwards.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failures: OrderedDict[str, list[float]] = OrderedDict()

    def check(self, address: str) -> None:
        """Refuse an address that showed too many wrong tokens of late.

        Raises:
            RefusedError: Saying when it may try again.
        """
        failures = self._recent(address)
        if len(failures) >= MOST_FAILURES:
            wait = max(1, round(failures[0] + WINDOW_SECONDS - self._clock()))
            raise refusal(
                "too_many_attempts",
                f"too many wrong tokens: try again in {wait} s",
                retry_seconds=wait,
            )

    def fail(self, address: str) -> None:
        """Remember a wrong token."""
        self._failures[address] = [*self._recent(address), self._clock()]
        self._failures.move_to_end(address)
        while len(self._failures) > MOST_ADDRESSES:
            self._failures.popitem(last=False)

    def _recent(self, address: str) -> list[float]:
        since = self._clock() - WINDOW_SECONDS
        return [moment for moment in self._failures.get(address, ()) if moment > since]
