# SPDX-License-Identifier: Apache-2.0
"""All that a judging folder says: win rates and ratings by judge, and how far judges agree."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from metarm.annotators.agreement import agreement_fraction, cohens_kappa, krippendorffs_alpha
from metarm.judging.comparisons import (
    DECIDED,
    Comparison,
    JudgementSet,
    load_comparisons,
    load_judgements,
)
from metarm.judging.ratings import Rating, bradley_terry_ratings
from metarm.judging.win_rates import WinRate, win_rates
from metarm.schema import Estimate, Verdict

__all__ = [
    "Agreement",
    "Judging",
    "format_win_rates",
    "judging_to_json",
    "read_judging",
    "tell_win_rate",
]


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far two judges agree, on the comparisons that both gave a verdict on."""

    first_judge: str
    second_judge: str
    num_both: int
    agreement_fraction: float
    kappa: float | None
    """Cohen's; None where both gave one and the same verdict throughout."""


@dataclass(frozen=True, slots=True)
class Judging:
    """Everything that a report shows of a judging folder."""

    comparisons: tuple[Comparison, ...]
    judged: tuple[JudgementSet, ...]
    win_rates: tuple[WinRate, ...]
    ratings: tuple[Rating, ...]
    """Where three arms or more are compared."""
    agreements: tuple[Agreement, ...]
    """Of every two judges with a comparison in common."""
    alpha: float | None
    """Krippendorff's, nominal, of all judges together; None with one judge or one verdict."""

    @property
    def arms(self) -> tuple[str, ...]:
        """The arms, in the order of the comparisons."""
        pairs = ((one.first_arm, one.second_arm) for one in self.comparisons)
        return tuple(dict.fromkeys(itertools.chain.from_iterable(pairs)))


def read_judging(folder: Path, *, num_resamples: int, seed: int = 0) -> Judging:
    """Work out everything from the verdicts in a folder.

    Args:
        folder: Judging folder.
        num_resamples: Bootstrap resamples of prompts.
        seed: Of the bootstrap.

    Raises:
        DataError: When there are no comparisons, or verdicts do not fit them.
        FormatError: When a file is not as it was written.
    """
    comparisons = load_comparisons(folder)
    judged = load_judgements(folder, len(comparisons))
    rates: list[WinRate] = []
    ratings: list[Rating] = []
    arms = {arm for one in comparisons for arm in (one.first_arm, one.second_arm)}
    for one in judged:
        drawn = {"num_resamples": num_resamples, "seed": seed}
        rates += win_rates(one.name, comparisons, one.judgements, **drawn)
        if len(arms) > 2:
            ratings += bradley_terry_ratings(one.name, comparisons, one.judgements, **drawn)
    labels = {one.name: _labels(one) for one in judged}
    return Judging(
        tuple(comparisons),
        tuple(judged),
        tuple(rates),
        tuple(ratings),
        tuple(_agreements(labels)),
        _alpha(list(labels.values())),
    )


def _labels(judged: JudgementSet) -> list[Verdict | None]:
    """Verdicts that count; None for the others."""
    verdicts = (judgement.verdict for judgement in judged.judgements)
    return [verdict if verdict in DECIDED else None for verdict in verdicts]


def _agreements(labels: Mapping[str, Sequence[Verdict | None]]) -> list[Agreement]:
    found = []
    for (one, mine), (other, theirs) in itertools.combinations(labels.items(), 2):
        both = [(a, b) for a, b in zip(mine, theirs, strict=True) if a and b]
        if both:
            first, second = [a for a, _ in both], [b for _, b in both]
            share, kappa = agreement_fraction(first, second), cohens_kappa(first, second)
            found.append(Agreement(one, other, len(both), share, kappa))
    return found


def _alpha(labels: Sequence[Sequence[Verdict | None]]) -> float | None:
    """Alpha of all judges; None where no comparison has two verdicts."""
    has_two = any(
        sum(label is not None for label in item) > 1 for item in zip(*labels, strict=True)
    )
    return krippendorffs_alpha(labels) if has_two else None


def judging_to_json(judging: Judging) -> dict[str, Any]:
    """The results as one JSON document, without the texts."""
    return {
        "arms": list(judging.arms),
        "num_comparisons": len(judging.comparisons),
        "num_prompts": len({one.prompt for one in judging.comparisons}),
        "judges": {one.name: dict(one.facts) for one in judging.judged},
        "win_rates": [rate.to_json() for rate in judging.win_rates],
        "ratings": [rating.to_json() for rating in judging.ratings],
        "agreements": [asdict(agreement) for agreement in judging.agreements],
        "alpha": judging.alpha,
    }


def tell_win_rate(rate: WinRate) -> str:
    """A win rate in a sentence.

    It says that one arm is better only where the interval leaves out one half.
    """
    arms = f"{rate.first_arm} against {rate.second_arm}"
    value = rate.win_rate
    if value is None or rate.win_fraction is None or rate.tie_fraction is None:
        return f"{rate.judge}: {arms}: nothing was judged."
    if value.count == 1:
        told = "one prompt tells nothing"
    elif value.low > 0.5:
        told = f"{rate.first_arm} is better"
    elif value.high < 0.5:
        told = f"{rate.second_arm} is better"
    else:
        told = "neither can be told to be better"
    return (
        f"{rate.judge}: {told}: {arms} has a win rate of {value} over {value.count} prompts "
        f"({rate.win_fraction.value:.0%} won, {rate.tie_fraction.value:.0%} tied)."
    )


def format_win_rates(judging: Judging) -> str:
    """The win rates as a table for the terminal, then what cannot stand in a row."""
    head = ("judge", "arms", "win rate", "length-controlled", "won / tied / lost", "left out")
    rows = [head, *(_cells(rate) for rate in judging.win_rates)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    lines += ["", *(tell_win_rate(rate) for rate in judging.win_rates)]
    lines += [
        f"{one.first_judge} and {one.second_judge} agree on {one.agreement_fraction:.0%} of "
        f"{one.num_both} comparisons" + ("." if one.kappa is None else f", kappa {one.kappa:.2f}.")
        for one in judging.agreements
    ]
    lines += [f"{r.judge}: rating of {r.arm}: {r.rating}" for r in judging.ratings]
    return "\n".join(lines)


def _cells(rate: WinRate) -> tuple[str, ...]:
    shares = (rate.win_fraction, rate.tie_fraction, rate.lose_fraction)
    left_out = {"malformed": rate.num_malformed, "unjudged": rate.num_unjudged}
    return (
        rate.judge,
        f"{rate.first_arm} : {rate.second_arm}",
        _shown(rate.win_rate),
        _shown(rate.win_rate_length_controlled),
        " / ".join("-" if share is None else f"{share.value:.2f}" for share in shares),
        ", ".join(f"{count} {name}" for name, count in left_out.items() if count) or "0",
    )


def _shown(estimate: Estimate | None) -> str:
    return "-" if estimate is None else str(estimate)
