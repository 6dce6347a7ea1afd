# SPDX-License-Identifier: Apache-2.0
"""What labels in the loop bought: gold and accuracy on the policy's own pairs against labels spent.

    metarm run --config benchmarks/world_labels.yaml --output runs/world-labels
    python benchmarks/labels_spent.py runs/world-labels --output results/world_labels.json

Prints a table, and writes the same as JSON and the page's figure as a PNG beside it. Arms that not
every seed has finished are left out. Differences are paired by seed, with Student's 95 % intervals.
"""

import argparse
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib as mpl

from metarm.reports.comparisons import Summary, compare, summary_of
from metarm.reports.drawing import STYLE
from metarm.reports.equal_kl import gold_at, gold_at_kl_difference
from metarm.reports.headline import basis
from metarm.reports.labels_spent import draw_labels_spent, labels_spent, read_spent
from metarm.reports.read_run import Run, read_run
from metarm.storage import write_json

Gap = Callable[[str, str], Summary | None]


def finished(run: Run, seeds: Sequence[int] | None) -> Run:
    """The run with the given seeds alone, and with the arms that all of them have finished."""
    wanted = set(seeds or run.seeds)
    cards = {cell: card for cell, card in run.cards.items() if cell.seed in wanted}
    run = replace(run, cards=cards)
    whole = [
        arm
        for arm in run.arms
        if arm == run.start_arm or len(run.cards_of(arm, run.final_round)) == len(wanted)
    ]
    kept = {cell: card for cell, card in cards.items() if cell.arm in whole}
    return replace(run, arms=tuple(whole), cards=kept)


def measure(run: Run, bases: Sequence[str], distances: Sequence[float]) -> dict[str, Any]:
    """Each arm's labels, values, and differences to each base."""
    last, bought = run.final_round, read_spent(run)
    values: dict[str, tuple[Callable[[str], Summary | None], Gap]] = {
        "accuracy_own_pairs": (
            lambda arm: summary_of(run, "accuracy_shifted", arm, last),
            lambda arm, base: compare(run, "accuracy_shifted", arm, base, last),
        ),
        "accuracy_before": (
            lambda arm: summary_of(run, "accuracy_before", arm, last),
            lambda arm, base: compare(run, "accuracy_before", arm, base, last),
        ),
        "gold_final": (
            lambda arm: summary_of(run, "gold_score", arm, last),
            lambda arm, base: compare(run, "gold_score", arm, base, last),
        ),
        "kl_final": (
            lambda arm: summary_of(run, "kl_nats", arm, last),
            lambda arm, base: compare(run, "kl_nats", arm, base, last),
        ),
    }
    for kl in distances:
        values[f"gold_at_{kl:g}"] = (
            lambda arm, kl=kl: gold_at(run, arm, kl),
            lambda arm, base, kl=kl: gold_at_kl_difference(run, arm, base, kl),
        )
    found: dict[str, Any] = {}
    for arm in run.trained_arms:
        spent = labels_spent(run, bought, arm).values()
        rows = {
            name: {
                "own": numbers_of(own(arm)),
                **{
                    f"minus_{base}": numbers_of(gap(arm, base))
                    for base in bases
                    if base != arm and base in run.trained_arms
                },
            }
            for name, (own, gap) in values.items()
        }
        found[arm] = {"labels_spent": statistics.fmean(spent), **rows}
    return found


def numbers_of(summary: Summary | None) -> dict[str, Any] | None:
    if summary is None:
        return None
    seeds = summary.count if summary.over == "seeds" else 1
    return {"value": summary.value, "interval": [summary.low, summary.high], "seeds": seeds}


def text_of(numbers: dict[str, Any] | None, *, sign: bool = False) -> str:
    if numbers is None:
        return "-"
    style = "+.3f" if sign else ".3f"
    low, high = numbers["interval"]
    text = format(numbers["value"], style)
    if low is None:
        return text
    mark = " *" if sign and numbers["seeds"] > 1 and not low <= 0 <= high else ""
    return f"{text} [{low:{style}}, {high:{style}}]{mark}"


def print_table(run: Run, found: dict[str, Any], bases: Sequence[str]) -> None:
    print(f"Round {run.final_round}; {basis(run)}\n")
    for arm, rows in found.items():
        print(f"{arm}: {rows['labels_spent']:.0f} labels")
        for name, row in rows.items():
            if name == "labels_spent":
                continue
            gaps = [
                f"minus {base} {text_of(row[f'minus_{base}'], sign=True)}"
                for base in bases
                if f"minus_{base}" in row
            ]
            seeds = row["own"]["seeds"] if row["own"] else 0
            print(f"  {name:20} {text_of(row['own']):24} {'; '.join(gaps)} ({seeds} seeds)")
    print("\n* the interval of the difference, over seeds, leaves out zero")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--output", type=Path, required=True, help="JSON file")
    parser.add_argument("--base", nargs="+", default=["plain", "random-50"])
    parser.add_argument("--kl", type=float, nargs="+", default=[0.5, 1.0])
    parser.add_argument("--seeds", type=int, nargs="+", help="default: all")
    arguments = parser.parse_args()
    run = finished(read_run(arguments.run), arguments.seeds)
    found = measure(run, arguments.base, arguments.kl)
    print_table(run, found, arguments.base)
    document = {"round": run.final_round, "seeds": list(run.seeds), "arms": found}
    write_json(arguments.output, document)
    with mpl.rc_context(STYLE):
        figure = draw_labels_spent(run)
        if figure is not None:
            figure.savefig(arguments.output.with_suffix(".png"), dpi=110)


if __name__ == "__main__":
    main()
