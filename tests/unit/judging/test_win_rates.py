# SPDX-License-Identifier: Apache-2.0
"""Win rates and ratings from verdicts, counted by hand and held against closed forms."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize

from metarm.errors import DataError
from metarm.judging.comparisons import Comparison, Judgement
from metarm.judging.ratings import PRIOR_TIES, bradley_terry_ratings
from metarm.judging.win_rates import win_rates
from metarm.metrics import accuracy_estimate, win_tie_lose
from metarm.schema import VERDICTS

MIRROR = {"first": "second", "second": "first"}


def comparison(number: int, first: str = "x", second: str = "yy", **more) -> Comparison:
    return Comparison(f"prompt {number}", "new", "old", first, second, **more)


def rate_of(comparisons, judgements, num_resamples=20):
    (rate,) = win_rates("j", comparisons, judgements, num_resamples=num_resamples)
    return rate


@given(st.sampled_from(VERDICTS), st.sampled_from([*VERDICTS, None]))
def test_two_orders_as_one_verdict(forward, shown) -> None:
    combined = Judgement.of_orders(forward, shown).verdict
    told = shown and MIRROR.get(shown, shown)
    if "unjudged" in (forward, shown):
        assert combined == "unjudged"
    elif "malformed" in (forward, shown):
        assert combined == "malformed"
    elif told in (None, forward):
        assert combined == forward
    else:
        assert combined == "tie"


def test_every_field_by_hand() -> None:
    orders = [
        ("first", "second"),  # won in both orders
        ("first", "second"),
        ("first", "first"),  # whoever is shown first: a tie
        ("second", "first"),  # lost
        ("tie", "tie"),
        ("first", "malformed"),
        ("unjudged", "unjudged"),
    ]
    comparisons = [comparison(number) for number in range(7)] + [comparison(7, "same", "same")]
    judgements = [Judgement.of_orders(*order) for order in orders] + [Judgement("tie", "tie")]
    rate = rate_of(comparisons, judgements)
    assert (rate.num_judged, rate.num_malformed, rate.num_unjudged, rate.num_same) == (6, 1, 1, 1)
    values = [rate.win_fraction.value, rate.tie_fraction.value, rate.lose_fraction.value]
    assert values == pytest.approx([2 / 6, 3 / 6, 1 / 6])
    assert rate.win_rate.value == pytest.approx((2 + 1.5) / 6)
    assert rate.win_rate == accuracy_estimate([1, 1, 0.5, 0, 0.5, 0.5])
    assert rate.win_fraction == accuracy_estimate([1, 1, 0, 0, 0, 0]), "Wilson's"
    assert rate.order_agreement_fraction.value == pytest.approx(4 / 5), "not the same texts"
    # Shown first wins forward in 1, 2, 3 and 6, backward in 3 and 4; shown second in three.
    assert rate.shown_first_fraction.value == pytest.approx(6 / 9)
    assert rate.length_difference == pytest.approx(-5 / 6)


def test_shares_are_those_of_the_scorecard() -> None:
    ours, theirs = np.random.default_rng(0).normal(size=(2, 40))
    judgements = [
        Judgement("first" if a > b else "second", None) for a, b in zip(ours, theirs, strict=True)
    ]
    rate = rate_of([comparison(number) for number in range(40)], judgements)
    assert (rate.win_fraction, rate.tie_fraction, rate.lose_fraction) == win_tie_lose(ours, theirs)


def test_repeats_of_a_prompt_are_one_piece_of_evidence() -> None:
    judgements = [Judgement("first" if number % 3 else "second", None) for number in range(20)]
    once = rate_of([comparison(number) for number in range(20)], judgements)
    repeated = [
        Comparison(f"prompt {n}", "new", "old", "x", "yy", f"s{k}")
        for n in range(20)
        for k in range(5)
    ]
    many = rate_of(repeated, [judgements[n] for n in range(20) for _ in range(5)])
    assert many.win_rate.count == once.win_rate.count == 20
    assert many.win_rate.value == once.win_rate.value
    width = once.win_rate.high - once.win_rate.low
    assert many.win_rate.high - many.win_rate.low == pytest.approx(width, rel=0.25)


def test_nothing_judged_is_none_not_zero() -> None:
    rate = rate_of([comparison(0)], [Judgement("unjudged", "unjudged")])
    assert rate.win_rate is rate.win_rate_length_controlled is rate.win_fraction is None
    assert (rate.num_judged, rate.num_unjudged) == (0, 1)


@given(st.lists(st.sampled_from(VERDICTS), min_size=1, max_size=12), st.data())
def test_turning_the_arms_turns_the_rate(verdicts, data) -> None:
    lengths = data.draw(st.lists(st.integers(1, 9), min_size=len(verdicts), max_size=len(verdicts)))
    ours = [comparison(n, "x" * size) for n, size in enumerate(lengths)]
    theirs = [Comparison(c.prompt, "old", "new", c.second, c.first) for c in ours]
    one = rate_of(ours, [Judgement(v, None) for v in verdicts], 5)
    other = rate_of(theirs, [Judgement(MIRROR.get(v, v), None) for v in verdicts], 5)
    assert one.win_fraction == other.lose_fraction
    assert one.tie_fraction == other.tie_fraction
    if one.win_rate is not None:
        assert one.win_rate.value == pytest.approx(1 - other.win_rate.value)
        controlled = one.win_rate_length_controlled, other.win_rate_length_controlled
        assert (controlled[0] is None) == (controlled[1] is None)
        if controlled[0] is not None:
            assert controlled[0].value == pytest.approx(1 - controlled[1].value, abs=1e-9)


def games(strengths: dict[str, float], count: int, seed: int = 0):
    """Comparisons of every two arms on `count` prompts, won by Bradley-Terry's law."""
    draw = np.random.default_rng(seed)
    comparisons, judgements = [], []
    for number in range(count):
        for one, other in itertools.combinations(strengths, 2):
            chance = 1 / (1 + math.exp(strengths[other] - strengths[one]))
            comparisons.append(Comparison(f"prompt {number}", one, other, "x", "y"))
            verdict = (
                "tie" if draw.random() < 0.1 else "first" if draw.random() < chance else "second"
            )
            judgements.append(Judgement(verdict, None))
    return comparisons, judgements


def test_two_arms_have_the_closed_form() -> None:
    verdicts = ["first"] * 11 + ["second"] * 4 + ["tie"] * 6
    comparisons = [comparison(number) for number in range(21)]
    ratings = bradley_terry_ratings(
        "j", comparisons, [Judgement(v, None) for v in verdicts], num_resamples=50
    )
    won, lost = 11 + 3 + PRIOR_TIES / 2, 4 + 3 + PRIOR_TIES / 2
    assert [one.arm for one in ratings] == ["new", "old"]
    difference = ratings[0].rating.value - ratings[1].rating.value
    assert difference == pytest.approx(math.log(won / lost), abs=1e-6)
    assert ratings[0].expected_win_rate == pytest.approx(won / (won + lost), abs=1e-6)
    assert ratings[0].rating.low < ratings[0].rating.value < ratings[0].rating.high


def test_several_arms_have_the_most_likely_strengths() -> None:
    strengths = {"a": 1.0, "b": 0.2, "c": -0.3, "d": -0.9}
    comparisons, judgements = games(strengths, 60)
    ratings = bradley_terry_ratings("j", comparisons, judgements, num_resamples=60)
    names = list(strengths)
    worth = {"first": 1.0, "tie": 0.5, "second": 0.0}
    played = [
        (names.index(c.first_arm), names.index(c.second_arm), worth[j.verdict])
        for c, j in zip(comparisons, judgements, strict=True)
    ] + [(i, j, 0.5) for i, j in itertools.combinations(range(4), 2)]

    def loss(values):
        gaps = np.array([values[i] - values[j] for i, j, _ in played])
        won = np.array([w for *_, w in played])
        return (np.logaddexp(0, gaps) - won * gaps).sum() + values.sum() ** 2

    found = minimize(loss, np.zeros(4), options={"gtol": 1e-8}).x
    for one in ratings:
        assert one.rating.value == pytest.approx(found[names.index(one.arm)], abs=1e-4)
        assert one.rating.low <= strengths[one.arm] <= one.rating.high
        assert one.rating.count == 60
    assert [one.rating.value for one in ratings] == sorted(
        (one.rating.value for one in ratings), reverse=True
    )
    assert sum(one.rating.value for one in ratings) == pytest.approx(0.0, abs=1e-9)


def test_who_wins_everything_has_a_finite_rating() -> None:
    comparisons = [comparison(number) for number in range(30)]
    ratings = bradley_terry_ratings(
        "j", comparisons, [Judgement("first", None)] * 30, num_resamples=10
    )
    assert ratings[0].rating.value * 2 == pytest.approx(math.log(30.5 / 0.5), abs=1e-5)


def test_arms_without_a_link_are_not_rated_together() -> None:
    comparisons = [Comparison("p", "a", "b", "x", "y"), Comparison("p", "c", "d", "x", "y")]
    with pytest.raises(DataError, match="link all arms"):
        bradley_terry_ratings("j", comparisons, [Judgement("tie", None)] * 2, num_resamples=2)
    assert not bradley_terry_ratings(
        "j", comparisons, [Judgement("unjudged", None)] * 2, num_resamples=2
    )
