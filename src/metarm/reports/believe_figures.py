# SPDX-License-Identifier: Apache-2.0
"""The pictures of `metarm label believe`: annotators, labels, agreement, judge against people."""

from collections.abc import Mapping, Sequence
from typing import Final

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from metarm.annotators.beliefs import AnnotatorBelief, Belief
from metarm.annotators.crowd_agreement import CrowdAgreement
from metarm.annotators.kinds import KindComparison
from metarm.labels.votes import AnnotatorKind
from metarm.reports.drawing import GREY, INK, STYLE, WIDTH, drawable, name_in_figure

__all__ = [
    "draw_annotators",
    "draw_answers",
    "draw_kinds",
    "draw_labels",
    "draw_matrix",
    "shown_annotators",
]

BLUE, ORANGE, PALE = "#0072B2", "#D55E00", "#dddddd"
MARKS: Final[Mapping[AnnotatorKind, str]] = {"person": "o", "model": "s", "gold": "*", "rule": "^"}
MOST_ROWS: Final = 40
"""More annotators than these are in the table alone: the least reliable are drawn."""
MOST_IN_NAME: Final = 46
CERTAIN: Final = 0.9
LEAST_SHARE: Final = 0.07


def shown_annotators(belief: Belief) -> list[AnnotatorBelief]:
    """The most reliable first; of many, the least reliable ones."""
    order = sorted(belief.annotators, key=lambda one: -one.reliability.value)
    return order[-MOST_ROWS:]


def draw_annotators(
    belief: Belief, kinds: Mapping[str, AnnotatorKind], bad: Mapping[str, str]
) -> Figure:
    """Reliability and side bias of each annotator with their intervals, side by side."""
    shown = shown_annotators(belief)
    table = belief.table
    sided = {table.annotators[w] for w in np.unique(table.annotator[table.side != 0])}
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 1.3 + 0.32 * len(shown)))
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=[3, 2])
        for place, one in enumerate(shown):
            colour = ORANGE if one.name in bad else BLUE
            mark = MARKS[kinds.get(one.name, "person")]
            drawn = [(left, one.reliability)] if one.reliability.is_told else []
            if one.name in sided:
                drawn.append((right, one.side_bias))
            for axes, (value, low, high) in drawn:
                axes.plot([low, high], [place, place], color=colour, linewidth=1.6)
                axes.plot([value], [place], mark, color=colour, markersize=7)
            if one.name in bad:
                ends = one.reliability.high < 0.45
                x = one.reliability.high + 0.04 if ends else one.reliability.low - 0.04
                side = "left" if ends else "right"
                left.text(x, place, bad[one.name], color=ORANGE, ha=side, va="center", fontsize=9)
        left.set_yticks(range(len(shown)), [name_in_figure(one.name) for one in shown])
        left.set_ylim(len(shown) - 0.5, -0.5)
        left.set_xlim(-1.05, 1.05)
        left.set_title("reliability")
        left.set_xlabel("always the reverse  ←  tells nothing  →  always informed")
        right.set_xlim(-1.05, 1.05)
        right.set_title("side bias")
        right.set_xlabel("to the right  ←  none  →  to the left")
        for axes in (left, right):
            axes.axvline(0, color=GREY, linewidth=1, zorder=1)
            axes.grid(visible=False, axis="y")
        return figure


def draw_answers(belief: Belief) -> Figure | None:
    """What each annotator says of pairs whose label is certain: right, tie or wrong."""
    table = belief.table
    label = belief.labels[table.pair]
    is_certain = np.maximum(label, 1.0 - label) >= CERTAIN
    truth = np.where(label >= 0.5, 1, -1)
    shown = [
        (one, own)
        for one in shown_annotators(belief)
        if (own := (table.annotator == table.annotators.index(one.name)) & is_certain).any()
    ]
    if not shown:
        return None
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 1.1 + 0.32 * len(shown)))
        axes = figure.subplots()
        for place, (_, own) in enumerate(shown):
            answers = (table.direction * truth)[own]
            shares = [float((answers == answer).mean()) for answer in (1, 0, -1)]
            _stack(axes, place, shares)
        names = [f"{name_in_figure(one.name)} ({int(own.sum())})" for one, own in shown]
        axes.set_yticks(range(len(shown)), names)
        axes.invert_yaxis()
        axes.set_xlim(0, 1)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("share of votes: with the label (blue), tie (grey), against it (orange)")
        return figure


def _stack(axes: Axes, place: int, shares: Sequence[float]) -> None:
    left = 0.0
    for share, colour in zip(shares, (BLUE, PALE, ORANGE), strict=True):
        axes.barh(place, share, left=left, color=colour, height=0.66)
        if share >= LEAST_SHARE:
            ink = INK if colour == PALE else "white"
            axes.text(left + share / 2, place, f"{share:.0%}", color=ink, ha="center", va="center")
        left += share


def draw_labels(belief: Belief) -> Figure:
    """How sure the labels are: pairs by the probability of their likelier side."""
    voted = belief.table.votes_of_pair > 0
    likelier = np.maximum(belief.labels, 1.0 - belief.labels)[voted]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 2.5))
        axes = figure.subplots()
        axes.hist(likelier, bins=np.linspace(0.5, 1.0, 26).tolist(), color=BLUE, rwidth=0.92)
        axes.set_xlim(0.5, 1.0)
        axes.set_xlabel("soft label of the likelier side: 0.5 a coin flip, 1 certain")
        axes.set_ylabel("pairs")
        axes.grid(visible=False, axis="x")
        return figure


def draw_matrix(agreement: CrowdAgreement, belief: Belief) -> Figure | None:
    """Who says the same as whom, on the pairs that both voted on."""
    names = [one.name for one in shown_annotators(belief)]
    values = np.full((len(names), len(names)), np.nan)
    for (first, second), share in agreement.matrix.items():
        if first in names and second in names:
            row, column = sorted((names.index(first), names.index(second)), reverse=True)
            values[row, column] = share.value
    if np.isnan(values).all():
        return None
    # Half a table without its diagonal: the first has no row, the last no column.
    values = values[1:, :-1]
    with matplotlib.rc_context(STYLE):
        size = 1.6 + 0.42 * len(values)
        figure = Figure(figsize=(min(WIDTH, size + 1.6), size))
        axes = figure.subplots()
        image = axes.imshow(values, cmap="cividis", vmin=0.0, vmax=1.0)
        for row, column in zip(*np.nonzero(~np.isnan(values)), strict=True):
            share = values[row, column]
            ink = "white" if share < 0.6 else "black"
            axes.text(column, row, f"{share:.2f}", color=ink, ha="center", va="center", fontsize=8)
        labels = [name_in_figure(name) for name in names]
        axes.set_xticks(range(len(values)), labels[:-1], rotation=45, ha="right")
        axes.set_yticks(range(len(values)), labels[1:])
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        figure.colorbar(image, ax=axes, shrink=0.7, label="share of pairs")
        return figure


def draw_kinds(comparison: KindComparison) -> Figure:
    """How far two kinds agree, over all pairs and in each slice."""
    rows = [("all pairs", comparison.agreement)]
    rows += [(f"{one.by}: {one.value}", one.agreement) for one in comparison.slices]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 1.0 + 0.34 * len(rows)))
        axes = figure.subplots()
        for place, (_, share) in enumerate(rows):
            axes.plot([share.low, share.high], [place, place], color=INK, linewidth=1.6)
            axes.plot([share.value], [place], "o", color=BLUE if place else ORANGE, markersize=7)
        names = [f"{drawable(name, most=MOST_IN_NAME)} ({share.count})" for name, share in rows]
        axes.set_yticks(range(len(rows)), names)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlim(0, 1)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel(
            f"share of votes on which {comparison.first_kind} and {comparison.second_kind} agree"
        )
        return figure
