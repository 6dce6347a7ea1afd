# SPDX-License-Identifier: Apache-2.0
"""Simulated crowds: votes of annotators of known kinds on pairs of known reward differences."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from metarm.labels.votes import AnnotatorKind, LabelPair, Vote
from metarm.storage import write_json_lines

MIRRORED = {"first": "second", "second": "first", "tie": "tie", "skip": "skip"}
HOSTILE = "<script>alert(1)</script>"
KINDS: dict[str, AnnotatorKind] = {"w6": "model"}
BAD_CROWD = ("good",) * 6 + ("random", "random", "always-left", "adversarial")


@dataclass(frozen=True)
class Crowd:
    votes: list[Vote]
    features: dict[str, Any]
    differences: dict[str, float]


def draw_crowd(
    kinds: Sequence[str | float] = BAD_CROWD,
    *,
    num_pairs: int = 300,
    votes_per_pair: int = 3,
    num_features: int = 6,
    tie: float = 0.0,
    seed: int = 0,
) -> Crowd:
    """Votes by Rao and Kupper's model; a number is the share of votes that are informed."""
    draw = np.random.default_rng(seed)
    theta = draw.normal(size=num_features)
    theta *= 6.0 / np.linalg.norm(theta)
    features = draw.normal(size=(num_pairs, num_features))
    votes = []
    for pair, d in enumerate(features @ theta):
        for who in draw.choice(len(kinds), size=votes_per_pair, replace=False):
            is_turned = bool(draw.integers(2))
            choice = _choose(draw, kinds[who], float(d), tie, is_turned=is_turned)
            votes.append(Vote(f"p{pair}", f"w{who}", choice, is_turned=is_turned))
    ids = [f"p{pair}" for pair in range(num_pairs)]
    return Crowd(
        votes,
        dict(zip(ids, features, strict=True)),
        dict(zip(ids, (features @ theta).tolist(), strict=True)),
    )


def _choose(draw: Any, kind: str | float, d: float, tie: float, *, is_turned: bool) -> Any:
    if kind == "always-left":
        return "first" if (draw.random() < 0.95) != is_turned else "second"
    if kind == "random" or (isinstance(kind, float) and draw.random() >= kind):
        return ("first", "second")[draw.integers(2)]
    d = -d if kind == "adversarial" else d
    # One logistic draw, and where it falls.
    noisy = d + float(draw.logistic())
    return "first" if noisy > tie else "second" if noisy < -tie else "tie"


def turn_sides(votes: Sequence[Vote]) -> list[Vote]:
    """The same answers of the same pairs, each shown the other way round."""
    return [
        replace(vote, is_turned=None if vote.is_turned is None else not vote.is_turned)
        for vote in votes
    ]


def exchange(votes: Sequence[Vote]) -> list[Vote]:
    """First and second exchanged in every pair: what was seen, and where, stays as it was."""
    return [replace(vote, choice=MIRRORED[vote.choice]) for vote in turn_sides(votes)]


def write_crowd(folder: Path) -> list[Vote]:
    """Votes, pairs and features of a crowd with four bad annotators, one of them a model."""
    crowd = draw_crowd(num_pairs=240, votes_per_pair=4)
    pairs = {
        name: LabelPair(f"{HOSTILE} {name}", f"yes {name}", f"no, no {name}")
        for name in crowd.features
    }
    votes = [replace(vote, pair=pairs[vote.pair].id) for vote in crowd.votes]
    write_json_lines(folder / "pairs.jsonl", (pair.to_json() for pair in pairs.values()))
    write_json_lines(
        folder / "votes.jsonl",
        (asdict(vote) | {"kind": KINDS.get(vote.annotator, "person")} for vote in votes),
    )
    write_json_lines(
        folder / "features.jsonl",
        (
            {"pair": pairs[name].id, "features": row.tolist()}
            for name, row in crowd.features.items()
        ),
    )
    return votes
