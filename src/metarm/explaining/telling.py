# SPDX-License-Identifier: Apache-2.0
"""What an explanation comes to, in sentences that are worked out from its figures."""

from collections.abc import Sequence

from metarm.explaining.length_bias import LengthBias
from metarm.explaining.slices import SliceResult
from metarm.schema import Estimate

__all__ = ["tell_explanation"]

FOUND = 0.05
MOST_NAMED = 3


def tell_explanation(slices: Sequence[SliceResult], length: LengthBias) -> list[str]:
    """The headline first, then what else is beyond chance, or that nothing is.

    Args:
        slices: Of all pairs, then of each slice.
        length: Of all pairs.
    """
    everything, *kinds = slices
    points = [_tell_accuracy(everything), *_tell_slices(everything, kinds), *_tell_length(length)]
    if everything.change is not None:
        points += _tell_change(everything, kinds)
    return points


def _tell_accuracy(everything: SliceResult) -> str:
    over = everything.overconfidence
    if over.low > 0:
        said = f"it is surer than it is right, by {_points(over)} points"
    elif over.high < 0:
        said = f"it is less sure than it is right, by {_points(_turned(over))} points"
    else:
        said = "it is about as often right as it is sure to be"
    return (
        f"On {everything.num_pairs:,} labelled pairs of {everything.num_prompts:,} prompts the "
        f"reward model sides with the label {_percent(everything.accuracy)} of the time; {said}."
    )


def _tell_slices(everything: SliceResult, kinds: Sequence[SliceResult]) -> list[str]:
    tested = [one for one in kinds if one.p_holm is not None]
    usual = everything.confident_wrong.value
    told = []
    for word, is_own in (("more", True), ("less", False)):
        found = [
            one for one in tested if one.is_found and (one.confident_wrong.value > usual) == is_own
        ]
        found.sort(key=lambda one: one.confident_wrong.value, reverse=is_own)
        if found:
            names = "; ".join(
                f"{one.name} ({_percent(one.confident_wrong)} of {one.num_pairs:,} pairs)"
                for one in found[:MOST_NAMED]
            )
            more = f" and {len(found) - MOST_NAMED} more" if len(found) > MOST_NAMED else ""
            told.append(
                f"Confident and wrong {word} often than elsewhere ({usual:.0%} of all pairs): "
                f"{names}{more}."
            )
    if not tested:
        return ["No kind of pairs has prompts enough to be tested (20 in it and 20 outside)."]
    return told or [
        f"Of {len(tested)} kinds of pairs that were tested, none is confidently wrong more or less "
        "often than chance would have it."
    ]


def _tell_length(length: LengthBias) -> list[str]:
    model, labels = length.model_prefers_longer, length.labels_prefer_longer
    if length.slope is None or model is None or labels is None:
        return []
    slope = length.slope
    if slope.low <= 0 <= slope.high:
        said = "what length adds to the reward cannot be told from nothing"
    else:
        word = "adds" if slope.value > 0 else "takes"
        size = slope if slope.value > 0 else _turned(slope)
        said = f"each 100 characters more {word} {_number(size)} logits"
    told = (
        f"It prefers the longer answer {_percent(model)} of the time, the labels do "
        f"{_percent(labels)}: {said}."
    )
    if length.accuracy_controlled is not None:
        told += f" At equal length it would be right {_percent(length.accuracy_controlled)}."
    return [told]


def _tell_change(everything: SliceResult, kinds: Sequence[SliceResult]) -> list[str]:
    change = everything.change
    assert change is not None
    if change.low <= 0 <= change.high:
        verdict = "which chance alone would do"
    else:
        verdict = "a gain" if change.value > 0 else "a loss"
    told = [f"After adaptation it is right {_points(change, signed=True)} points more: {verdict}."]
    moved = [
        one
        for one in kinds
        if one.change is not None and one.change_p_holm is not None and one.change_p_holm <= FOUND
    ]
    moved.sort(key=lambda one: -abs(one.change.value if one.change else 0.0))
    for one in moved[:MOST_NAMED]:
        assert one.change is not None
        told.append(
            f"The change on {one.name}, {_points(one.change, signed=True)} points, is beyond "
            "chance."
        )
    return told


def _turned(estimate: Estimate) -> Estimate:
    return Estimate(-estimate.value, -estimate.high, -estimate.low, estimate.count)


def _percent(estimate: Estimate) -> str:
    return f"{estimate.value:.0%} [{100 * estimate.low:.0f}, {100 * estimate.high:.0f}]"


def _points(estimate: Estimate, *, signed: bool = False) -> str:
    value, low, high = (100 * x for x in (estimate.value, estimate.low, estimate.high))
    if signed:
        return f"{value:+.1f} [{low:+.1f}, {high:+.1f}]"
    return f"{value:.1f} [{low:.1f}, {high:.1f}]"


def _number(estimate: Estimate) -> str:
    return f"{estimate.value:.2g} [{estimate.low:.2g}, {estimate.high:.2g}]"
