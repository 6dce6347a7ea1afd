# SPDX-License-Identifier: Apache-2.0
"""How many labelled shifted pairs are needed to choose right: on the map and on real shifts.

    python benchmarks/probe_size.py runs/feature_space.jsonl runs/real_shifts.jsonl \
        --output benchmarks/results/probe_size.json

From each run's probe, pairs are drawn (each of another prompt) and a mode is chosen by
`choose_method`, at several confidences, or none. What the choice is worth is its change in shifted
accuracy against plain training on other pairs; regret is what the best mode (or none) would have
given beyond that. Intervals are over runs: splits of a real shift, settings of the map. The best
mode is found on the same test pairs as its worth, so that regret is somewhat overstated, most so
where there are few of them.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student_t

from metarm.bench.advice_rule import CANDIDATES
from metarm.bench.advise import choose_method
from metarm.metrics import mean_estimate
from metarm.schema import Estimate
from metarm.storage import read_json_lines, write_json

SIZES = (10, 30, 100, 300)
CONFIDENCES = (0.5, 0.8, 0.95)
NEUTRAL = 0.005
QUANTILES = {size: float(student_t.ppf(0.975, size - 1)) for size in SIZES}
ALWAYS = ("descent-half", "joint-0.1", "joint-0.3")

Bits = NDArray[np.int8]


def probe_of(run: dict[str, Any]) -> dict[str, Bits]:
    """Right or wrong on each probe pair, by method; the leading 1 keeps leading zeros."""
    return {
        name: np.array([int(bit) for bit in bin(int(own["probe"], 16))[3:]], dtype=np.int8)
        for name, own in run["methods"].items()
    }


def choose_once(
    differences: NDArray[np.float64], rows: NDArray[np.intp], confidences: Sequence[float]
) -> list[str | None]:
    """What a probe of these pairs chooses, at each confidence; differences by method and pair.

    The estimates are those of `metrics.paired_difference`, all methods at once.
    """
    own = differences[:, rows]
    means, errors = own.mean(1), own.std(1, ddof=1) / len(rows) ** 0.5
    half = QUANTILES[len(rows)] * errors
    changes = {
        name: Estimate(mean, mean - h, mean + h, len(rows))
        for name, mean, h in zip(CANDIDATES, means.tolist(), half.tolist(), strict=True)
    }
    return [choose_method(changes, confidence) for confidence in confidences]


def measure_run(run: dict[str, Any], draws: int, seed: int) -> dict[tuple[int, float], list[float]]:
    """For each size and confidence: gain, regret, share on, share that hurts, share right."""
    probe = probe_of(run)
    plain = run["methods"]["plain"]["shifted"]
    truth = {name: run["methods"][name]["shifted"] - plain for name in CANDIDATES}
    best = max(0.0, *truth.values())
    draw = np.random.default_rng(seed)
    differences = np.array([probe[name] - probe["plain"] for name in CANDIDATES], dtype=np.float64)
    found = {}
    for size in SIZES:
        total = differences.shape[1]
        if size > total:
            continue
        chosen = [
            choose_once(differences, draw.permutation(total)[:size], CONFIDENCES)
            for _ in range(draws)
        ]
        for place, confidence in enumerate(CONFIDENCES):
            values = [truth[c[place]] if c[place] else 0.0 for c in chosen]
            is_on = [c[place] is not None for c in chosen]
            # Right: on and it helps, or off where no mode helps by more than nothing to speak of.
            right = [v > 0 if on else best <= NEUTRAL for v, on in zip(values, is_on, strict=True)]
            found[size, confidence] = [
                float(np.mean(values)),
                best - float(np.mean(values)),
                float(np.mean(is_on)),
                float(np.mean([value < -NEUTRAL for value in values])),
                float(np.mean(right)),
            ]
    return found


def summarise(runs: Sequence[dict[str, Any]], draws: int) -> dict[str, Any]:
    measured = [measure_run(run, draws, seed) for seed, run in enumerate(runs)]
    names = ("gain", "regret", "on", "hurts", "right")
    rows = []
    for size in SIZES:
        for confidence in CONFIDENCES:
            values = [m[size, confidence] for m in measured if (size, confidence) in m]
            if not values:
                continue
            estimates = [mean_estimate(column) for column in zip(*values, strict=True)]
            rows.append(
                {"pairs": size, "confidence": confidence, "runs": len(values)}
                | {
                    name: [round(v, 4) for v in (e.value, e.low, e.high)]
                    for name, e in zip(names, estimates, strict=True)
                }
            )
    plain = [run["methods"]["plain"]["shifted"] for run in runs]
    always = {}
    for name in ALWAYS:
        gains = [run["methods"][name]["shifted"] - p for run, p in zip(runs, plain, strict=True)]
        gain = mean_estimate(gains)
        always[name] = {
            "gain": [round(v, 4) for v in (gain.value, gain.low, gain.high)],
            "hurts": round(float(np.mean([g < -NEUTRAL for g in gains])), 3),
        }
    best = mean_estimate(
        [
            max(0.0, *(run["methods"][name]["shifted"] - p for name in CANDIDATES))
            for run, p in zip(runs, plain, strict=True)
        ]
    )
    return {
        "chosen_by_probe": rows,
        "always": always,
        "best_of_all": [round(v, 4) for v in (best.value, best.low, best.high)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("map", type=Path)
    parser.add_argument("real", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--draws", type=int, default=200, help="probes of a split; of the map: 5")
    arguments = parser.parse_args()
    real = list(read_json_lines(arguments.real))
    found = {}
    for name in ("alpaca", "hh"):
        runs = [row["runs"][0] for row in real if row["setting"]["kind"] == name]
        found[name] = summarise(runs, arguments.draws)
    rows = [r for r in read_json_lines(arguments.map) if r["setting"]["kind"] == "map"]
    found["map"] = summarise([row["runs"][0] for row in rows], 5)
    write_json(arguments.output, found)
    for name, own in found.items():
        print(name, "best of all", own["best_of_all"], "always", own["always"])
        for row in own["chosen_by_probe"]:
            print("  ", row)


if __name__ == "__main__":
    main()
