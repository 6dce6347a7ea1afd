# SPDX-License-Identifier: Apache-2.0
"""The forecast of a batch: against refits, against what comes in simulations, and its rule."""

import numpy as np
import pytest
from scipy.special import expit

from metarm.choosing.pool import Basis, build_pool
from metarm.choosing.stopping import StopRule, forecast_gain, update_gaps
from metarm.choosing.strategies import choose
from metarm.errors import ConfigError
from metarm.models.linear_head import fit_head


def make_gaps(draw, num_pairs=300, size=12):
    gaps = draw.standard_normal((num_pairs, size)) * np.arange(1, size + 1) ** -0.5
    return Basis.of(gaps)(gaps)


def test_learning_from_a_batch_is_the_fit_of_the_head() -> None:
    draw = np.random.default_rng(0)
    gaps = make_gaps(draw)
    batch = np.arange(25)
    outcomes = (draw.random((25, 4)) < 0.5).astype(float)
    found = update_gaps(build_pool(gaps, np.arange(300)), np.arange(300), batch, outcomes)
    for future in range(4):
        head = fit_head(gaps[batch], outcomes[:, future])
        np.testing.assert_allclose(found[:, future], gaps @ head, atol=1e-4)


def test_a_forecast_is_what_comes_when_its_prior_is_true() -> None:
    """Truths of the prior, labels of the truth: mean gains agree, and intervals hold."""
    forecasts, actual, inside = [], [], []
    for seed in range(60):
        draw = np.random.default_rng(seed)
        gaps = make_gaps(draw)
        truth = gaps @ draw.standard_normal(gaps.shape[1])
        outcomes = (draw.random(len(gaps)) < expit(truth)).astype(float)
        known = np.arange(30)
        head = fit_head(gaps[known], outcomes[known])
        pool = build_pool(
            gaps,
            np.arange(len(gaps)),
            means=gaps @ head,
            labelled=gaps[known],
            labelled_means=gaps[known] @ head,
        )
        batch = list(choose(pool, "random", 30, seed=seed).indices)
        found = forecast_gain(pool, batch, StopRule(), seed=seed, num_futures=100)
        after = fit_head(
            np.concatenate([gaps[known], gaps[batch]]),
            np.concatenate([outcomes[known], outcomes[batch]]),
        )
        change = ((gaps @ after > 0) == (truth > 0)).mean()
        change -= ((gaps @ head > 0) == (truth > 0)).mean()
        forecasts.append(found.gain)
        actual.append(change)
        inside.append(found.low <= change <= found.high)
    error = np.std(actual) / np.sqrt(len(actual))
    assert np.mean(actual) == pytest.approx(np.mean(forecasts), abs=3 * error)
    assert np.mean(forecasts) > 0.01
    assert 0.78 <= np.mean(inside) <= 1.0


def test_more_labels_are_worth_more_and_known_ones_nothing() -> None:
    draw = np.random.default_rng(3)
    gaps = make_gaps(draw)
    theta = draw.standard_normal(gaps.shape[1])
    pool = build_pool(gaps, np.arange(300), means=gaps @ theta)
    gains = [forecast_gain(pool, range(n), StopRule(), seed=0).gain for n in (5, 40, 200)]
    assert gains == sorted(gains)
    past = np.tile(gaps, (200, 1))
    sure = build_pool(
        gaps, np.arange(300), means=gaps @ theta, labelled=past, labelled_means=past @ theta
    )
    assert abs(forecast_gain(sure, range(40), StopRule(), seed=0).gain) < 0.003


def test_the_rule_and_its_sentence() -> None:
    draw = np.random.default_rng(3)
    gaps = make_gaps(draw)
    pool = build_pool(gaps, np.arange(300))

    def forecast(**rule):
        return forecast_gain(pool, range(50), StopRule(**rule), seed=0)

    plain = forecast()
    assert plain.goes_on
    assert plain == forecast()
    assert "at a cost" not in plain.sentence
    assert not forecast(least_gain=0.9).goes_on
    dear = forecast(cost_per_label=0.3, worth_per_point=0.1)
    assert dear.cost == pytest.approx(15)
    assert not dear.goes_on
    assert dear.sentence.startswith("the next 50 labels are expected to change accuracy")
    assert "at a cost of 15, " in dear.sentence
    assert dear.sentence.endswith(": stop")
    assert forecast(cost_per_label=0.3, worth_per_point=100.0).sentence.endswith(": go on")
    with pytest.raises(ConfigError, match="give cost_per_label too"):
        StopRule(worth_per_point=1.0)
    with pytest.raises(ConfigError, match="0 or more"):
        StopRule(cost_per_label=-1.0)
