# SPDX-License-Identifier: Apache-2.0
"""The page of a watch: what each look measured, against what would be an alarm."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from metarm.reports.drawing import GREY, INK, STYLE, WIDTH
from metarm.reports.rendering import fact_rows, page_environment, picture
from metarm.storage import write_text

__all__ = ["draw_looks", "write_watch_page"]

COLOURS: Final = {"fine": "#009E73", "look": "#E69F00", "adapt": "#D55E00", "stop": "#7A0019"}
MARKERS: Final = {"fine": "o", "look": "s", "adapt": "^", "stop": "X"}
LABELS: Final = {
    "spread": "spread of rewards, ratio",
    "reward": "rise of rewards, standard deviations",
    "shift": "shift of responses, MMD²",
    "disagreement": "disagreement of members, ratio",
    "length": "reward and length, rise",
}
UNMOVED: Final = {"spread": 1.0, "reward": 0.0, "shift": 0.0, "disagreement": 1.0, "length": 0.0}
LEAST_P: Final = 1e-6

LookRow = Mapping[str, Any]


def write_watch_page(
    runs: Mapping[str, Sequence[LookRow]], path: Path, facts: Mapping[str, Any]
) -> Path:
    """Write the page and return its path.

    Args:
        runs: The looks of each watch by its name, as `looks.jsonl` has them.
        path: Where to write.
        facts: Settings to show.

    Writes:
        `path`: no script, nothing loaded from elsewhere.
    """
    context = {
        "runs": [
            {
                "name": name,
                "state": looks[-1]["state"] if looks else "fine",
                "lead": _lead(looks),
                "picture": picture(draw_looks(looks)) if looks else None,
                "rows": [_row(look) for look in looks],
                "names": _test_names(looks),
            }
            for name, looks in runs.items()
        ],
        "facts": fact_rows(facts),
    }
    write_text(path, page_environment().get_template("watch.html.j2").render(context))
    return path


def draw_looks(looks: Sequence[LookRow]) -> Figure:
    """Effects, p-values beside their level, and KL, look by look."""
    names = _test_names(looks)
    panels: list[tuple[str, Callable[[Axes], None]]] = [
        (LABELS[name], partial(_draw_effect, looks, name)) for name in names
    ]
    panels.append(("p-values and their level", partial(_draw_p_values, looks, names)))
    if any(look["kl_nats"] is not None for look in looks):
        panels.append(("KL to the reference (nats)", partial(_draw_kl, looks)))
    columns = 3
    rows = -(-len(panels) // columns)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 0.5 + 2.3 * rows))
        grid = figure.subplots(rows, columns, squeeze=False)
        flat = list(grid.flat)
        for axes, (title, draw) in zip(flat, panels, strict=False):
            axes.set_title(title)
            axes.set_xlabel("step")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
            draw(axes)
        for axes in flat[len(panels) :]:
            axes.set_axis_off()
    return figure


def _test_names(looks: Sequence[LookRow]) -> list[str]:
    return [name for name in LABELS if any(name in look["tests"] for look in looks)]


def _points(axes: Axes, looks: Sequence[LookRow], values: Sequence[float | None]) -> None:
    steps = [look["step"] for look in looks]
    known = [(step, value) for step, value in zip(steps, values, strict=True) if value is not None]
    axes.plot([s for s, _ in known], [v for _, v in known], color=GREY, linewidth=1.2, zorder=1)
    for look, value in zip(looks, values, strict=True):
        if value is not None:
            state = look["state"]
            axes.plot(look["step"], value, MARKERS[state], color=COLOURS[state], zorder=2)


def _draw_effect(looks: Sequence[LookRow], name: str, axes: Axes) -> None:
    tests = [look["tests"].get(name) for look in looks]
    effects = [test and test["effect"] for test in tests]
    _points(axes, looks, [e if e is not None and math.isfinite(e) else None for e in effects])
    axes.axhline(UNMOVED[name], color=INK, linewidth=0.8, linestyle=(0, (4, 3)))


def _draw_p_values(looks: Sequence[LookRow], names: Sequence[str], axes: Axes) -> None:
    steps = [look["step"] for look in looks]
    for number, name in enumerate(names):
        tests = [look["tests"].get(name) for look in looks]
        values = [max(test["p_value"], LEAST_P) if test else math.nan for test in tests]
        colour = ("#0072B2", "#CC79A7", "#56B4E9", "#000000", "#A89500")[number]
        axes.plot(steps, values, marker=".", linewidth=1.1, color=colour, label=name)
    axes.plot(steps, [look["level"] for look in looks], color=INK, linestyle=":", label="level")
    axes.set_yscale("log")
    axes.legend(fontsize=8)


def _draw_kl(looks: Sequence[LookRow], axes: Axes) -> None:
    _points(axes, looks, [look["kl_nats"] for look in looks])


def _lead(looks: Sequence[LookRow]) -> str:
    if not looks:
        return "No look has been taken."
    first: dict[str, int] = {}
    for look in looks:
        first.setdefault(look["state"], look["step"])
    told = [f"{state} first at step {step}" for state, step in first.items() if state != "fine"]
    newest = looks[-1]
    said = ", ".join(told) or "nothing but fine so far"
    return f"{len(looks)} looks: {said}. At step {newest['step']}: {newest['state']}."


def _row(look: LookRow) -> dict[str, Any]:
    figures = {
        name: f"{test['effect']:.3g} (p = {test['p_value']:.2g})"
        for name, test in look["tests"].items()
        if test["effect"] is not None
    }
    kl = look["kl_nats"]
    return {
        "step": look["step"],
        "state": look["state"],
        "level": f"{look['level']:.2g}",
        "figures": figures,
        "kl": "-" if kl is None else f"{kl:.2f}",
        "reasons": "; ".join(look["reasons"]) or "-",
    }
