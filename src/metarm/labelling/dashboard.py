# SPDX-License-Identifier: Apache-2.0
"""The owner's dashboard: read from the store beside the server, drawn anew when votes have come."""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from metarm.annotators.beliefs import Interval
from metarm.errors import EmptySetError
from metarm.labelling.account import Account, account_of, read_votes_of
from metarm.labelling.changed import Changed, measure_change
from metarm.labelling.desk import behaviour_path, read_behaviour
from metarm.labelling.pages import render
from metarm.labelling.texts import duration, prompt_turns
from metarm.labels.reading import LabelReader
from metarm.labels.settings import LabelSettings
from metarm.schema import Estimate

__all__ = ["Dashboard"]

FIGURE_NAMES: Final[Mapping[str, str]] = {
    "agreement.svg": "agreement",
    "annotators.svg": "annotators",
    "matrix.svg": "matrix",
}


@dataclass(slots=True)
class Dashboard:
    """What the owner of a store sees.

    Args:
        path: The store.
        price: Of one label, in whatever currency; None: nothing is said of cost.
        scores: Gaps of a reward model's scores before and after it learnt; None: nothing is said.
    """

    path: Path
    price: float | None = None
    scores: tuple[Mapping[str, float], Mapping[str, float]] | None = None
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    _of: tuple[int, int, int] | None = None
    _account: Account | None = None
    _invited: list[str] = field(default_factory=list)
    _settings: LabelSettings = field(default_factory=LabelSettings)
    _drawn: dict[tuple[str, bool], bytes | None] = field(default_factory=dict)

    async def page(self) -> str:
        """The dashboard as HTML."""
        account = await self._fresh()
        return await asyncio.to_thread(self._render, account, self._settings, self._invited)

    async def figure(self, name: str, *, is_dark: bool) -> bytes | None:
        """A figure as SVG; None where there is none of that name, or nothing to draw."""
        if name not in FIGURE_NAMES:
            return None
        account = await self._fresh()
        async with self._lock:
            if (name, is_dark) not in self._drawn:
                from metarm.labelling.figures import draw_svg

                self._drawn[name, is_dark] = await asyncio.to_thread(
                    draw_svg, FIGURE_NAMES[name], account, is_dark=is_dark
                )
            return self._drawn[name, is_dark]

    async def _fresh(self) -> Account:
        """The account of the votes that there are now."""
        async with self._lock:
            return await asyncio.to_thread(self._read)

    def _read(self) -> Account:
        with LabelReader(self.path) as reader:
            counts = reader.counts()
            self._settings = reader.settings
            self._invited = reader.invited(time.time())
            state = (counts.num_events, counts.num_pairs, counts.num_annotators)
            if self._account is None or state != self._of:
                self._account = account_of(
                    read_votes_of(reader), read_behaviour(behaviour_path(self.path))
                )
                self._of = state
                self._drawn.clear()
            return self._account

    def _render(self, account: Account, settings: LabelSettings, invited: list[str]) -> str:
        return render(
            "owner.html.j2",
            name=self.path.name,
            settings=settings,
            invited=invited,
            account=account,
            figures={
                "agreement": len(account.moments) > 1,
                "annotators": bool(account.rows),
                "matrix": bool(account.matrix),
            },
            price=self.price,
            changed=self._changed(account),
            has_scores=self.scores is not None,
            turns=prompt_turns,
            interval=_interval,
            duration=duration,
            off=_is_off,
        )

    def _changed(self, account: Account) -> Changed | None:
        if self.scores is None:
            return None
        try:
            return measure_change(account.labels, account.pairs, *self.scores)
        except EmptySetError:
            return None


def _interval(estimate: Estimate | Interval | None, *, signed: bool = False) -> dict[str, Any]:
    """Value and interval as text; the count of what is behind it, where that is known."""
    if estimate is None:
        return {"value": "-", "range": "", "count": None}
    if isinstance(estimate, Interval) and not estimate.is_told:
        return {"value": str(estimate), "range": "", "count": None}
    sign = "+" if signed else ""
    return {
        "value": f"{estimate.value:{sign}.2f}",
        "range": f"{estimate.low:{sign}.2f} to {estimate.high:{sign}.2f}",
        "count": estimate.count if isinstance(estimate, Estimate) else None,
    }


def _is_off(estimate: Estimate | None, fair: float) -> bool:
    """Whether an interval leaves a value out."""
    return estimate is not None and not estimate.low <= fair <= estimate.high
