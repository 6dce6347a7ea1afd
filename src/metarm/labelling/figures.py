# SPDX-License-Identifier: Apache-2.0
"""The dashboard's figures as SVG, for light and for dark pages."""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import matplotlib
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from metarm.annotators.beliefs import Interval
from metarm.labelling.account import Account, AnnotatorRow
from metarm.labelling.texts import visible
from metarm.schema import Estimate

__all__ = ["FIGURES", "draw_svg"]

MOST_NAMES: Final = 24
"""Annotators in a figure; those with the most votes."""
WIDTH: Final = 11.4


@dataclass(frozen=True, slots=True)
class _Palette:
    """Colours of a page."""

    paper: str
    ink: str
    quiet: str
    line: str
    mark: str
    other: str


LIGHT: Final = _Palette("#ffffff", "#1c1c1a", "#5c5c58", "#e2e2dd", "#0b5394", "#c77a00")
DARK: Final = _Palette("#1c1f22", "#e9e9e4", "#a5a7a4", "#3a3e42", "#7db7ef", "#f0a662")


def _style(colours: _Palette) -> Any:
    return {
        "axes.axisbelow": True,
        "axes.edgecolor": colours.line,
        "axes.facecolor": colours.paper,
        "axes.grid": True,
        "axes.labelcolor": colours.quiet,
        "axes.labelsize": 9.5,
        "axes.spines.right": False,
        "axes.spines.top": False,
        "axes.titlecolor": colours.ink,
        "axes.titlelocation": "left",
        "axes.titlesize": 10.5,
        "figure.constrained_layout.use": True,
        "figure.facecolor": colours.paper,
        "font.family": "DejaVu Sans",
        "font.size": 9.5,
        "grid.color": colours.line,
        "svg.fonttype": "path",
        "svg.hashsalt": "metarm",
        "text.color": colours.ink,
        "text.parse_math": False,
        "xtick.color": colours.quiet,
        "ytick.color": colours.quiet,
    }


def draw_svg(name: str, account: Account, *, is_dark: bool) -> bytes | None:
    """A figure by its name in `FIGURES`; None where there is nothing to draw."""
    colours = DARK if is_dark else LIGHT
    with matplotlib.rc_context(_style(colours)):
        figure = FIGURES[name](account, colours)
        if figure is None:
            return None
        stream = io.BytesIO()
        figure.savefig(stream, format="svg", metadata={"Date": None})
    return stream.getvalue()


def _short(name: str) -> str:
    shown = visible(name)
    return shown if len(shown) <= 18 else f"{shown[:17]}…"


def _agreement(account: Account, colours: _Palette) -> Figure | None:
    """Alpha of all votes so far, with its interval."""
    if len(account.moments) < 2:
        return None
    figure = Figure(figsize=(WIDTH, 2.7))
    axes = figure.subplots()
    xs = [moment.num_votes for moment in account.moments]
    alphas = [moment.alpha for moment in account.moments]
    axes.fill_between(
        xs, [a.low for a in alphas], [a.high for a in alphas], color=colours.mark, alpha=0.18, lw=0
    )
    axes.plot(xs, [a.value for a in alphas], color=colours.mark, marker="o", markersize=4)
    axes.axhline(0, color=colours.quiet, linewidth=1, linestyle=(0, (4, 3)))
    axes.set_ylim(min(-0.1, min(a.low for a in alphas)), 1.02)
    axes.set_xlabel("votes of people so far")
    axes.set_ylabel("Krippendorff's alpha")
    return figure


def _people(account: Account) -> Sequence[AnnotatorRow]:
    most = sorted(account.rows, key=lambda row: -row.own.num_votes)[:MOST_NAMES]
    return [row for row in account.rows if row in most]


Told = Estimate | Interval | None


def _reliability(row: AnnotatorRow) -> Told:
    told = None if row.belief is None else row.belief.reliability
    return told if told is not None and told.is_told else None


_PANELS: Final[Sequence[tuple[str, Callable[[AnnotatorRow], Told], float | None]]] = (
    ("reliability", _reliability, None),
    ("known answers met", lambda row: row.own.gold_accuracy, None),
    ("same again, mirrored", lambda row: row.own.self_agreement, None),
    ("chooses the left side", lambda row: row.own.left_fraction, 0.5),
)
"""Title, what is shown of a row, and the value that is fair."""


_TICKS: Final[Mapping[int, tuple[list[float], list[str]]]] = {
    0: ([0, 0.5, 1], ["0", ".5", "1"]),
    -1: ([-1, 0, 1], ["-1", "0", "1"]),
}


def _annotators(account: Account, colours: _Palette) -> Figure | None:
    """Shares of each annotator with their intervals."""
    rows = _people(account)
    if not rows:
        return None
    figure = Figure(figsize=(WIDTH, 0.9 + 0.3 * len(rows)))
    panels: Sequence[Axes] = list(figure.subplots(1, len(_PANELS), sharey=True))
    places = range(len(rows))
    for axes, (title, told_of, fair) in zip(panels, _PANELS, strict=True):
        shares = [told_of(row) for row in rows]
        lowest = -1 if any(share and share.low < 0 for share in shares) else 0
        axes.set_title(title)
        axes.set_xlim(lowest - 0.05, 1.05)
        axes.set_xticks(*_TICKS[lowest])
        axes.tick_params(axis="y", length=0)
        if fair is not None:
            axes.axvline(fair, color=colours.quiet, linewidth=1, linestyle=(0, (4, 3)))
        for place, (row, share) in enumerate(zip(rows, shares, strict=True)):
            if share is None:
                continue
            is_suspect = told_of is _reliability and row.suspect is not None
            is_fair = not is_suspect and (fair is None or share.low <= fair <= share.high)
            colour = colours.mark if is_fair else colours.other
            axes.plot([share.low, share.high], [place, place], color=colour, linewidth=1.6)
            axes.plot([share.value], [place], "o", color=colour, markersize=4.5)
    panels[0].set_yticks(list(places), [_short(row.name) for row in rows])
    panels[0].set_ylim(len(rows) - 0.5, -0.5)
    return figure


def _matrix(account: Account, colours: _Palette) -> Figure | None:
    """Share of equal answers of every two annotators, and on how many pairs."""
    rows = _people(account)
    if len(rows) < 2 or not account.matrix:
        return None
    names = [row.name for row in rows]
    size = len(names)
    figure = Figure(figsize=(min(WIDTH, 2.4 + 0.62 * size), min(WIDTH, 1.4 + 0.5 * size)))
    axes = figure.subplots()
    shades = LinearSegmentedColormap.from_list("agreement", [colours.paper, colours.mark])
    for y, one in enumerate(names):
        for x, other in enumerate(names):
            shared = account.matrix.get((one, other)) or account.matrix.get((other, one))
            if shared is None:
                continue
            shade = shades(0.08 + 0.8 * max(0.0, 2 * shared.value - 1))
            axes.add_patch(Rectangle((x - 0.48, y - 0.48), 0.96, 0.96, color=shade))
            is_deep = shared.value > 0.75
            ink = colours.paper if is_deep else colours.ink
            told = f"{shared.value:.2f}".lstrip("0")
            middle: Any = {"ha": "center", "va": "center", "color": ink}
            axes.text(x, y - 0.1, told, fontsize=8.5, **middle)
            axes.text(x, y + 0.26, str(shared.count), fontsize=6.5, **middle)
    axes.set_xlim(-0.5, size - 0.5)
    axes.set_ylim(size - 0.5, -0.5)
    axes.set_xticks(range(size), [_short(name) for name in names], rotation=35, ha="right")
    axes.set_yticks(range(size), [_short(name) for name in names])
    axes.tick_params(length=0)
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return figure


FIGURES: Final = {"agreement": _agreement, "annotators": _annotators, "matrix": _matrix}
"""Name in the address -> what draws it; None where there is nothing to draw."""
