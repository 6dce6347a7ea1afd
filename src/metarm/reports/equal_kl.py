# SPDX-License-Identifier: Apache-2.0
"""Gold at equal KL: how much true reward an arm's policy had when it had moved as far as others."""

import itertools
import math
from collections.abc import Sequence

from metarm.config import ARM_PRESETS
from metarm.reports.comparisons import Summary, difference, summarise
from metarm.reports.read_run import Cell, CurvePoint, Run
from metarm.schema import Estimate

__all__ = ["final_trajectory", "gold_at", "gold_at_kl", "gold_at_kl_difference", "kl_reached"]


def gold_at_kl(points: Sequence[CurvePoint], kl_nats: float) -> float | None:
    """Gold where a trajectory crosses `kl_nats`, on straight lines between its points.

    KL is estimated from a batch and wavers: where it crosses several times, the mean of all
    crossings is taken. Points without gold are passed over.

    Args:
        points: In the order in which the policy went through them.
        kl_nats: Divergence from SFT to read gold at.

    Returns:
        In units of gold; None where the trajectory never reaches this KL (or begins beyond it).

    Example:
        >>> line = [CurvePoint(0.0, 1.0), CurvePoint(2.0, 2.0)]
        >>> gold_at_kl(line, 0.5), gold_at_kl(line, 3.0)
        (1.25, None)
    """
    known = [(kl, gold) for kl, gold in points if gold is not None]
    crossings = [gold for kl, gold in known if kl == kl_nats]
    for (left, start), (right, end) in itertools.pairwise(known):
        if min(left, right) < kl_nats < max(left, right):
            crossings.append(start + (end - start) * (kl_nats - left) / (right - left))
    return math.fsum(crossings) / len(crossings) if crossings else None


def kl_reached(points: Sequence[CurvePoint]) -> float:
    """The largest KL of a trajectory, in nats; 0 where it is empty."""
    return max((point.kl_nats for point in points), default=0.0)


def final_trajectory(run: Run, arm: str, seed: int) -> tuple[CurvePoint, ...]:
    """The way from SFT to an arm's last policy, an iteration a point.

    Where each round starts from the round before, all rounds; where each starts from SFT, the last.
    Empty where the arm has not finished the run's final round.
    """
    rounds = range(1, run.final_round + 1)
    curves = [run.curves.get(Cell(arm, seed, number), ()) for number in rounds]
    if not all(curves):
        return ()
    return curves[-1] if _starts_from_sft(run, arm) else tuple(itertools.chain(*curves))


def _starts_from_sft(run: Run, arm: str) -> bool:
    settings = run.settings
    if settings is None:
        return False
    is_known = arm in {**ARM_PRESETS, **settings.custom_arms}
    return (settings.for_arm(arm) if is_known else settings).policy_start == "sft"


def gold_at(run: Run, arm: str, kl_nats: float) -> Summary | None:
    """Mean over the seeds that reach this KL, with Student's interval; None where none does."""
    return summarise(_by_seed(run, arm, kl_nats))


def gold_at_kl_difference(run: Run, arm: str, other: str, kl_nats: float) -> Summary | None:
    """`arm` minus `other` at one KL, paired over the seeds in which both reach it."""
    return difference(_by_seed(run, arm, kl_nats), _by_seed(run, other, kl_nats))


def _by_seed(run: Run, arm: str, kl_nats: float) -> dict[int, Estimate | float | None]:
    return {seed: gold_at_kl(final_trajectory(run, arm, seed), kl_nats) for seed in run.seeds}
