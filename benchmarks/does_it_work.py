# SPDX-License-Identifier: Apache-2.0
"""The tables of docs/does-it-work.md and stretching.md, from the results of `metarm compare`.

    python benchmarks/does_it_work.py --keep runs/alpaca-20/compare.json alpaca_20
    python benchmarks/does_it_work.py --write

The first takes a comparison's results into `benchmarks/results/NAME.json`. The second puts a
table of each into its page, between `<!-- table: NAME SHIFT -->` and `<!-- end -->`, one of what
choices about the meta step cost after `<!-- choices: NAME SHIFT -->`, one with passes instead of
labels after `<!-- costs: NAME SHIFT -->`, and one of what each combination adds to the method that
it begins with after `<!-- parts: NAME SHIFT -->`; without `--write` it says whether the pages are
as the results are, which a test asks too.
"""

import argparse
import json
import re
from collections.abc import Callable, Collection
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from page_tables import points

from metarm.bench.results import Cell, clustered_difference
from metarm.metrics import mean_estimate

REPOSITORY = Path(__file__).resolve().parents[1]
RESULTS = REPOSITORY / "benchmarks" / "results"
PAGES = tuple(REPOSITORY / "docs" / name for name in ("does-it-work.md", "stretching.md"))
BLOCK = re.compile(r"<!-- (table|choices|costs|parts): (\w+) (\w+) -->\n.*?<!-- end -->", re.DOTALL)
CHOICE = re.compile(
    r"(every|stored)-\d+|quarter-groups|head-only|exact|finite-difference|plain-again"
)
"""Parts of a name that leave it the same method, computed otherwise or from another seed."""
CHOICES_HEADER = (
    "| method | passes, of plain's | shifted, against plain | against the method itself: shifted "
    "| shifted, all steps | original |\n|---|---|---|---|---|---|"
)
COSTS_HEADER = (
    "| method | passes, of plain's | original | shifted | length-balanced | worst split "
    "| shifted, all steps |\n|---|---|---|---|---|---|---|"
)
PARTS_HEADER = "| method | minus | shifted, all steps |\n|---|---|---|"
HEADER = (
    "| method | original | shifted | length-balanced | worst split | of the oracle's gain "
    "| worth labels | rank correlation | shifted, all steps | worst split |\n"
    "|---|---|---|---|---|---|---|---|---|---|"
)


def number(value: float | None, pattern: str, scale: float = 1.0) -> str:
    """A number, or a dash where there is none."""
    return "-" if value is None else format(scale * value, pattern)


def table(kept: dict[str, Any], shift: str) -> str:
    """A Markdown table of one shift; the first row gives plain training's own accuracies."""
    rows = []
    at_all_steps = {(row["shift"], row["method"]): row for row in kept["over_training"]}
    for row in (row for row in kept["summaries"] if row["shift"] == shift):
        if row["method"] == "plain":
            shifted = row["shifted"]
            rows.append(
                f"| `plain` | {row['original']['value']:.3f} | "
                f"{shifted['value']:.3f} | {row['length_balanced']:.3f} | | | | | | |"
                if shifted
                else f"| `plain` | {row['original']['value']:.3f} | - | - | | | | | | |"
            )
            continue
        cells = (
            f"`{row['method']}`",
            points(row["original_change"], "-"),
            points(row["shifted_change"], "-"),
            number(row["length_balanced_change"], "+.1f", 100),
            number(row["worst_change"], "+.1f", 100),
            number(row["gap_recovered"], ".0f", 100) + " %" if row["gap_recovered"] else "-",
            row["label_equivalent"] or "-",
            number(row["rank_correlation"], ".2f"),
            points(over := at_all_steps.get((shift, row["method"])), "-"),
            number(min(over["splits"]), "+.1f", 100) if over else "-",
        )
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join([HEADER, *rows])


def without_choices(method: str) -> str:
    """The method that a name's choices are about: `joint` of `joint+stored-4`."""
    parts = [part for part in method.split("+") if not CHOICE.fullmatch(part)]
    return "+".join(parts) or "plain"


def choices_table(kept: dict[str, Any], shift: str) -> str:
    """A Markdown table of one shift: each method, then what its choices change."""
    own = {row["method"]: row for row in kept["summaries"] if row["shift"] == shift}
    against = {row["method"]: row for row in kept["against_own"] if row["shift"] == shift}
    plain = own["plain"]["forward"] + own["plain"]["backward"]
    # By method, in the order of the results; the sort is stable.
    first = {method: place for place, method in reversed([*enumerate(map(without_choices, own))])}
    rows = []
    for method in sorted(own, key=lambda name: first[without_choices(name)]):
        change, row = against.get(method), own[method]
        cells = (
            f"`{method}`",
            f"{(row['forward'] + row['backward']) / plain:.2f}",
            points(row["shifted_change"], "-") if method != "plain" else "",
            *(
                points(change[key]) if change else ""
                for key in ("shifted", "all_steps", "original")
            ),
        )
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join([CHOICES_HEADER, *rows])


def costs_table(kept: dict[str, Any], shift: str) -> str:
    """A Markdown table of one shift: what each method changes, and what it has computed."""
    own = {row["method"]: row for row in kept["summaries"] if row["shift"] == shift}
    over = {row["method"]: row for row in kept["over_training"] if row["shift"] == shift}
    plain = own["plain"]
    passes = plain["forward"] + plain["backward"]
    rows = [
        f"| `plain` | 1.0 | {plain['original']['value']:.3f} | {plain['shifted']['value']:.3f} | "
        f"{plain['length_balanced']:.3f} | | |"
    ]
    for method, row in own.items():
        if method == "plain":
            continue
        cells = (
            f"`{method}`",
            f"{(row['forward'] + row['backward']) / passes:.1f}",
            points(row["original_change"], "-"),
            points(row["shifted_change"], "-"),
            number(row["length_balanced_change"], "+.1f", 100),
            number(row["worst_change"], "+.1f", 100),
            points(over.get(method), "-"),
        )
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join([COSTS_HEADER, *rows])


def without_last(method: str, known: Collection[str]) -> str:
    """What a combination begins with, where it is a method of its own: `joint` of `joint+x`."""
    rest = method.rpartition("+")[0] or method.removesuffix("-apart")
    return rest if rest in known else method


def parts_table(kept: dict[str, Any], shift: str) -> str:
    """A Markdown table of one shift: what the last part of each combination adds to the others."""
    rows = [row for row in kept["over_part"] if row["shift"] == shift]
    known = {row["method"] for row in kept["summaries"]}
    lines = [
        f"| `{row['method']}` | `{without_last(row['method'], known)}` | {points(row)} |"
        for row in rows
    ]
    return "\n".join([PARTS_HEADER, *lines])


TABLES: dict[str, Callable[[dict[str, Any], str], str]] = {
    "table": table,
    "choices": choices_table,
    "costs": costs_table,
    "parts": parts_table,
}


def render(page: str) -> str:
    """The page with every table made anew."""

    def fill(block: re.Match[str]) -> str:
        kind, name, shift = block[1], block[2], block[3]
        kept = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
        return f"<!-- {kind}: {name} {shift} -->\n{TABLES[kind](kept, shift)}\n<!-- end -->"

    return BLOCK.sub(fill, page)


def keep(source: Path, name: str) -> None:
    """Take a comparison's results, curves as means, and what they were made with."""
    found = json.loads(source.read_text(encoding="utf-8"))
    methods = {row["method"] for row in found["curves"]}
    kept = {
        "made": datetime.fromtimestamp(source.stat().st_mtime, UTC).date().isoformat(),
        "packages": {package: version(package) for package in ("torch", "transformers", "metarm")},
        "num_comparisons": found["num_comparisons"],
        "summaries": found["summaries"],
        "curves": mean_curves(found["curves"]),
        "over_training": over_training(found["curves"], lambda method: "plain"),
        "over_part": over_training(found["curves"], lambda method: without_last(method, methods)),
    }
    if any(without_choices(row["method"]) != row["method"] for row in found["curves"]):
        kept["against_own"] = against_own(source.parent, found["curves"])
    text = json.dumps(kept, indent=1, sort_keys=True)
    # A point of a curve is one line.
    text = re.sub(r"\[\s+([-\d.,\s]|null)+\]", lambda row: re.sub(r"\s+", " ", row[0]), text)
    (RESULTS / f"{name}.json").write_text(f"{text}\n", encoding="utf-8")


def mean_curves(curves: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Over splits: step, and accuracy on validation, original and shifted pairs."""
    together: dict[tuple[str, str], list[list[list[float | None]]]] = {}
    for row in curves:
        together.setdefault((row["shift"], row["method"]), []).append(row["curve"])

    def mean(values: tuple[float | None, ...]) -> float | None:
        known = [value for value in values if value is not None]
        return round(sum(known) / len(known), 4) if known else None

    return [
        {
            "shift": shift,
            "method": method,
            "curve": [
                [mean(column) for column in zip(*points, strict=True)]
                for points in zip(*found, strict=True)
            ],
        }
        for (shift, method), found in together.items()
    ]


def over_training(
    curves: list[dict[str, Any]], reference: Callable[[str], str]
) -> list[dict[str, Any]]:
    """Changes of shifted accuracy against another at the same step, the mean over all steps.

    No stopping rule is in them; 95 % t-intervals over splits, which share their pool of prompts.
    """
    by_split = {(row["shift"], row["method"], row["seed"]): row["curve"] for row in curves}
    changes: dict[tuple[str, str], list[float]] = {}
    for (shift, method, seed), curve in by_split.items():
        other = by_split[shift, reference(method), seed]
        if method == reference(method) or len(other) != len(curve) or curve[0][3] is None:
            continue
        gaps = [mine[3] - theirs[3] for mine, theirs in zip(curve, other, strict=True)]
        changes.setdefault((shift, method), []).append(sum(gaps) / len(gaps))
    return [
        {"shift": shift, "method": method, "splits": [round(v, 4) for v in values]}
        | {key: round(value, 4) for key, value in asdict(mean_estimate(values)).items()}
        for (shift, method), values in changes.items()
    ]


def against_own(folder: Path, curves: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Changes against the same method without its choices, on the same pairs of the same splits.

    Best steps with intervals clustered as `metarm compare` does, all steps as in `over_training`.
    """

    def cells(shift: str, method: str) -> list[Cell]:
        seeds = [c["seed"] for c in curves if (c["shift"], c["method"]) == (shift, method)]
        paths = [folder / shift / f"seed_{seed}" / method / "cell.json" for seed in seeds]
        return [Cell.from_json(json.loads(path.read_text(encoding="utf-8"))) for path in paths]

    rows = []
    for over in over_training(curves, without_choices):
        shift, method = over["shift"], over["method"]
        mine, theirs = cells(shift, method), cells(shift, without_choices(method))
        changes = {
            side: clustered_difference(
                *([getattr(c, side) for c in both] for both in (mine, theirs))
            )
            for side in ("shifted", "original")
        }
        rows.append(
            {"shift": shift, "method": method, "all_steps": over}
            | {side: asdict(change) for side, change in changes.items()}
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--keep", nargs=2, metavar=("COMPARE_JSON", "NAME"))
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    if arguments.keep:
        keep(Path(arguments.keep[0]), arguments.keep[1])
        return
    for path in PAGES:
        page = path.read_text(encoding="utf-8")
        made = render(page)
        if arguments.write:
            path.write_text(made, encoding="utf-8")
        elif made != page:
            raise SystemExit(f"docs/{path.name} is not as the results are: run with --write")


if __name__ == "__main__":
    main()
