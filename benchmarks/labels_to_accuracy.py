# SPDX-License-Identifier: Apache-2.0
"""Labels to the same accuracy: one policy held fixed, the reward model taught by each choice.

    metarm run --config benchmarks/world_labels.yaml --output runs/world-labels
    python benchmarks/labels_to_accuracy.py runs/world-labels --output labels_to_accuracy.json

For each seed the policy after round 1 of the arm `plain` is sampled as the next round would sample
it. Each choice takes n pairs of those responses (of SFT's responses to the same prompts for
`random-on-old`), gold labels them, and the reward model is trained from SFT on the original pairs
and on these, as the loop does it. Accuracy is against gold on pairs of the same policy's responses
to held-out prompts. Cells are kept as they come: the same command goes on.
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from metarm.choosing.pairs import list_candidates, name_chosen, pool_of_model
from metarm.choosing.pool import Pool
from metarm.choosing.strategies import choose
from metarm.config import RewardSettings, RunSettings, SamplingSettings
from metarm.config_file import read_settings
from metarm.data.meta_sets import load_prompts
from metarm.data.preferences import load_preferences
from metarm.evaluation.scorecard import score_groups
from metarm.gold_labels import draw_pairs, gold_gaps, told_apart
from metarm.labels.votes import LabelPair
from metarm.metrics import mean_estimate, pair_accuracy, paired_difference
from metarm.models.ensemble import load_reward
from metarm.policy.sampling import sample_groups
from metarm.progress import SilentProgress
from metarm.protocols import ScoreFunction
from metarm.schema import PreferencePair, ResponseGroup
from metarm.storage import append_json_line, write_json
from metarm.training import train_reward_model
from metarm.world.language import GoldReward, build_language

OLD: Final = "random-on-old"
CHOICES: Final = ("random", OLD, "mix", "d-optimal")
BUDGETS: Final = (25, 50, 100, 200)
REPEAT: Final = 8
"""`label_repeat` of an arm."""
NUM_TEST_PROMPTS: Final = 200


class Problem:
    """One seed's policy, pairs, prompts and held-out responses."""

    def __init__(self, run: Path, seed: int, pool_prompts: int | None) -> None:
        self.settings = read_settings(run / "config.yaml", [], RunSettings)
        self.seed, self.folder = seed, run / f"seed_{seed}"
        world = self.settings.world
        assert world is not None
        self.gold: ScoreFunction = GoldReward(build_language(world))
        self.pairs, self.test_pairs = (
            load_preferences(
                self.folder / f"world/{name}.jsonl", "trl-explicit", keep_blank=True
            ).pairs
            for name in ("preferences", "preferences_test")
        )
        self.policy = self.folder / "arms/plain/round_01/policy"
        self.prompts = load_prompts(self.folder / "world/prompts.jsonl")
        sampling = self.settings.sampling.model_copy(update={"num_prompts": pool_prompts})
        self.own = self._sample(self.policy, sampling, 1)
        self.old = self._sample(self.folder / "sft", sampling, 2)
        held_out = sampling.model_copy(update={"num_prompts": NUM_TEST_PROMPTS})
        prompts = load_prompts(self.folder / "world/prompts_test.jsonl")
        self.test = sample_groups(
            self.policy, prompts, held_out, seed=seed * 10 + 3, progress=SilentProgress()
        )
        self.test_gold = score_groups(self.gold, self.test)

    def _sample(self, model: Path, sampling: SamplingSettings, number: int) -> list[ResponseGroup]:
        return sample_groups(
            model, self.prompts, sampling, seed=self.seed * 10 + number, progress=SilentProgress()
        )

    def choose(self, choice: str, count: int) -> list[LabelPair]:
        """The pairs that a choice takes; those that gold cannot tell apart are passed over."""
        if choice in ("random", OLD):
            groups = self.old if choice == OLD else self.own
            drawn = draw_pairs(groups, seed=self.seed)
            return [told.pair for told in told_apart(drawn, self.gold, count)]
        pairs, pool = self.pool
        return name_chosen(pairs, choose(pool, choice, count, seed=self.seed))

    @cached_property
    def pool(self) -> tuple[list[LabelPair], Pool]:
        """The policy's pairs as the reward model of its round sees them."""
        found = list_candidates(self.own, labelled=self.pairs)
        pairs = [told.pair for told in gold_gaps(found.pairs, self.gold) if told.gap]
        before = load_reward(self.folder / "arms/plain/round_01/reward")
        return pairs, pool_of_model(before, pairs, self.pairs, seed=self.seed)

    def accuracy(self, labelled: Sequence[LabelPair], reward: RewardSettings) -> dict[str, Any]:
        """Accuracy on the policy's held-out pairs of a reward model with these labels."""
        bought = [
            PreferencePair(pair.prompt, *(sides if gap > 0 else sides[::-1]))
            for pair, gap in gold_gaps(labelled, self.gold)
            for sides in [(pair.first, pair.second)]
        ]
        with tempfile.TemporaryDirectory() as place:
            train_reward_model(
                model=str(self.folder / "sft"),
                pairs=[*self.pairs, *bought * REPEAT],
                test_pairs=self.test_pairs,
                groups=[],
                settings=reward.model_copy(update={"meta_mode": "off"}),
                output_dir=Path(place),
                seed=self.seed,
                progress=SilentProgress(),
            )
            scores = score_groups(load_reward(Path(place)), self.test)
        first, second = np.triu_indices(scores.shape[1], k=1)
        gaps, gold = (x[:, first] - x[:, second] for x in (scores, self.test_gold))
        told = gold != 0
        right = pair_accuracy(gaps[told], gold[told])
        return {
            "accuracy": float(right.mean()),
            "num_labels": len(bought),
            "pairs": int(told.sum()),
        }


def labels_to_reach(
    budgets: Sequence[int], accuracies: Sequence[float], goal: float
) -> float | None:
    """Labels at which a curve first reaches `goal`, on straight lines over log labels; None: never.

    The first budget stands for everything below it.
    """
    if accuracies[0] >= goal:
        return float(budgets[0])
    for place in range(1, len(budgets)):
        low, high = accuracies[place - 1], accuracies[place]
        if low < goal <= high:
            share = (goal - low) / (high - low)
            left, right = np.log(budgets[place - 1]), np.log(budgets[place])
            return float(np.exp(left + share * (right - left)))
    return None


def read_cells(path: Path) -> dict[tuple[int, str, int], dict[str, Any]]:
    if not path.exists():
        return {}
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    return {(row["seed"], row["choice"], row["labels"]): row for row in rows}


def measure(arguments: argparse.Namespace, kept: Path) -> None:
    """Every cell that is not kept yet, seed by seed."""
    known = read_cells(kept)
    for seed in arguments.seeds:
        wanted = [(seed, "none", 0)]
        wanted += [(seed, c, n) for n in arguments.budgets for c in arguments.choices]
        missing = [cell for cell in wanted if cell not in known]
        if not missing:
            continue
        problem = Problem(arguments.run, seed, arguments.pool_prompts)
        for _, choice, count in missing:
            chosen = problem.choose(choice, count) if count else []
            found = problem.accuracy(chosen, problem.settings.reward)
            row = {"seed": seed, "choice": choice, "labels": count, **found}
            append_json_line(kept, row)
            print(json.dumps(row), flush=True)


def summarise(arguments: argparse.Namespace, kept: Path) -> dict[str, Any]:
    """Means over the seeds that have every cell, paired differences, and labels to a goal."""
    cells = read_cells(kept)
    wanted = [("none", 0), *((c, n) for c in arguments.choices for n in arguments.budgets)]
    seeds = [s for s in arguments.seeds if all((s, c, n) in cells for c, n in wanted)]
    table: dict[str, Any] = {}

    def values(choice: str, count: int) -> list[float]:
        return [cells[seed, choice, count]["accuracy"] for seed in seeds]

    for choice, count in wanted:
        own = mean_estimate(values(choice, count))
        row: dict[str, Any] = {"accuracy": own.value, "interval": [own.low, own.high]}
        if choice not in ("none", "random"):
            gap = paired_difference(values(choice, count), values("random", count))
            row |= {"minus_random": gap.value, "minus_random_interval": [gap.low, gap.high]}
        table.setdefault(choice, {})[str(count)] = row
    goals = {n: table["random"][str(n)]["accuracy"] for n in arguments.budgets[1:]}
    ratios: dict[str, Any] = {}
    for choice in arguments.choices:
        for count, goal in goals.items():
            ratios.setdefault(choice, {})[str(count)] = _ratio(
                [values(choice, n) for n in arguments.budgets], arguments.budgets, goal, count
            )
    return {
        "run": arguments.run.name,
        "seeds": seeds,
        "budgets": arguments.budgets,
        "table": table,
        "labels_over_random": ratios,
    }


def _ratio(
    curves: Sequence[Sequence[float]], budgets: Sequence[int], goal: float, count: int
) -> dict[str, Any] | None:
    """Labels that the mean curve takes to `goal` over `count`, with a bootstrap over seeds."""
    by_budget = np.array(curves)

    def ratio(rows: Any) -> float | None:
        needed = labels_to_reach(budgets, by_budget[:, rows].mean(axis=1).tolist(), goal)
        return None if needed is None else needed / count

    whole = ratio(slice(None))
    draw = np.random.default_rng(0)
    seeds = by_budget.shape[1]
    drawn = [ratio(draw.integers(seeds, size=seeds)) for _ in range(1000)]
    # A draw that never gets there needs more than the largest budget.
    most = budgets[-1] / count
    ends = np.quantile([most if value is None else value for value in drawn], [0.025, 0.975])
    return {
        "ratio": whole,
        "interval": ends.tolist(),
        "never": sum(value is None for value in drawn) / len(drawn),
    }


def print_summary(found: dict[str, Any]) -> None:
    print(f"{len(found['seeds'])} seeds: {found['seeds']}")
    for choice, rows in found["table"].items():
        for count, row in rows.items():
            low, high = row["interval"]
            text = f"{choice:22} {count:>4}  {row['accuracy']:.3f} [{low:.3f}, {high:.3f}]"
            if "minus_random" in row:
                low, high = row["minus_random_interval"]
                mark = "" if low <= 0 <= high else " *"
                text += f"  {row['minus_random']:+.3f} [{low:+.3f}, {high:+.3f}]{mark}"
            print(text)
    print("\nlabels to the accuracy of that many random ones, over that many")
    for choice, rows in found["labels_over_random"].items():
        for count, row in rows.items():
            told = "never" if row["ratio"] is None else f"{row['ratio']:.2f}"
            low, high = row["interval"]
            print(f"{choice:22} {count:>4}  {told} [{low:.2f}, {high:.2f}]")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--output", type=Path, required=True, help="JSON file")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(200, 210)))
    parser.add_argument("--budgets", type=int, nargs="+", default=list(BUDGETS))
    parser.add_argument("--choices", nargs="+", default=list(CHOICES))
    parser.add_argument("--pool-prompts", type=int, help="prompts sampled; default: the run's")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    kept = arguments.output.with_suffix(".jsonl")
    measure(arguments, kept)
    found = summarise(arguments, kept)
    write_json(arguments.output, found)
    print_summary(found)


if __name__ == "__main__":
    main()
