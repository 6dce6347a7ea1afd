# SPDX-License-Identifier: Apache-2.0
"""What a run read and what it left out, from the records of its stages."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from metarm.storage import STAGE_FILE, read_json

__all__ = ["AccountRow", "account_of_data"]


class AccountRow(NamedTuple):
    """One finding and the stages that share it."""

    what: str
    found: str
    stages: str


def account_of_data(folder: Path) -> list[AccountRow]:
    """Pairs and groups read, kept and left out; stages that found the same share a row."""
    places: dict[tuple[str, str], list[str]] = {}
    for path in sorted(folder.glob(f"seed_*/**/{STAGE_FILE}")):
        place = path.parent.relative_to(folder)
        if any(part.startswith(".") for part in place.parts):
            continue  # a stage that is being made
        for finding in _findings(read_json(path).get("metrics", {})):
            places.setdefault(finding, []).append(str(place))
    return [AccountRow(*finding, _shared(found)) for finding, found in places.items()]


def _findings(metrics: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What a stage says of its data, in words."""
    found = [
        (what, str(metrics[key]))
        for key, what in (
            ("summary", "preference file"),
            ("test_summary", "held-out preference file"),
            ("encoding", "training pairs"),
            ("meta_encoding", "groups of the meta set"),
            ("meta_guard", "guard of the meta step"),
        )
        if key in metrics
    ]
    for key, what, text in (
        ("num_too_long", "demonstrations", "left out: longer than sft.max_length"),
        ("num_sharing_test_prompt", "training pairs", "left out: a test pair has their prompt"),
        ("num_prompts_too_long", "prompts", "left out: no room for a response in the context"),
        ("num_test_too_long", "held-out pairs", "left out: longer than the model's context"),
    ):
        if metrics.get(key):
            found.append((what, f"{metrics[key]} {text}"))
    return found


def _shared(places: list[str]) -> str:
    if len(places) == 1:
        return places[0]
    return f"{places[0]} and {len(places) - 1} more"
