# SPDX-License-Identifier: Apache-2.0
"""Rounds that ask for labels: the words of their arms, and what came of the labels, bit for bit."""

import hashlib
from pathlib import Path

from integration.commands import scorecards

__all__ = ["arm", "made_of_labels"]


def arm(name: str, **settings: object) -> list[str]:
    """The words of an arm without a meta step whose labels stand twice in the training set."""
    return [
        f"custom_arms.{name}.{key}={value}"
        for key, value in {"meta_mode": "off", "label_repeat": 2, **settings}.items()
    ]


def made_of_labels(run: Path, name: str) -> dict[str, str]:
    """What an arm asked, was told, trained and reached: hashes of files, texts of scorecards."""
    files = ("asked/pairs.jsonl", "labels/*.jsonl", "reward/*.safetensors", "policy/*.safetensors")
    rounds = sorted((run / f"seed_0/arms/{name}").glob("round_*"))
    found = {
        path.relative_to(run).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for place in rounds
        for pattern in files
        for path in sorted(place.glob(pattern))
    }
    assert len(found) >= 5 * len(rounds), "labels and weights are there"
    return found | scorecards(run, lambda place: f"/{name}/" in place)
