# SPDX-License-Identifier: Apache-2.0
"""The page of `metarm label believe`: whom to believe, what is disputed, what to ask next."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from metarm.annotators.kinds import KindComparison
from metarm.annotators.label_data import LabelData
from metarm.annotators.report import BeliefReport
from metarm.labels.votes import Vote
from metarm.reports.believe_figures import (
    draw_annotators,
    draw_answers,
    draw_kinds,
    draw_labels,
    draw_matrix,
)
from metarm.reports.rendering import page_environment, picture
from metarm.schema import Estimate, prompt_text

__all__ = ["draw_believe_page"]

NUM_DISPUTED: Final = 6
NEAR_HALF: Final = 0.1
"""A label within this of one half is open, whatever the votes."""
MAX_CHARACTERS: Final = 1200


def draw_believe_page(report: BeliefReport, data: LabelData, facts: Mapping[str, str]) -> str:
    """The page as HTML: no script, nothing loaded from elsewhere.

    Args:
        report: What was worked out.
        data: What it was worked out from: texts of disputed pairs.
        facts: Settings to show.
    """
    belief = report.belief
    bad = {suspect.name: suspect.kind for suspect in report.suspects}
    answers = _votes_of_pairs(data)
    context = {
        "num_votes": belief.table.num_votes,
        "num_annotators": len(belief.annotators),
        "num_pairs": int((belief.table.votes_of_pair > 0).sum()),
        "model": belief.model,
        "points": _points(report),
        "annotators": picture(draw_annotators(belief, data.kinds, bad)),
        "answers": picture(draw_answers(belief)),
        "labels": picture(draw_labels(belief)),
        "matrix": picture(draw_matrix(report.agreement, belief)),
        "rows": _annotator_rows(report, data, bad),
        "kinds": [
            (one.kind, ", ".join(one.names), one.num_votes, str(one.reliability))
            for one in report.kinds
        ],
        "comparisons": [_comparison(one) for one in report.comparisons],
        "disputed": [
            _sample(pair, report, data, answers) for pair in _disputed(report, data, answers)
        ],
        "next_votes": [
            (_short(data, one.pair), one.annotator, f"{one.nats:.3f}", one.votes_so_far)
            for one in report.next_votes
        ],
        "facts": list(facts.items()),
    }
    return page_environment().get_template("believe.html.j2").render(context)


def _points(report: BeliefReport) -> list[str]:
    """The result in sentences."""
    found = []
    belief = report.belief
    if not any(one.reliability.is_told for one in belief.annotators):
        found.append(
            "Who is reliable cannot be told: no pair has votes of two annotators, or a known "
            "answer, and there are no features."
        )
    elif report.suspects:
        told = ", ".join(f"{one.name} ({one.kind})" for one in report.suspects)
        found.append(f"Not to be believed: {told}.")
    else:
        found.append("No annotator is shown to be less than half as reliable as is typical.")
    voted = belief.table.votes_of_pair > 0
    likelier = np.maximum(belief.labels, 1.0 - belief.labels)[voted]
    sure = int((likelier >= 0.9).sum())
    if belief.model == "majority":
        found.append("Labels are what most votes say; how certain they are is not told.")
    else:
        found.append(f"{sure} of {len(likelier)} labels are certain to 90 % or more.")
    crowd = report.agreement
    alphas = {"all annotators": crowd.alpha, "people": crowd.alpha_of_people}
    if crowd.alpha == crowd.alpha_of_people:
        del alphas["all annotators"]
    for whose, alpha in alphas.items():
        if alpha is not None:
            found.append(
                f"Krippendorff's alpha of {whose} {alpha}, over {alpha.count} pairs with several "
                "votes and no known answer."
            )
    if report.num_picked:
        found.append(
            f"{report.num_picked} pairs are left out where kinds are compared: a strategy picked "
            "them, which tells nothing of others."
        )
    for one in report.comparisons:
        found.append(
            f"{one.first_kind.capitalize()} and {one.second_kind} agree on "
            f"{one.agreement.value:.0%} of {one.agreement.count} pairs (kappa {_text(one.kappa)})."
        )
    return found


def _annotator_rows(
    report: BeliefReport, data: LabelData, bad: Mapping[str, str]
) -> list[dict[str, Any]]:
    own = {one.name: one for one in report.agreement.annotators}
    rows = []
    for one, nats in zip(report.belief.annotators, report.nats_per_vote, strict=True):
        figures = own[one.name]
        cells = [
            data.kinds.get(one.name, "person"),
            str(one.num_votes),
            bad.get(one.name, ""),
            str(one.reliability),
            "-" if figures.left_fraction is None else str(one.side_bias),
            _text(figures.left_fraction),
            f"{figures.tie_fraction:.2f}",
            _text(figures.self_agreement),
            _text(figures.gold_accuracy),
            f"{nats:.3f}",
            "-" if figures.seconds is None else f"{figures.seconds:.0f}",
            str(figures.num_skips),
        ]
        rows.append({"name": one.name, "is_bad": one.name in bad, "cells": cells})
    return sorted(rows, key=lambda row: not row["is_bad"])


def _comparison(one: KindComparison) -> dict[str, Any]:
    longer = [
        f"{kind.capitalize()} prefers the longer response in {_text(share)}"
        for kind, share in zip((one.first_kind, one.second_kind), one.longer_fractions, strict=True)
        if share is not None
    ]
    return {
        "title": f"{one.first_kind.capitalize()} against {one.second_kind}",
        "figure": picture(draw_kinds(one)),
        "summary": f"Agreement {one.agreement}, kappa {_text(one.kappa)}, over "
        f"{one.agreement.count} pairs; {len(one.disputed)} on which they prefer different sides.",
        "longer": ". ".join(longer),
    }


def _votes_of_pairs(data: LabelData) -> dict[str, list[Vote]]:
    found: dict[str, list[Vote]] = {}
    for vote in data.votes:
        if vote.choice != "skip":
            found.setdefault(vote.pair, []).append(vote)
    return found


def _disputed(
    report: BeliefReport, data: LabelData, answers: Mapping[str, list[Vote]]
) -> list[str]:
    """Pairs on which kinds disagree, then those whose several votes differ or leave it open."""
    table, labels = report.belief.table, report.belief.labels
    order = np.argsort(np.abs(labels - 0.5) - 0.001 * table.votes_of_pair, kind="stable")
    between = [pair for one in report.comparisons for pair in one.disputed[:NUM_DISPUTED]]
    several = [
        table.pairs[at]
        for at in order
        if table.votes_of_pair[at] > 1
        and (_differ(answers.get(table.pairs[at], ())) or abs(labels[at] - 0.5) <= NEAR_HALF)
    ]
    chosen = dict.fromkeys(pair for pair in (*between, *several) if pair in data.pairs)
    return list(chosen)[:NUM_DISPUTED]


def _differ(votes: Sequence[Vote]) -> bool:
    return len({vote.choice for vote in votes}) > 1


def _sample(
    pair: str, report: BeliefReport, data: LabelData, answers: Mapping[str, list[Vote]]
) -> dict[str, Any]:
    one, label = data.pairs[pair], report.belief.label_of(pair)
    told = {"first": "A", "second": "B", "tie": "tie"}
    return {
        "prompt": _cut(prompt_text(one.prompt)),
        "votes": "; ".join(f"{vote.annotator}: {told[vote.choice]}" for vote in answers[pair]),
        "sides": [
            (f"A, better with probability {label:.2f}", _cut(one.first)),
            (f"B, better with probability {1 - label:.2f}", _cut(one.second)),
        ],
    }


def _short(data: LabelData, pair: str) -> str:
    if pair not in data.pairs:
        return pair
    text = " ".join(prompt_text(data.pairs[pair].prompt).split())
    return text if len(text) <= 70 else f"{text[:69]}…"


def _text(estimate: Estimate | None) -> str:
    if estimate is None:
        return "-"
    return f"{estimate.value:.2f} [{estimate.low:.2f}, {estimate.high:.2f}]"


def _cut(text: str) -> str:
    text = text.strip(" ")
    if len(text) <= MAX_CHARACTERS:
        return text
    return f"{text[:MAX_CHARACTERS]} [... {len(text) - MAX_CHARACTERS} more characters]"
