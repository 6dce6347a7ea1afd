# SPDX-License-Identifier: Apache-2.0
"""The figures and the outcomes of the advised modes on the real shifts, as rows like the map's.

    python benchmarks/real_shifts.py runs/real_shifts.jsonl --backbone MODEL \
        --features runs/compare/features --data FOLDER

A row is one split of one shift. Probe pairs are labelled shifted pairs of training prompts, one of
each prompt; what a mode changes is measured on held-out prompts. Finished rows are kept.
"""

import argparse
import random
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metarm.bench.advice_rule import CANDIDATES
from metarm.bench.features import frozen_features
from metarm.bench.problem import build_problem
from metarm.bench.readings import train_candidates
from metarm.bench.settings import HeadSettings, SourceSettings
from metarm.bench.shifts import SHIFTS
from metarm.progress import SilentProgress
from metarm.schema import PreferencePair
from metarm.storage import append_json_line, read_json_lines

DATA = {
    "alpaca": "alpaca_eval_policy_shift.jsonl.gz",
    "gsm8k": "gsm8k_policy_shift.jsonl.gz",
    "hh": "",
}
MAX_LENGTH = 112


def run_split(name: str, seed: int, data: Path, backbone: str, features: Path) -> dict[str, Any]:
    shift = SHIFTS[name](SourceSettings(data=str(data / DATA[name])), seed)
    texts = shift.texts
    place = {text: row for row, text in enumerate(texts)}
    states = frozen_features(
        backbone, texts, max_length=MAX_LENGTH, cache=features, progress=SilentProgress()
    )
    problem = build_problem(shift, states, seed)
    figures, trained = train_candidates(problem, list(CANDIDATES), HeadSettings(), seed)

    def is_right(pairs: Sequence[PreferencePair], scores: Tensor) -> list[float]:
        rows = torch.tensor([[place[p.prompt, s] for s in (p.chosen, p.rejected)] for p in pairs])
        return ((1 + (scores[rows[:, 0]] - scores[rows[:, 1]]).sign()) / 2).tolist()

    draw = random.Random(f"probe|{seed}")
    labels = draw.sample(list(shift.shifted_labels), len(shift.shifted_labels))
    probe = list({pair.prompt: pair for pair in labels}.values())
    methods = {}
    for method, found in trained.items():
        own = [int(value) for value in is_right(probe, found.scores)]
        right = {
            side: is_right(pairs, found.scores)
            for side, pairs in (("original", shift.test_original), ("shifted", shift.test_shifted))
        }
        methods[method] = {side: sum(values) / len(values) for side, values in right.items()} | {
            "probe": hex(int("1" + "".join(map(str, own)), 2)),
            "rank_correlation": found.rank_correlation,
        }
    return {"seed": seed, "figures": asdict(figures), "methods": methods}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path, help="JSON lines; finished rows are kept")
    parser.add_argument("--backbone", required=True)
    parser.add_argument("--features", type=Path, required=True, help="folder of frozen features")
    parser.add_argument("--data", type=Path, required=True, help="folder of the three data sets")
    parser.add_argument("--seeds", type=int, default=7)
    arguments = parser.parse_args()
    done = list(read_json_lines(arguments.output)) if arguments.output.exists() else []
    known = {(row["setting"]["kind"], row["setting"]["place"]) for row in done}
    for seed in range(arguments.seeds):
        for name in DATA:
            if (name, seed) in known:
                continue
            run = run_split(name, seed, arguments.data, arguments.backbone, arguments.features)
            append_json_line(
                arguments.output, {"setting": {"kind": name, "place": seed}, "runs": [run]}
            )
            plain = run["methods"]["plain"]["shifted"]
            changes = ", ".join(
                f"{method} {100 * (run['methods'][method]['shifted'] - plain):+.1f}"
                for method in CANDIDATES
            )
            print(f"{name}, seed {seed}: plain {plain:.3f}, {changes}", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
