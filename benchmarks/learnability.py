# SPDX-License-Identifier: Apache-2.0
"""Whether what remains to be told apart after the shift is learnable, and weak in original pairs.

    python benchmarks/learnability.py runs/demo --output benchmarks/results/learnability.json

For each seed of a finished world run: reward models trained on the run's original pairs, on ten
times as many, and on gold-labelled pairs of the shifted policy itself, all measured against gold on
pairs of the SFT policy and of the policy that the `frozen` arm ended with (held-out prompts).
"""

import argparse
import random
from collections.abc import Sequence
from pathlib import Path

from metarm.config import RewardSettings, RunSettings, SamplingSettings
from metarm.config_file import read_settings
from metarm.data.meta_sets import load_groups, load_prompts
from metarm.data.preferences import load_preferences
from metarm.evaluation.scorecard import score_groups
from metarm.gold_labels import label_groups
from metarm.metrics import accuracy_estimate, mean_estimate, pair_accuracy, within_group_gaps
from metarm.models.reward_model import load_score_function
from metarm.policy.sampling import sample_groups
from metarm.progress import SilentProgress
from metarm.schema import PreferencePair, ResponseGroup
from metarm.storage import write_json
from metarm.training import train_reward_model
from metarm.world.build import draw_pair
from metarm.world.language import GoldReward, build_language

NUM_OWN_LABELS = 2000


def measure(model: Path, gold: GoldReward, groups: Sequence[ResponseGroup]) -> float:
    gaps, gold_gaps = (
        within_group_gaps(score_groups(score, groups)).ravel()
        for score in (load_score_function(model), gold)
    )
    told = gold_gaps != 0
    return accuracy_estimate(pair_accuracy(gaps[told], gold_gaps[told])).value


def train(
    folder: Path, pairs: Sequence[PreferencePair], settings: RewardSettings, output: Path, seed: int
) -> None:
    test = load_preferences(folder / "world" / "preferences_test.jsonl", "trl-explicit").pairs
    train_reward_model(
        model=str(folder / "sft"),
        pairs=pairs,
        test_pairs=test,
        groups=[],
        settings=settings,
        output_dir=output,
        seed=seed,
        progress=SilentProgress(),
    )


def measure_seed(
    run: RunSettings, folder: Path, seed: int, scratch: Path
) -> dict[str, list[float]]:
    assert run.world is not None, "learnability needs a run with a world"
    gold = GoldReward(build_language(run.world))
    prompts = [str(prompt) for prompt in load_prompts(folder / "world" / "prompts.jsonl")]
    last = folder / "arms" / "frozen" / f"round_{run.rounds:02d}"
    shifted = load_groups(last / "evaluation" / "groups.jsonl")
    original = load_groups(folder / "arms" / "sft" / "round_00" / "evaluation" / "groups.jsonl")
    draw = random.Random(f"learnability|{seed}")
    sampling = SamplingSettings(
        num_generations=2, max_completion_length=run.sampling.max_completion_length
    )
    repeats = -(-NUM_OWN_LABELS * 3 // (2 * len(prompts)))
    own = sample_groups(
        last / "policy", prompts * repeats, sampling, seed=seed + 1, progress=SilentProgress()
    )
    few = load_preferences(folder / "world" / "preferences.jsonl", "trl-explicit").pairs
    many = [
        draw_pair(gold, draw.choice(prompts), run.world.label_noise, draw)
        for _ in range(10 * run.world.num_pairs)
    ]
    sets: dict[str, Sequence[PreferencePair]] = {
        "original pairs": few,
        "ten times as many original pairs": many,
        f"{NUM_OWN_LABELS} gold labels on the policy's own pairs": label_groups(
            own, gold, NUM_OWN_LABELS, seed=seed
        ),
    }
    settings = run.reward.model_copy(update={"meta_mode": "off"})
    accuracies = {}
    for name, pairs in sets.items():
        train(folder, pairs, settings, scratch, seed)
        accuracies[name] = [measure(scratch, gold, groups) for groups in (original, shifted)]
        print(
            f"seed {seed}: {name}: SFT {accuracies[name][0]:.3f}, shifted {accuracies[name][1]:.3f}"
        )
    return accuracies


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--scratch", type=Path, default=Path("runs/.learnability"))
    arguments = parser.parse_args()
    run = read_settings(arguments.run / "config.yaml", [], RunSettings)
    by_seed = [
        measure_seed(run, arguments.run / f"seed_{seed}", seed, arguments.scratch)
        for seed in run.seeds
    ]
    rows = {
        name: {
            place: str(mean_estimate([result[name][index] for result in by_seed]))
            for index, place in enumerate(("SFT's pairs", "the shifted policy's pairs"))
        }
        for name in by_seed[0]
    }
    write_json(arguments.output, {"seeds": run.seeds, "accuracy": rows})
    for name, row in rows.items():
        print(f"{name}: {row}")


if __name__ == "__main__":
    main()
