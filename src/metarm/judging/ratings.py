# SPDX-License-Identifier: Apache-2.0
"""Bradley-Terry ratings of several arms, fitted by evalica, with intervals over prompts."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np

from metarm.errors import ConfigError, DataError
from metarm.judging.comparisons import DECIDED, Comparison, Judgement
from metarm.judging.length_control import INTERVAL
from metarm.judging.win_rates import number_prompts
from metarm.schema import Estimate, Verdict

__all__ = ["Rating", "bradley_terry_ratings"]

PRIOR_TIES: Final = 1.0
"""Ties added between every two arms that were compared: ratings stay finite and move little."""
TOLERANCE: Final = 1e-10
MAX_SWEEPS: Final = 100_000


@dataclass(frozen=True, slots=True)
class Rating:
    """An arm's strength in the eyes of one judge."""

    judge: str
    arm: str
    rating: Estimate
    """Log odds in nats, mean 0 over arms: the difference of two arms' is the log odds that the
    first wins, a tie counting half."""
    expected_win_rate: float
    """Mean over the other arms of the chance to win against each."""

    def to_json(self) -> dict[str, Any]:
        """Nested plain JSON values."""
        return asdict(self)


def bradley_terry_ratings(
    judge: str,
    comparisons: Sequence[Comparison],
    judgements: Sequence[Judgement],
    *,
    num_resamples: int,
    seed: int = 0,
) -> list[Rating]:
    """The arms by strength, the strongest first; empty where nothing was judged.

    A tie is half a win for each. One tie between every two arms that were compared is added, so
    that an arm which has won everything has a finite rating.

    Args:
        judge: Its name, for the record.
        comparisons: What was judged, of two arms or more, each linked to the others by comparisons.
        judgements: One a comparison.
        num_resamples: Of the bootstrap over prompts.
        seed: Of the bootstrap.

    Raises:
        ConfigError: When the evalica package is not there.
        DataError: When some arms were never compared with the others, by however many steps.

    Source:
        Bradley & Terry 1952; Newman 2023 for the fixed point that evalica iterates.
    """
    told = [
        (comparison, judgement.verdict)
        for comparison, judgement in zip(comparisons, judgements, strict=True)
        if judgement.verdict in DECIDED
    ]
    if not told:
        return []
    judged = [comparison for comparison, _ in told]
    arms = list(dict.fromkeys(a for one in judged for a in (one.first_arm, one.second_arm)))
    _check_linked(arms, judged)
    prompts = np.array(number_prompts(judged))
    count = int(prompts.max()) + 1
    values = _fit(arms, told, np.ones(len(told)))
    draw = np.random.default_rng(seed)
    resampled = np.array(
        [
            _fit(arms, told, draw.multinomial(count, np.full(count, 1.0 / count))[prompts])
            for _ in range(num_resamples if count > 1 else 0)
        ]
    )
    order = np.argsort(-values, kind="stable")
    ratings = []
    for place in order:
        own = float(values[place])
        low, high = np.quantile(resampled[:, place], INTERVAL) if len(resampled) else (own, own)
        chances = [1.0 / (1.0 + np.exp(values[o] - own)) for o in range(len(arms)) if o != place]
        ratings.append(
            Rating(
                judge,
                arms[place],
                Estimate(own, min(float(low), own), max(float(high), own), count),
                float(np.mean(chances)),
            )
        )
    return ratings


def _fit(
    arms: Sequence[str], told: Sequence[tuple[Comparison, Verdict]], weights: Any
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Log strengths, mean 0, in the order of `arms`."""
    try:
        import evalica
    except ImportError as error:
        raise ConfigError(
            "ratings of several arms need the evalica package: pip install 'metarm[judge]'"
        ) from error
    winners: Mapping[Verdict, Any] = {
        "first": evalica.Winner.X,
        "second": evalica.Winner.Y,
        "tie": evalica.Winner.Draw,
    }
    pairs = dict.fromkeys((one.first_arm, one.second_arm) for one, _ in told)
    result = evalica.bradley_terry(
        [*(one.first_arm for one, _ in told), *(first for first, _ in pairs)],
        [*(one.second_arm for one, _ in told), *(second for _, second in pairs)],
        [*(winners[verdict] for _, verdict in told), *[evalica.Winner.Draw] * len(pairs)],
        weights=[*map(float, weights), *[PRIOR_TIES] * len(pairs)],
        tolerance=TOLERANCE,
        limit=MAX_SWEEPS,
    )
    logs = np.log(np.array([float(result.scores[arm]) for arm in arms]))
    centred: np.ndarray[Any, np.dtype[np.float64]] = logs - logs.mean()
    return centred


def _check_linked(arms: Sequence[str], judged: Sequence[Comparison]) -> None:
    """Strengths of arms without a chain of comparisons between them have nothing in common."""
    reached, edge = {arms[0]}, [arms[0]]
    while edge:
        arm = edge.pop()
        for one in judged:
            if arm in (one.first_arm, one.second_arm):
                new = {one.first_arm, one.second_arm} - reached
                reached |= new
                edge += new
    if lost := [arm for arm in arms if arm not in reached]:
        raise DataError(
            f"expected comparisons that link all arms, got none between "
            f"{', '.join(sorted(reached))} and {', '.join(lost)}: judge some, or rate them apart"
        )
