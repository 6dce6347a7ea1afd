# SPDX-License-Identifier: Apache-2.0
"""The figure of an explanation: how often each kind of pairs is confident and wrong."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from metarm.reports.drawing import GREY, INK, STYLE, WIDTH, drawable
from metarm.reports.rendering import visible_text

__all__ = ["draw_slices"]

BLUE, ORANGE = "#0072B2", "#D55E00"
MOST_IN_NAME: Final = 46

Row = Mapping[str, Any]


def draw_slices(slices: Sequence[Row]) -> Figure | None:
    """Share of confident and wrong pairs in each slice; None where no slice can be tested."""
    everything, *kinds = slices
    shown = [row for row in kinds if row["p_holm"] is not None]
    if not shown:
        return None
    lines: list[tuple[str, Row | None]] = []
    for kind in dict.fromkeys(row["kind"] for row in shown):
        lines.append((kind.upper(), None))
        own = [row for row in shown if row["kind"] == kind]
        lines += [(drawable(visible_text(row["name"]), most=MOST_IN_NAME), row) for row in own]
    has_after = everything["confident_wrong_after"] is not None
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 1.0 + 0.25 * max(len(lines), 4)))
        axes = figure.subplots()
        for place, (_, row) in enumerate(lines):
            if row is not None:
                _draw_slice(axes, place, row, has_after=has_after)
        usual = everything["confident_wrong"]["value"]
        axes.axvline(usual, color=GREY, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        axes.set_yticks(range(len(lines)), [name for name, _ in lines])
        for label, (_, row) in zip(axes.get_yticklabels(), lines, strict=True):
            if row is None:
                label.set_fontweight("bold")
                label.set_fontsize(8)
            elif row["p_holm"] <= 0.05:
                label.set_color(ORANGE)
                label.set_fontweight("bold")
        axes.set_ylim(len(lines) - 0.5, -0.5)
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=8, steps=[1, 2, 5, 10]))
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.grid(visible=False, axis="y")
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel("confident and wrong, share of the kind's pairs; dashed: of all pairs")
    return figure


def _draw_slice(axes: Axes, place: int, row: Row, *, has_after: bool) -> None:
    is_found = row["p_holm"] <= 0.05
    marks = [("confident_wrong", ORANGE if is_found else INK, "D" if is_found else "o", 0.0)]
    if has_after:
        marks[0] = (*marks[0][:3], -0.16)
        marks.append(("confident_wrong_after", BLUE, "s", 0.16))
    for name, colour, marker, shift in marks:
        one = row[name]
        axes.plot([one["low"], one["high"]], [place + shift] * 2, color=colour, linewidth=1.3)
        axes.plot([one["value"]], [place + shift], marker, color=colour, markersize=4.5)
