# SPDX-License-Identifier: Apache-2.0
"""Every speed beside TRL's, the law's prediction and the floor; no torch."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any, Final

from metarm.speed.law import Cost, Recipe, step_cost
from metarm.speed.results import PARTS, Block, Case, Measurement, Spread
from metarm.speed.shapes import SHAPES, ModelShape

__all__ = [
    "DEFAULT",
    "LABELS",
    "RECIPES",
    "UNIT",
    "CaseSummary",
    "MethodSummary",
    "stacked_parts",
    "summarise_case",
]

UNIT: Final = "trl"
DEFAULT: Final = "trl-default"
"""Both are TRL's `RewardTrainer`: without gradient checkpointing, and as it comes."""

LABELS: Final[Mapping[str, str]] = {
    "trl-default": "TRL RewardTrainer, defaults",
    "trl": "TRL RewardTrainer, no checkpointing",
    "plain": "metarm, plain",
    "meta": "metarm, MetaRM",
    "meta-naive": "metarm, MetaRM, prompts not shared",
    "meta-every-4": "metarm, MetaRM, meta_every=4",
    "meta-stored-4": "metarm, MetaRM, meta_every=4, stored",
    "sam": "two closures (SAM style)",
    "functional-call": "torch.func.functional_call",
    "torchopt": "TorchOpt MetaSGD (second order)",
    "learn2learn": "learn2learn MAML, first order",
}
"""Each method in words."""

RECIPES: Final[Mapping[str, Recipe]] = {
    "trl-default": Recipe(shares=False, recomputes=True),
    "trl": Recipe(shares=False),
    "plain": Recipe(shares=True),
    "meta": Recipe(shares=True, group_share=1.0),
    "meta-naive": Recipe(shares=False, group_share=1.0),
    "meta-every-4": Recipe(shares=True, group_share=0.25),
    "meta-stored-4": Recipe(shares=True, group_share=0.25),
    "sam": Recipe(shares=False, group_share=1.0),
    "functional-call": Recipe(shares=False, group_share=1.0),
    "learn2learn": Recipe(shares=False, group_share=1.0),
}
"""What the law says of each; it says nothing of a second order."""


@dataclass(frozen=True, slots=True)
class MethodSummary:
    """One method on one case."""

    method: str
    seconds: Spread | None
    """A step."""
    to_trl: Spread | None
    """Over TRL without checkpointing, repeat by repeat."""
    to_default: Spread | None
    """Over TRL as it comes."""
    predicted: float | None
    """The law's ratio to TRL without checkpointing."""
    floor_seconds: float | None
    """Operations and bytes of this method, at the machine's best measured rates."""
    floors: float | None
    """Measured over floor; 1 is the physical limit."""
    tokens: float | None
    """A step, counted."""
    law_tokens: float | None
    """A step, by the law."""
    peak_bytes: int | None
    copies_above_plain: float | None
    """Peak memory above plain training's, in copies of the weights."""
    failure: str

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class CaseSummary:
    """All methods on one case."""

    case: Case
    rows: tuple[MethodSummary, ...]

    def row(self, method: str) -> MethodSummary | None:
        """Of one method, where it was measured."""
        return next((row for row in self.rows if row.method == method), None)


def summarise_case(found: Mapping[str, Any]) -> CaseSummary:
    """A case of the results' document."""
    case = Case.from_json(found["case"])
    shape = SHAPES[case.size]
    measured = {name: Measurement.from_json(row) for name, row in found["methods"].items()}
    costs = {name: _cost(case, shape, recipe) for name, recipe in RECIPES.items()}
    rates = found.get("rates")
    means = {name: [block.mean for block in row.blocks] for name, row in measured.items()}
    plain = measured.get("plain", Measurement()).peak_bytes
    rows = []
    for name, row in measured.items():
        seconds = Spread.of(means[name]) if means[name] else None
        cost = costs.get(name)
        floor = cost.seconds(**rates) if cost and rates else None
        above = row.peak_bytes - plain if row.peak_bytes is not None and plain is not None else None
        rows.append(
            MethodSummary(
                method=name,
                seconds=seconds,
                to_trl=_ratios(means[name], means.get(UNIT, [])),
                to_default=_ratios(means[name], means.get(DEFAULT, [])),
                predicted=cost.flops / costs[UNIT].flops if cost else None,
                floor_seconds=floor,
                floors=seconds.value / floor if seconds and floor else None,
                tokens=row.tokens,
                law_tokens=cost.tokens if cost else None,
                peak_bytes=row.peak_bytes,
                copies_above_plain=None if above is None else above / (4 * shape.num_weights),
                failure=row.failure,
            )
        )
    return CaseSummary(case, tuple(rows))


def _cost(case: Case, shape: ModelShape, recipe: Recipe) -> Cost:
    workload, seed = case.workload, case.seed
    return step_cost(shape, recipe, workload.pairs(seed), workload.groups(seed))


def _ratios(own: Sequence[float], others: Sequence[float]) -> Spread | None:
    """Repeat by repeat: what slows the machine down for a while slows both."""
    ratios = [mine / other for mine, other in zip(own, others, strict=False)]
    return Spread.of(ratios) if ratios else None


def stacked_parts(found: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Seconds of each part of a step, from the naive one on, each bar with one more change.

    `shared groups` is put together from the naive step's pairs and the shared step's groups.
    Empty where one of the methods was not measured.
    """
    parts = {}
    for name in ("meta-naive", "meta", "meta-every-4"):
        blocks = Measurement.from_json(found["methods"].get(name, Measurement().to_json())).blocks
        if not blocks:
            return {}
        parts[name] = {part: median(_means(blocks, part)) for part in PARTS}
        # It happens inside the pass over the pairs, and is timed by itself.
        move = min(found.get("move", {"seconds": 0.0})["seconds"], parts[name]["pairs"])
        move *= RECIPES[name].group_share
        parts[name] |= {"pairs": parts[name]["pairs"] - move, "move": move}
    naive, shared, rare = parts.values()
    return {
        "not shared": naive,
        "+ shared groups": naive | {"groups": shared["groups"]},
        "+ shared pairs": shared,
        "+ meta_every=4": rare,
    }


def _means(blocks: Sequence[Block], part: str) -> list[float]:
    return [block.mean_of(part) for block in blocks]
