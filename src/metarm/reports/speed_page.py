# SPDX-License-Identifier: Apache-2.0
"""The page of `metarm bench`: where a step's time goes, and how near it is to the least."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import matplotlib
from matplotlib.figure import Figure

from metarm.reports.drawing import INK, STYLE, WIDTH
from metarm.reports.rendering import page_environment, picture
from metarm.reports.speed_tables import all_tables, case_table, equivalence_text
from metarm.speed.summary import LABELS, CaseSummary, MethodSummary, stacked_parts, summarise_case
from metarm.storage import write_text

__all__ = ["draw_parts", "headline", "write_speed_page"]

PARTS: Final = {
    "groups": ("J pass (groups)", "#0072B2"),
    "move": ("move and way back", "#CC79A7"),
    "pairs": ("L pass (pairs)", "#56B4E9"),
    "optimiser": ("optimiser", "#E69F00"),
    "rest": ("data and logging", "#8a8a8a"),
}
"""Name and colour of each part of a bar, from the bottom up."""


def write_speed_page(document: Mapping[str, Any], folder: Path) -> Path:
    """Write the page and return its path.

    Args:
        document: What `speed.json` holds.
        folder: Gets `speed.html`.

    Writes:
        `speed.html` in `folder`: no script, nothing loaded from elsewhere.
    """
    summaries = [summarise_case(found) for found in document["cases"]]
    num_lengths = sum(summary.case.kind == "lengths" for summary in summaries)
    both = list(zip(document["cases"], summaries, strict=True))
    context = {
        "points": [
            (summary.case.name, headline(summary))
            for summary in summaries
            if summary.case.kind == "lengths"
        ],
        "cases": [
            {
                "name": summary.case.name,
                "workload": summary.case.workload,
                "table": case_table(summary),
                "picture": picture(draw_parts(found, summary)),
                "equivalence": equivalence_text(found),
                "failures": [row for row in summary.rows if row.failure],
            }
            for found, summary in both
            if summary.case.kind == "lengths"
        ],
        "others": all_tables(document)[num_lengths:],
        "machine": {key: value for key, value in document["machine"].items() if value is not None},
        "facts": {key: document[key] for key in ("made", "command", "load_per_core")},
        "settings": document["settings"],
    }
    path = folder / "speed.html"
    write_text(path, page_environment().get_template("speed.html.j2").render(context))
    return path


def headline(summary: CaseSummary) -> str:
    """What a step costs over TRL's, in a sentence."""
    parts = []
    for method, words in (("plain", "plain training"), ("meta", "MetaRM")):
        row = summary.row(method)
        if row is None or row.to_trl is None:
            continue
        text = f"a step of {words} takes {row.to_trl.value:.2f} of TRL's without checkpointing"
        if row.to_default is not None:
            text += f", {row.to_default.value:.2f} of TRL's as it comes"
        parts.append(text)
    best = _fastest_peer(summary)
    own = summary.row("meta")
    if best and best.seconds and own and own.seconds:
        share = own.seconds.value / best.seconds.value
        parts.append(f"{share:.2f} of the fastest other MetaRM step ({LABELS[best.method]})")
    return "; ".join(parts) + "." if parts else "nothing to compare was measured."


def _fastest_peer(summary: CaseSummary) -> MethodSummary | None:
    """Of the other ways to make a meta step."""
    names = ("sam", "functional-call", "torchopt", "learn2learn")
    rows = [row for name in names if (row := summary.row(name)) is not None and row.seconds]
    return min(rows, key=lambda row: row.seconds.value if row.seconds else 0.0, default=None)


def draw_parts(found: Mapping[str, Any], summary: CaseSummary) -> Figure | None:
    """A bar for each change from the naive step on, in TRL steps, and the floor of each."""
    bars = stacked_parts(found)
    unit = summary.row("trl")
    if not bars or unit is None or unit.seconds is None:
        return None
    scale = unit.seconds.value
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.6))
        axes = figure.subplots()
        bottoms = [0.0] * len(bars)
        for part, (label, colour) in PARTS.items():
            heights = [bar.get(part, 0.0) / scale for bar in bars.values()]
            axes.bar(list(bars), heights, 0.55, bottom=bottoms, color=colour, label=label)
            bottoms = [low + height for low, height in zip(bottoms, heights, strict=True)]
        for place, height in enumerate(bottoms):
            axes.annotate(
                f"{height:.2f}", (place, height), (0, 3), textcoords="offset points", ha="center"
            )
        axes.axhline(1.0, color=INK, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        axes.annotate("TRL", (len(bars) - 0.62, 1.0), (0, 3), textcoords="offset points")
        _draw_floors(axes, summary, list(bars), scale)
        axes.set_xlim(-0.5, len(bars) - 0.3)
        axes.set_ylabel("TRL steps (no checkpointing)")
        axes.grid(visible=False, axis="x")
        handles, labels = axes.get_legend_handles_labels()
        figure.legend(handles[::-1], labels[::-1], loc="outside right upper")
        return figure


def _draw_floors(axes: Any, summary: CaseSummary, bars: Sequence[str], scale: float) -> None:
    """A line across each bar whose method has a floor."""
    of_bar = {
        "not shared": "meta-naive",
        "+ shared pairs": "meta",
        "+ meta_every=4": "meta-every-4",
    }
    label = "floor"
    for bar, method in of_bar.items():
        row = summary.row(method)
        if row is None or row.floor_seconds is None:
            continue
        place, height = bars.index(bar), row.floor_seconds / scale
        axes.plot(
            [place - 0.36, place + 0.36], [height, height], color="black", linewidth=2, label=label
        )
        label = "_"
