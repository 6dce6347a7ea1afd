# SPDX-License-Identifier: Apache-2.0
"""Whether adapting to the last round forgets the first: the last reward model, trained anew.

    python benchmarks/forgetting.py runs/demo --arm meta

For each seed of a finished run with a world: the reward model of the arm's last round on different
meta sets, from the groups that the run has saved, so that policies and pairs are the same for all.
Measured is its accuracy against gold on held-out prompts, on pairs of the SFT policy, which wrote
round 1's groups, and of each policy that ended a round. The last reward model is adapted to the
last policy but one; the last was optimised against the run's own reward model, none of these.
"""

import argparse
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from metarm.config import RewardSettings, RunSettings
from metarm.config_file import read_settings
from metarm.data.meta_sets import load_groups
from metarm.data.preferences import load_preferences
from metarm.data.reservoir import keep_reservoir
from metarm.evaluation.scorecard import score_groups
from metarm.metrics import accuracy_estimate, mean_estimate, pair_accuracy, within_group_gaps
from metarm.models.reward_model import load_score_function
from metarm.progress import SilentProgress
from metarm.schema import Estimate, ResponseGroup
from metarm.storage import build_stage, fingerprint, read_json_lines
from metarm.training import train_reward_model
from metarm.world.language import GoldReward, build_language

Rows = dict[str, dict[str, float]]


def meta_sets(arm: Path, rounds: int, seed: int) -> dict[str, list[ResponseGroup]]:
    """The groups of each treatment; the first is what the others are compared with."""
    by_round = [
        [
            replace(group, source=f"round_{number}")
            for group in load_groups(arm / f"round_{number:02d}" / "samples" / "groups.jsonl")
        ]
        for number in range(1, rounds + 1)
    ]
    own = by_round[-1]
    past = [group for groups in by_round[:-1] for group in groups]
    kept = keep_reservoir(past, len(own), seed=seed)
    return {"own groups": own, "reservoir": own + kept, "no meta step": []}


def measure(model: Path, gold: GoldReward, sets: Mapping[str, Sequence[ResponseGroup]]) -> Rows:
    score = load_score_function(model)
    accuracies, spreads = {}, {}
    for name, groups in sets.items():
        gaps, truth = (
            within_group_gaps(score_groups(who, groups)).ravel() for who in (score, gold)
        )
        told = truth != 0
        accuracies[name] = accuracy_estimate(pair_accuracy(gaps[told], truth[told])).value
        spreads[name] = float(np.sqrt(np.square(gaps).mean()))
    unit = spreads["SFT"]
    return {"accuracy": accuracies, "spread": {name: s / unit for name, s in spreads.items()}}


def measure_seed(
    run: RunSettings, folder: Path, arm: str, seed: int, repeat: int, output: Path
) -> dict[str, Rows]:
    assert run.world is not None, "forgetting needs a run with a world"
    gold = GoldReward(build_language(run.world))
    places = {"SFT": folder / "arms" / "sft" / "round_00"}
    for number in range(1, run.rounds + 1):
        places[f"round {number}"] = folder / "arms" / arm / f"round_{number:02d}"
    sets = {name: load_groups(p / "evaluation" / "groups.jsonl") for name, p in places.items()}
    pairs, test = (
        load_preferences(folder / "world" / f"{name}.jsonl", "trl-explicit").pairs
        for name in ("preferences", "preferences_test")
    )
    mode = run.arm(arm).meta_mode or run.reward.meta_mode
    found = {}
    for name, groups in meta_sets(folder / "arms" / arm, run.rounds, seed).items():
        settings: RewardSettings = run.reward.model_copy(
            update={"meta_mode": mode if groups else "off"}
        )

        def build(
            place: Path,
            settings: RewardSettings = settings,
            groups: Sequence[ResponseGroup] = groups,
        ) -> Rows:
            train_reward_model(
                model=str(folder / "sft"),
                pairs=pairs,
                test_pairs=test[:20],
                groups=groups,
                settings=settings,
                output_dir=place,
                seed=1000 * repeat + seed,
                progress=SilentProgress(),
            )
            last = {
                k: v for row in read_json_lines(place / "train_log.jsonl") for k, v in row.items()
            }
            weights = {k: v for k, v in last.items() if k.startswith("meta/weight_")}
            return {**measure(place, gold, sets), "weights": weights}

        record = [str(folder), arm, settings.model_dump(), [group.to_json() for group in groups]]
        place = output / f"seed_{seed}" / f"repeat_{repeat}" / name.replace(" ", "_")
        found[name] = dict(build_stage(place, fingerprint(record), [], build).metrics)
        print(f"seed {seed}, repeat {repeat}, {name}: {found[name]}", flush=True)
    return found


def signed(estimate: Estimate) -> str:
    return f"{estimate.value:+.3f} [{estimate.low:+.3f}, {estimate.high:+.3f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--arm", default="meta")
    parser.add_argument("--repeats", type=int, default=1, help="trainings of each seed")
    parser.add_argument("--output", type=Path, default=Path("runs/forgetting"))
    given = parser.parse_args()
    run = read_settings(given.run / "config.yaml", [], RunSettings)
    values: defaultdict[tuple[str, str, str], list[float]] = defaultdict(list)
    for seed in run.seeds:
        folder = given.run / f"seed_{seed}"
        repeats = [
            measure_seed(run, folder, given.arm, seed, repeat, given.output)
            for repeat in range(given.repeats)
        ]
        # Trainings of one seed share its policies: their mean is one value.
        for name, rows in repeats[0].items():
            for what in ("accuracy", "spread"):
                for place in rows[what]:
                    mean = np.mean([result[name][what][place] for result in repeats])
                    values[name, what, place].append(float(mean))
    names = list(dict.fromkeys(name for name, _, _ in values))
    places = list(dict.fromkeys(place for _, _, place in values))
    print(f"{len(run.seeds)} seeds x {given.repeats} trainings, 95 % t-intervals over seeds")
    print(f"{'meta set':20}{'pairs of':10}{'accuracy':25}{'difference':27}gap spread / SFT's")
    for name in names:
        for place in places:
            ours, base = values[name, "accuracy", place], values[names[0], "accuracy", place]
            change = mean_estimate([a - b for a, b in zip(ours, base, strict=True)])
            difference = "" if name == names[0] else signed(change)
            spread = mean_estimate(values[name, "spread", place]).value
            print(f"{name:20}{place:10}{mean_estimate(ours)!s:25}{difference:27}{spread:.2f}")


if __name__ == "__main__":
    main()
