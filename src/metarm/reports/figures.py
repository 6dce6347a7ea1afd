# SPDX-License-Identifier: Apache-2.0
"""The figures of a page, and the picture of a run for a README."""

import io
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from metarm.errors import RunError
from metarm.reports.comparisons import by_round, summary_of
from metarm.reports.drawing import STYLE, WIDTH, arm_legend, draw_rounds
from metarm.reports.labels_spent import draw_labels_spent
from metarm.reports.measures import MEASURES
from metarm.reports.panels import (
    draw_gold_against_kl,
    gold_against_kl,
    histograms,
    saw_tooth,
    two_tasks,
    win_bars,
)
from metarm.reports.read_run import Run, read_run

__all__ = ["Drawn", "draw_figures", "headline_figure", "write_picture"]


@dataclass(frozen=True, slots=True)
class Drawn:
    """One finished figure with the words around it."""

    title: str
    caption: str
    alt: str
    svg: bytes


@dataclass(frozen=True, slots=True)
class _Plan:
    """One figure to draw: its words, its builder, and the measures its alternative text tells."""

    title: str
    caption: str
    build: Callable[[Run], Figure | None]
    told: tuple[str, ...]
    with_gold: bool | None = None
    """Drawn only where the run has a gold function (True), only where not (False), or always."""
    follows_optimisation: bool = False
    """Whether it is of the prompts that policies are optimised on: a new task's, where one is."""


def draw_figures(run: Run) -> list[Drawn]:
    """The figures the run has data for, in the order of the page."""
    drawn = []
    with matplotlib.rc_context(STYLE):
        for plan in _PLANS:
            is_wanted = plan.with_gold is None or plan.with_gold == run.has_gold
            figure = plan.build(run) if is_wanted else None
            if figure is not None:
                stream = io.BytesIO()
                figure.savefig(stream, format="svg", metadata={"Date": None})
                shown, caption = run, plan.caption
                if plan.follows_optimisation and run.new_task is not None:
                    shown = run.new_task
                    caption += " All of it on the new task, which the policies were optimised on."
                alt = f"{plan.title}. {_numbers(shown, plan.told)}".strip()
                drawn.append(Drawn(plan.title, caption, alt, stream.getvalue()))
    return drawn


def headline_figure(run: Run) -> Figure:
    """Three panels for a README: accuracy, gap spread, gold against KL (or their stand-ins)."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(12, 4.5))
        panels = figure.subplots(1, 3)
        if run.has_gold:
            draw_rounds(panels[0], run, "accuracy_shifted", floor=0.5)
            draw_rounds(panels[1], run, "gap_spread_ratio", floor=1.0)
            draw_gold_against_kl(panels[2], run)
            panels[2].set_title("Gold score against KL")
        else:
            for axes, name in zip(
                panels, ("gap_spread_ratio", "kl_nats", "rank_correlation_plain"), strict=True
            ):
                draw_rounds(axes, run, name)
        arm_legend(figure, run)
    return figure


def write_picture(run_dir: Path, path: Path) -> Path:
    """Save the headline figure of a run as a PNG of 1200 x 450 pixels.

    Raises:
        EmptySetError: When the run has no scorecard yet.
        RunError: When the place cannot be written.
    """
    figure = headline_figure(read_run(run_dir))
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with matplotlib.rc_context(STYLE):
            figure.savefig(temporary, format="png", dpi=100)
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise RunError(f"cannot write {path}: {error.strerror}. Choose another place.") from error
    return path


def _numbers(run: Run, names: Iterable[str]) -> str:
    """The last round's values in words, for those who do not see the figure."""
    sentences = []
    for name in names:
        values = [
            f"{arm} {summary.value:.{MEASURES[name].decimals}f}"
            for arm in run.trained_arms
            if (summary := summary_of(run, name, arm, run.final_round)) is not None
        ]
        if values:
            sentences.append(
                f"{MEASURES[name].label} after round {run.final_round}: {', '.join(values)}."
            )
    return " ".join(sentences)


def _by_round(
    *wanted: tuple[str, float | None], share_y: bool = False
) -> Callable[[Run], Figure | None]:
    """A builder of one panel for each measure that the run has, with a dashed line at a level."""

    def build(run: Run) -> Figure | None:
        present = [row for row in wanted if any(by_round(run, row[0], a) for a in run.arms)]
        if not present or not run.trained_arms:
            return None
        figure = Figure(figsize=(WIDTH, 3.5))
        panels = figure.subplots(1, max(2, len(present)), squeeze=False, sharey=share_y)[0]
        for axes, (name, floor) in zip(panels, present, strict=False):
            draw_rounds(axes, run, name, floor)
        for axes in panels[len(present) :]:
            axes.set_axis_off()
        arm_legend(figure, run)
        return figure

    return build


_PLANS = (
    _Plan(
        "Reward differences on the policy's own responses",
        "Differences between the scores of two responses to one prompt, in units of the same "
        "reward model's spread on SFT's responses. A distribution that draws together around "
        "zero means that the reward model tells the policy's responses apart less and less.",
        histograms,
        ("gap_spread_ratio",),
    ),
    _Plan(
        "Gap spread and distance from SFT",
        "Left: the width of the distributions above; the dashed line at 1 is the spread on SFT's "
        "responses. Right: how far the policy has moved.",
        _by_round(("gap_spread_ratio", 1.0), ("kl_nats", None)),
        ("gap_spread_ratio", "kl_nats"),
    ),
    _Plan(
        "Accuracy before and after each round",
        "Accuracy of the round's reward model against gold, on pairs of the policy's own "
        "responses. A line that slopes down is what optimisation took; a vertical jump up at a "
        "round is what retraining the reward model gave back.",
        saw_tooth,
        ("accuracy_before", "accuracy_shifted", "accuracy_first"),
        with_gold=True,
    ),
    _Plan(
        "Accuracy on original and on own pairs",
        "The same reward models on held-out original pairs and on the policy's own pairs. "
        "A reward model can keep the first and lose the second. Original labels may be noisy "
        "while gold is exact, so the two levels are not comparable, only their courses.",
        _by_round(("accuracy_original", 0.5), ("accuracy_shifted", 0.5), share_y=True),
        ("accuracy_original", "accuracy_shifted"),
        with_gold=True,
    ),
    _Plan(
        "Gold against KL",
        "Thin lines: the optimisation's own figures, mean over seeds, smoothed over an eighth of "
        "a round's iterations. Marks: the evaluation at each round's end; the larger, the later. "
        "Compare arms at equal KL: an arm that lies higher bought its distance better.",
        gold_against_kl,
        ("kl_nats", "gold_score"),
        with_gold=True,
        follows_optimisation=True,
    ),
    _Plan(
        "What the labels bought",
        "Each mark is an arm, at the labels that it had spent when its last round ended. Lines "
        "join arms that differ in how many labels alone. At equal KL how far a policy went plays "
        "no part. The table below has the numbers.",
        draw_labels_spent,
        ("accuracy_shifted", "gold_score"),
        with_gold=True,
    ),
    _Plan(
        "Proxy and gold",
        "What the policy was trained to raise, and what it was meant to raise. Each arm's proxy "
        "is its own reward model, so only the course of the left panel counts.",
        _by_round(("proxy_score", 0.0), ("gold_score", None)),
        ("proxy_score", "gold_score"),
        with_gold=True,
    ),
    _Plan(
        "Accuracy on original pairs, and the proxy",
        "Left: held-out original pairs; a reward model can keep these and lose the policy's own "
        "pairs. Right: what the policy was trained to raise; each arm's proxy is its own reward "
        "model, so only its course counts.",
        _by_round(("accuracy_original", 0.5), ("proxy_score", 0.0)),
        ("accuracy_original", "proxy_score"),
        with_gold=False,
    ),
    _Plan(
        "Wins, ties and losses against SFT",
        "Which of two responses to the same prompt has more gold: the policy's or SFT's. "
        "The dotted line is one half.",
        win_bars,
        ("win_fraction", "tie_fraction", "lose_fraction"),
        with_gold=True,
    ),
    _Plan(
        "The original task and the new one",
        "The same policies against SFT, on prompts of the task that the original pairs are about "
        "and on those of the new task, which the policies were optimised on and nobody has "
        "labelled. The table of the new task has the numbers.",
        two_tasks,
        (),
        with_gold=True,
    ),
    _Plan(
        "Two warnings that need no labels",
        "Left: whether the reward model still orders the policy's responses as the first one "
        "does; a steep fall can mean that the reward has turned round. Right: a policy that only "
        "grows longer often games its reward model.",
        _by_round(("rank_correlation_plain", None), ("response_tokens", None)),
        ("rank_correlation_plain", "response_tokens"),
    ),
)
"""In the order of the page."""
