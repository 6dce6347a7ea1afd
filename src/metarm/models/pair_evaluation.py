# SPDX-License-Identifier: Apache-2.0
"""How a score function orders labelled pairs."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from metarm.metrics import accuracy_estimate, length_balanced_accuracy, pair_accuracy
from metarm.protocols import ScoreFunction
from metarm.schema import Estimate, PreferencePair, prompt_text

__all__ = ["PreferenceEvaluation", "evaluate_preferences"]


@dataclass(frozen=True, slots=True)
class PreferenceEvaluation:
    """A reward model on labelled pairs."""

    accuracy: Estimate
    """Clustered by prompt."""
    accuracy_length_balanced: float | None
    """Mean of the accuracies where the chosen response is longer and where it is shorter."""
    gap_mean: float
    """Mean chosen-minus-rejected score, in logits."""
    gap_spread: float
    """Standard deviation of the same, in logits."""
    num_pairs: int


def evaluate_preferences(
    score: ScoreFunction, pairs: Sequence[PreferencePair]
) -> PreferenceEvaluation:
    """How a score function orders labelled pairs.

    Raises:
        EmptySetError: When there are no pairs.
    """
    prompts = [pair.prompt for pair in pairs]
    chosen = np.array(score(prompts, [pair.chosen for pair in pairs]))
    rejected = np.array(score(prompts, [pair.rejected for pair in pairs]))
    gaps = chosen - rejected
    correct = pair_accuracy(gaps, np.ones_like(gaps))
    balanced = length_balanced_accuracy(
        correct, [len(pair.chosen) for pair in pairs], [len(pair.rejected) for pair in pairs]
    )
    return PreferenceEvaluation(
        accuracy=accuracy_estimate(correct, [prompt_text(prompt) for prompt in prompts]),
        accuracy_length_balanced=balanced,
        gap_mean=float(gaps.mean()),
        gap_spread=float(gaps.std()),
        num_pairs=len(pairs),
    )
