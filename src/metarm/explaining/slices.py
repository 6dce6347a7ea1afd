# SPDX-License-Identifier: Apache-2.0
"""Where a reward model is confident and wrong: kinds of pairs, each against all others.

A pair is confident where its reward difference is among the model's largest quarter: rewards have
no scale of their own. Every slice that was looked at counts in the correction.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from metarm.errors import ShapeError
from metarm.explaining.permuting import sign_test, slice_tests
from metarm.explaining.topics import prompt_topics
from metarm.explaining.traits import FORMATS, script_of
from metarm.metrics import accuracy_estimate, adjust_by_holm, mean_estimate
from metarm.schema import Estimate, PreferencePair, Prompt, prompt_text
from metarm.streams import draw_seed

__all__ = [
    "CONFIDENT_QUANTILE",
    "SliceResult",
    "calibration_error",
    "measure_slices",
    "pair_slices",
    "prompt_numbers",
]

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

CONFIDENT_QUANTILE: Final = 0.75
LENGTH_GROUPS: Final = 4
LEAST_PROMPTS: Final = 20
"""In a slice and outside it, to be tested."""
PAIRS_PER_BIN: Final = 25
MOST_BINS: Final = 10
NUM_PERMUTATIONS: Final = 4999
ALL: Final = "all pairs"


@dataclass(frozen=True, slots=True)
class SliceResult:
    """A kind of pairs, and how the reward model does on them."""

    kind: str
    """What it is told by: `length`, `format`, `refusal`, `language` or `topic`."""
    name: str
    num_pairs: int
    num_prompts: int
    accuracy: Estimate
    confidence: float
    """Mean of sigmoid(|reward difference|), in [0.5, 1]."""
    overconfidence: Estimate
    """Mean confidence less accuracy: above 0 it is right less often than it says."""
    calibration_error: float | None
    """None below 50 pairs, where it would be noise."""
    confident_wrong: Estimate
    """Share of pairs that are confident and wrong; 0.25 times the share of wrong ones by chance."""
    p_value: float | None
    """That the share differs from other pairs' by chance; None where it was not tested."""
    p_holm: float | None
    """The same among all slices that were tested."""
    change: Estimate | None = None
    """Accuracy after adaptation less before, on the same pairs; None without a second model."""
    change_p_holm: float | None = None
    accuracy_after: Estimate | None = None
    confident_wrong_after: Estimate | None = None

    @property
    def is_found(self) -> bool:
        """Whether it is confidently wrong more or less often than chance would have it."""
        return self.p_holm is not None and self.p_holm <= 0.05

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def prompt_numbers(pairs: Sequence[PreferencePair]) -> list[int]:
    """The prompt of each pair, as a number: pairs of one prompt are one cluster."""
    numbers: dict[Prompt, int] = {}
    return [numbers.setdefault(pair.prompt, len(numbers)) for pair in pairs]


def pair_slices(
    pairs: Sequence[PreferencePair], *, num_topics: int, seed: int
) -> dict[tuple[str, str], Mask]:
    """Which pairs are in which slice, by kind and name; slices overlap between kinds.

    Args:
        pairs: Labelled.
        num_topics: Clusters of prompts.
        seed: Of the clusters.

    Returns:
        Masks of shape (pairs,); none is empty.
    """
    difference = np.array([len(p.chosen) - len(p.rejected) for p in pairs], np.float64)
    size = np.array([len(prompt_text(pair.prompt)) for pair in pairs], np.float64)
    found: dict[tuple[str, str], Mask] = {}
    found["length", "better answer longer"] = difference > 0
    found["length", "better answer shorter"] = difference < 0
    for name, mask in _quantiles(np.abs(difference)):
        found["length", f"answers differ by {name} characters"] = mask
    for name, mask in _quantiles(size):
        found["length", f"prompt of {name} characters"] = mask
    for name, has in FORMATS.items():
        chosen = np.array([has(pair.chosen) for pair in pairs])
        rejected = np.array([has(pair.rejected) for pair in pairs])
        kind = "refusal" if name == "refusal" else "format"
        found[kind, f"{name} in both answers"] = chosen & rejected
        found[kind, f"{name} in the better answer only"] = chosen & ~rejected
        found[kind, f"{name} in the worse answer only"] = ~chosen & rejected
    asked = [_last_words(pair.prompt) for pair in pairs]
    scripts = [script_of(text) for text in asked]
    for script in sorted(set(scripts)):
        found["language", script] = np.array([own == script for own in scripts])
    # A prompt with several pairs counts once, so that it makes no topic of its own.
    prompts = list(dict.fromkeys(pair.prompt for pair in pairs))
    texts = [_last_words(prompt) for prompt in prompts]
    topic_of = dict(zip(prompts, prompt_topics(texts, num_topics, seed), strict=True))
    for topic in sorted(set(topic_of.values())):
        found["topic", topic] = np.array([topic_of[pair.prompt] == topic for pair in pairs])
    return {key: mask for key, mask in found.items() if 0 < mask.sum() < len(pairs)}


def measure_slices(
    pairs: Sequence[PreferencePair],
    gaps: Floats,
    slices: Mapping[tuple[str, str], Mask],
    *,
    seed: int,
    gaps_after: Floats | None = None,
) -> list[SliceResult]:
    """Figures of all pairs, then of each slice.

    Args:
        pairs: Labelled.
        gaps: Reward of the chosen less that of the rejected response, shape (pairs,).
        slices: As `pair_slices` gives them.
        seed: Of the permutations.
        gaps_after: The same of another model, compared pair by pair.

    Returns:
        Intervals count prompts; p-values are exact under relabelling whole prompts.

    Raises:
        ShapeError: When gaps are not one a pair.
    """
    for own in (gaps, gaps_after):
        if own is not None and own.shape != (len(pairs),):
            raise ShapeError(f"expected {len(pairs)} reward differences, got shape {own.shape}")
    clusters = prompt_numbers(pairs)
    everything = {("all", ALL): np.ones(len(pairs), dtype=bool), **slices}
    before, after = _Outcomes(gaps), None if gaps_after is None else _Outcomes(gaps_after)
    numbers = np.array(clusters)
    tested = [
        key
        for key, mask in slices.items()
        if min(len(set(numbers[mask])), len(set(numbers[~mask]))) >= LEAST_PROMPTS
    ]
    p_values: dict[tuple[str, str], float] = {}
    changes: dict[tuple[str, str], float] = {}
    if tested:
        masks = np.array([slices[key] for key in tested])
        found = slice_tests(
            before.confident_wrong,
            masks,
            clusters,
            num_permutations=NUM_PERMUTATIONS,
            seed=draw_seed(seed, "slices"),
        )
        p_values = dict(zip(tested, found, strict=True))
    if after is not None:
        for place, key in enumerate((("all", ALL), *tested)):
            mask = everything[key]
            changes[key] = sign_test(
                (after.correct - before.correct)[mask],
                numbers[mask].tolist(),
                num_permutations=NUM_PERMUTATIONS,
                seed=draw_seed(seed, "change", place),
            )
    held = dict(zip(p_values, adjust_by_holm(list(p_values.values())), strict=True))
    held_changes = dict(zip(changes, adjust_by_holm(list(changes.values())), strict=True))
    return [
        _measure(
            key,
            mask,
            numbers,
            before,
            after,
            p_values.get(key),
            held.get(key),
            held_changes.get(key),
        )
        for key, mask in everything.items()
    ]


def calibration_error(confidence: Floats, correct: Floats) -> float | None:
    """Expected calibration error: mean over bins of |accuracy - confidence|, weighted.

    Args:
        confidence: In [0.5, 1], shape (pairs,).
        correct: 1, 0 or 0.5, shape (pairs,).

    Returns:
        In [0, 1], 0 where each bin is right as often as it says; at most 10 bins of equal counts,
        25 pairs each at least. None below 50 pairs.

    Source:
        Naeini et al. 2015. Chance alone makes it larger than 0: compare slices of like sizes.
    """
    bins = min(MOST_BINS, len(correct) // PAIRS_PER_BIN)
    if bins < 2:
        return None
    order = np.argsort(confidence, kind="stable")
    parts = np.array_split(order, bins)
    return sum(
        len(own) / len(order) * abs(float((correct[own] - confidence[own]).mean())) for own in parts
    )


class _Outcomes:
    """What a model's reward differences amount to, pair by pair."""

    def __init__(self, gaps: Floats) -> None:
        self.correct: Floats = (1.0 + np.sign(gaps)) / 2.0
        self.confidence: Floats = expit(np.abs(gaps))
        bound = np.quantile(np.abs(gaps), CONFIDENT_QUANTILE)
        self.confident_wrong: Floats = ((np.abs(gaps) >= bound) & (gaps < 0)).astype(np.float64)


def _measure(
    key: tuple[str, str],
    mask: Mask,
    clusters: NDArray[np.intp],
    before: _Outcomes,
    after: _Outcomes | None,
    p_value: float | None,
    p_holm: float | None,
    change_p_holm: float | None,
) -> SliceResult:
    own = clusters[mask].tolist()
    correct, confidence = before.correct[mask], before.confidence[mask]
    return SliceResult(
        kind=key[0],
        name=key[1],
        num_pairs=int(mask.sum()),
        num_prompts=len(set(own)),
        accuracy=accuracy_estimate(correct, own),
        confidence=float(confidence.mean()),
        overconfidence=mean_estimate(confidence - correct, own),
        calibration_error=calibration_error(confidence, correct),
        confident_wrong=accuracy_estimate(before.confident_wrong[mask], own),
        p_value=p_value,
        p_holm=p_holm,
        change_p_holm=change_p_holm,
        **_compare(mask, own, before, after),
    )


def _compare(
    mask: Mask, clusters: Sequence[int], before: _Outcomes, after: _Outcomes | None
) -> dict[str, Estimate]:
    if after is None:
        return {}
    return {
        "change": mean_estimate((after.correct - before.correct)[mask], clusters),
        "accuracy_after": accuracy_estimate(after.correct[mask], clusters),
        "confident_wrong_after": accuracy_estimate(after.confident_wrong[mask], clusters),
    }


def _quantiles(values: Floats) -> list[tuple[str, Mask]]:
    """Groups of about equal size, named by their bounds."""
    inner = np.quantile(values, [n / LENGTH_GROUPS for n in range(1, LENGTH_GROUPS)])
    place = np.searchsorted(inner, values, side="left")
    found = []
    for group in range(LENGTH_GROUPS):
        mask = place == group
        if mask.any():
            low, high = int(values[mask].min()), int(values[mask].max())
            found.append((str(low) if low == high else f"{low} to {high}", mask))
    return found


def _last_words(prompt: Prompt) -> str:
    """What was asked last: of a conversation or transcript, the person's last turn."""
    if isinstance(prompt, str):
        return _last_turn(prompt)
    asked = [turn.content for turn in prompt if turn.role == "user"]
    return asked[-1] if asked else prompt_text(prompt)


def _last_turn(text: str) -> str:
    turns = text.split("\n\nHuman:")
    return turns[-1].split("\n\nAssistant:")[0] if len(turns) > 1 else text
