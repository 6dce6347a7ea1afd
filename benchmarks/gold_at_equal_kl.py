# SPDX-License-Identifier: Apache-2.0
"""Whether an arm helps the policy: gold at equal KL, the final gold, and the frontier of both.

    python benchmarks/gold_at_equal_kl.py runs/world-policy --output results/world_policy.json

Prints a table, and writes the same as JSON and the frontier as a PNG beside it. Gold along the way
is that of PPO's own batches (training prompts), final gold that of the evaluation (held-out
prompts). Differences are paired by seed, with Student's 95 % intervals.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from metarm.reports.comparisons import Summary, compare, summary_of
from metarm.reports.drawing import INK, STYLE, name_in_figure
from metarm.reports.equal_kl import (
    final_trajectory,
    gold_at,
    gold_at_kl_difference,
    kl_reached,
)
from metarm.reports.headline import basis
from metarm.reports.read_run import Run, read_run
from metarm.storage import write_json

COLOURS = mpl.colormaps["tab10"].colors  # type: ignore[attr-defined]
MARKS = "osD^vPX*<>"


def text_of(summary: Summary | None, *, sign: bool = False) -> str:
    return "-" if summary is None else summary.text(2, sign=sign)


def seeds_of(summary: Summary | None) -> int:
    """How many seeds are behind a number; with one, its interval is over prompts."""
    if summary is None:
        return 0
    return summary.count if summary.over == "seeds" else 1


def numbers_of(summary: Summary | None) -> dict[str, Any] | None:
    if summary is None:
        return None
    return {
        "value": summary.value,
        "interval": [summary.low, summary.high],
        "seeds": seeds_of(summary),
    }


def finished_arms(run: Run) -> list[str]:
    """Arms that every seed has finished: others would be compared on seeds of their own."""
    last = run.final_round
    return [arm for arm in run.trained_arms if len(run.cards_of(arm, last)) == len(run.seeds)]


def measure(run: Run, base: str, distances: Sequence[float]) -> dict[str, Any]:
    """Everything the table shows of each arm that is finished."""
    found: dict[str, Any] = {}
    for arm in finished_arms(run):
        last = run.final_round
        rows: dict[str, tuple[Summary | None, Summary | None]] = {
            "final": (
                summary_of(run, "gold_score", arm, last),
                None if arm == base else compare(run, "gold_score", arm, base, last),
            )
        }
        for distance in distances:
            rows[f"KL {distance:g}"] = (
                gold_at(run, arm, distance),
                None if arm == base else gold_at_kl_difference(run, arm, base, distance),
            )
        found[arm] = {
            "rows": rows,
            "kl": summary_of(run, "kl_nats", arm, last),
            "reached": [kl_reached(final_trajectory(run, arm, seed)) for seed in run.seeds],
        }
    return found


def print_table(run: Run, found: dict[str, Any], base: str) -> None:
    seeds = len(run.seeds)
    print(f"Round {run.final_round}; {basis(run)}")
    print(
        f"\n{'arm':20} {'gold at':9} {'gold':21} {'difference to ' + base:27} seeds that reach it"
    )
    for arm, values in found.items():
        for name, (own, gap) in values["rows"].items():
            is_told = gap is not None and seeds_of(gap) > 1 and gap.excludes_zero
            verdict = " *" if is_told else ""
            print(
                f"{arm:20} {name:9} {text_of(own):21} {text_of(gap, sign=True) + verdict:27} "
                f"{seeds_of(own)} of {seeds}"
            )
        print(f"{'':20} final KL {text_of(values['kl'])}")
    if waiting := [arm for arm in run.trained_arms if arm not in found]:
        print(f"\nLeft out, not finished in every seed: {', '.join(waiting)}")
    print("\n* the interval of the difference, over seeds, leaves out zero")


def draw_frontier(run: Run, found: dict[str, Any], path: Path) -> None:
    """Mean gold by KL, as far as all seeds go; marks with intervals: the final evaluation."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9.6, 5.2))
        axes = figure.subplots()
        handles = []
        for place, (arm, values) in enumerate(found.items()):
            colour = COLOURS[place % len(COLOURS)]
            grid = np.arange(0.1, max(values["reached"], default=0.0), 0.1)
            means = [gold_at(run, arm, float(kl)) for kl in grid]
            shown = [
                (kl, mean.value)
                for kl, mean in zip(grid, means, strict=True)
                if mean is not None and mean.count == len(run.seeds)
            ]
            if shown:
                axes.plot(*zip(*shown, strict=True), color=colour, linewidth=1.2)
            kl, gold = values["kl"], values["rows"]["final"][0]
            style: dict[str, Any] = {"color": colour, "marker": MARKS[place % len(MARKS)]}
            if kl is not None and gold is not None:
                axes.plot(kl.value, gold.value, markersize=9, zorder=3, **style)
                if gold.low is not None:
                    axes.vlines(kl.value, gold.low, gold.high, color=colour, alpha=0.5)
            handles.append(Line2D([], [], label=name_in_figure(arm), **style))
        axes.set_xlabel("KL to SFT (nats per response)")
        axes.set_ylabel("gold (true reward)")
        axes.set_title(
            "Lines: along the optimisation, mean over seeds. Marks: held-out prompts, 95 %"
        )
        figure.legend(handles=handles, loc="outside right upper", labelcolor=INK)
        figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--output", type=Path, required=True, help="JSON file")
    parser.add_argument("--base", default="plain")
    parser.add_argument("--kl", type=float, nargs="+", default=[0.5, 1.0, 2.0, 3.0])
    arguments = parser.parse_args()
    run = read_run(arguments.run)
    found = measure(run, arguments.base, arguments.kl)
    print_table(run, found, arguments.base)
    arms = {
        arm: {
            "final_kl": numbers_of(values["kl"]),
            "kl_reached": values["reached"],
            "gold": {
                name: {"own": numbers_of(own), "minus_base": numbers_of(gap)}
                for name, (own, gap) in values["rows"].items()
            },
        }
        for arm, values in found.items()
    }
    document = {"base": arguments.base, "round": run.final_round, "seeds": run.seeds, "arms": arms}
    write_json(arguments.output, document)
    draw_frontier(run, found, arguments.output.with_suffix(".png"))


if __name__ == "__main__":
    main()
