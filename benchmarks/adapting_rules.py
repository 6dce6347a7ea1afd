# SPDX-License-Identifier: Apache-2.0
"""Rules that choose a way of few-label adaptation, and what each takes where truth is known.

    python benchmarks/adapting_rules.py measure
    python benchmarks/adapting_rules.py write

In worlds of drawn gaps: of unit spread, right as often as the world says, alike between ways by a
correlation of .6. There is no training in them, so that draws are many. `measure` writes
benchmarks/results/adapting_rules.json, `write` puts its table into docs/stretching.md.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from page_tables import points, with_tables
from scipy import stats

from metarm.metrics import mean_estimate, pair_accuracy
from metarm.storage import read_json
from metarm.streams import draw_seed
from metarm.stretching.adapting import ADAPTATIONS
from metarm.stretching.settings import AdaptSettings
from metarm.stretching.ways import Evidence, WayGaps, choose_adaptation, judge_ways

REPOSITORY: Final = Path(__file__).resolve().parents[1]
PAGE: Final = REPOSITORY / "docs" / "stretching.md"
RESULTS: Final = REPOSITORY / "benchmarks" / "results" / "adapting_rules.json"
WAYS: Final = ("none", *ADAPTATIONS)
TAKEN: Final = "taken"
"""What `metarm adapt` takes."""
BEFORE: Final = "before"
"""What it took when it asked for proof of a gain and of holding on original pairs."""


@dataclass(frozen=True, slots=True)
class Rule:
    """A way to choose."""

    name: str
    by_accuracy: bool
    """Of 0/1 outcomes on the few labels, not of their log loss."""
    settings: AdaptSettings


# 160 original pairs can prove no margin below 0.1, which all but the first rule here have.
PROOF: Final = AdaptSettings(margin=0.1, alpha=0.05, gain_alpha=0.2)
RULES: Final[Mapping[str, Rule]] = MappingProxyType(
    {
        TAKEN: Rule("what `adapt` takes", False, AdaptSettings()),
        "margin": Rule("the same with a margin of 0.1", False, AdaptSettings(margin=0.1)),
        "by log loss": Rule(
            "by log loss, holding proven", False, PROOF.model_copy(update={"gain_alpha": 0.5})
        ),
        "by estimate": Rule(
            "gain proven, holding estimated", True, PROOF.model_copy(update={"alpha": 0.5})
        ),
        BEFORE: Rule("both proven, as before", True, PROOF),
    }
)


@dataclass(frozen=True, slots=True)
class World:
    """How often each of `WAYS` is right, whatever was drawn."""

    name: str
    few: tuple[float, float, float, float]
    original: tuple[float, float, float, float]


WORLDS: Final = (
    World("a gain", (0.57, 0.57, 0.59, 0.63), (0.55, 0.55, 0.55, 0.55)),
    World("nothing differs", (0.57, 0.57, 0.57, 0.57), (0.55, 0.55, 0.55, 0.55)),
    World("a loss", (0.63, 0.63, 0.61, 0.57), (0.55, 0.55, 0.55, 0.55)),
    World("a gain for a loss", (0.57, 0.57, 0.59, 0.63), (0.64, 0.64, 0.60, 0.54)),
)
COMPARED: Final = (TAKEN, BEFORE)
NUM_LABELS: Final = (30, 100)
NUM_ORIGINAL: Final = 160
NUM_DRAWS: Final = 400
CORRELATION: Final = 0.6


def chosen(rule: Rule, evidence: Evidence) -> str:
    """The way that a rule takes; by accuracy each test asks whether errors became fewer."""
    taken, _, found = judge_ways(evidence, rule.settings)
    if not rule.by_accuracy:
        return taken
    errors: dict[str, NDArray[np.float64]] = {}
    for one in found:
        # The first keeps the model, and is always there.
        if not errors or one.original.holds:
            few = evidence.ways[one.name].few
            errors[one.name] = 1.0 - pair_accuracy(few, np.ones_like(few))
    return choose_adaptation(errors, evidence.prompts, rule.settings.gain_alpha)


def draw_evidence(world: World, num_labels: int, draw: np.random.Generator) -> Evidence:
    """Gaps of every way, each label and original pair of a prompt of its own."""
    spread = CORRELATION + (1.0 - CORRELATION) * np.eye(len(WAYS))
    few, original = (
        draw.standard_normal((count, len(WAYS))) @ np.linalg.cholesky(spread).T
        + stats.norm.ppf(accuracies)
        for count, accuracies in ((num_labels, world.few), (NUM_ORIGINAL, world.original))
    )
    ways = {way: WayGaps(few[:, place], original[:, place]) for place, way in enumerate(WAYS)}
    prompts, original_prompts = (
        tuple(map(str, range(count))) for count in (num_labels, NUM_ORIGINAL)
    )
    return Evidence(ways, np.ones(num_labels), prompts, original_prompts)


def judge_rules(
    world: World, num_labels: int, num_draws: int = NUM_DRAWS, rules: Sequence[str] = COMPARED
) -> dict[str, Any]:
    """Of each rule how often it takes which way, and the true changes of what it takes."""
    draw = np.random.default_rng(draw_seed(0, f"{world.name} {num_labels}"))
    places: dict[str, list[int]] = {key: [] for key in rules}
    for _ in range(num_draws):
        evidence = draw_evidence(world, num_labels, draw)
        for key, found in places.items():
            found.append(WAYS.index(chosen(RULES[key], evidence)))
    return {key: _figures(world, found) for key, found in places.items()}


def _figures(world: World, taken: Sequence[int]) -> dict[str, Any]:
    few, original = np.array(world.few), np.array(world.original)
    changes = {"shifted": few[taken] - few[0], "original": original[taken] - original[0]}
    counts = np.bincount(taken, minlength=len(WAYS)).tolist()
    return {
        "taken": dict(zip(WAYS, counts, strict=True)),
        **{
            name: {key: round(value, 5) for key, value in asdict(mean_estimate(change)).items()}
            for name, change in changes.items()
        },
    }


def measure() -> None:
    """All worlds, and numbers of labels."""
    rows = [
        {"world": asdict(world), "labels": number, "rules": judge_rules(world, number)}
        for world in WORLDS
        for number in NUM_LABELS
    ]
    document = {"draws": NUM_DRAWS, "original": NUM_ORIGINAL, "rows": rows}
    RESULTS.write_text(f"{json.dumps(document, indent=1)}\n", encoding="utf-8")


def table(document: Mapping[str, Any]) -> str:
    """A row a world and number of labels."""
    lines = [
        "| world | labels | at best | `adapt`: shifted | original | kept | as before: shifted | "
        "original | kept |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in document["rows"]:
        world = row["world"]
        best = 100 * (max(world["few"]) - world["few"][0])
        cells = [world["name"], str(row["labels"]), f"{best:+.1f}"]
        for key in COMPARED:
            found = row["rules"][key]
            kept = 100 * found["taken"][WAYS[0]] / document["draws"]
            cells += [points(found["shifted"]), points(found["original"]), f"{kept:.0f} %"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def render(page: str, document: Mapping[str, Any]) -> str:
    """The page with its table made anew."""
    return with_tables(page, {"adapting: rules": table(document)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("verb", choices=("measure", "write"))
    if parser.parse_args().verb == "measure":
        measure()
    else:
        PAGE.write_text(
            render(PAGE.read_text(encoding="utf-8"), read_json(RESULTS)), encoding="utf-8"
        )


if __name__ == "__main__":
    main()
