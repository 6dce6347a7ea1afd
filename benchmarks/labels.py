# SPDX-License-Identifier: Apache-2.0
"""What labels of the shifted side buy, chosen or random, with and without the meta step.

    metarm compare --config benchmarks/labels.yaml backbone=MODEL sources.alpaca.data=alpaca.jsonl
    python benchmarks/labels.py keep runs/labels
    python benchmarks/labels.py draw
    python benchmarks/labels.py write

`keep` takes the finished splits of the comparison into benchmarks/results/labels.json; `draw` makes
its figure; `write` puts the tables into docs/choosing.md.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
from page_tables import points, with_tables

from metarm.bench.recipes import read_recipe
from metarm.bench.results import Cell, clustered_difference, clustered_mean
from metarm.bench.settings import CompareSettings
from metarm.bench.summary import format_labels, labels_worth
from metarm.config_file import read_settings
from metarm.metrics import mean_estimate
from metarm.schema import Estimate

REPOSITORY: Final = Path(__file__).resolve().parents[1]
PAGE: Final = REPOSITORY / "docs" / "choosing.md"
RESULTS: Final = REPOSITORY / "benchmarks" / "results"
ASKED: Final = REPOSITORY / "benchmarks" / "labels.yaml"
SHIFT: Final = "alpaca"
STEP: Final = "joint-auto"


def read_cells(folder: Path) -> dict[str, list[Cell]]:
    """Cells by method, of the splits on which all of them are finished."""
    methods = read_settings(ASKED, [], CompareSettings).methods
    found: dict[int, dict[str, Cell]] = {}
    for path in sorted((folder / SHIFT).glob("seed_*/*/cell.json")):
        cell = Cell.from_json(json.loads(path.read_text(encoding="utf-8")))
        found.setdefault(cell.seed, {})[cell.method] = cell
    whole = [cells for _, cells in sorted(found.items()) if set(methods) <= set(cells)]
    return {method: [cells[method] for cells in whole] for method in methods}


def name(num_labels: int, choice: str, *, has_step: bool) -> str:
    """The method of the bench that these are."""
    parts = [STEP] if has_step else []
    if num_labels:
        parts.append(f"{num_labels}-labels")
        parts += [choice] if choice != "random" else []
    return "+".join(parts) or "plain"


def change(ours: list[Cell], theirs: list[Cell]) -> dict[str, Any]:
    """In accuracy on shifted pairs: at best steps, clustered, and over all steps, by split."""
    best = clustered_difference(*([cell.shifted for cell in cells] for cells in (ours, theirs)))
    gaps = [
        sum(a[3] - b[3] for a, b in zip(one.curve, other.curve, strict=True)) / len(one.curve)
        for one, other in zip(ours, theirs, strict=True)
    ]
    return {"best": rounded(best), "all_steps": rounded(mean_estimate(gaps))}


def rounded(estimate: Estimate) -> dict[str, float]:
    """For a file that people read too."""
    return {key: round(value, 5) for key, value in asdict(estimate).items()}


def keep(folder: Path) -> None:
    """Accuracies, and what each choice changes, of all methods of the comparison."""
    cells = read_cells(folder)
    rows = []
    for method, own in cells.items():
        recipe = read_recipe(method)
        has_step = recipe.step != "off"
        at_random = name(recipe.num_labels, "random", has_step=has_step)
        without = name(recipe.num_labels, recipe.label_choice, has_step=False)
        rows.append(
            {
                "method": method,
                "labels": recipe.num_labels,
                "choice": recipe.label_choice,
                "has_step": has_step,
                "shifted": rounded(clustered_mean([cell.shifted for cell in own])),
                "original": rounded(clustered_mean([cell.original for cell in own])),
                "against_plain": change(own, cells["plain"]),
                "against_random": change(own, cells[at_random]),
                "against_no_step": change(own, cells[without]),
            }
        )
    document = {
        "shift": SHIFT,
        "seeds": [cell.seed for cell in cells["plain"]],
        "rows": sorted(rows, key=lambda row: (row["has_step"], row["labels"], row["choice"])),
    }
    document["worth"] = {key: worths(document["rows"], key) for key in ("best", "all_steps")}
    path = RESULTS / "labels.json"
    path.write_text(f"{json.dumps(document, indent=1)}\n", encoding="utf-8")


def worths(rows: list[dict[str, Any]], key: str) -> dict[str, str]:
    """Random labels without the step that would gain as much as each method, with its interval."""
    gains = {
        row["labels"]: row["against_plain"][key]["value"]
        for row in rows
        if row["labels"] and row["choice"] == "random" and not row["has_step"]
    }
    found = {}
    for row in rows:
        own = row["against_plain"][key]
        texts = [
            format_labels(labels_worth(own[part], gains), max(gains))
            for part in ("value", "low", "high")
        ]
        found[row["method"]] = f"{texts[0]} [{texts[1]}, {texts[2]}]"
    return found


def table(document: dict[str, Any]) -> str:
    """A row a method: how good, what choice and step change, what both are worth."""
    lines = [
        "| labels | chosen | meta step | shifted | against plain, all steps | against random "
        "| against no step | worth random labels: best steps | all steps |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in document["rows"]:
        method = row["method"]
        is_chosen = row["choice"] != "random"
        cells = (
            str(row["labels"]),
            (f"`{row['choice']}`" if row["labels"] else ""),
            "default" if row["has_step"] else "",
            f"{row['shifted']['value']:.3f}",
            points(row["against_plain"]["all_steps"]) if method != "plain" else "",
            points(row["against_random"]["all_steps"]) if is_chosen else "",
            points(row["against_no_step"]["all_steps"]) if row["has_step"] else "",
            document["worth"]["best"][method] if method != "plain" else "",
            document["worth"]["all_steps"][method] if method != "plain" else "",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def render(page: str, document: dict[str, Any]) -> str:
    """The page with its table made anew."""
    return with_tables(page, {"labels: table": table(document)})


def draw(document: dict[str, Any]) -> None:
    """Accuracy on shifted pairs against number of labels."""
    mpl.use("svg")
    import matplotlib.pyplot as plt

    mpl.rcParams["svg.hashsalt"] = "labels"
    figure, axis = plt.subplots(figsize=(7.6, 3.6))
    styles = {"random": ("-", "o"), "mix": ("--", "s"), "d-optimal": (":", "^")}
    counts = sorted({row["labels"] for row in document["rows"]})
    for has_step, colour in ((False, "tab:gray"), (True, "tab:red")):
        start = [r for r in document["rows"] if not r["labels"] and r["has_step"] == has_step]
        for choice, (line, mark) in styles.items():
            own = start + [
                row
                for row in document["rows"]
                if row["labels"] and row["choice"] == choice and row["has_step"] == has_step
            ]
            if len(own) < 2:
                continue
            places = [counts.index(row["labels"]) for row in own]
            values = [row["shifted"]["value"] for row in own]
            label = f"{choice}, {'default step' if has_step else 'no step'}"
            axis.plot(places, values, line, marker=mark, ms=4, color=colour, label=label)
    axis.set_xticks(range(len(counts)), [str(count) for count in counts])
    axis.set_xlabel("labelled shifted pairs")
    axis.set_ylabel("accuracy on shifted pairs")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.tight_layout()
    figure.savefig(RESULTS / "labels.svg", metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("keep").add_argument("folder", type=Path)
    verbs.add_parser("draw")
    verbs.add_parser("write")
    arguments = parser.parse_args()
    if arguments.verb == "keep":
        keep(arguments.folder)
        return
    document = json.loads((RESULTS / "labels.json").read_text(encoding="utf-8"))
    if arguments.verb == "draw":
        draw(document)
    else:
        PAGE.write_text(render(PAGE.read_text(encoding="utf-8"), document), "utf-8")


if __name__ == "__main__":
    main()
