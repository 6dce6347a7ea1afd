# SPDX-License-Identifier: Apache-2.0
"""All cells of a comparison as one table: each method on each shift, and against plain."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean
from typing import Any

import numpy as np
from scipy.optimize import isotonic_regression

from metarm.bench.results import Cell, Tally, clustered_difference, clustered_mean
from metarm.schema import Estimate

__all__ = [
    "REFERENCE",
    "MethodSummary",
    "change_in_points",
    "comparison_to_json",
    "count_comparisons",
    "format_labels",
    "format_table",
    "labels_worth",
    "summarise_cells",
]

REFERENCE = "plain"
ORACLE = "oracle"


@dataclass(frozen=True, slots=True)
class MethodSummary:
    """One method on one shift, over all splits; None where it cannot be worked out."""

    shift: str
    method: str
    num_splits: int
    original: Estimate
    """Accuracy on held-out original pairs, clustered by prompt and by split."""
    shifted: Estimate | None
    """Accuracy on held-out shifted pairs, clustered in the same way."""
    length_balanced: float | None
    original_change: Estimate
    """Difference to plain on the same pairs of the same splits, clustered in the same way."""
    shifted_change: Estimate | None
    length_balanced_change: float | None
    worst_change: float | None
    """Smallest difference to plain in shifted accuracy of any split."""
    gap_recovered: float | None
    """Share of the oracle's gain over plain on shifted pairs."""
    label_equivalent: str | None
    """How many labelled shifted pairs would gain as much, with the interval of its own gain."""
    strength: float
    """Share of its full strength that a guard left at the stopping point; the mean over splits."""
    rank_correlation: float | None
    """With plain, within groups; the mean over splits."""
    difference: float
    best_step: float
    forward: float
    backward: float
    seconds: float


def summarise_cells(cells: Sequence[Cell]) -> list[MethodSummary]:
    """One summary for each method of each shift, in the order of the cells."""
    by_method: dict[tuple[str, str], list[Cell]] = {}
    for cell in cells:
        by_method.setdefault((cell.shift, cell.method), []).append(cell)
    summaries = [
        _summarise(
            sorted(found, key=lambda cell: cell.seed),
            sorted(by_method[shift, REFERENCE], key=lambda cell: cell.seed),
            by_method.get((shift, ORACLE)),
        )
        for (shift, _), found in by_method.items()
    ]
    return [_in_labels(summary, summaries) for summary in summaries]


def _in_labels(own: MethodSummary, summaries: Sequence[MethodSummary]) -> MethodSummary:
    """The same with its gain read off the curve of what N labels gain on that shift."""
    gains = {
        int(found[1]): s.shifted_change.value
        for s in summaries
        if s.shift == own.shift
        and s.shifted_change is not None
        and (found := re.fullmatch(r"(\d+)-labels", s.method))
    }
    change = own.shifted_change
    if len(gains) < 2 or change is None or own.method == REFERENCE:
        return own
    value, low, high = (
        format_labels(labels_worth(gain, gains), max(gains))
        for gain in (change.value, change.low, change.high)
    )
    return replace(own, label_equivalent=f"{value} [{low}, {high}]")


def labels_worth(gain: float, gains: Mapping[int, float]) -> float:
    """How many labels gain as much: the curve through (0, 0), made monotone, in log(1 + N).

    Args:
        gain: Over plain, in accuracy.
        gains: Number of labels -> gain over plain.

    Returns:
        0 where the gain is not above zero; infinity where it is above the curve's end.

    Example:
        >>> round(labels_worth(0.02, {30: 0.01, 100: 0.02, 300: 0.03}))
        100
    """
    counts = sorted(gains)
    rising = isotonic_regression([gains[count] for count in counts]).x
    # Labels that gained nothing are worth nothing: the curve does not go below zero.
    curve = np.maximum([0.0, *rising], 0.0)
    if gain <= 0:
        return 0.0
    if gain > curve[-1]:
        return math.inf
    places = np.log1p([0, *counts])
    end = int(np.searchsorted(curve, gain))
    rise = curve[end] - curve[end - 1]
    share = (gain - curve[end - 1]) / rise if rise > 0 else 1.0
    return float(np.expm1(places[end - 1] + share * (places[end] - places[end - 1])))


def format_labels(worth: float, most: int) -> str:
    """A number of labels as a reader takes it: two digits, `>1000` beyond the curve."""
    if math.isinf(worth):
        return f">{most}"
    return f"{float(f'{worth:.2g}'):.0f}"


def _summarise(
    cells: Sequence[Cell], plain: Sequence[Cell], oracle: Sequence[Cell] | None
) -> MethodSummary:
    shifted, plain_shifted = _tallies(cells), _tallies(plain)
    change = clustered_difference(shifted, plain_shifted) if shifted else None
    per_split = [s.accuracy - p.accuracy for s, p in zip(shifted, plain_shifted, strict=True)]
    balanced = _mean([cell.length_balanced for cell in cells])
    plain_balanced = _mean([cell.length_balanced for cell in plain])
    gap = None
    if oracle and change is not None:
        best = clustered_difference(_tallies(oracle), plain_shifted).value
        gap = change.value / best if best > 0 else None
    return MethodSummary(
        shift=cells[0].shift,
        method=cells[0].method,
        num_splits=len(cells),
        original=clustered_mean([cell.original for cell in cells]),
        shifted=clustered_mean(shifted) if shifted else None,
        length_balanced=balanced,
        original_change=clustered_difference(
            [cell.original for cell in cells], [cell.original for cell in plain]
        ),
        shifted_change=change,
        length_balanced_change=balanced - plain_balanced
        if balanced is not None and plain_balanced is not None
        else None,
        worst_change=min(per_split) if per_split else None,
        gap_recovered=gap,
        label_equivalent=None,
        strength=fmean(cell.strength for cell in cells),
        rank_correlation=_mean([cell.rank_correlation for cell in cells]),
        difference=fmean(cell.difference for cell in cells),
        best_step=fmean(cell.best_step for cell in cells),
        forward=fmean(cell.forward for cell in cells),
        backward=fmean(cell.backward for cell in cells),
        seconds=fmean(cell.seconds for cell in cells),
    )


def _tallies(cells: Sequence[Cell]) -> list[Tally]:
    return [cell.shifted for cell in cells if cell.shifted is not None]


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def count_comparisons(summaries: Sequence[MethodSummary]) -> int:
    """Intervals of a difference to plain: on original pairs, and on shifted ones if labelled."""
    own = [summary for summary in summaries if summary.method != REFERENCE]
    return len(own) + sum(summary.shifted_change is not None for summary in own)


def format_table(summaries: Sequence[MethodSummary]) -> str:
    """A table for each shift: accuracies in fractions, differences to plain in points."""
    blocks = []
    for shift in dict.fromkeys(summary.shift for summary in summaries):
        rows = [["method", "original", "change", "shifted", "change", "balanced", "worst", "gap",
                 "labels", "strength", "rank", "step", "cost"]]  # fmt: skip
        own = [summary for summary in summaries if summary.shift == shift]
        passes = next(s.forward + s.backward for s in own if s.method == REFERENCE)
        rows += [
            [
                summary.method,
                f"{summary.original.value:.3f}",
                change_in_points(summary.original_change),
                f"{summary.shifted.value:.3f}" if summary.shifted else "-",
                change_in_points(summary.shifted_change),
                _signed(summary.length_balanced_change),
                _signed(summary.worst_change),
                "-" if summary.gap_recovered is None else f"{summary.gap_recovered:.0%}",
                summary.label_equivalent or "-",
                f"{summary.strength:.2f}",
                "-" if summary.rank_correlation is None else f"{summary.rank_correlation:.2f}",
                f"{summary.best_step:.0f}",
                f"{(summary.forward + summary.backward) / passes:.1f}x",
            ]
            for summary in own
        ]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows
        ]
        blocks.append("\n".join([f"{shift}, {own[0].num_splits} splits", *lines]))
    num = count_comparisons(summaries)
    blocks.append(
        "Changes are in points against plain on the same pairs, with 95 % intervals clustered by "
        f"prompt and by split: {num} comparisons, of which about {0.05 * num:.1f} leave out zero "
        "by chance. They hold for this pool of prompts: splits of it share most of what they train "
        "on. Cost: responses sent forward and backward while training, against plain."
    )
    return "\n\n".join(blocks)


def change_in_points(change: Estimate | None) -> str:
    """A change of accuracy with its interval, in points: `+1.9 [+0.8, +3.0]`; of one unit, none."""
    if change is None:
        return "-"
    value, low, high = (100 * number for number in (change.value, change.low, change.high))
    if change.count < 2:
        return f"{value:+.1f}"
    return f"{value:+.1f} [{low:+.1f}, {high:+.1f}]"


def _signed(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:+.1f}"


def comparison_to_json(summaries: Sequence[MethodSummary], cells: Sequence[Cell]) -> dict[str, Any]:
    """`compare.json`: the summaries, and every cell's curve."""
    return {
        "num_comparisons": count_comparisons(summaries),
        "summaries": [asdict(summary) for summary in summaries],
        "curves": [
            {"shift": c.shift, "method": c.method, "seed": c.seed, "curve": c.curve} for c in cells
        ],
    }
