# SPDX-License-Identifier: Apache-2.0
"""When the step helps: a map from a closed feature space where thousands of runs are cheap.

    python benchmarks/feature_space.py runs/feature_space.jsonl --settings 256 --cells

Responses are vectors of features, the true reward is linear in them, labels are noisy. Shifted
responses vary along one axis above all. Settings are points of a scrambled Sobol sequence over the
axes of `AXES`; each is a row of the output, written when it is done, so that the same command goes
on where a stopped one was. `--cells` adds the four cells of an earlier study as a check.
`benchmarks/fit_advice.py` makes the rule of `metarm advise` and the figures out of the rows.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import qmc
from torch import Tensor

from metarm.bench.advice_rule import CANDIDATES
from metarm.bench.foretell import halve_pairs, measure_figures
from metarm.bench.problem import Problem
from metarm.bench.recipes import Recipe
from metarm.bench.settings import HeadSettings
from metarm.bench.stacked_heads import train_stacked
from metarm.bench.trajectory import Trajectory
from metarm.storage import append_json_line, read_json_lines
from metarm.strength import mean_rank_correlation

NUM_TEST, NUM_PROBE, NUM_GROUPS, GROUP_SIZE = 1500, 300, 300, 5
OTHER_SPREAD = 0.5
SETTINGS = HeadSettings(hidden=[16], num_steps=150, measure_every=15, learning_rate=3e-3)
AXES = {
    "num_pairs": (100, 4000),
    "label_noise": (0.25, 4.0),
    "num_features": (16, 512),
    "axis_spread": (0.5, 8.0),
    "cosine": (0.0, 0.8),
    "distance": (0.0, 3.0),
}
LOGARITHMIC = ("num_pairs", "label_noise", "num_features", "axis_spread")


@dataclass(frozen=True)
class Setting:
    """One point of the map."""

    num_pairs: int
    """Original pairs, a tenth of them kept for the stopping rule."""
    label_noise: float
    """A label is right with probability sigmoid(gap / noise); a reward has standard deviation 1."""
    num_features: int
    axis_spread: float
    """Standard deviation of shifted responses along their main axis; 0.5 along all others."""
    cosine: float
    """Of the main axis with the true reward."""
    distance: float
    """Of the shifted responses' mean from the original one, in a random direction."""


@dataclass(frozen=True)
class Space:
    """A setting's draw: what methods see, and what they are tested on."""

    problem: Problem
    """Its features hold those of the tests too, which no row of pairs or groups names."""
    tests: Tensor
    """Rows of the features, shape (original and shifted, pairs, 2)."""
    gold: Tensor
    """True rewards of all features, shape (texts,)."""


def draw_settings(count: int) -> list[Setting]:
    """Points of a scrambled Sobol sequence; more of them begin with the same ones."""
    points = qmc.Sobol(len(AXES), seed=0).random(count)
    low, high = np.array(list(AXES.values())).T
    is_log = np.array([name in LOGARITHMIC for name in AXES])
    low, high = (np.where(is_log, np.log(np.maximum(end, 1e-9)), end) for end in (low, high))
    scaled = low + (high - low) * points
    scaled = np.where(is_log, np.exp(scaled), scaled)
    found = []
    for row in scaled:
        values = dict(zip(AXES, row.tolist(), strict=True))
        values["num_pairs"] = 20 * round(values["num_pairs"] / 20)
        values["num_features"] = round(values["num_features"])
        found.append(Setting(**values))
    return found


def earlier_cells() -> list[Setting]:
    """Those of an earlier study: 200 features, 800 noisy pairs, four cosines."""
    return [Setting(800, 1.0, 200, 3.0, cosine, 0.0) for cosine in (0.0, 0.15, 0.3, 0.6)]


def build_space(setting: Setting, seed: int) -> Space:
    """One draw of a setting."""
    draw = torch.Generator().manual_seed(seed)
    size = setting.num_features

    def direction() -> Tensor:
        vector = torch.randn(size, generator=draw)
        return vector / vector.norm()

    truth, across = direction(), direction()
    across -= (across @ truth) * truth
    axis = setting.cosine * truth + (1 - setting.cosine**2) ** 0.5 * across / across.norm()
    centre = setting.distance * direction()

    def original(count: int) -> Tensor:
        return torch.randn(count, size, generator=draw)

    def shifted(count: int) -> Tensor:
        states = OTHER_SPREAD * torch.randn(count, size, generator=draw)
        states -= (states @ axis)[:, None] * axis
        return states + setting.axis_spread * torch.randn(count, 1, generator=draw) * axis + centre

    parts = [
        original(2 * setting.num_pairs),
        shifted(NUM_GROUPS * GROUP_SIZE),
        shifted(2 * NUM_PROBE),
        original(2 * NUM_TEST),
        shifted(2 * NUM_TEST),
    ]
    features = torch.cat(parts)
    gold = features @ truth
    rows = list(torch.arange(len(features)).split([len(part) for part in parts]))
    pairs, own = (
        _label(rows[place].reshape(-1, 2), gold, setting.label_noise, draw) for place in (0, 2)
    )
    groups = rows[1].reshape(-1, GROUP_SIZE)
    cut, watched = setting.num_pairs // 10, NUM_GROUPS // 10
    problem = Problem(features, pairs[cut:], pairs[:cut], groups[watched:], groups[:watched], own)
    tests = torch.stack([rows[place].reshape(-1, 2) for place in (3, 4)])
    return Space(problem, tests, gold)


def _label(pairs: Tensor, gold: Tensor, noise: float, draw: torch.Generator) -> Tensor:
    gap = gold[pairs[:, 0]] - gold[pairs[:, 1]]
    is_first = torch.rand(len(pairs), generator=draw) < torch.sigmoid(gap / noise)
    return torch.where(is_first[:, None], pairs, pairs.flip(1))


def measure(space: Space, found: Trajectory, noise: float) -> dict[str, Any]:
    """Accuracies at the best step: against the labels that annotators would give, and gold."""
    scores = found.scores[found.best]
    gaps, true = (v[space.tests[..., 0]] - v[space.tests[..., 1]] for v in (scores, space.gold))
    is_right = (gaps.sign() == true.sign()).float()
    chance = torch.sigmoid(true.abs() / noise)
    labelled = (is_right * chance + (1 - is_right) * (1 - chance)).mean(1).tolist()
    own = space.problem.own_labels
    probe = (scores[own[:, 0]] > scores[own[:, 1]]).int().tolist()
    return {
        "best_step": found.steps[found.best],
        "original": labelled[0],
        "shifted": labelled[1],
        "gold_shifted": is_right[1].mean().item(),
        "probe": hex(int("1" + "".join(map(str, probe)), 2)),
    }


def run_setting(setting: Setting, seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Each seed's figures, plain accuracies, and what each candidate changes."""
    spaces = [build_space(setting, seed) for seed in seeds]
    problems = [space.problem for space in spaces]
    recipes = [Recipe(), *CANDIDATES.values()]
    heads = train_stacked(problems, recipes, SETTINGS, seeds)
    halves = [halve_pairs(problem, seed) for problem, seed in zip(problems, seeds, strict=True)]
    half_heads = [
        train_stacked(
            [half[k] for half in halves], [Recipe()], SETTINGS, [s + 1 + k for s in seeds]
        )
        for k in (0, 1)
    ]
    found = []
    for place, (seed, space, (plain, *others)) in enumerate(zip(seeds, spaces, heads, strict=True)):
        first, second = ((own := half_heads[k][place][0]).scores[own.best] for k in (0, 1))
        figures = measure_figures(space.problem, plain.scores[plain.best], first, second)
        row: dict[str, Any] = {"seed": seed, "figures": asdict(figures), "methods": {}}
        row["methods"]["plain"] = measure(space, plain, setting.label_noise)
        for name, other in zip(CANDIDATES, others, strict=True):
            row["methods"][name] = measure(space, other, setting.label_noise) | {
                "rank_correlation": mean_rank_correlation(
                    space.problem.watched_groups,
                    other.scores[other.best],
                    plain.at(other.steps[other.best]),
                )
                or 0.0
            }
        found.append(row)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path, help="JSON lines; finished settings are kept")
    parser.add_argument("--settings", type=int, default=256)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--cells", action="store_true", help="the cells of an earlier study too")
    arguments = parser.parse_args()
    done = list(read_json_lines(arguments.output)) if arguments.output.exists() else []
    known = {(row["setting"]["kind"], row["setting"]["place"]) for row in done}
    cells = earlier_cells() if arguments.cells else []
    wanted = [("cell", place, cell, 6) for place, cell in enumerate(cells)]
    wanted += [
        ("map", place, setting, arguments.seeds)
        for place, setting in enumerate(draw_settings(arguments.settings))
    ]
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    for kind, place, setting, num_seeds in wanted:
        if (kind, place) in known:
            continue
        started = time.monotonic()
        # Seeds of settings differ: two settings that share a draw would share its luck.
        seeds = [1000 * place + seed for seed in range(num_seeds)]
        runs = run_setting(setting, seeds)
        row = {"setting": {"kind": kind, "place": place, **asdict(setting)}, "runs": runs}
        append_json_line(arguments.output, row)
        changes = {
            name: 100 * np.mean([r["methods"][name]["shifted"] - r["methods"]["plain"]["shifted"]
                                 for r in runs])
            for name in CANDIDATES
        }  # fmt: skip
        print(
            f"{kind} {place}: {setting}, {time.monotonic() - started:.1f} s: "
            + ", ".join(f"{name} {change:+.1f}" for name, change in changes.items()),
            flush=True,
        )


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
