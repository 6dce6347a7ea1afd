# SPDX-License-Identifier: Apache-2.0
"""Which reward model chooses best: gold of best-of-n from SFT, at exactly equal KL.

    python benchmarks/best_of_n_frontier.py runs/world-policy --output results/best_of_n.json

For each seed of a finished world run: one pool of SFT's responses to held-out prompts, scored by
the last reward model of every arm. Best-of-n is ln n - (n - 1) / n nats from SFT whichever model
chooses, and its mean gold over all subsets of the pool has no noise of an optimiser: what is left
is the reward model. Seeds already in the output are not done again.
"""

import argparse
import math
from pathlib import Path
from typing import Any

import numpy as np

from metarm.config import RunSettings, SamplingSettings
from metarm.config_file import read_settings
from metarm.data.meta_sets import load_prompts
from metarm.evaluation.scorecard import score_groups
from metarm.metrics import best_of_n_mean, mean_estimate, paired_difference
from metarm.models.ensemble import load_reward
from metarm.policy.sampling import sample_groups
from metarm.progress import SilentProgress
from metarm.storage import read_json, write_json
from metarm.world.language import GoldReward, build_language

POOL = 64
SIZES = (4, 16, 64)
NUM_PROMPTS = 96


def reward_models(run: RunSettings, folder: Path) -> dict[str, Path]:
    """The last reward model of each arm that has finished."""
    found = {"frozen": folder / "reward"}
    for arm in run.arms:
        place = folder / "arms" / arm / f"round_{run.rounds:02d}" / "reward"
        if (place / "stage.json").exists():
            found[arm] = place
    return found


def measure_seed(run: RunSettings, folder: Path, known: dict[str, Any]) -> dict[str, Any]:
    """Mean gold of best-of-n by arm, for every n; arms in `known` are kept as they are."""
    assert run.world is not None, "the frontier needs a run with a world"
    models = {arm: place for arm, place in reward_models(run, folder).items() if arm not in known}
    if not models:
        return known
    prompts = load_prompts(folder / "world" / "prompts_test.jsonl")[:NUM_PROMPTS]
    sampling = SamplingSettings(
        num_generations=POOL,
        max_completion_length=run.sampling.max_completion_length,
        batch_size=run.sampling.batch_size,
    )
    groups = sample_groups(folder / "sft", prompts, sampling, seed=0, progress=SilentProgress())
    gold = score_groups(GoldReward(build_language(run.world)), groups)
    scores = {arm: score_groups(load_reward(place), groups) for arm, place in models.items()}
    if "gold" not in known:
        scores["gold"] = gold
    return known | {
        arm: {str(n): best_of_n_mean(own, gold, n) for n in SIZES} for arm, own in scores.items()
    }


def summarise(by_seed: dict[str, dict[str, Any]], base: str) -> dict[str, Any]:
    """Mean gold with intervals over seeds, and paired differences to `base`."""
    arms = dict.fromkeys(arm for found in by_seed.values() for arm in found)
    summary: dict[str, Any] = {}
    for arm in arms:
        summary[arm] = {}
        for n in map(str, SIZES):
            both = [found for found in by_seed.values() if arm in found and base in found]
            own, other = ([found[name][n] for found in both] for name in (arm, base))
            row: dict[str, Any] = {"seeds": len(both), "gold": str(mean_estimate(own))}
            if arm != base:
                row[f"minus {base}"] = str(paired_difference(own, other))
                row["seeds above"] = int(np.sum(np.array(own) > np.array(other)))
            summary[arm][n] = row
    return summary


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--base", default="plain")
    arguments = parser.parse_args()
    run = read_settings(arguments.run / "config.yaml", [], RunSettings)
    by_seed = read_json(arguments.output)["by_seed"] if arguments.output.exists() else {}
    for seed in run.seeds:
        folder = arguments.run / f"seed_{seed}"
        if (folder / "reward" / "stage.json").exists():
            by_seed[str(seed)] = measure_seed(run, folder, by_seed.get(str(seed), {}))
            summary = summarise(by_seed, arguments.base)
            document = {"pool": POOL, "prompts": NUM_PROMPTS, "summary": summary}
            write_json(arguments.output, {**document, "by_seed": by_seed})
    for arm, rows in summary.items():
        for n, row in rows.items():
            kl = math.log(int(n)) - (int(n) - 1) / int(n)
            print(f"{arm:18} n={n:3} KL {kl:.2f}  {row}")


if __name__ == "__main__":
    main()
