# SPDX-License-Identifier: Apache-2.0
"""Each test against closed forms and all relabellings; its size and power by simulation."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from metarm.errors import DataError, ShapeError
from metarm.watching.statistics import (
    disagreement_test,
    length_test,
    permutation_p_value,
    reward_test,
    shift_test,
    spread_test,
)

MANY = 20_000


def draws(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def contrast(reference, fresh) -> float:
    """The spread statistic, written out."""
    before, now = np.std(reference, axis=1, ddof=1), np.std(fresh, axis=1, ddof=1)
    both = before + now
    return float(np.mean(np.where(both > 0, (before - now) / np.where(both > 0, both, 1), 0)))


def all_relabellings(reference, fresh, statistic) -> list[float]:
    """The statistic at every way to say which of a prompt's responses are fresh."""
    values = np.concatenate([reference, fresh], axis=1)
    size, count = values.shape[1], fresh.shape[1]
    ways = list(itertools.combinations(range(size), count))
    found = []
    for chosen in itertools.product(ways, repeat=len(values)):
        now = np.array([row[list(own)] for row, own in zip(values, chosen, strict=True)])
        rest = np.array(
            [np.delete(row, own, axis=0) for row, own in zip(values, chosen, strict=True)]
        )
        found.append(statistic(rest, now))
    return found


def test_spread_p_value_is_that_of_all_relabellings() -> None:
    draw = draws(3)
    reference, fresh = draw.normal(size=(3, 3)), 0.3 * draw.normal(size=(3, 2))
    exact = np.array(all_relabellings(reference, fresh, contrast))
    p_value = np.mean(exact >= contrast(reference, fresh) - 1e-12)
    found = spread_test(reference, fresh, most=MANY, generator=draws())
    error = math.sqrt(p_value * (1 - p_value) / MANY) if p_value < 20 / MANY else p_value / 20**0.5
    assert found.p_value == pytest.approx(p_value, abs=4 * error)


def test_shift_p_value_is_that_of_all_relabellings() -> None:
    draw = draws(5)
    reference, fresh = draw.normal(size=(3, 2, 2)), draw.normal(0.8, 1.0, size=(3, 2, 2))
    values = np.concatenate([reference, fresh], axis=1)
    centred = values - values.mean(axis=1, keepdims=True)
    points = centred.reshape(-1, 2)
    apart = [float(((a - b) ** 2).sum()) for a, b in itertools.combinations(points, 2)]
    width = np.median(apart)

    def discrepancy(rest, now) -> float:
        def mean_kernel(a, b):
            a, b = a.reshape(-1, 2), b.reshape(-1, 2)
            return np.exp(-((a[:, None] - b[None]) ** 2).sum(-1) / width).mean()

        return mean_kernel(rest, rest) + mean_kernel(now, now) - 2 * mean_kernel(rest, now)

    exact = np.array(all_relabellings(centred[:, :2], centred[:, 2:], discrepancy))
    observed = discrepancy(centred[:, :2], centred[:, 2:])
    p_value = np.mean(exact >= observed - 1e-12)
    found = shift_test(reference, fresh, most=MANY, generator=draws())
    assert found.p_value == pytest.approx(p_value, rel=4 / 20**0.5)
    assert found.effect == pytest.approx(observed - exact.mean(), abs=0.02)


def test_effects_without_and_with_a_shift() -> None:
    draw = draws(1)
    scale = np.exp(0.6 * draw.normal(size=(400, 1)))
    reference = scale * draw.normal(size=(400, 8))
    fresh = scale * draw.normal(size=(400, 4))
    same = spread_test(reference, fresh, most=999, generator=draws())
    half = spread_test(reference, 0.5 * fresh, most=999, generator=draws())
    assert same.effect == pytest.approx(1.0, abs=0.06)
    assert same.p_value > 0.01
    assert half.effect == pytest.approx(0.5, abs=0.05)
    assert half.p_value == 0.001
    wider = spread_test(reference, 2 * fresh, most=999, generator=draws())
    assert wider.effect == pytest.approx(2.0, abs=0.2)
    assert wider.p_value > 0.5


def test_spread_of_equal_rewards_is_lost_wholly_and_says_nothing_where_both_are() -> None:
    reference = draws().normal(size=(50, 4))
    gone = spread_test(reference, np.full((50, 4), 0.1), most=999, generator=draws())
    assert gone.effect < 0.05
    assert gone.p_value == 0.001
    nothing = spread_test(np.full((50, 4), 0.1), np.full((50, 4), 0.1), most=99, generator=draws())
    assert nothing == (1.0, 1.0)


def test_scale_and_place_of_a_prompt_do_not_matter() -> None:
    draw = draws(2)
    reference, fresh = draw.normal(size=(20, 6)), 0.7 * draw.normal(size=(20, 4))
    one = spread_test(reference, fresh, most=999, generator=draws(9))
    scale, place = np.exp(draw.normal(size=(20, 1))), 30 * draw.normal(size=(20, 1))
    other = spread_test(
        scale * reference + place, scale * fresh + place, most=999, generator=draws(9)
    )
    assert other.p_value == one.p_value
    assert other.effect == pytest.approx(one.effect, rel=1e-6)


def test_shift_sees_means_and_ignores_prompts() -> None:
    draw = draws(4)
    prompts = 20 * draw.normal(size=(60, 1, 40))
    reference, fresh = draw.normal(size=(60, 8, 40)), draw.normal(size=(60, 4, 40))
    same = shift_test(prompts + reference, prompts + fresh, most=999, generator=draws())
    assert same.p_value > 0.01
    assert abs(same.effect) < 0.01
    moved = shift_test(prompts + reference, prompts + fresh + 0.4, most=999, generator=draws())
    assert moved.p_value == 0.001
    assert moved.effect > 5 * abs(same.effect)


def test_more_features_than_responses_give_the_same_as_their_principal_axes() -> None:
    draw = draws(6)
    few = draw.normal(size=(10, 6, 3))
    axes, _ = np.linalg.qr(draw.normal(size=(500, 3)))
    one = shift_test(few[:, :4], few[:, 4:], most=500, generator=draws())
    wide = few @ axes.T
    other = shift_test(wide[:, :4], wide[:, 4:], most=500, generator=draws())
    assert other.p_value == one.p_value
    assert other.effect == pytest.approx(one.effect, abs=1e-8)
    assert shift_test(np.ones((4, 2, 3)), np.ones((4, 2, 3)), most=9, generator=draws()) == (0, 1)


def test_a_rise_of_rewards_is_seen_in_units_of_each_prompt() -> None:
    draw = draws(21)
    scale, place = np.exp(draw.normal(size=(128, 1))), 50 * draw.normal(size=(128, 1))
    reference, fresh = draw.normal(size=(128, 8)), draw.normal(size=(128, 4))
    same = reward_test(
        place + scale * reference, place + scale * fresh, most=999, generator=draws()
    )
    assert same.effect == pytest.approx(0.0, abs=0.2)
    assert same.p_value > 0.01
    # KL of 0.045 nats between normals whose means are 0.3 standard deviations apart.
    raised = [place + scale * side for side in (reference, fresh + 0.3)]
    found = reward_test(*raised, most=999, generator=draws())
    assert found.effect == pytest.approx(0.3, abs=0.15)
    assert found.p_value == 0.001
    fallen = reward_test(*raised[::-1], most=999, generator=draws())
    assert fallen.p_value > 0.9
    assert reward_test(np.ones((9, 3)), np.ones((9, 3)), most=99, generator=draws()) == (0, 1)


def test_disagreement_rises_where_members_part() -> None:
    draw = draws(7)
    common, fresh = draw.normal(size=(1, 80, 8)), draw.normal(size=(1, 80, 4))
    noise = [0.2 * draw.normal(size=(4, 80, k)) for k in (8, 4, 4)]
    unit = np.array([1.0, 10.0, 0.1, 3.0]).reshape(4, 1, 1)
    same = disagreement_test(
        unit * (common + noise[0]), unit * (fresh + noise[1]), most=999, generator=draws()
    )
    apart = disagreement_test(
        unit * (common + noise[0]), unit * (fresh + 2 * noise[2]), most=999, generator=draws()
    )
    assert same.effect == pytest.approx(1.0, abs=0.1)
    assert same.p_value > 0.01
    assert apart.effect == pytest.approx(2.0, abs=0.35)
    assert apart.p_value == 0.001
    with pytest.raises(DataError, match="two members"):
        disagreement_test(common, fresh, most=9, generator=draws())


def test_length_correlation_is_numpys() -> None:
    draw = draws(8)
    lengths = [draw.normal(size=(60, 8)), draw.normal(size=(60, 5))]
    rewards = [draw.normal(size=(60, 8)), lengths[1] + draw.normal(size=(60, 5))]
    found = length_test(
        (rewards[0], lengths[0]), (rewards[1], lengths[1]), most=999, generator=draws()
    )
    before, now = (
        np.mean([np.corrcoef(r, n)[0, 1] for r, n in zip(*side, strict=True)])
        for side in zip(rewards, lengths, strict=True)
    )
    assert found.effect == pytest.approx(now - before, abs=1e-9)
    assert found.p_value == 0.001
    constant = length_test(
        (rewards[0], np.ones((60, 8))), (rewards[1], np.ones((60, 5))), most=99, generator=draws()
    )
    assert constant == (0.0, 1.0)


@given(st.integers(1, 60), st.integers(0, 60))
def test_p_values_stop_at_twenty_and_never_are_zero(above: int, below: int) -> None:
    values = np.array([1.0] * above + [0.0] * below)

    def draw(count: int) -> np.ndarray:
        nonlocal values
        taken, values = values[:count], values[count:]
        return taken

    found = permutation_p_value(1.0, draw, most=above + below, batch=7)
    if above >= 20:
        assert found == 1.0
    else:
        assert found == (1 + above) / (1 + above + below)


def test_the_p_value_is_exact_where_the_statistic_is_a_draw_itself() -> None:
    draw = draws(11)
    found = [
        permutation_p_value(draw.normal(), lambda count: draw.normal(size=count), most=99)
        for _ in range(4000)
    ]
    for level in (0.01, 0.05, 0.2, 0.5):
        hits = sum(p <= level for p in found)
        assert stats.binomtest(hits, len(found), level, "greater").pvalue > 1e-4


def null_p_values(test, runs: int) -> list[float]:
    draw = draws(13)
    found = []
    for _ in range(runs):
        scale = np.exp(0.6 * draw.normal(size=(24, 1)))
        values = scale * draw.standard_t(3, size=(24, 9))
        found.append(test(values, draw))
    return found


@pytest.mark.parametrize("name", ["spread", "reward", "shift", "length", "disagreement"])
def test_size_with_heavy_tails_and_few_prompts(name: str) -> None:
    def run(values, draw) -> float:
        before, now = values[:, :6], values[:, 6:]
        common = {"most": 199, "generator": draw}
        if name == "spread":
            return spread_test(before, now, **common).p_value
        if name == "reward":
            return reward_test(before, now, **common).p_value
        if name == "length":
            other = draw.integers(1, 5, size=values.shape) + values
            return length_test((before, other[:, :6]), (now, other[:, 6:]), **common).p_value
        noise = values[..., None] + draw.standard_t(3, size=(*values.shape, 3))
        if name == "shift":
            return shift_test(noise[:, :6], noise[:, 6:], **common).p_value
        members = noise.transpose(2, 0, 1)
        return disagreement_test(members[:, :, :6], members[:, :, 6:], **common).p_value

    found = null_p_values(run, 300)
    for level in (0.05, 0.2):
        hits = sum(p <= level for p in found)
        assert stats.binomtest(hits, len(found), level, "greater").pvalue > 1e-4, hits
    # And not far below it: a test that never alarms would pass the line above.
    assert stats.binomtest(sum(p <= 0.2 for p in found), len(found), 0.2).pvalue > 1e-4


def test_power_at_a_fifth_less_spread() -> None:
    """200 prompts, as measured for the paired Wilcoxon on 4 against 4: .91 at level .01."""
    draw = draws(17)
    hits = 0
    for _ in range(60):
        scale = np.exp(0.6 * draw.normal(size=(200, 1)))
        jitter = np.exp(0.1 * draw.normal(size=(200, 1)))
        reference = scale * draw.standard_t(5, size=(200, 8))
        fresh = 0.8 * jitter * scale * draw.standard_t(5, size=(200, 4))
        hits += spread_test(reference, fresh, most=400, generator=draw).p_value <= 0.01
    assert hits >= 54


@pytest.mark.parametrize(
    ("reference", "fresh", "error", "match"),
    [
        (np.ones((2, 3)), np.ones((3, 3)), ShapeError, "same prompts"),
        (np.ones((2, 3)), np.ones(3), ShapeError, "same prompts"),
        (np.ones((0, 3)), np.ones((0, 3)), DataError, "got none"),
        (np.ones((2, 3)), np.ones((2, 1)), DataError, "two responses a prompt"),
        (np.ones((2, 3)), np.full((2, 3), np.nan), DataError, "finite"),
    ],
)
def test_nonsense_is_refused(reference, fresh, error, match: str) -> None:
    with pytest.raises(error, match=match):
        spread_test(reference, fresh, most=9, generator=draws())
