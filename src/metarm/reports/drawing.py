# SPDX-License-Identifier: Apache-2.0
"""What all figures share: style, colours, legends, axes, and one measure drawn by round."""

import functools
import itertools
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font
from matplotlib.ft2font import FT2Font
from matplotlib.lines import Line2D

from metarm.reports.comparisons import Summary, by_round, summary_of
from metarm.reports.measures import MEASURES
from metarm.reports.read_run import Run

__all__ = [
    "GREY",
    "INK",
    "STYLE",
    "WIDTH",
    "arm_colours",
    "arm_grid",
    "arm_legend",
    "draw_interval",
    "draw_rounds",
    "drawable",
    "name_in_figure",
    "round_axis",
    "style_of",
]

GREY, INK = "#8a8a8a", "#333333"
PRESET_COLOURS = {
    "sft": "#555555",
    "frozen": "#0072B2",
    "plain": "#E69F00",
    "meta": "#009E73",
    "labels": "#CC79A7",
}
SPARE_COLOURS = ("#D55E00", "#56B4E9", "#000000", "#A89500")
"""Okabe and Ito's colour-blind-safe set, its yellow darkened for white paper."""
MARKERS = ("o", "s", "D", "^", "v", "P", "X", "*")
WIDTH = 9.6
STYLE: Any = {
    "axes.axisbelow": True,
    "axes.edgecolor": "#b5b5b5",
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.labelsize": 9.5,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10.5,
    "figure.constrained_layout.use": True,
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "grid.color": "#e8e8e8",
    "legend.fontsize": 9.5,
    "legend.frameon": False,
    "lines.linewidth": 1.9,
    "lines.markersize": 5,
    "svg.fonttype": "path",
    "svg.hashsalt": "metarm",
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": INK,
    "ytick.color": INK,
}


def arm_colours(run: Run) -> dict[str, str]:
    """One colour per arm, the same in every figure and table."""
    unused = [colour for name, colour in PRESET_COLOURS.items() if name not in run.arms]
    spare = itertools.cycle((*SPARE_COLOURS, *unused))
    return {arm: PRESET_COLOURS.get(arm) or next(spare) for arm in run.arms}


def name_in_figure(arm: str) -> str:
    """An arm's name for a figure: short, and never hidden by a leading underscore."""
    short = drawable(arm, most=20)
    return f" {short}" if short.startswith("_") else short


def drawable(text: str, *, most: int) -> str:
    r"""The text on one line, with a replacement mark for what the figures' font has no glyph of.

    Args:
        text: What is written along an axis: a long one leaves the axes no room.
        most: Characters, the last of which says that some are left out.

    Example:
        >>> drawable("tea\n\u8336", most=9) == "tea \ufffd", drawable("long name", most=6)
        (True, 'long …')
    """
    font = _font()
    short = text if len(text) <= most else f"{text[: most - 1]}…"
    return "".join(
        " "
        if character.isspace()
        else character
        if font.get_char_index(ord(character))
        else "\ufffd"
        for character in short
    )


@functools.cache
def _font() -> FT2Font:
    return get_font(findfont(STYLE["font.family"]))


def style_of(run: Run, arm: str) -> dict[str, Any]:
    """An arm's colour and mark."""
    place = run.arms.index(arm)
    return {"color": arm_colours(run)[arm], "marker": MARKERS[place % len(MARKERS)]}


def arm_legend(figure: Figure, run: Run) -> None:
    """One legend above all panels: the trained arms, then the start they share."""
    handles = [
        Line2D([], [], label=name_in_figure(arm), **style_of(run, arm)) for arm in run.trained_arms
    ]
    if run.start_arm is not None:
        start = style_of(run, run.start_arm)
        handles.append(Line2D([], [], linestyle="", label=name_in_figure(run.start_arm), **start))
    figure.legend(handles=handles, loc="outside upper left", ncols=min(5, len(handles)))


def round_axis(axes: Axes, run: Run) -> None:
    """Whole rounds on the x axis, its label left out; round 0 is named SFT."""
    step = 1 + run.last_round // 9
    ticks = list(range(0 if run.start_arm is not None else 1, run.last_round + 1, step))
    axes.set_xticks(ticks, ["SFT" if tick == 0 else str(tick) for tick in ticks])
    axes.set_xlim(ticks[0] - 0.35, run.last_round + 0.35)
    axes.grid(visible=False, axis="x")


def draw_interval(axes: Axes, x: float, summary: Summary, colour: str) -> None:
    """An interval, where there is one; over two seeds it would dwarf the figure."""
    if summary.low is None or summary.high is None:
        return
    if summary.over == "seeds" and summary.count < 3:
        return
    axes.plot([x, x], [summary.low, summary.high], color=colour, linewidth=1.1, alpha=0.75)


def draw_rounds(axes: Axes, run: Run, name: str, floor: float | None = None) -> None:
    """One measure by round, a line per arm from the start they share."""
    arms = run.trained_arms
    for place, arm in enumerate(arms):
        style = style_of(run, arm)
        points = list(by_round(run, name, arm).items())
        # Dodged sideways, so that intervals of equal arms stay readable.
        dodge = 0.07 * (place - (len(arms) - 1) / 2)
        xs = [r + dodge * (r > 0) for r, _ in points]
        axes.plot(xs, [summary.value for _, summary in points], **style)
        for x, (r, summary) in zip(xs, points, strict=True):
            if r > 0:
                draw_interval(axes, x, summary, style["color"])
    if run.start_arm is not None:
        start = summary_of(run, name, run.start_arm, 0)
        if start is not None:
            axes.plot([0], [start.value], linestyle="", zorder=3, **style_of(run, run.start_arm))
            draw_interval(axes, 0, start, GREY)
    if floor is not None:
        axes.axhline(floor, color=GREY, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    measure = MEASURES[name]
    axes.set_title(measure.label)
    axes.set_ylabel(measure.unit)
    axes.set_xlabel("round")
    round_axis(axes, run)


def arm_grid(
    run: Run, arms: tuple[str, ...], height: float, x_label: str
) -> tuple[Figure, list[Axes]]:
    """Small multiples, one panel per arm, on shared axes."""
    columns = min(4, max(2, len(arms)))
    rows = -(-len(arms) // columns)
    figure = Figure(figsize=(WIDTH, 0.6 + height * rows))
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    panels: list[Axes] = list(grid.flat)
    for place, (arm, axes) in enumerate(zip(arms, panels, strict=False)):
        axes.set_title(name_in_figure(arm), color=arm_colours(run)[arm], fontweight="bold")
        is_lowest = place + columns >= len(arms)
        axes.tick_params(labelbottom=is_lowest)
        axes.set_xlabel(x_label if is_lowest else "")
    for axes in panels[len(arms) :]:
        axes.set_axis_off()
    return figure, panels[: len(arms)]
