# SPDX-License-Identifier: Apache-2.0
"""The nouns of labelling: a pair to compare, a vote on it, and who gave it; no torch, no web.

A vote speaks of the pair's own order (`first`, `second`), whatever side each was shown on.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

from metarm.errors import FormatError
from metarm.schema import Prompt, prompt_from_json, prompt_to_json
from metarm.storage import fingerprint

__all__ = ["ANNOTATOR_KINDS", "CHOICES", "AnnotatorKind", "Choice", "LabelPair", "Vote"]

Choice = Literal["first", "second", "tie", "skip"]
"""What a vote says; `skip` is a missing value: it is kept, and counts as no label."""

CHOICES: Final[tuple[Choice, ...]] = get_args(Choice)

AnnotatorKind = Literal["person", "model", "gold", "rule"]
"""Who votes: people, an LLM or reward model, the true reward, a rule such as "the longer one"."""

ANNOTATOR_KINDS: Final[tuple[AnnotatorKind, ...]] = get_args(AnnotatorKind)


@dataclass(frozen=True, slots=True)
class LabelPair:
    """Two responses to one prompt that somebody is to compare."""

    prompt: Prompt
    first: str
    second: str
    source: str = ""
    """Where the responses come from: a policy, a round, a file."""
    chosen_by: str = ""
    """The strategy that chose it, such as `random` or `d-optimal`; empty where nobody chose."""

    @property
    def id(self) -> str:
        """The same pair has the same id, whoever chose it and wherever it is kept."""
        return fingerprint("pair", prompt_to_json(self.prompt), self.first, self.second)

    def to_json(self) -> dict[str, Any]:
        """One row: `prompt`, `first`, `second`; `source` and `chosen_by` where known."""
        row: dict[str, Any] = {
            "prompt": prompt_to_json(self.prompt),
            "first": self.first,
            "second": self.second,
        }
        if self.source:
            row["source"] = self.source
        if self.chosen_by:
            row["chosen_by"] = self.chosen_by
        return row

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> "LabelPair":
        """The inverse of `to_json`."""
        return cls(
            prompt_from_json(row["prompt"]),
            row["first"],
            row["second"],
            row.get("source", ""),
            row.get("chosen_by", ""),
        )


@dataclass(frozen=True, slots=True)
class Vote:
    """What one annotator says of one pair."""

    pair: str
    """`LabelPair.id`."""
    annotator: str
    choice: Choice
    strength: int = 1
    """1: better, 2: much better; 1 too where the choice is `tie` or `skip`."""
    is_turned: bool | None = None
    """Whether `second` stood on the left; None: unknown, or the annotator saw no sides."""
    seconds: float | None = None
    """From the pair being shown to the vote; None: not measured."""

    def __post_init__(self) -> None:
        if self.choice not in CHOICES:
            raise FormatError(f"expected a choice of {', '.join(CHOICES)}, got {self.choice!r}")
        if self.strength not in (1, 2):
            raise FormatError(f"expected a strength of 1 or 2, got {self.strength!r}")
        if self.seconds is not None and not (math.isfinite(self.seconds) and self.seconds >= 0):
            raise FormatError(f"expected seconds of 0 or more, got {self.seconds!r}")

    @property
    def chose_left(self) -> bool | None:
        """Whether the side on the left won; None where there is no winner or no known side."""
        if self.is_turned is None or self.choice not in ("first", "second"):
            return None
        return (self.choice == "second") == self.is_turned
