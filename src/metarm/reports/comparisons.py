# SPDX-License-Identifier: Apache-2.0
"""Means over seeds and differences between arms, each with a 95 % interval."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal, NamedTuple, TypeGuard

from metarm.metrics import mean_estimate, paired_difference
from metarm.reports.measures import MEASURES, value_of
from metarm.reports.read_run import Run
from metarm.schema import Estimate

__all__ = [
    "Change",
    "Summary",
    "by_round",
    "change_since_start",
    "compare",
    "difference",
    "summarise",
    "summary_of",
    "t_interval",
]

LIMITS: Final = {
    "fraction": (0.0, 1.0),
    "-1 to 1": (-1.0, 1.0),
    **dict.fromkeys(("ratio", "logits", "tokens", "s"), (0.0, math.inf)),
}
"""What a measure of each unit can be; its interval is cut there."""


@dataclass(frozen=True, slots=True)
class Summary:
    """A number and, where there is one, its 95 % interval."""

    value: float
    low: float | None
    high: float | None
    count: int
    """Independent units behind the interval."""
    over: Literal["seeds", "prompts"]
    """What the units are."""

    @property
    def excludes_zero(self) -> bool:
        """Whether there is an interval and zero lies outside it."""
        return self.low is not None and self.high is not None and not self.low <= 0 <= self.high

    def text(self, decimals: int = 3, *, sign: bool = False) -> str:
        """`0.712 [0.690, 0.733]`, with explicit plus signs for differences."""
        style = f"{'+' if sign else ''}.{decimals}f"
        # Added zero: what rounds to nothing has no sign.
        shown, *ends = (
            format(round(number, decimals) + 0.0, style)
            for number in (self.value, self.low, self.high)
            if number is not None
        )
        return f"{shown} [{', '.join(ends)}]" if ends else shown

    def verdict(self) -> str:
        """The words that go with a difference."""
        if self.low is None:
            return "no interval"
        return (
            "distinguishable from zero" if self.excludes_zero else "not distinguishable from zero"
        )


class Change(NamedTuple):
    """Two values over the same seeds, and the difference `end` minus `start`."""

    start: float
    end: float
    difference: Summary


def t_interval(values: Sequence[float]) -> Summary:
    """Mean over seeds with Student's t-interval: mean +- t(0.975, n - 1) * sd / sqrt(n)."""
    return _summary(mean_estimate(values), "seeds")


def _summary(estimate: Estimate, over: Literal["seeds", "prompts"]) -> Summary:
    """An estimate from one unit has no interval: nothing tells how far another would lie."""
    if estimate.count < 2:
        return Summary(estimate.value, None, None, estimate.count, over)
    return Summary(estimate.value, estimate.low, estimate.high, estimate.count, over)


def summarise(by_seed: Mapping[int, Estimate | float | None]) -> Summary | None:
    """One number for all seeds: over seeds where there are several, else over prompts."""
    values = [value for value in by_seed.values() if value is not None]
    if not values:
        return None
    if len(values) > 1:
        return t_interval([_number(value) for value in values])
    (value,) = values
    if isinstance(value, Estimate):
        return _summary(value, "prompts")
    return Summary(value, None, None, 1, "prompts")


def difference(
    arm: Mapping[int, Estimate | float | None], other: Mapping[int, Estimate | float | None]
) -> Summary | None:
    """`arm` minus `other`, paired by seed; None where they have no seed in common.

    With one common seed the two intervals over prompts are combined as if they were independent
    (square-and-add, Newcombe 1998): that the arms share their prompts is left unused.
    """
    pairs = [
        (arm[seed], other[seed])
        for seed in arm
        if arm[seed] is not None and other.get(seed) is not None
    ]
    if len(pairs) > 1:
        lefts, rights = zip(*pairs, strict=True)
        gap_over_seeds = paired_difference([*map(_number, lefts)], [*map(_number, rights)])
        return _summary(gap_over_seeds, "seeds")
    if not pairs:
        return None
    ((left, right),) = pairs
    gap = _number(left) - _number(right)
    if not _has_interval(left) or not _has_interval(right):
        return Summary(gap, None, None, 1, "prompts")
    return Summary(
        gap,
        gap - math.hypot(left.value - left.low, right.high - right.value),
        gap + math.hypot(left.high - left.value, right.value - right.low),
        min(left.count, right.count),
        "prompts",
    )


def _has_interval(value: Estimate | float | None) -> TypeGuard[Estimate]:
    return isinstance(value, Estimate) and value.count > 1


def compare(run: Run, name: str, arm: str, other: str, round_number: int) -> Summary | None:
    """The difference between two arms in one measure after one round."""
    return difference(
        _values(run, name, arm, round_number), _values(run, name, other, round_number)
    )


def change_since_start(run: Run, name: str, arm: str, round_number: int) -> Change | None:
    """How an arm moved from the SFT policy, where all arms begin, over the seeds that have both."""
    start, end = _values(run, name, arm, 0), _values(run, name, arm, round_number)
    shared = {s for s in start if start[s] is not None and end.get(s) is not None}
    moved = difference(end, start)
    first = summarise({seed: start[seed] for seed in shared})
    last = summarise({seed: end[seed] for seed in shared})
    if moved is None or first is None or last is None:
        return None
    return Change(first.value, last.value, moved)


def summary_of(run: Run, name: str, arm: str, round_number: int) -> Summary | None:
    """One measure of one arm after one round, over the seeds that have it; see `LIMITS`."""
    summary = summarise(_values(run, name, arm, round_number))
    if summary is None or summary.low is None or summary.high is None:
        return summary
    # Student's interval knows no bounds: with few seeds it leaves the numbers there can be.
    least, most = LIMITS.get(MEASURES[name].unit, (-math.inf, math.inf))
    return replace(summary, low=max(summary.low, least), high=min(summary.high, most))


def by_round(run: Run, name: str, arm: str) -> dict[int, Summary]:
    """One measure of one arm after each round that has it; round 0 is the start all share."""
    found = {r: summary_of(run, name, arm, r) for r in range(run.last_round + 1)}
    return {r: summary for r, summary in found.items() if summary is not None}


def _values(run: Run, name: str, arm: str, round_number: int) -> dict[int, Estimate | float | None]:
    cards = run.cards_at(arm, round_number)
    return {seed: value_of(card, name) for seed, card in cards.items()}


def _number(value: Estimate | float | None) -> float:
    assert value is not None
    return value.value if isinstance(value, Estimate) else value
