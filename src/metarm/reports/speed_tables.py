# SPDX-License-Identifier: Apache-2.0
"""The tables of `metarm bench` as rows of text, for terminal, page and documentation."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from metarm.speed.law import packed_cost, padded_cost
from metarm.speed.results import Spread
from metarm.speed.shapes import SHAPES
from metarm.speed.summary import (
    DEFAULT,
    LABELS,
    UNIT,
    CaseSummary,
    MethodSummary,
    summarise_case,
)
from metarm.speed.workload import Bundle

__all__ = [
    "all_tables",
    "case_table",
    "equivalence_text",
    "inference_table",
    "memory_text",
    "ratio_text",
    "ratio_value",
    "seconds_text",
    "sweep_table",
]

DASH: Final = "-"
SWEPT: Final[Mapping[str, tuple[str, Callable[[CaseSummary], str]]]] = {
    "k": ("k", lambda summary: str(summary.case.workload.group_size)),
    "ratio": (
        "P / R",
        lambda summary: (
            f"{summary.case.workload.prompt_tokens}/{summary.case.workload.response_tokens}"
        ),
    ),
    "spread": ("length spread", lambda summary: f"{summary.case.workload.length_spread:g}"),
    "size": ("model", lambda summary: summary.case.size),
}
"""What a sweep changes: the head of its column, and the cell."""
SWEEPS: Final[Mapping[str, str]] = {
    "k": "More responses a group",
    "ratio": "Longer prompts",
    "spread": "Uneven lengths",
    "size": "Larger models",
}
"""Titles."""
INFERENCE: Final[Mapping[str, str]] = {
    "scoring": "Sixteen responses to a prompt scored",
    "sampling": "Five responses to a prompt sampled",
}
"""Titles."""
SWEEP_COLUMNS: Final = ("plain", "meta", "meta-naive")


def seconds_text(spread: Spread | None) -> str:
    """A median and its quartiles, in seconds or milliseconds."""
    if spread is None:
        return DASH
    scale, unit = (1.0, "s") if spread.value >= 1 else (1000.0, "ms")
    value, low, high = (_three(scale * x) for x in (spread.value, spread.low, spread.high))
    return f"{value} [{low}, {high}] {unit}"


def _three(value: float) -> str:
    """Three digits, and no exponent where there are more before the point."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def ratio_text(spread: Spread | None) -> str:
    """A median ratio and its quartiles."""
    return DASH if spread is None else f"{spread.value:.2f} [{spread.low:.2f}, {spread.high:.2f}]"


def ratio_value(spread: Spread | None) -> str:
    """A median ratio alone."""
    return DASH if spread is None else f"{spread.value:.2f}"


def memory_text(size: int | None) -> str:
    """Bytes for people."""
    if size is None:
        return DASH
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


def _number(value: float | None, pattern: str) -> str:
    return DASH if value is None else format(value, pattern)


def case_table(summary: CaseSummary, *, is_brief: bool = False) -> list[list[str]]:
    """A head and a row for each method; a method that fails says why in place of its time.

    Args:
        summary: Of the case.
        is_brief: Without the quartiles of ratios, for a narrow terminal.
    """
    head = ["method", "step", "/ TRL", "/ TRL default", "law", "x floor", "tokens", "peak memory"]
    return [
        [*head, "above plain"],
        *(_method_row(row, ratio_value if is_brief else ratio_text) for row in summary.rows),
    ]


def _method_row(row: MethodSummary, ratio: Callable[[Spread | None], str]) -> list[str]:
    return [
        LABELS[row.method],
        row.failure or seconds_text(row.seconds),
        "1" if row.method == UNIT else ratio(row.to_trl),
        "1" if row.method == DEFAULT else ratio(row.to_default),
        _number(row.predicted, ".2f"),
        _number(row.floors, ".2f"),
        _number(row.tokens, ",.0f"),
        memory_text(row.peak_bytes),
        _number(row.copies_above_plain, "+.2f"),
    ]


def sweep_table(kind: str, summaries: Sequence[CaseSummary]) -> list[list[str]]:
    """What a sweep changes, and each method's ratio to TRL as measured, and by the law."""
    name, cell = SWEPT[kind]
    head = [name, "TRL step"]
    for method in SWEEP_COLUMNS:
        head += [LABELS[method].removeprefix("metarm, "), "law"]
    rows = []
    for summary in summaries:
        unit = summary.row("trl")
        row = [cell(summary), seconds_text(unit.seconds if unit else None)]
        for method in SWEEP_COLUMNS:
            found = summary.row(method)
            row += [
                ratio_text(found.to_trl) if found else DASH,
                _number(found.predicted if found else None, ".2f"),
            ]
        rows.append(row)
    return [head, *rows]


def inference_table(cases: Iterable[Mapping[str, Any]], kind: str) -> list[list[str]]:
    """`scoring` or `sampling`: seconds together, and over the other two ways."""
    head = ["model, P/R", "metarm", "/ one padded batch", "/ one by one", "law"]
    rows = []
    for found in cases:
        if kind not in found:
            continue
        seconds = found[kind]
        own = seconds["metarm"]
        ratios = [
            Spread.of([mine / other for mine, other in zip(own, seconds[name], strict=True)])
            for name in ("one batch", "one by one")
        ]
        case = found["case"]
        workload = case["workload"]
        name = f"{case['size']} {workload['prompt_tokens']}/{workload['response_tokens']}"
        law = _scoring_law(case) if kind == "scoring" else None
        cells = [seconds_text(Spread.of(own)), *map(ratio_text, ratios), _number(law, ".2f")]
        rows.append([name, *cells])
    return [head, *rows] if rows else []


def _scoring_law(case: Mapping[str, Any]) -> float:
    """Of sixteen responses to a prompt of mean length."""
    workload = case["workload"]
    bundle = [Bundle(workload["prompt_tokens"], (workload["response_tokens"],) * 16)]
    shape = SHAPES[case["size"]]
    return packed_cost(shape, bundle).flops / padded_cost(shape, bundle).flops


def all_tables(
    document: Mapping[str, Any], *, is_brief: bool = False
) -> list[tuple[str, list[list[str]]]]:
    """Every table of a results' document under its title, those that are empty left out."""
    summaries = [summarise_case(found) for found in document["cases"]]
    tables = [
        (summary.case.name, case_table(summary, is_brief=is_brief))
        for summary in summaries
        if summary.case.kind == "lengths"
    ]
    for kind, title in SWEEPS.items():
        if own := [summary for summary in summaries if summary.case.kind == kind]:
            tables.append((title, sweep_table(kind, own)))
    for kind, title in INFERENCE.items():
        if rows := inference_table(document["cases"], kind):
            tables.append((title, rows))
    return tables


def equivalence_text(found: Mapping[str, Any]) -> str:
    """How far the shared path's scores and gradients are from the plain pass's."""
    error = found.get("equivalence")
    if error is None:
        return "not compared"
    return (
        f"largest score difference {error['score_error']:.1e} of the largest score, gradient "
        f"{error['gradient_error']:.1e} of its length; {error['computed_share']:.0%} of the padded "
        "batch's places are computed"
    )
