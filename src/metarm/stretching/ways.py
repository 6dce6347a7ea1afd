# SPDX-License-Identifier: Apache-2.0
"""Which way of adapting by a few labels is taken: figures of each, from its gaps, and the choice.

Validation, not proof: of the ways that seem to hold on original pairs that with the least log loss
on labels it has not seen. Levels below one half ask for more than that.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metarm.errors import EmptySetError
from metarm.evaluation.champion import NonInferiority, non_inferiority
from metarm.metrics import accuracy_estimate, mean_estimate, pair_accuracy
from metarm.schema import Estimate
from metarm.stretching.calibration import fit_temperature
from metarm.stretching.pseudo_labels import PairedChange, paired_change
from metarm.stretching.settings import AdaptSettings

__all__ = [
    "Adaptation",
    "Evidence",
    "WayGaps",
    "calibrated_losses",
    "choose_adaptation",
    "judge_ways",
]

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class WayGaps:
    """Chosen minus rejected by one way, all that it is judged by."""

    few: Floats
    """Of the few labels in order, each by a model that has not seen its prompt."""
    original: Floats
    """Of the original pairs, by the model adapted to all few labels."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that the ways are judged by."""

    ways: Mapping[str, WayGaps]
    """The simplest first; the first one keeps the model."""
    labels: Floats
    """P(chosen is better) of each few label."""
    prompts: tuple[str, ...]
    """Of each few label, in any words."""
    original_prompts: tuple[str, ...]
    """Of each original pair."""

    def to_json(self) -> dict[str, Any]:
        """Nested plain JSON values."""
        return {
            "ways": {
                name: {"few": own.few.tolist(), "original": own.original.tolist()}
                for name, own in self.ways.items()
            },
            "labels": self.labels.tolist(),
            "prompts": list(self.prompts),
            "original_prompts": list(self.original_prompts),
        }

    @classmethod
    def from_json(cls, told: Mapping[str, Any]) -> "Evidence":
        """What `to_json` gave."""
        return cls(
            {
                name: WayGaps(np.array(own["few"]), np.array(own["original"]))
                for name, own in told["ways"].items()
            },
            np.array(told["labels"]),
            tuple(told["prompts"]),
            tuple(told["original_prompts"]),
        )


@dataclass(frozen=True, slots=True)
class Adaptation:
    """One way, and its figures; all intervals are clustered by prompt."""

    name: str
    log_loss: Estimate
    """On the few labels, each scored by a model that has not seen it, in nats; 0.693 for a coin."""
    log_loss_change: PairedChange
    """The same minus that of keeping the model; the p-value is of so large a drop."""
    inverse_temperature: float
    """What those gaps were multiplied by, in 1 / score; 0: they are right no more than wrong."""
    accuracy: Estimate
    """On the few labels, likewise."""
    gain: PairedChange
    """Accuracy minus that of keeping the model."""
    accuracy_original: Estimate
    """Of the model adapted to all few labels, on original pairs."""
    change_original: Estimate
    """The same minus that of the model as it is."""
    original: NonInferiority
    """Whether it passes there."""


def calibrated_losses(gaps: Floats, labels: Floats) -> tuple[Floats, float]:
    """Log loss of each label by gaps at the one temperature that suits them best.

    A way is not blamed for the size of its gaps, which says nothing of the order; each way has one
    number fitted, so that none is favoured.

    Args:
        gaps: Chosen minus rejected, of pairs that were not trained on, shape (pairs,).
        labels: P(chosen is better), shape (pairs,).

    Returns:
        In nats, shape (pairs,), log 2 = 0.693 each where the gaps tell nothing; and the inverse
        temperature.

    Raises:
        EmptySetError, ShapeError: As `fit_temperature`.

    Source:
        Guo et al. 2017 for the temperature.

    Example:
        >>> calibrated_losses(np.array([1.0, -1.0]), np.array([1.0, 1.0]))[0].round(3).tolist()
        [0.693, 0.693]
    """
    inverse = fit_temperature(gaps, labels).inverse_temperature
    logits = inverse * np.asarray(gaps, dtype=np.float64)
    losses: Floats = np.logaddexp(0.0, logits) - labels * logits
    return losses, inverse


def judge_ways(
    evidence: Evidence, settings: AdaptSettings
) -> tuple[str, str, tuple[Adaptation, ...]]:
    """Figures of every way, which is taken, and why.

    Args:
        evidence: Of two few labels at least.
        settings: `margin`, `alpha` and `gain_alpha` are read.

    Returns:
        Name of the way, the reason in a sentence, and the figures in the order given.

    Raises:
        EmptySetError: When there is no way.
    """
    if not evidence.ways:
        raise EmptySetError("expected ways of adapting to choose from, got none")
    prompts, original_prompts = evidence.prompts, evidence.original_prompts
    losses, inverse, right, right_original = {}, {}, {}, {}
    for name, own in evidence.ways.items():
        losses[name], inverse[name] = calibrated_losses(own.few, evidence.labels)
        right[name], right_original[name] = _right(own.few), _right(own.original)
    first = next(iter(evidence.ways))
    found = tuple(
        Adaptation(
            name=name,
            log_loss=mean_estimate(losses[name], prompts),
            log_loss_change=paired_change(losses[name], losses[first], prompts),
            inverse_temperature=inverse[name],
            accuracy=accuracy_estimate(right[name], prompts),
            gain=paired_change(right[name], right[first], prompts),
            accuracy_original=accuracy_estimate(right_original[name], original_prompts),
            change_original=mean_estimate(
                right_original[name] - right_original[first], original_prompts
            ),
            original=non_inferiority(
                right_original[name],
                right_original[first],
                original_prompts,
                margin=settings.margin,
                alpha=settings.alpha,
            ),
        )
        for name in evidence.ways
    )
    passing = [one.name for one in found[1:] if one.original.holds]
    taken = choose_adaptation(
        {name: losses[name] for name in (first, *passing)}, prompts, settings.gain_alpha
    )
    return taken, _reason(taken, found, settings), found


def choose_adaptation(
    losses: Mapping[str, Floats], prompts: Sequence[str], gain_alpha: float
) -> str:
    """The way that is taken: from the simplest on, where a further one is better.

    Better is a lower mean loss, and at a level below one half one that a paired test shows to be
    lower. At one half it is the way with the lowest mean, the simpler one of equals.

    Args:
        losses: Of each way that may be taken, the simplest first: a loss for each label.
        prompts: Of each label: tests are clustered by it.
        gain_alpha: Level of each test, in (0, 0.5].

    Example:
        >>> losses = {"none": np.array([0.7, 0.7]), "full": np.array([0.5, 0.8])}
        >>> choose_adaptation(losses, ["a", "b"], 0.5), choose_adaptation(losses, ["a", "b"], 0.2)
        ('full', 'none')
    """
    names = iter(losses)
    taken = next(names)
    for name in names:
        change = paired_change(losses[name], losses[taken], prompts)
        # Without a drop the p-value is 0.5 as well where nothing differs.
        if change.change.value < 0.0 and change.is_drop(gain_alpha):
            taken = name
    return taken


def _reason(taken: str, found: Sequence[Adaptation], settings: AdaptSettings) -> str:
    """One sentence: what was taken, by which figures, and what was refused."""
    kept, *others = found
    passing = [one for one in others if one.original.holds]
    if not others:
        return "no other way was tried"
    if not passing:
        text = "no way passes on original pairs"
    else:
        shown = min(passing, key=_log_loss)
        verb = "comes nearest to"
        if taken != kept.name:
            shown = next(one for one in passing if one.name == taken)
            verb = "is better than"
        text = (
            f"{shown.name} {verb} the model as it is: log loss {shown.log_loss.value:.4f} against "
            f"{kept.log_loss.value:.4f} on labels not seen (p {shown.log_loss_change.p_value:.3f})"
        )
    refused = [_refusal(one, settings) for one in others if not one.original.holds]
    return "; ".join([text, *refused])


def _refusal(one: Adaptation, settings: AdaptSettings) -> str:
    held = one.original
    if held.num_prompts < held.fewest_prompts:
        return (
            f"{one.name} is refused: original pairs of {held.num_prompts} prompts tell nothing, of "
            f"{held.fewest_prompts} might"
        )
    return (
        f"{one.name} is refused: accuracy on original pairs changes by {held.difference:+.3f}, "
        f"and {settings.margin:g} may be lost (p {held.p_value:.3f}, alpha {settings.alpha:g})"
    )


def _log_loss(one: Adaptation) -> float:
    return one.log_loss.value


def _right(gaps: Floats) -> Floats:
    return pair_accuracy(gaps, np.ones_like(gaps))
