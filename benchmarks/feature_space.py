# SPDX-License-Identifier: Apache-2.0
"""When the step helps: a closed feature space where thousands of runs are cheap.

    python benchmarks/feature_space.py --output benchmarks/results/feature_space.json

Responses are vectors of features, the true reward is linear in them, labels are noisy. Shifted
responses vary along one axis above all; `cosine` says how much of the true reward lies along it.
Each row of the result is one setting and one method: the change in accuracy on shifted pairs
against plain training, mean over seeds with a 95 % t-interval, paired by seed.
"""

import argparse
import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metarm.bench.methods import train_recipe
from metarm.bench.problem import Problem
from metarm.bench.recipes import Recipe, read_recipe
from metarm.config import HeadSettings
from metarm.metrics import paired_difference
from metarm.storage import write_json

NUM_TEST = 4000
GROUP_SIZE = 5
NOISE = 1.0
AXIS_SPREAD = 3.0
OTHER_SPREAD = 0.5
RECIPES = {
    "ascent 1": Recipe(step="ascent", strength=1.0),
    "descent 1": Recipe(step="descent", strength=1.0),
    "descent 3": Recipe(step="descent", strength=3.0),
    "joint 0.1": Recipe(step="joint", strength=0.1),
    "joint 0.3": Recipe(step="joint", strength=0.3),
    "joint 1": Recipe(step="joint", strength=1.0),
    "descent, a quarter of the spread": Recipe(step="descent", reward_fraction=0.25),
    "descent, half of the spread": Recipe(step="descent", reward_fraction=0.5),
    "descent, all of the spread": Recipe(step="descent", reward_fraction=1.0),
    "descent-auto": read_recipe("descent-auto"),
    "100 labels": read_recipe("100-labels"),
}


def build_space(
    size: int, num_pairs: int, cosine: float, seed: int
) -> tuple[Problem, Tensor, Tensor, Tensor]:
    """A problem, and the features, pairs and true rewards to test on (original, then shifted)."""
    draw = torch.Generator().manual_seed(seed)
    truth = torch.randn(size, generator=draw)
    truth /= truth.norm()
    across = torch.randn(size, generator=draw)
    across -= (across @ truth) * truth
    axis = cosine * truth + (1 - cosine**2) ** 0.5 * across / across.norm()

    def original(count: int) -> Tensor:
        return torch.randn(count, size, generator=draw)

    def shifted(count: int) -> Tensor:
        along = AXIS_SPREAD * torch.randn(count, 1, generator=draw) * axis
        return OTHER_SPREAD * original(count) + along

    train, groups, labelled = (
        original(2 * num_pairs),
        shifted(5 * num_pairs),
        shifted(2 * num_pairs),
    )
    tests = [original(2 * NUM_TEST), shifted(2 * NUM_TEST)]
    features = torch.cat([train, groups, labelled])
    gold = features @ truth
    pairs = torch.arange(2 * num_pairs).reshape(-1, 2)
    gap = (gold[pairs[:, 0]] - gold[pairs[:, 1]]) / NOISE
    is_first = torch.rand(num_pairs, generator=draw) < torch.sigmoid(gap)
    pairs = torch.where(is_first[:, None], pairs, pairs.flip(1))
    rows = 2 * num_pairs + torch.arange(5 * num_pairs).reshape(-1, GROUP_SIZE)
    own = 7 * num_pairs + torch.arange(2 * num_pairs).reshape(-1, 2)
    own = torch.where((gold[own[:, 0]] > gold[own[:, 1]])[:, None], own, own.flip(1))
    cut = num_pairs // 10
    problem = Problem(features, pairs[cut:], pairs[:cut], rows[cut:], rows[:cut], own)
    return problem, torch.cat(tests), torch.stack([t @ truth for t in tests]), axis


def measure(problem: Problem, tests: Tensor, gold: Tensor, recipe: Recipe, seed: int) -> Any:
    """Accuracy on original and shifted pairs at the best step, and the scores of the problem."""
    whole = replace(problem, features=torch.cat([problem.features, tests]))
    found = train_recipe(whole, recipe, SETTINGS, seed)
    scores = found.scores[found.best]
    tested = scores[len(problem.features) :].reshape(2, -1, 2)
    gaps, true = tested[..., 0] - tested[..., 1], gold.reshape(2, -1, 2)
    correct = (gaps.sign() == (true[..., 0] - true[..., 1]).sign()).float().mean(1)
    return correct.tolist(), scores


SETTINGS = HeadSettings(hidden=[32], num_steps=200, measure_every=20)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=6)
    arguments = parser.parse_args()
    rows = []
    for size, num_pairs, cosine in itertools.product((50, 200), (400, 1600), (0.0, 0.15, 0.3, 0.6)):
        changes: dict[str, list[list[float]]] = {name: [] for name in RECIPES}
        ranks: dict[str, list[float]] = {name: [] for name in RECIPES}
        plain = []
        for seed in range(arguments.seeds):
            problem, tests, gold, _ = build_space(size, num_pairs, cosine, seed)
            base, reference = measure(problem, tests, gold, Recipe(), seed)
            plain.append(base)
            for name, recipe in RECIPES.items():
                accuracy, scores = measure(problem, tests, gold, recipe, seed)
                changes[name].append(accuracy)
                rank = mean_rank_correlation(problem.watched_groups, scores, reference)
                ranks[name].append(rank if rank is not None else 0.0)
        for name in RECIPES:
            original, shifted = (
                paired_difference([a[k] for a in changes[name]], [b[k] for b in plain])
                for k in range(2)
            )
            rows.append(
                {
                    "features": size,
                    "pairs": num_pairs,
                    "cosine": cosine,
                    "method": name,
                    "plain_original": sum(b[0] for b in plain) / len(plain),
                    "plain_shifted": sum(b[1] for b in plain) / len(plain),
                    "original_change": str(original),
                    "shifted_change": str(shifted),
                    "rank_correlation": sum(ranks[name]) / len(ranks[name]),
                }
            )
            print(
                f"{size} features, {num_pairs} pairs, cosine {cosine}: {name}: "
                f"shifted {shifted} (plain {rows[-1]['plain_shifted']:.3f}), original {original}, "
                f"rank {rows[-1]['rank_correlation']:.2f}",
                flush=True,
            )
    write_json(arguments.output, {"seeds": arguments.seeds, "rows": rows})


if __name__ == "__main__":
    main()
