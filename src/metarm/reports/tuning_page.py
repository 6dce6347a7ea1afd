# SPDX-License-Identifier: Apache-2.0
"""The page of a search: whether tuning was worth it, what mattered, how flat the optimum is."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from metarm.bench.tuning_results import Trial, Tuning, tell_best
from metarm.reports.drawing import GREY, INK, STYLE, WIDTH
from metarm.reports.rendering import fact_rows, page_environment, picture
from metarm.storage import write_text

__all__ = ["write_tuning_page"]

BLUE, ORANGE, GREEN = "#0072B2", "#D55E00", "#009E73"
SHOWN_SPREADS = 12
"""Standard errors below the best that figures reach down to; what is lower stands at the edge."""


def write_tuning_page(tuning: Tuning, folder: Path, facts: Mapping[str, Any]) -> Path:
    """Write the page and return its path.

    Args:
        tuning: The search.
        folder: Gets `tune.html`.
        facts: Settings to show, as JSON values.

    Writes:
        `tune.html` in `folder`: no script, nothing loaded from elsewhere.
    """
    lead, *points = tell_best(tuning)
    context = {
        "tuning": tuning,
        "lead": lead,
        "points": points,
        "rows": [_row(tuning, name) for name in tuning.space],
        "num_pruned": sum(trial.is_pruned for trial in tuning.trials),
        "history": picture(_draw_history(tuning)),
        "slices": picture(_draw_slices(tuning)),
        "importances": picture(_draw_importances(tuning)) if tuning.importances else None,
        "fresh": None if tuning.best.is_default else picture(_draw_fresh(tuning)),
        "facts": fact_rows(facts),
    }
    path = folder / "tune.html"
    write_text(path, page_environment().get_template("tune.html.j2").render(context))
    return path


def _row(tuning: Tuning, name: str) -> dict[str, str]:
    dimension, flat = tuning.space[name], tuning.flatness
    return {
        "name": name,
        "searched": f"{dimension.low:.3g} to {dimension.high:.3g}",
        "default": f"{tuning.default.settings[name]:.3g}",
        "best": f"{tuning.best.settings[name]:.3g}",
        "within": "{:.3g} to {:.3g}".format(*flat.ranges[name]) if flat else "-",
        "importance": f"{tuning.importances[name]:.2f}" if tuning.importances else "-",
    }


def _floor(tuning: Tuning) -> float:
    """The lowest value that figures show: a search tries settings that are far off."""
    lowest = min(tuning.paired_value(trial) for trial in tuning.trials)
    if tuning.flatness is None:
        return lowest
    reach = max(SHOWN_SPREADS * tuning.flatness.standard_error, 0.02)
    default = tuning.default.value
    return max(lowest, min(tuning.best.value - reach, default - reach / 4))


def _colour(tuning: Tuning, trial: Trial) -> str:
    within = tuning.flatness.trials if tuning.flatness else (tuning.best.number,)
    return BLUE if trial.number in within else INK


def _draw_trials(axes: Axes, tuning: Tuning, xs: list[float]) -> None:
    """Every trial at its x: finished ones full, pruned ones hollow, those below the edge on it."""
    floor = _floor(tuning)
    for x, trial in zip(xs, tuning.trials, strict=True):
        colour, value = _colour(tuning, trial), tuning.paired_value(trial)
        axes.plot(
            [x],
            [max(value, floor)],
            marker="o" if value >= floor else "v",
            color=colour,
            markerfacecolor="none" if trial.is_pruned else colour,
            markersize=4.5,
            zorder=2,
        )
    for trial, mark, colour in ((tuning.default, "D", ORANGE), (tuning.best, "*", GREEN)):
        axes.plot(
            [xs[tuning.trials.index(trial)]],
            [max(trial.value, floor)],
            mark,
            color=colour,
            markeredgecolor="white",
            markeredgewidth=0.8,
            markersize=15 if mark == "*" else 9,
            zorder=3,
        )
    if tuning.flatness is not None:
        best = tuning.best.value
        axes.axhspan(
            best - tuning.flatness.standard_error, best, color=BLUE, alpha=0.1, linewidth=0
        )


def _draw_history(tuning: Tuning) -> Figure:
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.2))
        axes = figure.subplots()
        numbers = [float(trial.number) for trial in tuning.trials]
        _draw_trials(axes, tuning, numbers)
        finished = [-np.inf if trial.is_pruned else trial.value for trial in tuning.trials]
        highest = np.maximum.accumulate(finished)
        shown = np.isfinite(highest)
        axes.step(
            np.array(numbers)[shown], highest[shown], where="post", color=GREY, linewidth=1.2,
            zorder=1,
        )  # fmt: skip
        axes.set_xlabel("trial")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_ylabel("mean over seeds")
        axes.set_title("Objective of each trial, and the best so far")
        return figure


def _draw_slices(tuning: Tuning) -> Figure:
    names = list(tuning.space)
    # Wider apart than elsewhere: tick labels of neighbours would touch.
    with matplotlib.rc_context({**STYLE, "figure.constrained_layout.wspace": 0.06}):
        figure = Figure(figsize=(WIDTH, 3.2))
        panels = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
        for axes, name in zip(panels, names, strict=True):
            axes.set_xscale("log")
            _draw_trials(axes, tuning, [trial.settings[name] for trial in tuning.trials])
            dimension = tuning.space[name]
            axes.set_xlim(dimension.low / 1.15, dimension.high * 1.15)
            _plain_ticks(axes, dimension.high / dimension.low)
            axes.set_xlabel(name)
        panels[0].set_ylabel("mean over seeds")
        return figure


def _plain_ticks(axes: Axes, ratio: float) -> None:
    """0.01 instead of ten to the minus two; doublings where the range is short."""
    locator = LogLocator(base=10 if ratio > 50 else 2, numticks=6)
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _draw_importances(tuning: Tuning) -> Figure:
    assert tuning.importances is not None
    order = sorted(tuning.importances, key=tuning.importances.__getitem__)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 0.7 + 0.32 * len(order)))
        axes = figure.subplots()
        axes.barh(order, [tuning.importances[name] for name in order], color=BLUE, height=0.6)
        axes.set_xlim(0, 1)
        axes.set_xlabel("share of what tells the best trials from all")
        axes.grid(visible=False, axis="y")
        return figure


def _draw_fresh(tuning: Tuning) -> Figure:
    """Best minus default on each fresh split, and the mean with its interval."""
    panels_of = [("Objective", [r.value for r in tuning.fresh_best],
                  [r.value for r in tuning.fresh_default], tuning.fresh_change)]  # fmt: skip
    for side in ("original", "shifted"):
        change = tuning.tested_change(side)
        if change is not None:
            ours, theirs = (
                [getattr(r.cell, side).accuracy for r in part]
                for part in (tuning.fresh_best, tuning.fresh_default)
            )
            panels_of.append((f"Held-out {side} pairs", ours, theirs, change))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 2.1))
        panels = figure.subplots(1, len(panels_of), sharey=True, squeeze=False)[0]
        for axes, (title, ours, theirs, change) in zip(panels, panels_of, strict=True):
            gaps = [100 * (one - other) for one, other in zip(ours, theirs, strict=True)]
            axes.plot(gaps, np.linspace(0.75, 1.25, len(gaps)), "o", color=GREY, markersize=3.5)
            colour = INK if change.low <= 0 <= change.high else BLUE
            axes.plot([100 * change.low, 100 * change.high], [0, 0], color=colour)
            axes.plot([100 * change.value], [0], "o", color=colour)
            axes.axvline(0, color=GREY, linewidth=1, zorder=1)
            axes.set_title(title)
            axes.set_xlabel("best minus default (points)")
            axes.set_ylim(-0.5, 1.5)
        panels[0].set_yticks([0, 1], ["mean", "fresh splits"])
        return figure
