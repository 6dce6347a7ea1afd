# SPDX-License-Identifier: Apache-2.0
"""How a score function orders labelled pairs."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from metarm.metrics import (
    accuracy_estimate,
    attainable_accuracy,
    expected_correct,
    length_balanced_accuracy,
    pair_accuracy,
)
from metarm.protocols import ScoreFunction
from metarm.schema import Estimate, PreferencePair, prompt_text

__all__ = ["PreferenceEvaluation", "evaluate_preferences"]


@dataclass(frozen=True, slots=True)
class PreferenceEvaluation:
    """A reward model on labelled pairs."""

    accuracy: Estimate
    """Clustered by prompt; against soft labels the expected one."""
    accuracy_length_balanced: float | None
    """Mean of the accuracies where the chosen response is longer and where it is shorter."""
    gap_mean: float
    """Mean chosen-minus-rejected score, in logits."""
    gap_spread: float
    """Standard deviation of the same, in logits."""
    num_pairs: int
    accuracy_attainable: float | None = None
    """Mean of max(p, 1 - p): the most that accuracy can be; None where every label is hard."""


def evaluate_preferences(
    score: ScoreFunction, pairs: Sequence[PreferencePair]
) -> PreferenceEvaluation:
    """How a score function orders labelled pairs; a soft label counts p for and 1 - p against.

    Raises:
        EmptySetError: When there are no pairs.
    """
    prompts = [pair.prompt for pair in pairs]
    chosen = np.array(score(prompts, [pair.chosen for pair in pairs]))
    rejected = np.array(score(prompts, [pair.rejected for pair in pairs]))
    gaps = chosen - rejected
    correct = pair_accuracy(gaps, np.ones_like(gaps))
    is_soft = any(pair.p not in (None, 1.0) for pair in pairs)
    p = np.array([1.0 if pair.p is None else pair.p for pair in pairs])
    balanced = length_balanced_accuracy(
        correct,
        [len(pair.chosen) for pair in pairs],
        [len(pair.rejected) for pair in pairs],
        p if is_soft else None,
    )
    return PreferenceEvaluation(
        accuracy=accuracy_estimate(
            expected_correct(correct, p), [prompt_text(prompt) for prompt in prompts]
        ),
        accuracy_length_balanced=balanced,
        gap_mean=float(gaps.mean()),
        gap_spread=float(gaps.std()),
        num_pairs=len(pairs),
        accuracy_attainable=attainable_accuracy(p) if is_soft else None,
    )
