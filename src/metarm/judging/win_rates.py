# SPDX-License-Identifier: Apache-2.0
"""Win rates of arms against each other: ties kept, what was not judged counted, with intervals."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np

from metarm.judging.comparisons import DECIDED, Comparison, Judgement
from metarm.judging.length_control import length_controlled_win_rate
from metarm.metrics import accuracy_estimate
from metarm.schema import Estimate, Prompt, Verdict

__all__ = ["OUTCOMES", "WinRate", "number_prompts", "win_rates"]

OUTCOMES: Final[Mapping[Verdict, float]] = {"first": 1.0, "tie": 0.5, "second": 0.0}
"""What a verdict is worth to the first arm."""


@dataclass(frozen=True, slots=True)
class WinRate:
    """How one arm does against another in the eyes of one judge; None where nothing was judged.

    `docs/judging.md` explains each field; a test holds that table and these fields together.
    """

    judge: str
    first_arm: str
    second_arm: str
    win_rate: Estimate | None
    """Share of comparisons that the first arm wins, a tie counting one half."""
    win_rate_length_controlled: Estimate | None
    """The same at equal length of both responses; None also where length and arm are one."""
    win_fraction: Estimate | None
    tie_fraction: Estimate | None
    lose_fraction: Estimate | None
    order_agreement_fraction: Estimate | None
    """Share of the comparisons judged in both orders that got the same verdict in both."""
    shown_first_fraction: Estimate | None
    """Share of verdicts other than ties that went to the response shown first; 0.5 is fair."""
    length_difference: float | None
    """Mean characters of the first arm's response minus the second's, over judged comparisons."""
    num_judged: int
    """Comparisons that count."""
    num_malformed: int
    """Comparisons left out because an answer held no verdict."""
    num_unjudged: int
    """Comparisons left out because an answer never came."""
    num_same: int
    """Of those judged: both arms wrote the same, a tie that nobody was asked about."""

    def to_json(self) -> dict[str, Any]:
        """Nested plain JSON values."""
        return asdict(self)


def number_prompts(comparisons: Sequence[Comparison]) -> list[int]:
    """The cluster of each comparison: its prompt, numbered from 0 in the order of first times."""
    numbers: dict[Prompt, int] = {}
    return [numbers.setdefault(one.prompt, len(numbers)) for one in comparisons]


def win_rates(
    judge: str,
    comparisons: Sequence[Comparison],
    judgements: Sequence[Judgement],
    *,
    num_resamples: int,
    seed: int = 0,
) -> list[WinRate]:
    """Every two arms that were compared, in the order of the comparisons.

    Intervals cover 95 % and count prompts: Wilson's where each 0/1 value is a prompt of its own,
    clustered where not; from resampled prompts for the length-controlled rate.

    Args:
        judge: Its name, for the record.
        comparisons: What was judged.
        judgements: One a comparison.
        num_resamples: Of the bootstrap.
        seed: Of the bootstrap.
    """
    places: dict[tuple[str, str], list[int]] = {}
    for place, comparison in enumerate(comparisons):
        places.setdefault((comparison.first_arm, comparison.second_arm), []).append(place)
    return [
        _win_rate(
            judge,
            arms,
            [comparisons[place] for place in own],
            [judgements[place] for place in own],
            num_resamples,
            seed,
        )
        for arms, own in places.items()
    ]


def _win_rate(
    judge: str,
    arms: tuple[str, str],
    comparisons: Sequence[Comparison],
    judgements: Sequence[Judgement],
    num_resamples: int,
    seed: int,
) -> WinRate:
    verdicts = [judgement.verdict for judgement in judgements]
    kept = [place for place, verdict in enumerate(verdicts) if verdict in DECIDED]
    judged = [comparisons[place] for place in kept]
    told = [verdicts[place] for place in kept]
    prompts = number_prompts(judged)
    outcomes = np.array([OUTCOMES[verdict] for verdict in told])
    lengths = np.array([len(one.first) - len(one.second) for one in judged], dtype=np.float64)
    controlled = None
    if kept:
        controlled = length_controlled_win_rate(
            outcomes, lengths, prompts, num_resamples=num_resamples, seed=seed
        )
    return WinRate(
        judge=judge,
        first_arm=arms[0],
        second_arm=arms[1],
        win_rate=_share(outcomes.tolist(), prompts),
        win_rate_length_controlled=controlled,
        win_fraction=_share([verdict == "first" for verdict in told], prompts),
        tie_fraction=_share([verdict == "tie" for verdict in told], prompts),
        lose_fraction=_share([verdict == "second" for verdict in told], prompts),
        order_agreement_fraction=_order_agreement(comparisons, judgements),
        shown_first_fraction=_shown_first(comparisons, judgements),
        length_difference=float(lengths.mean()) if kept else None,
        num_judged=len(kept),
        num_malformed=verdicts.count("malformed"),
        num_unjudged=verdicts.count("unjudged"),
        num_same=sum(one.is_same for one in judged),
    )


def _share(values: Sequence[float], clusters: Sequence[int]) -> Estimate | None:
    return accuracy_estimate(values, clusters) if values else None


def _order_agreement(
    comparisons: Sequence[Comparison], judgements: Sequence[Judgement]
) -> Estimate | None:
    """Of comparisons with a verdict in both orders, how often it is the same."""
    both = [
        (comparison, judgement.forward == judgement.backward)
        for comparison, judgement in zip(comparisons, judgements, strict=True)
        if judgement.forward in DECIDED and judgement.backward in DECIDED and not comparison.is_same
    ]
    return _share([same for _, same in both], number_prompts([one for one, _ in both]))


def _shown_first(
    comparisons: Sequence[Comparison], judgements: Sequence[Judgement]
) -> Estimate | None:
    """Of verdicts for one side, how often that side was shown first."""
    told = [
        (comparison, verdict == shown_first)
        for comparison, judgement in zip(comparisons, judgements, strict=True)
        for verdict, shown_first in ((judgement.forward, "first"), (judgement.backward, "second"))
        if verdict in ("first", "second")
    ]
    return _share([is_first for _, is_first in told], number_prompts([one for one, _ in told]))
