# SPDX-License-Identifier: Apache-2.0
"""Proxy and gold against KL for the arms of a run that differ in their optimiser, on one page.

    python benchmarks/optimizer_frontier.py runs/world-optimizers \\
        --output benchmarks/results/world_optimizers.json

Curves of trained policies come from their own logs, an iteration a point: the mean of `--window`
neighbouring batches, read at a grid of KL on straight lines. Best-of-n is one pool of SFT's
responses to the prompts that are optimised on, chosen from by the arm's own reward model: the mean
over all subsets of every size up to the pool's. The proxy is in standard deviations of the reward
model's scores of SFT's responses. Bands are 95 % bootstrap intervals over seeds; a curve ends where
not every seed goes on. Seeds already in the output are not done again. Prints a table, and writes
JSON and an SVG beside it.
"""

import argparse
import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from metarm.config import RunSettings, SamplingSettings
from metarm.config_file import read_settings
from metarm.data.meta_sets import load_prompts
from metarm.evaluation.scorecard import score_groups
from metarm.metrics import best_of_n_mean, paired_difference
from metarm.models.ensemble import load_reward
from metarm.policy.sampling import sample_groups
from metarm.progress import SilentProgress
from metarm.reports.drawing import STYLE, name_in_figure
from metarm.reports.equal_kl import gold_at_kl
from metarm.reports.read_run import CurvePoint
from metarm.storage import read_json, read_json_lines, write_json
from metarm.world.language import GoldReward, build_language

POOL = 64
NUM_PROMPTS = 96
GRID = [round(0.1 * step, 1) for step in range(1, 201)]
NUM_RESAMPLES = 2000
SHOWN = (0.5, 1.0, 2.0, 4.0, 8.0)
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
LABELS = {
    "proxy": "proxy (standard deviations of SFT's scores)",
    "gold": "gold (true reward)",
}

Curve = dict[str, list[float]]
"""`kl`, `proxy` and `gold` of the points of one arm's way, in its order."""


def smoothed(values: Sequence[float], window: int) -> list[float]:
    """Means of `window` neighbours; the first and last places have fewer."""
    reach = window // 2
    return [
        float(np.mean(values[max(0, place - reach) : place + reach + 1]))
        for place in range(len(values))
    ]


def trained_curve(log: Path, mean: float, spread: float, window: int) -> Curve:
    """The way of a trained policy, from its log; the proxy in units of SFT's scores."""
    rows = list(read_json_lines(log))
    columns = {
        "kl": [row["objective/kl"] for row in rows],
        "proxy": [(row["objective/scores"] - mean) / spread for row in rows],
        "gold": [row["objective/gold"] for row in rows],
    }
    return {name: smoothed(values, window) for name, values in columns.items()}


def best_of_n_curve(scores: Any, gold: Any, mean: float, spread: float) -> Curve:
    """Best-of-n for every n up to the pool's size, at its exact KL."""
    sizes = range(1, np.shape(scores)[1] + 1)
    return {
        "kl": [math.log(n) - (n - 1) / n for n in sizes],
        "proxy": [(best_of_n_mean(scores, scores, n) - mean) / spread for n in sizes],
        "gold": [best_of_n_mean(scores, gold, n) for n in sizes],
    }


def measure_seed(run: RunSettings, folder: Path, window: int) -> dict[str, Curve]:
    """The curves of every arm of one seed."""
    assert run.world is not None, "the frontier needs a run with a world"
    prompts = load_prompts(folder / "world" / "prompts.jsonl")[:NUM_PROMPTS]
    sampling = SamplingSettings(
        num_generations=POOL,
        temperature=run.optimize.temperature,
        max_completion_length=run.optimize.max_completion_length,
        batch_size=run.sampling.batch_size,
    )
    groups = sample_groups(folder / "sft", prompts, sampling, seed=0, progress=SilentProgress())
    gold = score_groups(GoldReward(build_language(run.world)), groups)
    curves = {}
    for arm in run.arms:
        if not run.arm(arm).optimize:
            continue
        place = folder / "arms" / arm / f"round_{run.rounds:02d}"
        scores = score_groups(load_reward(place / "reward"), groups)
        mean, spread = float(np.mean(scores)), float(np.std(scores))
        if run.for_arm(arm).optimize.algo == "best_of_n":
            curves[arm] = best_of_n_curve(scores, gold, mean, spread)
        else:
            curves[arm] = trained_curve(place / "policy" / "metrics.jsonl", mean, spread, window)
    return curves


def read_at(curve: Curve, name: str, kl: float) -> float | None:
    """Proxy or gold of a curve at one KL; None where it never gets there."""
    points = [CurvePoint(*point) for point in zip(curve["kl"], curve[name], strict=True)]
    return gold_at_kl(points, kl)


def bootstrap(values: Sequence[float]) -> tuple[float, float]:
    """A 95 % interval of the mean over seeds, by resampling them."""
    draws = np.random.default_rng(0).integers(0, len(values), (NUM_RESAMPLES, len(values)))
    low, high = np.quantile(np.asarray(values)[draws].mean(axis=1), (0.025, 0.975))
    return float(low), float(high)


def summarise(by_seed: Mapping[str, Mapping[str, Curve]]) -> dict[str, Any]:
    """Mean and band of each arm at each KL that all seeds reach."""
    arms = list(next(iter(by_seed.values())))
    summary: dict[str, Any] = {arm: {"proxy": [], "gold": []} for arm in arms}
    for arm, name, kl in itertools.product(arms, LABELS, GRID):
        values = [read_at(curves[arm], name, kl) for curves in by_seed.values()]
        known = [value for value in values if value is not None]
        if len(known) == len(values):
            low, high = bootstrap(known)
            point = {"kl": kl, "mean": float(np.mean(known)), "low": low, "high": high}
            summary[arm][name].append(point)
    return summary


def differences(by_seed: Mapping[str, Mapping[str, Curve]], base: str) -> list[dict[str, Any]]:
    """Each arm minus `base` at a few KLs, paired over the seeds in which both get there."""
    found = []
    arms = [arm for arm in next(iter(by_seed.values())) if arm != base]
    for arm, name, kl in itertools.product(arms, LABELS, SHOWN):
        both = [
            (read_at(curves[arm], name, kl), read_at(curves[base], name, kl))
            for curves in by_seed.values()
        ]
        known = [(own, other) for own, other in both if own is not None and other is not None]
        if known:
            own, other = zip(*known, strict=True)
            gap = paired_difference(own, other)
            interval = None if gap.count == 1 else [gap.low, gap.high]
            row = {"arm": arm, "minus": base, "what": name, "kl": kl, "seeds": len(known)}
            found.append(row | {"difference": gap.value, "interval": interval})
    return found


def draw(summary: Mapping[str, Any], num_seeds: int, path: Path) -> None:
    """Two panels: what the optimiser sees, and what is true."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9.6, 4.4))
        panels = figure.subplots(1, 2)
        for axes, (name, label) in zip(panels, LABELS.items(), strict=True):
            for arm, colour in zip(summary, itertools.cycle(COLOURS), strict=False):
                points = summary[arm][name]
                kl, mean, low, high = (
                    [point[key] for point in points] for key in ("kl", "mean", "low", "high")
                )
                axes.plot(kl, mean, color=colour, label=name_in_figure(arm))
                axes.fill_between(kl, low, high, color=colour, alpha=0.18, linewidth=0)
            axes.set_xlabel("KL to SFT (nats per response)")
            axes.set_title(label)
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper left", ncols=len(labels))
        figure.supxlabel(f"seeds: {num_seeds}; bands: 95 % bootstrap over seeds", fontsize=8.5)
        figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--output", type=Path, required=True, help="JSON file; SVG goes beside it")
    parser.add_argument("--base", default="ppo")
    parser.add_argument("--window", type=int, default=5, help="batches averaged for a point")
    arguments = parser.parse_args()
    run = read_settings(arguments.run / "config.yaml", [], RunSettings)
    by_seed = read_json(arguments.output)["by_seed"] if arguments.output.exists() else {}
    for seed in run.seeds:
        folder = arguments.run / f"seed_{seed}"
        last = run.arms[-1]
        done = folder / "arms" / last / f"round_{run.rounds:02d}" / "policy" / "stage.json"
        if str(seed) not in by_seed and done.exists():
            by_seed[str(seed)] = measure_seed(run, folder, arguments.window)
    if not by_seed:
        parser.error(f"no seed of {arguments.run} is finished: run it first")
    summary, gaps = summarise(by_seed), differences(by_seed, arguments.base)
    document = {"pool": POOL, "prompts": NUM_PROMPTS, "window": arguments.window}
    write_json(
        arguments.output,
        {**document, "summary": summary, "differences": gaps, "by_seed": by_seed},
    )
    draw(summary, len(by_seed), arguments.output.with_suffix(".svg"))
    print(f"{'arm':12} {'at KL':>6} {'what':6} {'mean':>7}  95 % over {len(by_seed)} seeds")
    for arm, name, kl in itertools.product(summary, LABELS, SHOWN):
        for point in summary[arm][name]:
            if point["kl"] == kl:
                band = f"[{point['low']:.2f}, {point['high']:.2f}]"
                print(f"{arm:12} {kl:6g} {name:6} {point['mean']:7.2f}  {band}")
    print()
    for gap in gaps:
        interval = gap["interval"] and f" [{gap['interval'][0]:+.2f}, {gap['interval'][1]:+.2f}]"
        print(
            f"{gap['arm']} - {gap['minus']} at KL {gap['kl']:g}, {gap['what']}: "
            f"{gap['difference']:+.2f}{interval or ''} ({gap['seeds']} seeds)"
        )


if __name__ == "__main__":
    main()
