# SPDX-License-Identifier: Apache-2.0
"""The page of a judging: who wins, how sure it is, how far judges agree, and some texts."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import matplotlib
from matplotlib.figure import Figure

from metarm.judging.comparisons import Comparison
from metarm.judging.results import Judging, tell_win_rate
from metarm.judging.win_rates import WinRate
from metarm.reports.drawing import GREY, INK, STYLE, WIDTH, name_in_figure
from metarm.reports.rendering import fact_rows, page_environment, picture
from metarm.schema import Estimate, prompt_text
from metarm.storage import write_text

__all__ = ["write_judging_page"]

BLUE, ORANGE = "#0072B2", "#D55E00"
PALE: Final = "#dddddd"
NUM_SAMPLES: Final = 6
MAX_CHARACTERS: Final = 1500
HIDDEN_FACTS: Final = ("template_text",)


def write_judging_page(judging: Judging, folder: Path, facts: Mapping[str, Any]) -> Path:
    """Write the page and return its path.

    Args:
        judging: What was judged, and how.
        folder: Gets `judge.html`.
        facts: Settings to show, as JSON values.

    Writes:
        `judge.html` in `folder`: no script, nothing loaded from elsewhere.
    """
    context = {
        "arms": judging.arms,
        "points": [tell_win_rate(rate) for rate in judging.win_rates],
        "num_comparisons": len(judging.comparisons),
        "num_prompts": len({one.prompt for one in judging.comparisons}),
        "shares": picture(_draw_shares(judging.win_rates)),
        "rates": picture(_draw_rates(judging.win_rates)),
        "rating_figure": picture(_draw_ratings(judging)),
        "rows": [_row(rate) for rate in judging.win_rates],
        "ratings": [
            (one.judge, one.arm, _text(one.rating), f"{one.expected_win_rate:.3f}")
            for one in judging.ratings
        ],
        "agreements": [
            (
                one.first_judge,
                one.second_judge,
                one.num_both,
                f"{one.agreement_fraction:.3f}",
                "-" if one.kappa is None else f"{one.kappa:.3f}",
            )
            for one in judging.agreements
        ],
        "alpha": None if judging.alpha is None else f"{judging.alpha:.3f}",
        "samples": [
            _sample(judging, place, one)
            for place, one in enumerate(judging.comparisons[:NUM_SAMPLES])
        ],
        "templates": {
            judged.name: str(judged.facts["template_text"])
            for judged in judging.judged
            if "template_text" in judged.facts
        },
        "facts": [*fact_rows(facts), *(_judge_facts(judging))],
    }
    path = folder / "judge.html"
    write_text(path, page_environment().get_template("judge.html.j2").render(context))
    return path


def _judge_facts(judging: Judging) -> list[tuple[str, str]]:
    return [
        (f"{judged.name}: {name}", text)
        for judged in judging.judged
        for name, text in fact_rows(
            {k: v for k, v in judged.facts.items() if k not in HIDDEN_FACTS}
        )
    ]


def _text(estimate: Estimate | None) -> str:
    return "-" if estimate is None else str(estimate)


def _row(rate: WinRate) -> dict[str, Any]:
    value = rate.win_rate
    return {
        "judge": rate.judge,
        "arms": f"{rate.first_arm} against {rate.second_arm}",
        "is_told": value is not None and value.count > 1 and not value.low <= 0.5 <= value.high,
        "cells": [
            _text(value),
            _text(rate.win_rate_length_controlled),
            _text(rate.win_fraction),
            _text(rate.tie_fraction),
            _text(rate.lose_fraction),
            _text(rate.order_agreement_fraction),
            _text(rate.shown_first_fraction),
            "-" if rate.length_difference is None else f"{rate.length_difference:+.0f}",
            str(rate.num_judged),
            str(rate.num_malformed),
            str(rate.num_unjudged),
            str(rate.num_same),
        ],
    }


def _label(rate: WinRate) -> str:
    arms = f"{name_in_figure(rate.first_arm)} : {name_in_figure(rate.second_arm)}"
    return f"{arms} ({name_in_figure(rate.judge)})"


def _draw_shares(rates: Sequence[WinRate]) -> Figure | None:
    """Won, tied and lost, a bar for each two arms and judge."""
    own = [rate for rate in rates if rate.win_fraction is not None]
    if not own:
        return None
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 0.9 + 0.34 * len(own)))
        axes = figure.subplots()
        for place, rate in enumerate(own):
            left = 0.0
            for share, colour in (
                (rate.win_fraction, BLUE),
                (rate.tie_fraction, PALE),
                (rate.lose_fraction, ORANGE),
            ):
                assert share is not None  # all three are there, or none
                axes.barh(place, share.value, left=left, color=colour, height=0.62)
                if share.value >= 0.06:
                    ink = INK if colour == PALE else "white"
                    middle = left + share.value / 2
                    axes.text(
                        middle, place, f"{share.value:.0%}", color=ink, ha="center", va="center"
                    )
                left += share.value
        axes.set_yticks(range(len(own)), [_label(rate) for rate in own])
        axes.invert_yaxis()
        axes.set_xlim(0, 1)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("share of comparisons: won (blue), tied (grey), lost (orange)")
        return figure


def _draw_rates(rates: Sequence[WinRate]) -> Figure | None:
    """Plain and length-controlled win rates with their intervals, beside one half."""
    own = [rate for rate in rates if rate.win_rate is not None]
    if not own:
        return None
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 1.2 + 0.42 * len(own)))
        axes = figure.subplots()
        kinds = (("plain", BLUE, -0.12), ("length-controlled", ORANGE, 0.12))
        for name, colour, shift in kinds:
            told = [
                (place, one)
                for place, rate in enumerate(own)
                if (one := rate.win_rate if name == "plain" else rate.win_rate_length_controlled)
            ]
            axes.plot(
                [one.value for _, one in told],
                [place + shift for place, _ in told],
                "o",
                color=colour,
                label=name,
            )
            for place, one in told:
                axes.plot([one.low, one.high], [place + shift] * 2, color=colour)
        axes.axvline(0.5, color=GREY, linewidth=1, zorder=1)
        axes.set_yticks(range(len(own)), [_label(rate) for rate in own])
        axes.set_ylim(len(own) - 0.5, -0.5)
        axes.set_xlim(0, 1)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("win rate, a tie counting one half")
        figure.legend(loc="outside upper left", ncols=2)
        return figure


def _draw_ratings(judging: Judging) -> Figure | None:
    """Bradley-Terry ratings, a panel for each judge."""
    judges = list(dict.fromkeys(one.judge for one in judging.ratings))
    if not judges:
        return None
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 1.0 + 0.3 * len(judging.arms)))
        panels = figure.subplots(1, len(judges), sharex=True, squeeze=False)[0]
        for judge, axes in zip(judges, panels, strict=True):
            own = [one for one in judging.ratings if one.judge == judge]
            for place, one in enumerate(own):
                axes.plot([one.rating.low, one.rating.high], [place, place], color=INK)
                axes.plot([one.rating.value], [place], "o", color=BLUE)
            axes.set_yticks(range(len(own)), [name_in_figure(one.arm) for one in own])
            axes.invert_yaxis()
            axes.set_title(name_in_figure(judge))
            axes.set_xlabel("rating (nats)")
        return figure


def _sample(judging: Judging, place: int, one: Comparison) -> dict[str, Any]:
    return {
        "prompt": _cut(prompt_text(one.prompt)),
        "sides": [(one.first_arm, _cut(one.first)), (one.second_arm, _cut(one.second))],
        "verdicts": [
            (judged.name, _winner(one, judged.judgements[place].verdict))
            for judged in judging.judged
        ],
    }


def _winner(one: Comparison, verdict: str) -> str:
    return {"first": one.first_arm, "second": one.second_arm}.get(verdict, verdict)


def _cut(text: str) -> str:
    text = text.strip(" ")
    if len(text) <= MAX_CHARACTERS:
        return text
    return f"{text[:MAX_CHARACTERS]} [... {len(text) - MAX_CHARACTERS} more characters]"
