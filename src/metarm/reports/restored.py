# SPDX-License-Identifier: Apache-2.0
"""The accuracy that retraining gave back: the same policy and pairs, before and after it."""

import math

from metarm.config import ARM_PRESETS
from metarm.reports.comparisons import Summary, difference, summarise
from metarm.reports.read_run import Run
from metarm.schema import Estimate

__all__ = ["DEFINITION", "HOW_TO_READ", "LABEL", "NAME", "restored", "restored_difference"]

NAME = "accuracy_restored"
LABEL = "Accuracy restored by retraining, on the same pairs"
DEFINITION = (
    "Mean over rounds r of `accuracy_before` of round r + 1 minus `accuracy_shifted` of round r: "
    "the same policy and pairs, before and after the reward model was trained again."
)
HOW_TO_READ = (
    "The fairest comparison of two ways to retrain: what the policy then does with the reward "
    "model is not in it. Worked out from two rounds on; not for a frozen reward model."
)


def restored(run: Run, arm: str) -> Summary | None:
    """Mean over rounds of accuracy_before(r + 1) - accuracy_shifted(r); None for a frozen arm."""
    return summarise(_by_seed(run, arm))


def restored_difference(run: Run, arm: str, other: str) -> Summary | None:
    """The accuracy restored in `arm` minus that in `other`, paired by seed."""
    return difference(_by_seed(run, arm), _by_seed(run, other))


def _by_seed(run: Run, arm: str) -> dict[int, Estimate | float | None]:
    known = run.settings is not None and arm in {**ARM_PRESETS, **run.settings.custom_arms}
    settings = run.settings.arm(arm) if run.settings and known else ARM_PRESETS.get(arm)
    if settings is not None and settings.reward == "frozen":
        return {}
    jumps: dict[int, list[Summary]] = {}
    for later in range(2, run.final_round + 1):
        before = run.cards_of(arm, later - 1)
        for seed, card in run.cards_of(arm, later).items():
            if seed in before:
                jump = difference(
                    {seed: card.accuracy_before}, {seed: before[seed].accuracy_shifted}
                )
                if jump is not None:
                    jumps.setdefault(seed, []).append(jump)
    return {seed: _mean(found) for seed, found in jumps.items()}


def _mean(jumps: list[Summary]) -> Estimate | float:
    """The mean over rounds, their intervals combined as if they were independent."""
    value = math.fsum(jump.value for jump in jumps) / len(jumps)
    ends = [(j.value, j.low, j.high) for j in jumps if j.low is not None and j.high is not None]
    if len(ends) < len(jumps):
        return value
    low = value - math.hypot(*(middle - low for middle, low, _ in ends)) / len(jumps)
    high = value + math.hypot(*(high - middle for middle, _, high in ends)) / len(jumps)
    return Estimate(value, low, high, min(jump.count for jump in jumps))
