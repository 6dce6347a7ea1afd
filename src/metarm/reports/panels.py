# SPDX-License-Identifier: Apache-2.0
"""The figures with a shape of their own: histograms, saw-tooth, gold against KL, win bars."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from metarm.reports.comparisons import by_round, summary_of
from metarm.reports.drawing import (
    GREY,
    INK,
    WIDTH,
    arm_colours,
    arm_grid,
    arm_legend,
    draw_interval,
    name_in_figure,
    round_axis,
    style_of,
)
from metarm.reports.read_run import CurvePoint, Run

__all__ = [
    "draw_gold_against_kl",
    "gold_against_kl",
    "histograms",
    "saw_tooth",
    "two_tasks",
    "win_bars",
]

SHARES = ("win_fraction", "tie_fraction", "lose_fraction")
TIE, LOSE = "#e9e9e9", "#bdbdbd"


def histograms(run: Run) -> Figure | None:
    """Reward differences by round, a panel per arm; the start is the grey area."""
    arms = run.trained_arms
    if not arms:
        return None
    rounds = _few_rounds(run)
    figure, panels = arm_grid(run, arms, 2.5, "reward difference\n(spread on SFT's responses = 1)")
    low, high = _middle_of_histograms(run, rounds)
    for arm, axes in zip(arms, panels, strict=True):
        for r in (0, *rounds):
            pooled = _pooled_histogram(run, arm, r)
            if pooled is None:
                continue
            edges, density = pooled
            if r == 0:
                axes.stairs(density, edges, fill=True, color="#dddddd")
            else:
                shade = _shade(arm_colours(run)[arm], rounds.index(r), len(rounds))
                axes.stairs(density, edges, color=shade, linewidth=1.7, baseline=None)
        axes.set_xlim(low, high)
    # Last: a limit that is set ends the scaling of the axis that the panels share.
    panels[0].set_ylim(bottom=0)
    panels[0].set_ylabel("density")
    handles: list[Any] = [Patch(color="#dddddd", label="SFT")] if run.start_arm is not None else []
    for place, r in enumerate(rounds):
        shade = _shade(INK, place, len(rounds))
        handles.append(Line2D([], [], color=shade, label=f"after round {r}"))
    figure.legend(handles=handles, loc="outside upper left", ncols=5)
    return figure


def _few_rounds(run: Run) -> list[int]:
    """At most four rounds, evenly chosen, with the last among them."""
    chosen = np.linspace(1, run.last_round, min(4, run.last_round))
    return sorted({round(value) for value in chosen.tolist()})


def _shade(colour: str, place: int, count: int) -> tuple[float, float, float]:
    """From pale (first) to full colour (last)."""
    strength = 1.0 if count == 1 else 0.35 + 0.65 * place / (count - 1)
    red, green, blue = (1 - strength * (1 - part) for part in to_rgb(colour))
    return red, green, blue


def _pooled_histogram(run: Run, arm: str, round_number: int) -> tuple[Any, Any] | None:
    """Edges and density over all seeds that share the first seed's edges."""
    found = [card.gap_histogram for card in run.cards_at(arm, round_number).values()]
    alike = [h for h in found if h.edges == found[0].edges and sum(h.counts) > 0]
    if not alike:
        return None
    edges = np.asarray(alike[0].edges)
    counts = np.sum([h.counts for h in alike], axis=0)
    return edges, counts / (counts.sum() * np.diff(edges))


def _middle_of_histograms(run: Run, rounds: list[int]) -> tuple[float, float]:
    """The range that holds all but the outermost half per cent of every histogram."""
    lows, highs = [], []
    for arm in run.trained_arms:
        for r in (0, *rounds):
            pooled = _pooled_histogram(run, arm, r)
            if pooled is not None:
                edges, density = pooled
                share = np.cumsum(density * np.diff(edges))
                lows.append(edges[np.searchsorted(share, 0.005)])
                highs.append(edges[min(np.searchsorted(share, 0.995) + 1, len(edges) - 1)])
    return (float(min(lows)), float(max(highs))) if lows else (-1.0, 1.0)


def saw_tooth(run: Run) -> Figure | None:
    """Accuracy before and after each round: optimisation goes down, retraining goes up."""
    ends = {arm: by_round(run, "accuracy_shifted", arm) for arm in run.trained_arms}
    arms = tuple(arm for arm, summaries in ends.items() if any(r > 0 for r in summaries))
    if not arms:
        return None
    figure, panels = arm_grid(run, arms, 2.7, "round")
    for arm, axes in zip(arms, panels, strict=True):
        colour = arm_colours(run)[arm]
        begins = {r - 1: s for r, s in by_round(run, "accuracy_before", arm).items() if r > 0}
        after = {r: summary for r, summary in ends[arm].items() if r > 0}
        # After a round's end comes the next round's beginning, at the same place on the axis.
        path = sorted(
            [*((r, 1, s) for r, s in begins.items()), *((r, 0, s) for r, s in after.items())],
            key=lambda step: step[:2],
        )
        axes.plot([r for r, _, _ in path], [s.value for _, _, s in path], color=colour)
        for r, summary in after.items():
            draw_interval(axes, r, summary, colour)
            axes.plot([r], [summary.value], "o", color=colour)
        for r, summary in begins.items():
            axes.plot([r], [summary.value], "o", color=colour, markerfacecolor="white")
        first = by_round(run, "accuracy_first", arm)
        axes.plot(list(first), [s.value for s in first.values()], "--", color=GREY, zorder=1)
        axes.axhline(0.5, color=GREY, linewidth=0.8, linestyle=":", zorder=1)
        round_axis(axes, run)
    panels[0].set_ylabel("accuracy against gold")
    handles = [
        Line2D([], [], color=INK, marker="o", markerfacecolor="white", label="before optimisation"),
        Line2D([], [], color=INK, marker="o", label="after optimisation"),
        Line2D([], [], color=GREY, linestyle="--", label="first reward model"),
        Line2D([], [], color=GREY, linestyle=":", linewidth=0.8, label="guessing"),
    ]
    figure.legend(handles=handles, loc="outside upper left", ncols=4)
    return figure


def draw_gold_against_kl(axes: Axes, run: Run) -> bool:
    """Curves of the optimisation (thin, smoothed) and the rounds' ends, on the same task."""
    has_data = False
    ends = run.new_task or run
    for arm in run.trained_arms:
        style = style_of(run, arm)
        for r in range(1, run.last_round + 1):
            kl, gold = _smoothed(
                [curve for cell, curve in run.curves.items() if (cell.arm, cell.round) == (arm, r)]
            )
            axes.plot(kl, gold, color=style["color"], linewidth=1.2, alpha=0.5)
        for r in range(1, run.last_round + 1):
            kl_end, gold_end = (summary_of(ends, n, arm, r) for n in ("kl_nats", "gold_score"))
            if kl_end is not None and gold_end is not None:
                has_data = True
                draw_interval(axes, kl_end.value, gold_end, style["color"])
                size = 4.5 + 3.5 * r / run.last_round
                axes.plot(
                    [kl_end.value], [gold_end.value], linestyle="", markersize=size,
                    markeredgecolor="white", markeredgewidth=0.7, zorder=3, **style,
                )  # fmt: skip
    start = summary_of(ends, "gold_score", run.trained_arms[0], 0) if run.trained_arms else None
    if start is not None and run.start_arm is not None:
        axes.plot([0], [start.value], linestyle="", zorder=3, **style_of(run, run.start_arm))
    axes.set_xlabel("KL to SFT per response (nats)")
    axes.set_ylabel("gold score (gold units)")
    axes.set_xlim(left=min(-0.02 * axes.get_xlim()[1], axes.get_xlim()[0]))
    return has_data


def _smoothed(curves: list[tuple[CurvePoint, ...]]) -> tuple[Any, Any]:
    """KL and gold, the mean over seeds, then running means over an eighth of the iterations."""
    known = [[(p.kl_nats, p.gold) for p in curve if p.gold is not None] for curve in curves]
    length = min((len(points) for points in known), default=0)
    if length == 0:
        return [], []
    kl, gold = np.mean([points[:length] for points in known], axis=0).T
    window = np.ones(max(1, length // 8)) / max(1, length // 8)
    return np.convolve(kl, window, "valid"), np.convolve(gold, window, "valid")


def gold_against_kl(run: Run) -> Figure | None:
    """What each nat of distance from SFT has bought."""
    figure = Figure(figsize=(WIDTH, 4.4))
    axes = figure.subplots()
    if not draw_gold_against_kl(axes, run):
        return None
    arm_legend(figure, run)
    return figure


def win_bars(run: Run) -> Figure | None:
    """Shares of prompts won, tied and lost against SFT, a bar per arm and round."""
    rows: list[tuple[str, int, list[float]]] = []
    for arm in run.trained_arms:
        by_name = [by_round(run, name, arm) for name in SHARES]
        for r in range(1, run.last_round + 1):
            if all(r in summaries for summaries in by_name):
                rows.append((arm, r, [summaries[r].value for summaries in by_name]))
    if not rows:
        return None
    figure = Figure(figsize=(WIDTH, 1.1 + 0.27 * len(rows) + 0.12 * len(run.trained_arms)))
    axes = figure.subplots()
    ys: list[float] = []
    for place, (arm, _, parts) in enumerate(rows):
        is_new_arm = place > 0 and rows[place - 1][0] != arm
        ys.append((ys[-1] + 1 + 0.5 * is_new_arm) if ys else 0.0)
        _draw_bar(axes, ys[-1], parts, arm_colours(run)[arm])
    axes.set_yticks(ys, [f"{name_in_figure(arm)}, round {r}" for arm, r, _ in rows])
    axes.invert_yaxis()
    _finish_bars(figure, axes)
    return figure


def two_tasks(run: Run) -> Figure | None:
    """The same arms against SFT on the original task and on the new one, side by side."""
    if run.new_task is None:
        return None
    tasks = {"original task": run, "new task": run.new_task}
    arms = [arm for arm in run.trained_arms if run.cards_of(arm, run.final_round)]
    figure = Figure(figsize=(WIDTH, 1.4 + 0.32 * len(arms)))
    panels = figure.subplots(1, 2, sharey=True)
    for (title, task), axes in zip(tasks.items(), panels, strict=True):
        for place, arm in enumerate(arms):
            found = [summary_of(task, name, arm, run.final_round) for name in SHARES]
            parts = [summary.value for summary in found if summary is not None]
            if len(parts) == len(SHARES):
                _draw_bar(axes, place, parts, arm_colours(run)[arm])
        axes.set_title(f"{title}, round {run.final_round}")
    names = [name_in_figure(arm) for arm in arms]
    panels[0].set_yticks(range(len(names)), names)
    panels[0].invert_yaxis()
    _finish_bars(figure, *panels)
    return figure


def _draw_bar(axes: Axes, y: float, parts: list[float], arm_colour: str) -> None:
    """Won, tied and lost, one after the other."""
    left = 0.0
    for part, colour, ink in zip(parts, (arm_colour, TIE, LOSE), ("white", INK, INK), strict=True):
        axes.barh(y, part, left=left, color=colour, height=0.82, edgecolor="white")
        if part >= 0.06:
            axes.text(left + part / 2, y, f"{part:.0%}", ha="center", va="center",
                      color=ink, fontsize=8.5)  # fmt: skip
        left += part


def _finish_bars(figure: Figure, *panels: Axes) -> None:
    """Axes of shares, and what their colours mean."""
    for axes in panels:
        axes.set_xlim(0, 1)
        axes.axvline(0.5, color=INK, linewidth=0.8, linestyle=":")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        axes.set_xlabel("share of prompts")
        axes.grid(visible=False, axis="y")
        axes.tick_params(axis="y", length=0)
    handles = [
        Patch(color=INK, label="more gold than SFT (arm's colour)"),
        Patch(color=TIE, label="tie"),
        Patch(color=LOSE, label="less gold than SFT"),
    ]
    figure.legend(handles=handles, loc="outside upper left", ncols=3)
