# SPDX-License-Identifier: Apache-2.0
"""What the trainer's regularisers do for accuracy on a policy's own pairs, with and without labels.

    metarm run --config benchmarks/world_labels.yaml --output runs/world-fixed rounds=1 \\
        "arms=[sft, plain]" "seeds=[200,201,202,203,204,205,206,207,208,209]"
    python benchmarks/regularisers.py measure runs/world-fixed runs/regularisers.jsonl
    python benchmarks/regularisers.py keep runs/regularisers.jsonl
    python benchmarks/regularisers.py write

For each seed the reward model is trained from SFT on the original pairs, and on 50 random labels of
the policy after round 1 too, with one setting changed at a time; the strengths were fixed before.
Accuracy is against gold on the policy's pairs on held-out prompts, as in labels_to_accuracy.py.
`measure` keeps cells as they come and goes on; `keep` takes the seeds that have all of them into
benchmarks/results/regularisers.json, `write` puts the table into docs/stretching.md.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import torch
from labels_to_accuracy import Problem
from page_tables import points, with_tables

from metarm.metrics import mean_estimate, paired_difference
from metarm.storage import append_json_line, write_json

REPOSITORY: Final = Path(__file__).resolve().parents[1]
PAGE: Final = REPOSITORY / "docs" / "stretching.md"
RESULTS: Final = REPOSITORY / "benchmarks" / "results" / "regularisers.json"
PLAIN: Final = "plain"
SETTINGS: Final[dict[str, dict[str, Any]]] = {
    PLAIN: {},
    "weight_decay=1": {"weight_decay": 1.0},
    "start_decay=1": {"start_decay": 1.0},
    "score_dropout=0.2": {"score_dropout": 0.2},
    "center_rewards_coefficient=0.01": {"center_rewards_coefficient": 0.01},
    "batch_sum_coefficient=0.01": {"batch_sum_coefficient": 0.01},
    "text_loss_coefficient=0.01": {"text_loss_coefficient": 0.01},
}
NUM_LABELS: Final = (0, 50)


def read_cells(path: Path) -> dict[tuple[int, str, int], float]:
    """Accuracy by seed, setting and number of labels."""
    lines = path.read_text("utf-8").splitlines() if path.exists() else []
    rows = [json.loads(line) for line in lines]
    return {(row["seed"], row["setting"], row["labels"]): row["accuracy"] for row in rows}


def measure(run: Path, kept: Path, seeds: list[int]) -> None:
    """Every cell that is not kept yet, seed by seed."""
    known = read_cells(kept)
    for seed in seeds:
        wanted = [(name, count) for count in NUM_LABELS for name in SETTINGS]
        missing = [cell for cell in wanted if (seed, *cell) not in known]
        if not missing:
            continue
        problem = Problem(run, seed, None)
        for name, count in missing:
            chosen = problem.choose("random", count) if count else []
            reward = problem.settings.reward.model_copy(update=SETTINGS[name])
            accuracy = problem.accuracy(chosen, reward)["accuracy"]
            row = {"seed": seed, "setting": name, "labels": count, "accuracy": accuracy}
            append_json_line(kept, row)
            print(json.dumps(row), flush=True)


def summarise(kept: Path) -> dict[str, Any]:
    """Means over the seeds that have every cell, and changes against plain, paired by seed."""
    cells = read_cells(kept)
    seeds = [
        seed
        for seed in sorted({seed for seed, _, _ in cells})
        if all((seed, name, count) in cells for name in SETTINGS for count in NUM_LABELS)
    ]
    rows = []
    for count in NUM_LABELS:
        plain = [cells[seed, PLAIN, count] for seed in seeds]
        for name in SETTINGS:
            own = [cells[seed, name, count] for seed in seeds]
            rows.append(
                {
                    "setting": name,
                    "labels": count,
                    "accuracy": asdict(mean_estimate(own)),
                    "change": None if name == PLAIN else asdict(paired_difference(own, plain)),
                }
            )
    return {"seeds": seeds, "rows": rows}


def render(page: str, found: dict[str, Any]) -> str:
    """The page with its table made anew."""
    by = {(row["setting"], row["labels"]): row for row in found["rows"]}
    lines = [
        "| setting | no label | change | 50 labels | change |",
        "|---|---|---|---|---|",
    ]
    for name in SETTINGS:
        cells = [f"`{name}`"]
        for count in NUM_LABELS:
            row = by[name, count]
            cells += [f"{row['accuracy']['value']:.3f}", points(row["change"])]
        lines.append(f"| {' | '.join(cells)} |")
    return with_tables(page, {"regularisers": "\n".join(lines)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    asked = verbs.add_parser("measure")
    asked.add_argument("run", type=Path)
    asked.add_argument("kept", type=Path)
    asked.add_argument("--seeds", type=int, nargs="+", default=list(range(200, 210)))
    verbs.add_parser("keep").add_argument("kept", type=Path)
    verbs.add_parser("write")
    arguments = parser.parse_args()
    if arguments.verb == "measure":
        torch.set_num_threads(1)
        measure(arguments.run, arguments.kept, arguments.seeds)
    elif arguments.verb == "keep":
        write_json(RESULTS, summarise(arguments.kept))
    else:
        found = json.loads(RESULTS.read_text("utf-8"))
        PAGE.write_text(render(PAGE.read_text("utf-8"), found), "utf-8")


if __name__ == "__main__":
    main()
