# SPDX-License-Identifier: Apache-2.0
"""What a last layer of its own is worth to a second reader of whom there are few labels.

    python benchmarks/task_heads.py
    python benchmarks/task_heads.py --write

In the embedded world two readers want the same loud features and like other quiet words, each by
weights of their own: they agree on about three pairs in four. Of the first there are 2,000 noisy
labels, of the second N. A model of two layers is trained from nothing on

    main     the first reader's labels alone
    alone    the second's alone, as many steps
    mixed    both in one head, the second's each REPEAT times
    apart    both on one trunk, a last layer each (`metarm reward --task`), the second's as often

and measured is its accuracy against the exact taste of each reader, in `apart` by the layer of
each. Changes are against `mixed`, paired, with 95 % t-intervals over seeds.
"""

import argparse
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from page_tables import with_tables

from metarm.config import RewardSettings, WorldSettings
from metarm.data.tasks import TaskPairs
from metarm.metrics import mean_estimate
from metarm.models.reward_model import load_score_function
from metarm.progress import SilentProgress
from metarm.schema import PreferencePair
from metarm.storage import build_stage, fingerprint, read_json, write_json
from metarm.training import train_reward_model
from metarm.world.build import build_world, draw_pair
from metarm.world.language import GoldReward, build_language, draw_prompt

RESULTS = Path(__file__).parent / "results" / "task_heads.json"
PAGE = Path(__file__).parents[1] / "docs" / "stretching.md"
COUNTS = (50, 200)
REPEAT = 4
NUM_PAIRS, NUM_TEST = 2000, 1000
ARMS = ("main", "alone", "mixed", "apart")
WORLD = WorldSettings(quiet_weight=0.5, num_sft_texts=16)
SETTINGS = RewardSettings(meta_mode="off", max_steps=375, max_length=64)
"""Three passes over the first reader's labels."""


def readers() -> tuple[GoldReward, GoldReward]:
    """Of one language; the second one's quiet weights are those of another world."""
    first = build_language(WORLD)
    other = build_language(WORLD.model_copy(update={"seed": WORLD.seed + 1}))
    return GoldReward(first), GoldReward(replace(first, quiet_weights=other.quiet_weights))


def draw_prompts() -> tuple[list[str], list[str]]:
    """All prompts of the language, to train on and, a quarter of them, to test on."""
    language, draw = readers()[0].language, random.Random("task heads")
    prompts = sorted({draw_prompt(language, draw) for _ in range(20_000)})
    draw.shuffle(prompts)
    return prompts[len(prompts) // 4 :], prompts[: len(prompts) // 4]


def draw_pairs(
    reader: GoldReward, prompts: Sequence[str], count: int, noise: float, name: str
) -> list[PreferencePair]:
    draw = random.Random(f"task heads|{name}")
    return [draw_pair(reader, draw.choice(prompts), noise, draw) for _ in range(count)]


def accuracy(model: Path, pairs: Sequence[PreferencePair]) -> float:
    score = load_score_function(model)
    prompts = [pair.prompt for pair in pairs]
    gaps = np.array(score(prompts, [p.chosen for p in pairs])) - score(
        prompts, [p.rejected for p in pairs]
    )
    return float((gaps > 0).mean())


def measure(folder: Path, arm: str, count: int, seed: int) -> dict[str, float]:
    """Both accuracies of one training."""
    first, second = readers()
    train_prompts, test_prompts = draw_prompts()
    noise = WORLD.label_noise
    tests = [
        draw_pairs(reader, test_prompts, NUM_TEST, 0.0, f"test {name} {seed}")
        for reader, name in ((first, "first"), (second, "second"))
    ]
    main = draw_pairs(first, train_prompts, NUM_PAIRS, noise, f"first {seed}")
    few = draw_pairs(second, train_prompts, max(COUNTS), noise, f"second {seed}")[:count]
    pairs = {"main": main, "alone": few, "mixed": main + few * REPEAT, "apart": main}[arm]
    tasks = [TaskPairs("second", few, tests[1], REPEAT)] if arm == "apart" else []
    train_reward_model(
        model=str(folder.parents[1] / "world" / "model"),
        pairs=pairs,
        test_pairs=tests[0],
        groups=[],
        settings=SETTINGS,
        output_dir=folder,
        seed=seed,
        progress=SilentProgress(),
        tasks=tasks,
    )
    own = folder / "tasks" / "second" if tasks else folder
    return {"first": accuracy(folder, tests[0]), "second": accuracy(own, tests[1])}


def run(output: Path, seeds: Sequence[int]) -> dict[str, Any]:
    """All trainings, each once, and what they say."""
    found: defaultdict[str, dict[str, list[float]]] = defaultdict(
        lambda: {"first": [], "second": []}
    )
    for seed in seeds:
        place = output / f"seed_{seed}"
        world = fingerprint([WORLD.model_dump(), seed])
        build_stage(place / "world", world, [], lambda at, s=seed: build_world(WORLD, s, at))
        for count in COUNTS:
            for arm in ARMS:
                if arm == "main" and count != COUNTS[0]:
                    continue
                record = fingerprint([world, SETTINGS.model_dump(), arm, count, REPEAT, NUM_TEST])
                name = arm if arm == "main" else f"{arm} {count}"
                stage = build_stage(
                    place / name.replace(" ", "_") / "model",
                    record,
                    [],
                    lambda at, a=arm, c=count, s=seed: measure(at, a, c, s),
                )
                for side in ("first", "second"):
                    found[name][side].append(float(stage.metrics[side]))
                print(seed, name, dict(stage.metrics), flush=True)
    first, second = readers()
    pairs = draw_pairs(first, draw_prompts()[0], NUM_TEST, 0.0, "agreement")
    agreed = [
        second.score(str(p.prompt), p.chosen) > second.score(str(p.prompt), p.rejected)
        for p in pairs
    ]
    return {"seeds": list(seeds), "agreement": float(np.mean(agreed)), "accuracies": dict(found)}


def table(kept: dict[str, Any]) -> str:
    """Rows for the page."""
    lines = [
        "| labels of the second | trained | first reader | second reader | change of first | "
        "of second |",
        "|---|---|---|---|---|---|",
    ]
    accuracies = kept["accuracies"]

    def row(count: str, arm: str, name: str, base: str | None) -> str:
        cells = [f"{np.mean(accuracies[name][side]):.3f}" for side in ("first", "second")]
        for side in ("first", "second"):
            pairs = zip(accuracies[name][side], accuracies[base or name][side], strict=True)
            change = mean_estimate([100 * (a - b) for a, b in pairs])
            text = f"{change.value:+.1f} [{change.low:+.1f}, {change.high:+.1f}]"
            sure = change.low > 0 or change.high < 0
            cells.append("" if base is None else f"**{text}**" if sure else text)
        return f"| {count} | {arm} | {' | '.join(cells)} |"

    lines.append(row("0", "`main`", "main", None))
    for count in COUNTS:
        for arm in ARMS[1:]:
            base = None if arm == "mixed" else f"mixed {count}"
            lines.append(row(str(count), f"`{arm}`", f"{arm} {count}", base))
    return "\n".join(lines)


def render(page: str, kept: dict[str, Any]) -> str:
    """The page with the table of these results between its marks."""
    return with_tables(page, {"task heads": table(kept)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--output", type=Path, default=Path("runs/task_heads"))
    parser.add_argument("--write", action="store_true", help="put the kept results on the page")
    given = parser.parse_args()
    if not given.write:
        write_json(RESULTS, run(given.output, range(given.seeds)))
    kept = read_json(RESULTS)
    print(f"readers agree on {kept['agreement']:.2f} of pairs, {len(kept['seeds'])} seeds")
    print(table(kept))
    if given.write:
        page = PAGE.read_text(encoding="utf-8")
        PAGE.write_text(render(page, kept), encoding="utf-8")


if __name__ == "__main__":
    main()
