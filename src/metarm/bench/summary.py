# SPDX-License-Identifier: Apache-2.0
"""All cells of a comparison as one table: each method on each shift, and against plain."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from metarm.bench.results import Cell, Tally, clustered_difference, clustered_mean
from metarm.schema import Estimate

__all__ = [
    "REFERENCE",
    "MethodSummary",
    "change_in_points",
    "comparison_to_json",
    "count_comparisons",
    "format_table",
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
    return [
        _summarise(
            sorted(found, key=lambda cell: cell.seed),
            sorted(by_method[shift, REFERENCE], key=lambda cell: cell.seed),
            by_method.get((shift, ORACLE)),
        )
        for (shift, _), found in by_method.items()
    ]


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
                 "rank", "step"]]  # fmt: skip
        own = [summary for summary in summaries if summary.shift == shift]
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
                "-" if summary.rank_correlation is None else f"{summary.rank_correlation:.2f}",
                f"{summary.best_step:.0f}",
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
        "by chance."
    )
    return "\n\n".join(blocks)


def change_in_points(change: Estimate | None) -> str:
    """A change of accuracy with its interval, in points: `+1.9 [+0.8, +3.0]`."""
    if change is None:
        return "-"
    value, low, high = (100 * number for number in (change.value, change.low, change.high))
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
