# SPDX-License-Identifier: Apache-2.0
"""The rule of `metarm advise`, fitted to the map; how well it foretells there and on real shifts.

    python benchmarks/fit_advice.py runs/feature_space.jsonl runs/real_shifts.jsonl

Writes the rule into the package, and `feature_space.json` and `feature_space.svg` into
`benchmarks/results`. All figures on the map are for settings that were left out of the fit, ten
folds; intervals are bootstraps over settings. Seeds of everything: 0.
"""

import argparse
import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.stats import rankdata, spearmanr

from metarm.bench.advice_rule import (
    CANDIDATES,
    INPUTS,
    LARGEST_CHANGE,
    NEUTRAL,
    AdviceRule,
    figure_inputs,
    fit_method,
    rule_columns,
)
from metarm.bench.foretell import Figures
from metarm.metrics import paired_difference
from metarm.reports.drawing import STYLE
from metarm.storage import read_json_lines, write_json, write_text

RULE = Path("src/metarm/bench/advice_rule.json")
RESULTS = Path("benchmarks/results")
FOLDS, RESAMPLES = 10, 1000
AXES = ("num_pairs", "label_noise", "num_features", "axis_spread", "cosine", "distance")
SHOWN = ("ascent-1", "descent-half", "joint-0.1", "joint-0.3")

Floats = NDArray[np.float64]
Row = dict[str, Any]


def change_of(run: Row, method: str, side: str = "shifted") -> float:
    return float(run["methods"][method][side] - run["methods"]["plain"][side])


def inputs_of(run: Row, method: str) -> Floats:
    rank = run["methods"][method]["rank_correlation"]
    return figure_inputs(Figures(**run["figures"]), rank)


def with_interval(
    statistic: Callable[[NDArray[np.intp]], float], groups: NDArray[np.intp]
) -> list[float]:
    """A statistic of rows, and its 95 % bootstrap interval over groups of rows."""
    draw = np.random.default_rng(0)
    rows_of = [np.flatnonzero(groups == name) for name in np.unique(groups)]
    values = []
    for _ in range(RESAMPLES):
        chosen = draw.integers(len(rows_of), size=len(rows_of))
        values.append(statistic(np.concatenate([rows_of[k] for k in chosen])))
    low, high = np.nanquantile(values, [0.025, 0.975])
    return [round(float(v), 4) for v in (statistic(np.arange(len(groups))), low, high)]


def explained(truth: Floats, expected: Floats) -> Callable[[NDArray[np.intp]], float]:
    """R^2 of rows."""
    return lambda rows: (
        1
        - float(
            np.sum((truth[rows] - expected[rows]) ** 2)
            / np.sum((truth[rows] - truth[rows].mean()) ** 2)
        )
    )


def separation(is_true: NDArray[np.bool_], score: Floats) -> Callable[[NDArray[np.intp]], float]:
    """Area under the curve of rows: Mann and Whitney's share of ordered pairs."""

    def area(rows: NDArray[np.intp]) -> float:
        own, ranks = is_true[rows], rankdata(score[rows])
        count = own.sum()
        if count in (0, len(own)):
            return float("nan")
        return float((ranks[own].sum() - count * (count + 1) / 2) / (count * (len(own) - count)))

    return area


def calibration(is_true: NDArray[np.bool_], score: Floats) -> dict[str, list[float]]:
    """For forecasts in fifths: how many, what they said on average, how often it was so."""
    found = {}
    for low in (0.0, 0.2, 0.4, 0.6, 0.8):
        rows = (score >= low) & (score < low + 0.2)
        if rows.any():
            said, was = float(score[rows].mean()), float(is_true[rows].mean())
            found[f"{low:.1f}"] = [int(rows.sum()), round(said, 2), round(was, 2)]
    return found


def fit(rows: Sequence[Row]) -> tuple[AdviceRule, dict[str, Any]]:
    runs = [run for row in rows for run in row["runs"]]
    settings = np.array([k for k, row in enumerate(rows) for _ in row["runs"]])
    folds = np.random.default_rng(0).permutation(len(rows))[settings] % FOLDS
    everything = np.concatenate(
        [np.array([inputs_of(run, method) for run in runs]) for method in CANDIDATES]
    )
    low, high = np.quantile(everything, [0.01, 0.99], axis=0)
    axes = np.array([[np.log(r["setting"][a]) if a not in ("cosine", "distance") else
                      r["setting"][a] for a in AXES] for r in rows])[settings]  # fmt: skip
    known = rule_columns(axes, axes.min(0), axes.max(0))
    methods, report = {}, {}
    for method in CANDIDATES:
        changes = np.array([change_of(run, method) for run in runs])
        inputs = np.array([inputs_of(run, method) for run in runs])
        rule, left_out = fit_method(
            rule_columns(inputs, low.tolist(), high.tolist()), changes, folds
        )
        expected = left_out.change
        methods[method] = rule
        cut = np.clip(changes, -LARGEST_CHANGE, LARGEST_CHANGE)
        by_setting = [cut[settings == k] for k in range(len(rows))]
        chance = np.mean([own.var(ddof=1) for own in by_setting])
        _, from_axes = fit_method(known, changes, folds)
        chances = {
            "helps": (changes > NEUTRAL, left_out.helps),
            "hurts": (changes < -NEUTRAL, left_out.hurts),
        }
        is_inside = np.abs(cut - expected) <= left_out.half_width
        report[method] = {
            "mean_change": with_interval(lambda r, c=cut: float(c[r].mean()), settings),
            "helps": round(float((changes > NEUTRAL).mean()), 3),
            "hurts": round(float((changes < -NEUTRAL).mean()), 3),
            "worst": round(float(changes.min()), 3),
            "r2": with_interval(explained(cut, expected), settings),
            "r2_from_known_axes": with_interval(explained(cut, from_axes.change), settings),
            "variance_between_settings": round(1 - float(chance / cut.var()), 3),
            **{
                f"auc_{name}": with_interval(separation(is_true, score), settings)
                for name, (is_true, score) in chances.items()
            },
            "coverage_of_95": round(float(is_inside.mean()), 3),
            "typical_half_width": round(float(np.median(left_out.half_width)), 4),
            "calibration": {
                name: calibration(is_true, score) for name, (is_true, score) in chances.items()
            },
            "rank_correlation_of_figures": {
                name: round(float(spearmanr(inputs[:, k], changes).statistic), 2)
                for k, name in enumerate(INPUTS)
            },
        }
    return AdviceRule(tuple(low), tuple(high), methods, {}), report


def transfer(rule: AdviceRule, rows: Sequence[Row]) -> dict[str, Any]:
    """What the rule expects of the real shifts' mean figures, beside what was measured."""
    found: dict[str, Any] = {}
    for name in dict.fromkeys(row["setting"]["kind"] for row in rows):
        runs = [row["runs"][0] for row in rows if row["setting"]["kind"] == name]
        means = {
            field.name: float(np.mean([run["figures"][field.name] for run in runs]))
            for field in fields(Figures)
        }
        figures = Figures(**means)
        found[name] = {
            "splits": len(runs),
            "figures": {key: round(value, 3) for key, value in means.items()},
            "outside_the_map": rule.outside(figures),
            "methods": {},
        }
        for method in CANDIDATES:
            ours, plain = (
                [run["methods"][m]["shifted"] for run in runs] for m in (method, "plain")
            )
            measured = paired_difference(ours, plain)
            rank = float(np.mean([run["methods"][method]["rank_correlation"] for run in runs]))
            forecast = rule.forecast(method, figures, rank)
            found[name]["methods"][method] = {
                "rank_correlation": round(rank, 2),
                "expected": [round(v, 4) for v in (forecast.change, forecast.low, forecast.high)],
                "helps": round(forecast.helps, 2),
                "hurts": round(forecast.hurts, 2),
                "measured": [round(v, 4) for v in (measured.value, measured.low, measured.high)],
            }
    return found


def summarise_transfer(found: dict[str, Any]) -> dict[str, Any]:
    pairs = np.array(
        [(own["expected"][0], own["measured"][0]) for shift in found.values()
         for own in shift["methods"].values()]
    )  # fmt: skip
    inside = [
        own["expected"][1] <= own["measured"][0] <= own["expected"][2]
        for shift in found.values()
        for own in shift["methods"].values()
    ]
    expected, measured = pairs.T
    errors = float(np.sqrt(np.mean((expected - measured) ** 2)))
    return {
        "comparisons": len(pairs),
        "r2": round(explained(measured, expected)(np.arange(len(pairs))), 2),
        "root_mean_squared_error": round(errors, 4),
        "same_without_a_rule": round(float(np.sqrt(np.mean(measured**2))), 4),
        "rank_correlation": round(float(spearmanr(expected, measured).statistic), 2),
        "same_sign": round(float((np.sign(expected) == np.sign(measured)).mean()), 2),
        "inside_the_95_interval": round(float(np.mean(inside)), 2),
    }


def draw_map(rows: Sequence[Row], path: Path) -> None:
    """Mean change in cells of two axes, a column a mode: green helps, purple hurts."""
    axes_of = {
        "pairs per feature": lambda s: np.log10(s["num_pairs"] / s["num_features"]),
        "spread along the axis": lambda s: np.log10(s["axis_spread"]),
        "label noise": lambda s: np.log10(s["label_noise"]),
    }
    runs = [(row["setting"], run) for row in rows for run in row["runs"]]
    cosines = np.array([setting["cosine"] for setting, _ in runs])
    edges = np.linspace(0, 0.8, 6)
    columns = np.clip(np.digitize(cosines, edges) - 1, 0, 4)
    with matplotlib.rc_context({**STYLE, "axes.grid": False, "svg.fonttype": "none"}):
        figure = Figure(figsize=(9.6, 7.4))
        panels = figure.subplots(len(axes_of), len(SHOWN), sharex=True)
        for line, (label, read) in enumerate(axes_of.items()):
            values = np.array([read(setting) for setting, _ in runs])
            cuts = np.quantile(values, np.linspace(0, 1, 6))
            lines = np.clip(np.digitize(values, cuts) - 1, 0, 4)
            for place, method in enumerate(SHOWN):
                changes = 100 * np.clip(
                    [change_of(run, method) for _, run in runs], -LARGEST_CHANGE, LARGEST_CHANGE
                )
                table = np.array([[changes[(lines == y) & (columns == x)].mean()
                                   for x in range(5)] for y in range(5)])  # fmt: skip
                panel = panels[line, place]
                image = panel.imshow(table, origin="lower", cmap="PRGn", vmin=-2.5, vmax=2.5,
                                     aspect="auto")  # fmt: skip
                for y in range(5):
                    for x in range(5):
                        panel.text(x, y, f"{table[y, x]:+.1f}", ha="center", va="center",
                                   fontsize=7.5)  # fmt: skip
                panel.set_yticks(range(5), [f"{10 ** ((a + b) / 2):.2g}" for a, b in
                                            itertools.pairwise(cuts)])  # fmt: skip
                panel.set_xticks(range(5), [f"{e + 0.08:.2f}".lstrip("0") for e in edges[:-1]])
                if line == 0:
                    panel.set_title(method)
                if place == 0:
                    panel.set_ylabel(label)
                if line == len(axes_of) - 1:
                    panel.set_xlabel("cosine of axis and reward")
        figure.colorbar(image, ax=panels, label="mean change of shifted accuracy (points)",
                        shrink=0.6)  # fmt: skip
        figure.savefig(path, metadata={"Date": None})


def earlier_cells(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Changes in accuracy against gold, in points, as the earlier study measured them."""
    return [
        {
            "cosine": row["setting"]["cosine"],
            "plain": round(float(np.mean([r["methods"]["plain"]["gold_shifted"]
                                          for r in row["runs"]])), 3),
            **{
                method: round(
                    100 * float(np.mean([change_of(r, method, "gold_shifted")
                                         for r in row["runs"]])), 1)
                for method in CANDIDATES
            },
        }
        for row in rows
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("map", type=Path)
    parser.add_argument("real", type=Path)
    arguments = parser.parse_args()
    rows = list(read_json_lines(arguments.map))
    points = [row for row in rows if row["setting"]["kind"] == "map"]
    rule, on_the_map = fit(points)
    real = transfer(rule, list(read_json_lines(arguments.real)))
    summary = summarise_transfer(real)
    keys = ("r2", "auc_helps", "auc_hurts", "coverage_of_95")
    provenance = {
        "command": f"python benchmarks/fit_advice.py {arguments.map} {arguments.real}",
        "settings": len(points),
        "runs_a_method": sum(len(row["runs"]) for row in points),
        "on_the_map": {m: {key: own[key] for key in keys} for m, own in on_the_map.items()},
        "on_real_shifts": {"shifts": list(real), **summary},
    }
    rule = AdviceRule(rule.low, rule.high, rule.methods, provenance)
    write_text(RULE, json.dumps(rule.to_json(), separators=(",", ":")) + "\n")
    RESULTS.mkdir(parents=True, exist_ok=True)
    document = {
        "settings": len(points),
        "figure_ranges": {name: [round(v, 4) for v in rule.range_of(name)] for name in INPUTS},
        "on_the_map": on_the_map,
        "earlier_cells": earlier_cells([r for r in rows if r["setting"]["kind"] == "cell"]),
        "real_shifts": real,
        "transfer": summary,
    }
    write_json(RESULTS / "feature_space.json", document)
    draw_map(points, RESULTS / "feature_space.svg")
    for method, own in on_the_map.items():
        print(
            method,
            {k: own[k] for k in own if k not in ("calibration", "rank_correlation_of_figures")},
        )
    print(summary)


if __name__ == "__main__":
    main()
