# SPDX-License-Identifier: Apache-2.0
"""The measures of a scorecard: label, unit, definition, how to read it, and its value."""

import ast
import inspect
import textwrap
from dataclasses import dataclass

from metarm.schema import Estimate, Scorecard

__all__ = ["FACTS", "MEASURES", "Measure", "definitions", "value_of"]


@dataclass(frozen=True, slots=True)
class Measure:
    """How one number of a scorecard is shown; `name` is its field."""

    name: str
    label: str
    unit: str
    how_to_read: str
    decimals: int = 3
    is_compared: bool = False
    """Whether arms are compared on it: only where it means the same in every arm."""


_ROWS = (
    Measure(
        "accuracy_shifted",
        "Accuracy on the policy's own pairs",
        "fraction",
        "The figure to watch: 0.5 is guessing. It falls when optimisation finds what the reward "
        "model gets wrong.",
        is_compared=True,
    ),
    Measure(
        "accuracy_before",
        "Accuracy on own pairs, before optimisation",
        "fraction",
        "How well the round's reward model began. The rise from the last round's end to this "
        "number is what retraining gave back.",
    ),
    Measure(
        "accuracy_shifted_length_balanced",
        "Accuracy on own pairs, length-balanced",
        "fraction",
        "A reward model that only counts words scores 0.5 here.",
        is_compared=True,
    ),
    Measure(
        "accuracy_first",
        "Accuracy of the first reward model, same pairs",
        "fraction",
        "What you would have without retraining; below `accuracy_shifted`, retraining helped.",
    ),
    Measure(
        "accuracy_original",
        "Accuracy on original pairs",
        "fraction",
        "Bounded by noise in the labels. It often stays level while accuracy on the policy's own "
        "pairs falls, so it is no warning.",
        is_compared=True,
    ),
    Measure(
        "rank_correlation_plain",
        "Rank correlation with the first reward model",
        "-1 to 1",
        "A warning that needs no labels: 1 is the same order, 0 an unrelated one. A steep fall "
        "can mean that the reward has turned round.",
        is_compared=True,
    ),
    Measure(
        "gap_spread_ratio",
        "Gap spread relative to SFT's responses",
        "ratio",
        "`gap_spread` divided by `gap_spread_reference`. Below 1 the reward model tells the "
        "policy's responses apart less than SFT's. Wider is not by itself better.",
        decimals=2,
        is_compared=True,
    ),
    Measure(
        "gap_spread",
        "Gap spread on the policy's responses",
        "logits",
        "Has no scale of its own: compare it with the same model's `gap_spread_reference`.",
    ),
    Measure(
        "gap_spread_reference",
        "Gap spread on SFT's responses",
        "logits",
        "The unit in which the histogram is drawn.",
    ),
    Measure(
        "kl_nats",
        "KL to SFT per response",
        "nats",
        "How far the policy has moved; compare gold at equal KL.",
        decimals=2,
        is_compared=True,
    ),
    Measure(
        "proxy_score",
        "Proxy score above SFT",
        "SFT spreads",
        "What the policy was trained to raise. Proxy up while gold is level or down is "
        "over-optimisation. Each arm has its own reward model: not compared between arms.",
        decimals=2,
    ),
    Measure(
        "gold_score",
        "Gold score",
        "gold units",
        "What the run is for: higher is better.",
        is_compared=True,
    ),
    Measure(
        "win_fraction",
        "Wins against SFT",
        "fraction",
        "Compare with `lose_fraction`; the three fractions add up to 1.",
        is_compared=True,
    ),
    Measure("tie_fraction", "Ties with SFT", "fraction", "A very close pair tells little."),
    Measure("lose_fraction", "Losses against SFT", "fraction", "See `win_fraction`."),
    Measure(
        "response_tokens",
        "Response length",
        "tokens",
        "A policy that only grows longer often games its reward model.",
        decimals=1,
    ),
    Measure(
        "finished_fraction",
        "Finished responses",
        "fraction",
        "Low: responses are cut off at the length limit.",
    ),
    Measure("seconds", "Time of the round", "s", "Depends on the machine.", decimals=0),
)
MEASURES = {measure.name: measure for measure in _ROWS}
"""In the order of the tables; `gap_spread_ratio` is worked out, the others are fields."""

FACTS = {
    "arm": "The way the rounds were run.",
    "seed": "Start of all random numbers of the arm; the same seed draws the same data in all "
    "arms, so that differences can be paired.",
    "round": "One turn of sample, train, optimise, evaluate; 0 is SFT, where every arm begins.",
    "tie_fraction": "Share of prompts whose response has as much gold as SFT's, within the margin "
    "`evaluation.tie_margin`.",
    "lose_fraction": "Share of prompts whose response has less gold than SFT's.",
    "gap_spread_ratio": "`gap_spread` divided by `gap_spread_reference`.",
}
"""Definitions of what has none in `metarm.schema`."""


def definitions() -> dict[str, str]:
    """What each field of a scorecard is: its docstring in `metarm.schema`, or `FACTS`."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(Scorecard))).body
    assert isinstance(tree, ast.ClassDef)
    found: dict[str, str] = {}
    for field, after in zip(tree.body, [*tree.body[1:], ast.Pass()], strict=True):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            name = field.target.id
            has_docstring = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            found[name] = str(after.value.value) if has_docstring else FACTS.get(name, "")  # type: ignore[attr-defined]
    return found | {"gap_spread_ratio": FACTS["gap_spread_ratio"]}


def value_of(card: Scorecard, name: str) -> Estimate | float | None:
    """The measure called `name`; None where the run does not have it."""
    if name == "gap_spread_ratio":
        reference = card.gap_spread_reference
        return card.gap_spread / reference if reference > 0 else None
    value: Estimate | float | None = getattr(card, name)
    return value
