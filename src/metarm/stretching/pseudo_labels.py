# SPDX-License-Identifier: Apache-2.0
"""Pseudo-labels: what a calibrated reward model is sure of, capped, as many on either side.

The rows are soft: P(chosen is better) is in them, not a hard label.
"""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from metarm.data.derived import group_id
from metarm.data.preferences import pair_key
from metarm.errors import ConfigError
from metarm.metrics import mean_estimate
from metarm.protocols import ScoreFunction
from metarm.schema import Estimate, PreferencePair, Prompt, ResponseGroup
from metarm.streams import draw_seed

__all__ = [
    "PSEUDO_LABEL",
    "Candidate",
    "PairedChange",
    "draw_candidates",
    "gaps_of",
    "most_pseudo_labels",
    "paired_change",
    "pseudo_label",
    "take_confident",
    "without_known",
]

PSEUDO_LABEL: Final = "pseudo-label"
"""`source` of a pseudo-labelled row."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """Two responses to one prompt that nobody has compared, in an order that says nothing."""

    prompt: Prompt
    first: str
    second: str
    parent_id: str
    """Of the group that they are from."""


@dataclass(frozen=True, slots=True)
class PairedChange:
    """What became of the accuracy on the same held-out pairs."""

    change: Estimate
    """Accuracy after minus before, clustered by prompt."""
    p_value: float
    """Of so large a drop, one-sided, where nothing had changed."""

    def is_drop(self, alpha: float) -> bool:
        """Whether accuracy has dropped, at level `alpha`."""
        return self.p_value <= alpha


def draw_candidates(
    groups: Sequence[ResponseGroup], pairs_per_group: int, seed: int
) -> list[Candidate]:
    """Pairs of unlabelled responses, each with its sides in an order drawn by the seed.

    Args:
        groups: Responses to a prompt; equal ones count once.
        pairs_per_group: The most pairs of one group: they are alike.
        seed: Of the draw.
    """
    found = []
    for group in groups:
        parent = group_id(group)
        draw = random.Random(f"{draw_seed(seed, 'pseudo-label')}|{parent}")
        pairs = list(combinations(dict.fromkeys(group.responses), 2))
        for pair in draw.sample(pairs, min(pairs_per_group, len(pairs))):
            first, second = draw.sample(pair, 2)
            found.append(Candidate(group.prompt, first, second, parent))
    return found


def without_known(
    candidates: Iterable[Candidate], known: Iterable[PreferencePair]
) -> list[Candidate]:
    """The candidates that are no known pair in either order, each once.

    Before sides are balanced: what is left out afterwards would leave one side with more.

    Args:
        candidates: Of several groups of a prompt, perhaps.
        known: Rows that are trained on anyway.
    """
    seen = {pair_key(row.prompt, row.chosen, row.rejected) for row in known}
    kept = []
    for candidate in candidates:
        key = pair_key(candidate.prompt, candidate.first, candidate.second)
        if key not in seen:
            seen.add(key)
            kept.append(candidate)
    return kept


def most_pseudo_labels(num_labelled: int, share: float) -> int:
    """How many pseudo-labels a training set may have so that they are at most `share` of it.

    Args:
        num_labelled: Rows that people have labelled.
        share: In [0, 1).

    Raises:
        ConfigError: When the share is out of range.

    Example:
        >>> most_pseudo_labels(300, 0.25)
        100
    """
    if not 0.0 <= share < 1.0:
        raise ConfigError(f"the share of pseudo-labels is from 0 to below 1, got {share}")
    return int(num_labelled * share / (1.0 - share) + 1e-9)


def take_confident(
    probabilities: ArrayLike, *, confidence: float, most: int, seed: int
) -> NDArray[np.int64]:
    """Which candidates become rows: sure ones, as many first sides as second ones, no more than so.

    Those above the threshold are drawn by the seed: the surest alone would be the easiest.

    Args:
        probabilities: P(first is better), shape (candidates,).
        confidence: Least probability of the likelier side, in [0.5, 1].
        most: Rows at most; an odd one is left out.
        seed: Of the draw.

    Returns:
        Their places, rising.

    Raises:
        ConfigError: When the confidence is out of range.

    Example:
        >>> take_confident([0.9, 0.6, 0.1, 0.95], confidence=0.8, most=10, seed=0).tolist()
        [2, 3]
    """
    if not 0.5 <= confidence <= 1.0:
        raise ConfigError(f"the confidence is from 0.5 to 1, got {confidence}")
    chances = np.asarray(probabilities, dtype=np.float64)
    order = np.random.default_rng(draw_seed(seed, "take-confident")).permutation(chances.size)
    sides = [
        [place for place in order if is_sure[place]]
        # A coin's toss has no likelier side.
        for is_sure in (
            (chances >= confidence) & (chances > 0.5),
            (chances <= 1.0 - confidence) & (chances < 0.5),
        )
    ]
    count = min(*map(len, sides), most // 2)
    return np.sort(np.array([place for side in sides for place in side[:count]], dtype=np.int64))


def pseudo_label(
    candidates: Sequence[Candidate], probabilities: ArrayLike, taken: Iterable[int]
) -> list[PreferencePair]:
    """Those taken as rows: the likelier side is chosen, with its probability beside it."""
    chances = np.asarray(probabilities, dtype=np.float64)
    rows = []
    for place in taken:
        candidate, chance = candidates[place], float(chances[place])
        chosen, rejected = candidate.first, candidate.second
        if chance < 0.5:
            chosen, rejected, chance = rejected, chosen, 1.0 - chance
        row = PreferencePair(
            candidate.prompt,
            chosen,
            rejected,
            p=chance,
            source=PSEUDO_LABEL,
            parent_id=candidate.parent_id,
        )
        rows.append(row)
    return rows


def gaps_of(score: ScoreFunction, pairs: Sequence[PreferencePair]) -> NDArray[np.float64]:
    """Chosen minus rejected, in the score's unit, shape (pairs,)."""
    prompts = [pair.prompt for pair in pairs]
    chosen = np.array(score(prompts, [pair.chosen for pair in pairs]), dtype=np.float64)
    return chosen - np.array(score(prompts, [pair.rejected for pair in pairs]), dtype=np.float64)


def paired_change(
    after: ArrayLike, before: ArrayLike, clusters: Sequence[Any] | None = None
) -> PairedChange:
    """Whether held-out accuracy has dropped: a paired t-test, robust to likeness within prompts.

    Args:
        after: 1 right, 0 wrong, 0.5 a tie, shape (pairs,).
        before: The same of the same pairs.
        clusters: The prompt of each pair; None: each its own.

    Returns:
        The change, and the one-sided p-value of a drop: 0.5 where nothing has changed.

    Example:
        >>> paired_change([1, 1, 0, 1], [1, 1, 0, 1]).p_value
        0.5
    """
    change = mean_estimate(np.asarray(after) - np.asarray(before), clusters)
    half = change.high - change.value
    if half == 0.0:
        return PairedChange(change, 0.5 if change.value >= 0 else 0.0)
    freedom = change.count - 1
    error = half / float(stats.t.ppf(0.975, freedom))
    return PairedChange(change, float(stats.t.cdf(change.value / error, freedom)))
