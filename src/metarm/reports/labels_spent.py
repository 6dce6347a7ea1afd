# SPDX-License-Identifier: Apache-2.0
"""What each label bought: gold, gold at equal KL and accuracy against labels spent, by arm."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from metarm.config import ARM_PRESETS, ArmSettings
from metarm.reports.comparisons import Summary, summarise, summary_of
from metarm.reports.drawing import WIDTH, draw_interval, name_in_figure, style_of
from metarm.reports.equal_kl import final_trajectory, gold_at, gold_at_kl_difference, kl_reached
from metarm.reports.read_run import Cell, Run
from metarm.schema import Estimate
from metarm.storage import STAGE_FILE, read_json

__all__ = [
    "Bought",
    "SpentRow",
    "common_kl",
    "draw_labels_spent",
    "labels_spent",
    "read_spent",
    "spent_rows",
]

KL_STEP = 0.25


@dataclass(frozen=True, slots=True)
class Bought:
    """The labels of one round of one arm and seed."""

    num_labels: int
    num_votes: int
    agreement: Estimate | None
    """Share of votes on random pairs that the reward model that began the round agrees with."""
    num_judged: int
    """Votes that this is of."""


class SpentRow(NamedTuple):
    """One arm in the table: what it asked, what it spent, what came of it."""

    arm: str
    asked: str
    labels: str
    accuracy: str
    gold: str
    gold_at_kl: str
    gold_at_kl_difference: str
    estimate: str
    """Accuracy of the reward model that began the last round, from random pairs alone."""


def read_spent(run: Run) -> dict[Cell, Bought]:
    """The labels that each round bought; rounds without labels are not there."""
    found = {}
    for place, name in (("labels", "num_votes"), ("samples", "num_labels")):
        for path in sorted(run.folder.glob(f"seed_*/arms/*/round_*/{place}/{STAGE_FILE}")):
            seed, _, arm, number = path.relative_to(run.folder).parts[:4]
            cell = Cell(arm, int(seed.rpartition("_")[2]), int(number.rpartition("_")[2]))
            told = read_json(path).get("metrics", {})
            if not told.get("num_labels"):
                continue
            agreed = told.get("agreement_with_votes")
            found[cell] = Bought(
                told["num_labels"],
                told[name],
                Estimate(**agreed["share"]) if agreed else None,
                agreed["num_votes"] if agreed else 0,
            )
    return found


def labels_spent(run: Run, bought: Mapping[Cell, Bought], arm: str) -> dict[int, int]:
    """Votes that an arm had bought when its final round ended, by seed."""
    last = run.final_round
    return {
        seed: sum(
            one.num_votes
            for cell, one in bought.items()
            if (cell.arm, cell.seed) == (arm, seed) and cell.round <= last
        )
        for seed in run.cards_of(arm, last)
    }


def _compared_arms(run: Run, bought: Mapping[Cell, Bought]) -> tuple[str, ...]:
    """The arms that bought labels and reached the final round, and the one without that is base."""
    arms = {cell.arm for cell in bought}
    reached = [arm for arm in run.trained_arms if run.cards_of(arm, run.final_round)]
    return tuple(arm for arm in reached if arm in arms or arm == run.baseline)


def common_kl(run: Run, arms: tuple[str, ...]) -> float | None:
    """The KL at which these arms are compared, in nats; None where there is none.

    The largest multiple of a quarter that half of the seeds of every arm reach.
    """
    medians = []
    for arm in arms:
        ways = [final_trajectory(run, arm, seed) for seed in run.seeds]
        medians.append(statistics.median([kl_reached(way) for way in ways if way] or [0.0]))
    shared = math.floor(min(medians, default=0.0) / KL_STEP) * KL_STEP
    return shared or None


def _settings_of(run: Run, arm: str) -> ArmSettings | None:
    known = {**ARM_PRESETS, **(run.settings.custom_arms if run.settings else {})}
    return known.get(arm)


def _asked(settings: ArmSettings | None) -> str:
    """Who is asked about what, in words; empty where it is not known."""
    if settings is None or not (settings.labels_per_round or settings.num_gold_labels):
        return ""
    count = settings.labels_per_round or settings.num_gold_labels
    whose = ", on SFT's pairs" if settings.labels_on == "original" else ""
    return f"{count} a round by {settings.labels_from}, {settings.labels_choice}{whose}"


def spent_rows(run: Run) -> tuple[list[SpentRow], float | None]:
    """A row for each arm that bought labels and for the base, and the KL of equal distance."""
    bought = read_spent(run)
    if not bought:
        return [], None
    arms, last, base = _compared_arms(run, bought), run.final_round, str(run.baseline)
    kl = common_kl(run, arms)
    rows = []
    for arm in arms:
        spent = list(labels_spent(run, bought, arm).values())
        is_base = arm == base
        at_kl = gold_at(run, arm, kl) if kl else None
        gap_at_kl = gold_at_kl_difference(run, arm, base, kl) if kl and not is_base else None
        rows.append(
            SpentRow(
                arm=arm,
                asked=_asked(_settings_of(run, arm)) or "no labels",
                labels=f"{statistics.fmean(spent):.0f}" if spent else "0",
                accuracy=_text(summary_of(run, "accuracy_shifted", arm, last)),
                gold=_text(summary_of(run, "gold_score", arm, last)),
                gold_at_kl=_text(at_kl),
                gold_at_kl_difference=_text(gap_at_kl, sign=True),
                estimate=_estimate_text(run, bought, arm),
            )
        )
    return rows, kl


def _text(summary: Summary | None, *, sign: bool = False) -> str:
    return "" if summary is None else summary.text(2, sign=sign)


def _estimate_text(run: Run, bought: Mapping[Cell, Bought], arm: str) -> str:
    """What the labels on random pairs say of the reward model that began the final round."""
    cells = [Cell(arm, seed, run.final_round) for seed in run.seeds]
    known = {cell.seed: bought[cell] for cell in cells if cell in bought}
    told = summarise({seed: one.agreement for seed, one in known.items()})
    if told is None:
        return ""
    num_votes = sum(one.num_judged for one in known.values())
    return f"{told.text(2)} of {num_votes} votes on random pairs"


def draw_labels_spent(run: Run) -> Figure | None:
    """Accuracy, gold at equal KL and final gold against the labels that an arm spent."""
    bought = read_spent(run)
    arms = _compared_arms(run, bought)
    if not bought or not arms:
        return None
    kl, last = common_kl(run, arms), run.final_round
    panels: dict[str, Callable[[str], Summary | None]] = {
        "accuracy on the policy's own pairs": lambda arm: summary_of(
            run, "accuracy_shifted", arm, last
        ),
        "final gold": lambda arm: summary_of(run, "gold_score", arm, last),
    }
    if kl:
        panels[f"gold at {kl:g} nats"] = lambda arm: gold_at(run, arm, kl)
    figure = Figure(figsize=(WIDTH, 3.7))
    spent = {arm: statistics.fmean(labels_spent(run, bought, arm).values() or [0]) for arm in arms}
    families = _families(run, arms, spent)
    styles = _styles(run, families)
    for axes, (title, value_of) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True
    ):
        _draw_panel(axes, families, styles, {arm: value_of(arm) for arm in arms}, spent)
        axes.set_title(title)
        axes.set_xlabel("labels spent")
    handles = [
        Line2D([], [], label=_family_name(family), **style)
        for family, style in zip(families, styles, strict=True)
    ]
    figure.legend(handles=handles, loc="outside upper left", ncols=min(5, len(handles)))
    return figure


def _families(run: Run, arms: Sequence[str], spent: Mapping[str, float]) -> list[list[str]]:
    """Arms that differ in how many labels alone, together, the fewest labels first."""
    found: dict[str, list[str]] = {}
    for arm in arms:
        settings = _settings_of(run, arm)
        alike = settings and settings.model_copy(update=dict.fromkeys(_COUNTS, 0))
        found.setdefault(str(alike) if settings and spent[arm] else arm, []).append(arm)
    return [sorted(family, key=lambda arm: spent[arm]) for family in found.values()]


def _styles(run: Run, families: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
    """Of each family the look of one of its arms, in a colour that no family before has."""
    found: list[dict[str, Any]] = []
    for family in families:
        used = {style["color"] for style in found}
        own = [style_of(run, arm) for arm in family]
        found.append(next((style for style in own if style["color"] not in used), own[0]))
    return found


def _family_name(family: Sequence[str]) -> str:
    """`random-25, 50, 100`: what the names have in common is said once."""
    heads = {arm.rpartition("-")[0] for arm in family}
    is_shared = len(heads) == 1 and heads != {""}
    more = (arm.rpartition("-")[2] if is_shared else arm for arm in family[1:])
    return ", ".join(map(name_in_figure, (family[0], *more)))


def _draw_panel(
    axes: Axes,
    families: Sequence[Sequence[str]],
    styles: Sequence[Mapping[str, Any]],
    values: Mapping[str, Summary | None],
    spent: Mapping[str, float],
) -> None:
    """A mark for each arm; a family's have one look and are joined."""
    width = max([*spent.values(), 1.0])
    axes.set_xlim(-0.06 * width, 1.12 * width)
    for place, (family, style) in enumerate(zip(families, styles, strict=True)):
        # Dodged sideways, so that arms of one budget stay readable.
        aside = 0.018 * width * (place - (len(families) - 1) / 2)
        points = [
            (spent[arm] + aside * (spent[arm] > 0), summary)
            for arm in family
            if (summary := values[arm]) is not None
        ]
        axes.plot(
            [x for x, _ in points],
            [summary.value for _, summary in points],
            alpha=0.5,
            linewidth=1.2,
            color=style["color"],
        )
        for x, summary in points:
            draw_interval(axes, x, summary, style["color"])
            axes.plot([x], [summary.value], linestyle="", zorder=3, **style)


_COUNTS = ("labels_per_round", "num_gold_labels")
