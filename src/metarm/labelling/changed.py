# SPDX-License-Identifier: Apache-2.0
"""What the labels have changed: two reward models' accuracy on pairs that people judged."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from metarm.data.rows import read_rows
from metarm.errors import EmptySetError, FormatError
from metarm.labels.votes import Choice, LabelPair
from metarm.metrics import accuracy_estimate, mean_estimate
from metarm.schema import Estimate, is_picked, prompt_text

__all__ = ["Changed", "measure_change", "read_gaps"]


@dataclass(frozen=True, slots=True)
class Changed:
    """Accuracy of the reward model before and after it learnt from labels."""

    before: Estimate
    after: Estimate
    difference: Estimate
    num_pairs: int
    num_left_out: int
    """Pairs that a strategy chose, for being hard say: they tell nothing of others."""


def read_gaps(path: Path) -> dict[str, float]:
    """Pair id -> score of `first` minus that of `second`, from what `metarm score` wrote.

    Raises:
        FormatError: When a row has not two responses with a score, a finite number, each.
    """
    gaps = {}
    for row in read_rows(str(path)):
        scores = row.values.get("scores")
        if not isinstance(scores, list) or len(scores) != 2:
            raise FormatError(
                f"{path}: expected rows of two `responses` with their `scores`, as metarm score "
                "writes them for groups of two"
            )
        first, second = (row.response("responses", place) for place in range(2))
        gap = row.number("scores", 0) - row.number("scores", 1)
        gaps[LabelPair(row.prompt("prompt"), first, second).id] = gap
    return gaps


def measure_change(
    labels: Mapping[str, Choice],
    pairs: Mapping[str, LabelPair],
    before: Mapping[str, float],
    after: Mapping[str, float],
) -> Changed:
    """Both models on the pairs that people decided, both have scored, and no strategy chose.

    Intervals take the pairs of a prompt together.

    Args:
        labels: Pair -> what people say.
        pairs: Id -> pair, of all of them.
        before: Pair -> reward of its first response less that of its second.
        after: The same of the model that has learnt from labels.

    Raises:
        EmptySetError: When there is no such pair.
    """
    scored = [
        pair
        for pair, choice in labels.items()
        if choice in ("first", "second") and pair in before and pair in after
    ]
    shared = [pair for pair in scored if not is_picked(pairs[pair].chosen_by)]
    if not shared:
        raise EmptySetError("expected pairs with a label and both scores, got none")
    prompts = [prompt_text(pairs[pair].prompt) for pair in shared]
    right = [[_is_right(gaps[pair], labels[pair]) for pair in shared] for gaps in (before, after)]
    return Changed(
        accuracy_estimate(right[0], prompts),
        accuracy_estimate(right[1], prompts),
        mean_estimate(np.subtract(right[1], right[0]), prompts),
        len(shared),
        len(scored) - len(shared),
    )


def _is_right(gap: float, choice: Choice) -> float:
    """1 right, 0 wrong, 0.5 where the model sees no difference."""
    if gap == 0:
        return 0.5
    return float((gap > 0) == (choice == "first"))
