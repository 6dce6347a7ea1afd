# SPDX-License-Identifier: Apache-2.0
"""What was measured, as it is kept on disk; no torch."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from statistics import median, quantiles
from typing import Any, Final

from metarm.speed.workload import Workload

__all__ = ["PARTS", "Block", "Case", "Measurement", "Spread"]

PARTS: Final = ("rest", "groups", "pairs", "optimiser")
"""Of a step: data and logging; the pass over the groups; the move, the pass over the pairs and the
clipping; AdamW and zeroing."""


@dataclass(frozen=True, slots=True)
class Spread:
    """A median and the quartiles around it."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Of one value or more."""
        low, high = quantiles(values, n=4)[::2] if len(values) > 1 else (values[0], values[0])
        return cls(median(values), max(low, min(values)), min(high, max(values)))

    @classmethod
    def read(cls, value: Mapping[str, float] | None) -> "Spread | None":
        """From JSON."""
        return None if value is None else cls(**value)


@dataclass(frozen=True, slots=True)
class Block:
    """Seconds of each timed step of a block, whole and in parts."""

    seconds: tuple[float, ...]
    """From the end of one step to the end of the next: data and logging are in it."""
    parts: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """By the names in `PARTS`; empty where a method does not tell them."""

    @property
    def mean(self) -> float:
        """Seconds a step."""
        return sum(self.seconds) / len(self.seconds)

    def mean_of(self, part: str) -> float:
        """Seconds a step of one part."""
        return sum(self.parts[part]) / len(self.seconds)


@dataclass(frozen=True, slots=True)
class Case:
    """One thing that methods are timed on."""

    kind: str
    """`lengths`, or the name of a sweep."""
    size: str
    workload: Workload
    methods: tuple[str, ...]
    repeats: int
    steps: int
    """Timed steps a repeat."""
    bf16: bool
    seed: int

    @property
    def name(self) -> str:
        """For people."""
        spread = self.workload.length_spread
        return f"{self.size} {self.workload.name}" + (f" spread {spread:g}" if spread else "")

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self) | {"methods": list(self.methods)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Case":
        """The reverse."""
        workload, methods = Workload(**value["workload"]), tuple(value["methods"])
        return cls(**(dict(value) | {"workload": workload, "methods": methods}))


@dataclass(frozen=True, slots=True)
class Measurement:
    """One method on one case."""

    blocks: tuple[Block, ...] = ()
    tokens: float | None = None
    """A step, counted where they enter the model; None: not counted yet."""
    peak_bytes: int | None = None
    """Of all tensors at once, weights and optimiser too."""
    failure: str = ""
    """Why there are no figures."""

    def with_block(self, block: Block) -> "Measurement":
        """The same, and one more repeat."""
        return replace(self, blocks=(*self.blocks, block))

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Measurement":
        """The reverse."""
        blocks = tuple(
            Block(
                tuple(block["seconds"]),
                {name: tuple(part) for name, part in block["parts"].items()},
            )
            for block in value["blocks"]
        )
        return cls(**(dict(value) | {"blocks": blocks}))
