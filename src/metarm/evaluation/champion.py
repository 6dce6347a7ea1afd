# SPDX-License-Identifier: Apache-2.0
"""Never a worse reward model: a challenger replaces the champion only if it holds and is sane.

It holds where it orders held-out original pairs not worse than the champion by more than a margin;
it is sane where figures that need no label say so on groups of the watched policy's responses. No
answer is a no: too few pairs, or a test that fails, keep the champion.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from metarm.errors import ConfigError, DataError
from metarm.evaluation.scorecard import score_groups
from metarm.meta_strength import LEAST_RANK_CORRELATION
from metarm.metrics import mean_group_spearman, pair_accuracy, within_group_gaps
from metarm.protocols import ScoreFunction
from metarm.schema import PreferencePair, ResponseGroup, prompt_text

__all__ = [
    "Decision",
    "Guard",
    "NonInferiority",
    "PromotionRules",
    "compare_champion",
    "fewest_prompts",
    "mean_length_correlation",
    "non_inferiority",
]

Floats = NDArray[np.float64]
TINY: Final = 1e-12


@dataclass(frozen=True, slots=True)
class PromotionRules:
    """What a challenger must show."""

    margin: float = 0.03
    """Accuracy on original pairs that it may be worse by, in (0, 0.5)."""
    alpha: float = 0.05
    """Chance that one that is worse by the margin passes, in (0, 0.5)."""
    least_rank_correlation: float = LEAST_RANK_CORRELATION
    """With the champion, within watched groups, in [-1, 1]."""
    least_spread_ratio: float = 0.5
    """Spread within watched groups over that between the sides of the pairs, by the champion's."""
    most_length_rise: float = 0.1
    """Of the correlation of reward and length within watched groups, by the champion's."""

    def __post_init__(self) -> None:
        for name in ("margin", "alpha"):
            if not 0.0 < (value := getattr(self, name)) < 0.5:
                raise ConfigError(f"{name} is above 0 and below 0.5, got {value}")


@dataclass(frozen=True, slots=True)
class NonInferiority:
    """A paired test of H0: the challenger is worse by the margin or more."""

    difference: float
    """Challenger's accuracy minus champion's, in [-1, 1]."""
    lower: float
    """One-sided lower bound of it, at confidence 1 - alpha."""
    p_value: float
    holds: bool
    """Whether there were enough prompts, and the bound is above -margin."""
    num_pairs: int
    num_prompts: int
    discordant_share: float
    """Pairs on which the two differ."""
    prompts_needed: int
    """For an equally good challenger to hold with a chance of .9."""
    fewest_prompts: int
    """With fewer, not even a challenger that errs nowhere could hold."""


@dataclass(frozen=True, slots=True)
class Guard:
    """One figure that needs no label, and what it must be."""

    name: str
    value: float | None
    """None where it cannot be told; it then does not pass."""
    bound: float
    passes: bool


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether a challenger replaces the champion, with every figure that decided it."""

    replaces: bool
    reason: str
    accuracy_challenger: float | None
    accuracy_champion: float | None
    test: NonInferiority | None
    guards: tuple[Guard, ...]
    rules: PromotionRules

    def to_json(self) -> dict[str, Any]:
        """Nested plain JSON values."""
        return asdict(self)


def non_inferiority(
    challenger: ArrayLike,
    champion: ArrayLike,
    clusters: Sequence[object],
    *,
    margin: float,
    alpha: float,
) -> NonInferiority:
    """Whether one score orders pairs not worse than another by more than a margin.

    t = (difference + margin - 1 / (2 G)) / error with G - 1 degrees of freedom, G the number of
    prompts: corrected for continuity, and the error the larger of the one clustered by prompt and
    the likeliest one at which the truth is -margin. Without the second, few pairs of which none
    happens to be discordant would prove anything.

    Args:
        challenger: 1 right, 0 wrong, 0.5 a tie, shape (pairs,).
        champion: The same of the same pairs.
        clusters: The prompt of each pair, shape (pairs,).
        margin: In (0, 0.5).
        alpha: In (0, 0.9); from 0.5 on no proof is asked for.

    Raises:
        DataError: When there are no pairs, or the lengths differ.

    Source:
        Liang & Zeger 1986 for clusters; Tango 1998 for the likeliest error under H0.

    Example:
        >>> non_inferiority([1] * 200, [1] * 200, range(200), margin=0.03, alpha=0.05).holds
        True
        >>> non_inferiority([1] * 20, [1] * 20, range(20), margin=0.03, alpha=0.05).holds
        False
    """
    one, other = (np.asarray(side, dtype=np.float64) for side in (challenger, champion))
    if one.ndim != 1 or one.shape != other.shape or len(clusters) != one.size or not one.size:
        raise DataError(
            f"expected as many of each, one or more, got {one.shape} and {other.shape} for "
            f"{len(clusters)} pairs"
        )
    gaps = one - other
    numbers: dict[object, int] = {}
    labels = np.array([numbers.setdefault(name, len(numbers)) for name in clusters])
    count = len(numbers)
    mean = float(gaps.mean())
    sums = np.bincount(labels, weights=gaps - mean)
    clustered = count / max(count - 1, 1) * float((sums**2).sum()) / gaps.size**2
    # Prompts, not pairs: those of one prompt may all err together.
    likeliest = _variance_at(margin, mean, float((gaps**2).mean()), count)
    error = math.sqrt(max(clustered, likeliest))
    freedom = max(count - 1, 1)
    half = 0.5 / count
    fewest = fewest_prompts(margin, alpha)
    p_value = float(stats.t.sf((mean + margin - half) / error, freedom))
    # Pairs of a prompt that err together make the difference as uncertain as fewer prompts would.
    unit = error**2 * count
    reach = float(stats.norm.ppf(1.0 - alpha) + stats.norm.ppf(0.9))
    return NonInferiority(
        difference=mean,
        lower=mean - half - float(stats.t.ppf(1.0 - alpha, freedom)) * error,
        p_value=p_value,
        holds=count >= fewest and p_value <= alpha,
        num_pairs=int(gaps.size),
        num_prompts=count,
        discordant_share=float((gaps != 0).mean()),
        prompts_needed=max(fewest, math.ceil(unit * (reach / margin) ** 2)),
        fewest_prompts=fewest,
    )


@functools.cache
def fewest_prompts(margin: float, alpha: float) -> int:
    """Prompts below which not even a challenger that differs on no pair can be told to hold.

    At least ln(alpha) / ln(1 - margin): with fewer, none of the errors that there are may show.

    Example:
        >>> fewest_prompts(0.03, 0.05)
        120
    """
    count = math.ceil(math.log(alpha) / math.log1p(-margin))
    while True:
        error = math.sqrt(_variance_at(margin, 0.0, 0.0, count))
        if (margin - 0.5 / count) / error >= stats.t.ppf(1.0 - alpha, count - 1):
            return count
        count += 1


def _variance_at(margin: float, mean: float, second_moment: float, count: int) -> float:
    """Variance of the mean difference where its truth is -margin, at the likeliest discordance.

    The share p of pairs that only the challenger has right solves b / p + c / (p + margin) =
    2 (1 - b - c) / (1 - 2 p - margin), with b and c the shares of pairs that only the challenger
    and only the champion have right; the variance is (2 p + margin - margin^2) / count.
    """
    wins, losses = (second_moment + mean) / 2.0, (second_moment - mean) / 2.0
    linear = (wins + losses) * (1.0 - margin) - 2.0 * wins * margin
    linear -= 2.0 * (1.0 - wins - losses) * margin
    constant = wins * margin * (1.0 - margin)
    # 2 p^2 - linear * p - constant = 0, its root that is not negative.
    share = max((linear + math.sqrt(linear**2 + 8.0 * constant)) / 4.0, 0.0)
    return (2.0 * share + margin - margin**2) / count


def compare_champion(
    challenger: ScoreFunction,
    champion: ScoreFunction,
    pairs: Sequence[PreferencePair],
    groups: Sequence[ResponseGroup] = (),
    rules: PromotionRules | None = None,
) -> Decision:
    """Decide whether a challenger replaces the champion.

    Args:
        challenger: The new reward model.
        champion: The one in use.
        pairs: Held-out original pairs: neither was trained on them.
        groups: Responses of the watched policy, unlabelled, as many to each prompt; without them
            only the pairs decide, and the decision has no guards.
        rules: What it must show.

    Raises:
        DataError: When there are no pairs, or groups of different sizes.
    """
    rules = rules or PromotionRules()
    if not pairs:
        raise DataError("expected held-out original pairs to compare reward models on, got none")
    try:
        new = _gaps(challenger, pairs)
        own = score_groups(challenger, groups) if groups else None
    # Of a model with broken weights: `models.reward_model` refuses to give such a score.
    except ValueError as error:
        if "not finite" not in str(error):
            raise
        return _refused(rules, "the challenger's scores are not finite")
    if not np.isfinite(new).all() or (own is not None and not np.isfinite(own).all()):
        return _refused(rules, "the challenger's scores are not finite")
    old = _gaps(champion, pairs)
    told = np.ones_like(new)
    right, right_before = pair_accuracy(new, told), pair_accuracy(old, told)
    test = non_inferiority(
        right,
        right_before,
        [prompt_text(pair.prompt) for pair in pairs],
        margin=rules.margin,
        alpha=rules.alpha,
    )
    guards: tuple[Guard, ...] = ()
    if own is not None:
        before = score_groups(champion, groups)
        guards = _guards(own, before, new, old, groups, rules)
    failed = [guard.name for guard in guards if not guard.passes]
    reason = _reason(test, failed, rules, guarded=bool(guards))
    return Decision(
        replaces=test.holds and not failed,
        reason=reason,
        accuracy_challenger=float(right.mean()),
        accuracy_champion=float(right_before.mean()),
        test=test,
        guards=guards,
        rules=rules,
    )


def mean_length_correlation(scores: ArrayLike, lengths: ArrayLike) -> float | None:
    """Spearman's correlation of score and length within a prompt, averaged over prompts.

    Args:
        scores: Shape (groups, k).
        lengths: Shape (groups, k), any unit.

    Returns:
        In [-1, 1]; None where no prompt has both different scores and different lengths.

    Example:
        >>> mean_length_correlation([[1.0, 2.0, 3.0]], [[5, 9, 7]])
        0.5
    """
    return mean_group_spearman(scores, lengths)


def _gaps(score: ScoreFunction, pairs: Sequence[PreferencePair]) -> Floats:
    prompts = [pair.prompt for pair in pairs]
    chosen = np.array(score(prompts, [pair.chosen for pair in pairs]), dtype=np.float64)
    return chosen - np.array(score(prompts, [pair.rejected for pair in pairs]), dtype=np.float64)


def _guards(
    new: Floats,
    old: Floats,
    new_gaps: Floats,
    old_gaps: Floats,
    groups: Sequence[ResponseGroup],
    rules: PromotionRules,
) -> tuple[Guard, ...]:
    lengths = np.array([[len(text) for text in group.responses] for group in groups])
    correlation = mean_group_spearman(new, old)
    spreads = [
        _root_mean_square(within_group_gaps(scores)) / max(_root_mean_square(gaps), TINY)
        for scores, gaps in ((new, new_gaps), (old, old_gaps))
    ]
    ratio = spreads[0] / spreads[1] if spreads[1] > 0 else None
    after, before = (mean_length_correlation(scores, lengths) for scores in (new, old))
    # Where lengths or the champion's rewards are all alike there is nothing that could rise.
    rise = (after or 0.0) - (before or 0.0)
    return (
        Guard(
            "rank_correlation",
            correlation,
            rules.least_rank_correlation,
            correlation is not None and correlation >= rules.least_rank_correlation,
        ),
        Guard(
            "spread_ratio",
            ratio,
            rules.least_spread_ratio,
            ratio is not None and ratio >= rules.least_spread_ratio,
        ),
        Guard("length_rise", rise, rules.most_length_rise, rise <= rules.most_length_rise),
    )


def _root_mean_square(values: Floats) -> float:
    return float(np.sqrt((values**2).mean()))


def _reason(
    test: NonInferiority, failed: Sequence[str], rules: PromotionRules, *, guarded: bool
) -> str:
    if test.num_prompts < test.fewest_prompts:
        return (
            f"too few pairs: of {test.num_prompts} prompts, where {test.fewest_prompts} are the "
            f"fewest that can rule out a loss of {rules.margin:g}, and about {test.prompts_needed} "
            "are needed for an equally good model to be told to hold"
        )
    figures = (
        f"accuracy on original pairs {test.difference:+.3f}, at least {test.lower:+.3f} at "
        f"confidence {1 - rules.alpha:g}, margin -{rules.margin:g}"
    )
    if not test.holds:
        return (
            f"{figures}: not shown to hold (about {test.prompts_needed} prompts for an equal one)"
        )
    if failed:
        return f"{figures}: holds, but not {', '.join(failed)} on the watched groups"
    return f"{figures}: holds" + ("" if guarded else "; no groups, so no guard was asked")


def _refused(rules: PromotionRules, reason: str) -> Decision:
    return Decision(False, reason, None, None, None, (), rules)
