# SPDX-License-Identifier: Apache-2.0
"""One self-contained HTML page per run, and a table of its results for the terminal."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from metarm.reports.comparisons import compare, summary_of
from metarm.reports.data_account import account_of_data
from metarm.reports.drawing import arm_colours
from metarm.reports.figures import draw_figures
from metarm.reports.headline import arm_description, basis, headline
from metarm.reports.labels_spent import spent_rows
from metarm.reports.measures import MEASURES, definitions
from metarm.reports.read_run import Cell, Run, Sample, read_run
from metarm.reports.rendering import data_uri, fact_rows, page_environment, visible_text
from metarm.reports.restored import (
    DEFINITION,
    HOW_TO_READ,
    LABEL,
    NAME,
    restored,
    restored_difference,
)
from metarm.storage import write_text

__all__ = ["summary_table", "write_report"]

NUM_SAMPLES = 4
MAX_CHARACTERS = 1500
TERMINAL_MEASURES = {
    "accuracy_shifted": "accuracy, own pairs",
    "accuracy_original": "accuracy, original",
    "gold_score": "gold",
    "win_fraction": "wins against SFT",
    "kl_nats": "KL (nats)",
    "gap_spread_ratio": "gap spread / SFT's",
}


def write_report(run_dir: Path) -> Path:
    """Write the page of a run and return its path; an unfinished run shows what it has.

    Raises:
        EmptySetError: When no round has a scorecard yet.
        FormatError: When a scorecard is broken.

    Writes:
        `report.html` in `run_dir`: no script, nothing loaded from elsewhere.
    """
    run = read_run(run_dir)
    template = page_environment().get_template("report.html.j2")
    path = run_dir / "report.html"
    write_text(path, template.render(_context(run)))
    return path


def summary_table(run_dir: Path) -> str:
    """The result as plain text: one row per arm, then the headline with its intervals.

    Raises:
        EmptySetError: When no round has a scorecard yet.
    """
    run = read_run(run_dir)
    lines = _text_table(run)
    if run.new_task is not None:
        lines += ["", "On the new task, which policies were optimised on:"]
        lines += _text_table(run.new_task)
    result = headline(run)
    told = [result.lead, *result.points, basis(run), *(f"Missing: {text}" for text in run.missing)]
    return visible_text("\n".join([*lines, "", *told]))


def _text_table(run: Run) -> list[str]:
    """One row per arm, with the measures that any of them has."""
    columns = _columns(run)
    table = [["arm", *(f"{arm}, {_round_name(r)}" for arm, r in columns)]]
    for name, short in TERMINAL_MEASURES.items():
        cells = _cells_of(run, name, columns)
        if any(cells):
            table.append([short, *(cell or "-" for cell in cells)])
    widths = [max(map(len, column)) for column in table]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in zip(*table, strict=True)
    ]


def _context(run: Run) -> dict[str, Any]:
    """Everything the template shows."""
    columns = _columns(run)
    spent, kl = spent_rows(run)
    return {
        "run": run,
        "name": run.folder.resolve().name,
        "headline": headline(run),
        "basis": basis(run),
        "colours": arm_colours(run),
        "descriptions": {arm: arm_description(run, arm) for arm in run.arms},
        "figures": [
            {"title": d.title, "caption": d.caption, "alt": d.alt, "source": data_uri(d.svg)}
            for d in draw_figures(run)
        ],
        "columns": columns,
        "final_rows": [*_rows(run, columns), *_restored_row(run, columns)],
        "spent": spent,
        "spent_kl": kl,
        "new_task_rows": _rows(run.new_task, columns) if run.new_task else [],
        "all_rounds": [
            (arm, rounds, _rows(run, [(arm, r) for r in rounds]))
            for arm in run.arms
            if (rounds := [r for r in range(run.last_round + 1) if run.cards_of(arm, r)])
        ],
        "comparisons": [found for base in run.baselines if (found := _comparisons(run, base))],
        "samples": _samples(run),
        "account": account_of_data(run.folder),
        "meanings": _meanings(),
        "facts": fact_rows(run.facts),
        "seconds": _seconds(run),
    }


def _columns(run: Run) -> list[tuple[str, int]]:
    """Each arm with the round that is compared; an arm that only starts, with round 0."""
    candidates = [
        (arm, r) for arm in run.arms for r in (run.final_round, 0) if run.cards_of(arm, r)
    ]
    return list(dict(reversed(candidates)).items())[::-1]


def _round_name(round_number: int) -> str:
    return f"round {round_number}" if round_number else "start"


def _cells_of(run: Run, name: str, columns: Iterable[tuple[str, int]]) -> list[str]:
    """One measure in each column as text; empty where there is none."""
    summaries = [summary_of(run, name, arm, r) for arm, r in columns]
    return [summary.text(MEASURES[name].decimals) if summary else "" for summary in summaries]


def _rows(run: Run, columns: list[tuple[str, int]]) -> list[tuple[str, str, list[str]]]:
    """Label, unit and cells of each measure that any column has."""
    rows = [
        (measure.label, measure.unit, _cells_of(run, name, columns))
        for name, measure in MEASURES.items()
    ]
    return [row for row in rows if any(row[2])]


def _restored_row(run: Run, columns: list[tuple[str, int]]) -> list[tuple[str, str, list[str]]]:
    """What retraining gave back in each arm, where any column has it."""
    found = [restored(run, arm) if r else None for arm, r in columns]
    cells = [summary.text(sign=True) if summary else "" for summary in found]
    return [(LABEL, "fraction", cells)] if any(cells) else []


def _comparisons(run: Run, base: str) -> dict[str, Any] | None:
    """Every other trained arm against one, in every measure that can be compared."""
    others = [arm for arm in run.trained_arms if arm != base]
    table = [(LABEL, "fraction", 3, [restored_difference(run, arm, base) for arm in others])]
    table += [
        (m.label, m.unit, m.decimals, [compare(run, n, a, base, run.final_round) for a in others])
        for n, m in MEASURES.items()
        if m.is_compared
    ]
    rows, total, excluding = [], 0, 0
    for label, unit, decimals, gaps in table:
        total += sum(gap is not None and gap.low is not None for gap in gaps)
        excluding += sum(gap is not None and gap.excludes_zero for gap in gaps)
        cells = [
            (gap.text(decimals, sign=True), gap.excludes_zero) if gap else ("", False)
            for gap in gaps
        ]
        if any(text for text, _ in cells):
            rows.append((label, unit, cells))
    if not rows:
        return None
    return {"base": base, "arms": others, "rows": rows, "total": total, "excluding": excluding}


def _samples(run: Run) -> dict[str, Any]:
    """The first prompts of the first seed that has samples, a response per arm to each."""
    columns = _columns(run)
    seeds = sorted(cell.seed for cell in run.samples if (cell.arm, cell.round) in columns)
    if not seeds:
        return {"seed": None, "prompts": []}
    by_arm: dict[str, dict[str, Sample]] = {}
    for arm, round_number in columns:
        found = run.samples.get(Cell(arm, seeds[0], round_number), ())
        by_arm[arm] = {sample.prompt: sample for sample in reversed(found)}
    order = [
        sample.prompt
        for arm, round_number in columns
        for sample in run.samples.get(Cell(arm, seeds[0], round_number), ())
    ]
    prompts = [
        (prompt, [(arm, *_shown(by_arm[arm].get(prompt))) for arm, _ in columns])
        for prompt in list(dict.fromkeys(order))[:NUM_SAMPLES]
    ]
    return {"seed": seeds[0], "prompts": prompts}


def _shown(sample: Sample | None) -> tuple[str | None, str]:
    """A response cut to a readable length, and its gold and score in words."""
    if sample is None:
        return None, ""
    text = sample.response.strip(" ")
    if len(text) > MAX_CHARACTERS:
        text = f"{text[:MAX_CHARACTERS]} [... {len(text) - MAX_CHARACTERS} more characters]"
    numbers = (("gold", sample.gold), ("score", sample.score))
    return text, ", ".join(
        f"{name} {round(value, 2) + 0.0:.2f}" for name, value in numbers if value is not None
    )


def _meanings() -> list[tuple[str, str, str, str]]:
    """Field, label, definition and how to read it: every field of a scorecard."""
    texts = definitions()
    rows = []
    for name in dict.fromkeys([*MEASURES, *texts]):
        measure = MEASURES.get(name)
        label = f"{measure.label} ({measure.unit})" if measure else ""
        rows.append((name, label, texts[name], measure.how_to_read if measure else ""))
    return [*rows, (NAME, f"{LABEL} (fraction)", DEFINITION, HOW_TO_READ)]


def _seconds(run: Run) -> list[tuple[str, str]]:
    """Wall time of each arm, all its finished rounds and seeds together."""
    totals = {
        arm: sum(card.seconds for cell, card in run.cards.items() if cell.arm == arm)
        for arm in run.arms
    }
    return [
        (arm, f"{total:.0f} s" if total < 120 else f"{total / 60:.1f} min")
        for arm, total in totals.items()
    ]
