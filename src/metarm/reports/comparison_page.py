# SPDX-License-Identifier: Apache-2.0
"""The page of a comparison: who differs from plain training, by how much, at what cost."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from metarm.bench.results import Cell
from metarm.bench.summary import (
    REFERENCE,
    MethodSummary,
    change_in_points,
    count_comparisons,
    summarise_cells,
)
from metarm.reports.drawing import GREY, INK, STYLE, WIDTH
from metarm.reports.rendering import fact_rows, page_environment, picture
from metarm.schema import Estimate
from metarm.storage import write_text

__all__ = ["write_comparison_page"]

SHOWN_CURVES = ("plain", "ascent", "descent", "joint", "oracle")
COLOURS = dict(zip(SHOWN_CURVES, (INK, "#0072B2", "#009E73", "#CC79A7", GREY), strict=True))


def write_comparison_page(cells: Sequence[Cell], folder: Path, facts: Mapping[str, Any]) -> Path:
    """Write the page and return its path.

    Args:
        cells: All cells of the comparison.
        folder: Gets `compare.html`.
        facts: Settings to show, as JSON values.

    Writes:
        `compare.html` in `folder`: no script, nothing loaded from elsewhere.
    """
    summaries = summarise_cells(cells)
    shifts = list(dict.fromkeys(summary.shift for summary in summaries))
    context = {
        "shifts": [
            {
                "name": shift,
                "lead": _lead(own := [s for s in summaries if s.shift == shift]),
                "rows": (rows := [_row(summary) for summary in own]),
                "has": {key: any(row[key] != "-" for row in rows) for key in rows[0]},
                "num_splits": own[0].num_splits,
                "changes": picture(_draw_changes(own)),
                "curves": picture(_draw_curves([c for c in cells if c.shift == shift])),
            }
            for shift in shifts
        ],
        "num_comparisons": count_comparisons(summaries),
        "facts": fact_rows(facts),
    }
    path = folder / "compare.html"
    write_text(path, page_environment().get_template("compare.html.j2").render(context))
    return path


def _lead(summaries: Sequence[MethodSummary]) -> str:
    """What differs from plain on shifted pairs, in a sentence."""
    told = [
        (summary.method, change)
        for summary in summaries
        if (change := summary.shifted_change) is not None and summary.method != REFERENCE
    ]
    # Of one prompt nobody knows how sure it is.
    sure = [(name, change) for name, change in told if change.count > 1]
    if not told:
        return "Nobody has labelled shifted pairs here: only label-free figures are shown."
    better = [f"{name} {change_in_points(change)}" for name, change in sure if change.low > 0]
    worse = [f"{name} {change_in_points(change)}" for name, change in sure if change.high < 0]
    parts = []
    if better:
        parts.append(f"Better than plain training on shifted pairs: {', '.join(better)} points")
    if worse:
        word = "worse" if better else "Worse than plain training"
        parts.append(f"{word}: {', '.join(worse)} points")
    return ("; ".join(parts) or "No method can be told from plain training on shifted pairs") + "."


def _number(value: float | None, pattern: str) -> str:
    return "-" if value is None else format(value, pattern)


def _row(summary: MethodSummary) -> dict[str, Any]:
    change = summary.shifted_change
    balanced, worst = summary.length_balanced_change, summary.worst_change
    return {
        "method": summary.method,
        "original": f"{summary.original.value:.3f}",
        "original_change": change_in_points(summary.original_change),
        "shifted": f"{summary.shifted.value:.3f}" if summary.shifted else "-",
        "shifted_change": change_in_points(change),
        "is_original_told": _is_told(summary.original_change),
        "is_shifted_told": _is_told(change),
        "balanced": _number(None if balanced is None else 100 * balanced, "+.1f"),
        "worst": _number(None if worst is None else 100 * worst, "+.1f"),
        "gap": _number(summary.gap_recovered, ".0%"),
        "labels": summary.label_equivalent or "-",
        "strength": f"{summary.strength:.2f}",
        "rank": _number(summary.rank_correlation, ".2f"),
        "difference": f"{summary.difference:.3f}",
        "step": f"{summary.best_step:.0f}",
        "cost": f"{summary.forward / 1000:.0f} k / {summary.backward / 1000:.0f} k",
        "seconds": f"{summary.seconds:.1f}",
    }


def _is_told(change: Estimate | None) -> bool:
    """Whether the interval leaves out zero."""
    return change is not None and not change.low <= 0 <= change.high


def _draw_changes(summaries: Sequence[MethodSummary]) -> Figure | None:
    """Each method's change against plain, on original and on shifted pairs."""
    own = [summary for summary in summaries if summary.method != REFERENCE]
    if not own:
        return None
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 0.9 + 0.28 * len(own)))
        panels = figure.subplots(1, 2, sharey=True)
        for axes, title, changes in (
            (panels[0], "Original pairs", [s.original_change for s in own]),
            (panels[1], "Shifted pairs", [s.shifted_change for s in own]),
        ):
            for place, change in enumerate(changes):
                if change is not None:
                    colour = INK if change.low <= 0 <= change.high else "#0072B2"
                    axes.plot([100 * change.low, 100 * change.high], [place, place], color=colour)
                    axes.plot([100 * change.value], [place], "o", color=colour)
            axes.axvline(0, color=GREY, linewidth=1, zorder=1)
            axes.set_title(title)
            axes.set_xlabel("change of accuracy against plain (points)")
        panels[0].set_yticks(range(len(own)), [summary.method for summary in own])
        panels[0].invert_yaxis()
        return figure


def _draw_curves(cells: Sequence[Cell]) -> Figure | None:
    """Accuracy along training, mean over splits: the gain depends on how long one trains."""
    methods = [name for name in SHOWN_CURVES if any(cell.method == name for cell in cells)]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.4))
        panels = figure.subplots(1, 2)
        for axes, title, column in (
            (panels[0], "Original pairs", 2),
            (panels[1], "Shifted pairs", 3),
        ):
            for method in methods:
                own = [cell.curve for cell in cells if cell.method == method]
                steps = [point[0] for point in own[0]]
                columns = list(zip(*([p[column] for p in curve] for curve in own), strict=True))
                if any(value is None for values in columns for value in values):
                    continue
                means = [fmean(values) for values in columns]
                axes.plot(steps, means, color=COLOURS[method], label=method)
            axes.set_title(title)
            axes.set_xlabel("optimiser step")
        panels[0].set_ylabel("accuracy")
        handles, labels = panels[0].get_legend_handles_labels()
        if not handles:
            return None
        figure.legend(handles, labels, loc="outside upper left", ncols=5)
        return figure
