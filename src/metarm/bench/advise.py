# SPDX-License-Identifier: Apache-2.0
"""Readings of splits become advice: which mode to use, or none, with what confidence, and why."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cache
from statistics import fmean
from typing import Any, Final

from scipy.stats import t as student_t

from metarm.bench.advice_rule import CANDIDATES, AdviceRule, Forecast
from metarm.bench.foretell import Figures
from metarm.bench.readings import PLAIN, Reading
from metarm.bench.results import Tally, clustered_difference
from metarm.bench.summary import change_in_points
from metarm.meta_strength import FULL_FRACTION, FULL_WEIGHT
from metarm.schema import Estimate

__all__ = [
    "Advice",
    "MethodAdvice",
    "advise",
    "choose_method",
    "confidence_of",
    "format_advice",
    "lower_bound",
    "trainer_settings",
]

OFF: Final = "off"
ENOUGH_PAIRS: Final = 100
"""Probe pairs below which a probe misleads too often: docs/advise.md has the table."""


@dataclass(frozen=True, slots=True)
class MethodAdvice:
    """What is known of one mode, over all splits."""

    method: str
    settings: str
    """Of `metarm reward`, for the same step."""
    forecast: Forecast
    rank_correlation: float
    original_change: Estimate
    """Against plain on held-out original pairs, clustered by prompt and by split."""
    probe_change: Estimate | None
    """Against plain on the probe, clustered in the same way."""


@dataclass(frozen=True, slots=True)
class Advice:
    """What was seen, what to expect, and what to do."""

    figures: Figures
    """Means over splits."""
    ranges: Mapping[str, tuple[float, float]]
    """Of each figure over 98 % of the map."""
    outside: tuple[str, ...]
    """Names of the figures outside these."""
    methods: tuple[MethodAdvice, ...]
    num_probe: int
    """Labelled shifted pairs."""
    choice: str
    """A mode, or `off`."""
    confidence: float | None
    """Probability that the chosen mode helps, or, where it is off, that the best does not."""
    reasons: tuple[str, ...]
    """Sentences."""

    def to_json(self) -> dict[str, Any]:
        """Nested plain JSON values."""
        return asdict(self)


def advise(readings: Sequence[Reading], rule: AdviceRule, confidence: float) -> Advice:
    """What a user should do, on the evidence there is.

    With a probe, the probe alone decides: the mode with the highest lower bound, if that is above
    0. Without one the rule does, where no figure lies outside the map; else the step stays off.

    Args:
        readings: One or more splits.
        rule: Fitted to the map.
        confidence: One-sided, of a mode's lower bound; between 0.5 (the best guess) and 1.
    """
    figures = Figures(
        **{f.name: fmean(getattr(r.figures, f.name) for r in readings) for f in fields(Figures)}
    )
    names = [name for name in readings[0].outcomes if name != PLAIN]
    methods = tuple(_advise_method(name, readings, figures, rule) for name in names)
    outside = tuple(rule.outside(figures))
    probes = {m.method: m.probe_change for m in methods if m.probe_change is not None}
    if probes:
        choice = choose_method(probes, confidence) or OFF
        best = choice if choice != OFF else max(probes, key=lambda name: probes[name].value)
        helps = confidence_of(probes[best])
    else:
        best_method = max(methods, key=lambda m: m.forecast.helps)
        best, helps = best_method.method, best_method.forecast.helps
        choice = best if helps >= confidence and not outside else OFF
    probe = readings[0].outcomes[PLAIN].probe
    num_probe = sum(probe.counts) if probe else 0
    return Advice(
        figures=figures,
        ranges={f.name: rule.range_of(f.name) for f in fields(Figures)},
        outside=outside,
        methods=methods,
        num_probe=num_probe,
        choice=choice,
        confidence=helps if choice != OFF else 1 - helps,
        reasons=tuple(_reasons(choice, best, helps, num_probe, outside, confidence, rule)),
    )


def _advise_method(
    name: str, readings: Sequence[Reading], figures: Figures, rule: AdviceRule
) -> MethodAdvice:
    own, plain = ([r.outcomes[method] for r in readings] for method in (name, PLAIN))
    rank = fmean(outcome.rank_correlation for outcome in own)
    ours, theirs = ([o.probe for o in side if o.probe is not None] for side in (own, plain))
    return MethodAdvice(
        method=name,
        settings=trainer_settings(name),
        forecast=rule.forecast(name, figures, rank),
        rank_correlation=rank,
        original_change=_difference([o.original for o in own], [o.original for o in plain]),
        probe_change=_difference(ours, theirs) if ours else None,
    )


def _difference(ours: Sequence[Tally], theirs: Sequence[Tally]) -> Estimate:
    return clustered_difference(ours, theirs)


def trainer_settings(method: str) -> str:
    """The settings of `metarm reward` that come nearest to the step of one of CANDIDATES.

    A head's eta means nothing to another model, and the guarded default is one of the strengths:
    both are `meta_strength=auto`.
    """
    recipe = CANDIDATES[method]
    fraction = recipe.reward_fraction
    is_auto = recipe.strength == FULL_WEIGHT if recipe.step == "joint" else fraction is None
    if is_auto or fraction == FULL_FRACTION[recipe.step]:
        return f"meta_mode={recipe.step} meta_strength=auto"
    if recipe.step == "joint":
        return f"meta_mode=joint meta_weight={recipe.strength:g}"
    return f"meta_mode={recipe.step} meta_reward_fraction={fraction:g}"


def choose_method(changes: Mapping[str, Estimate], confidence: float) -> str | None:
    """The method whose lower bound is highest, if that is above 0; None: off.

    Args:
        changes: Of accuracy against plain on the probe, by method.
        confidence: One-sided, of each bound alone; 0.5 takes the best mean.
    """
    best = max(changes, key=lambda name: lower_bound(changes[name], confidence))
    return best if lower_bound(changes[best], confidence) > 0 else None


def lower_bound(change: Estimate, confidence: float) -> float:
    """One-sided Student bound; minus infinity where one unit leaves the spread unknown."""
    if change.count < 2:
        return change.value if confidence <= 0.5 else float("-inf")
    return change.value - _quantile(confidence, change.count - 1) * _error(change)


def confidence_of(change: Estimate) -> float:
    """Student's one-sided probability that a change is above 0, from 0 to 1; 0.5 is unknown."""
    if change.count < 2:
        return 0.5
    error = _error(change)
    if error == 0:
        return 0.5 if change.value == 0 else float(change.value > 0)
    return float(student_t.cdf(change.value / error, change.count - 1))


def _error(change: Estimate) -> float:
    half = (change.high - change.low) / 2
    return half / _quantile(0.975, change.count - 1)


@cache
def _quantile(confidence: float, freedom: int) -> float:
    return float(student_t.ppf(confidence, freedom))


def _reasons(
    choice: str,
    best: str,
    helps: float,
    num_probe: int,
    outside: Sequence[str],
    confidence: float,
    rule: AdviceRule,
) -> list[str]:
    found = []
    if num_probe:
        found.append(
            f"On {num_probe} labelled shifted pairs, {best} helps with {helps:.0%} confidence, "
            + ("the surest of all modes." if choice != OFF else f"too little for {confidence:.0%}.")
        )
        if choice != OFF:
            found.append("The best of several looks better than it is; confirm it on other pairs.")
        if num_probe < ENOUGH_PAIRS:
            found.append(
                f"{num_probe} pairs often choose wrongly (docs/advise.md); label about "
                f"{ENOUGH_PAIRS} for a choice to rely on."
            )
        return found
    found.append(
        f"No pair of the shifted policy is labelled. The map's rule gives {best} the best chance "
        f"to help, {helps:.0%}."
    )
    if outside:
        found.append(
            f"Outside the map: {', '.join(outside)}. The rule has not seen such a case, so that "
            "its figures are no ground to turn the step on."
        )
    elif choice == OFF:
        found.append(f"That is below {confidence:.0%}, so the step stays off.")
    real = rule.provenance.get("on_real_shifts", {})
    if real:
        found.append(
            f"On {len(real['shifts'])} real shifts the rule's forecasts and what was measured "
            f"agree with a rank correlation of {real['rank_correlation']:+.2f}, and "
            f"{real['inside_the_95_interval']:.0%} of its 95 % intervals held."
        )
    found.append(
        f"Label about {ENOUGH_PAIRS} pairs of the shifted policy's responses and give them as "
        "source.preferences_shifted, with another --output: they can tell what no label-free "
        "figure can."
    )
    return found


def format_advice(advice: Advice) -> str:
    """Plain text: figures, modes, advice."""
    seen = [["figure", "here", "98 % of the map", ""]]
    for name, value in asdict(advice.figures).items():
        low, high = advice.ranges[name]
        mark = "outside the map" if name in advice.outside else ""
        seen.append([name, f"{value:.3g}", f"{low:.3g} to {high:.3g}", mark])
    modes = [["mode", "shifted, foretold", "helps", "hurts", "original", "rank"]]
    modes[0] += ["shifted, on the probe"] if advice.num_probe else []
    for own in advice.methods:
        f = own.forecast
        row = [
            own.method,
            f"{100 * f.change:+.1f} [{100 * f.low:+.1f}, {100 * f.high:+.1f}]",
            f"{f.helps:.0%}",
            f"{f.hurts:.0%}",
            change_in_points(own.original_change),
            f"{own.rank_correlation:.2f}",
        ]
        modes.append(row + ([change_in_points(own.probe_change)] if advice.num_probe else []))
    use = advice.choice
    if use != OFF:
        use = f"{use} ({trainer_settings(use)})"
    sure = "" if advice.confidence is None else f", confidence {advice.confidence:.0%}"
    return "\n\n".join(
        [
            _columns(seen),
            _columns(modes),
            "Changes are in points against plain training, with 95 % intervals; helps and hurts\n"
            "are foretold too: by more than half a point.",
            f"Use: {use}{sure}.\n" + "\n".join(advice.reasons),
        ]
    )


def _columns(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    return "\n".join(lines)
