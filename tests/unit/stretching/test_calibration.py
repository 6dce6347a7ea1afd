# SPDX-License-Identifier: Apache-2.0
"""One temperature: closed forms, an independent optimiser, and what it must not be moved by."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from metarm.errors import EmptySetError, ShapeError
from metarm.stretching.calibration import fit_temperature


@pytest.mark.parametrize(("right", "count", "size"), [(75, 100, 2.0), (9, 10, 0.3), (10, 10, 5.0)])
def test_gaps_of_one_size_have_a_closed_form(right: int, count: int, size: float) -> None:
    """sigmoid(a c) = share of smoothed targets, so a = logit(share) / c."""
    gaps = [size] * right + [-size] * (count - right)
    high = (count + 1) / (count + 2)
    share = (right * high + (count - right) * (1 - high)) / count
    found = fit_temperature(gaps)
    assert found.inverse_temperature == pytest.approx(math.log(share / (1 - share)) / size)
    assert found.probabilities([size]) == pytest.approx([share])
    assert found.num_pairs == count


def test_it_is_the_minimum_that_another_optimiser_finds() -> None:
    draw = np.random.default_rng(0)
    gaps = draw.normal(size=400) * 3
    labels = draw.uniform(size=400) * (gaps > 0) + 0.4 * (gaps <= 0)
    targets = (labels * 401 + (1 - labels)) / 402

    def loss(inverse: float) -> float:
        return float((np.logaddexp(0, inverse * gaps) - targets * inverse * gaps).mean())

    other = minimize_scalar(loss, bounds=(0, 10), method="bounded", options={"xatol": 1e-10})
    assert fit_temperature(gaps, labels).inverse_temperature == pytest.approx(other.x, abs=1e-6)


def test_it_recovers_the_temperature_that_labels_were_drawn_at() -> None:
    draw = np.random.default_rng(1)
    logits = draw.normal(size=20_000) * 2
    is_first = draw.uniform(size=logits.size) < 1 / (1 + np.exp(-logits))
    # As a model of gaps four times too large has them, chosen minus rejected.
    gaps = 4 * np.where(is_first, logits, -logits)
    found = fit_temperature(gaps)
    assert found.inverse_temperature == pytest.approx(0.25, rel=0.05)
    assert found.log_loss < found.log_loss_before


def test_gaps_that_say_nothing_or_lie_give_a_coin() -> None:
    for gaps in ([1.0, -1.0], [-2.0, -1.0, 0.5], [0.0, 0.0]):
        found = fit_temperature(gaps)
        assert found.inverse_temperature == 0.0
        assert found.probabilities([-9.0, 9.0]).tolist() == [0.5, 0.5]
        assert found.log_loss == pytest.approx(math.log(2))


@given(
    st.lists(st.floats(-50, 50).filter(lambda gap: abs(gap) > 1e-3), min_size=1, max_size=30),
    st.sampled_from([1e-4, 0.1, 7.0, 1e5]),
)
def test_the_scale_of_the_scores_does_not_matter(gaps: list[float], scale: float) -> None:
    one = fit_temperature(gaps)
    other = fit_temperature([scale * gap for gap in gaps])
    assert np.allclose(
        one.probabilities(gaps), other.probabilities([scale * gap for gap in gaps]), atol=1e-6
    )
    assert ((one.probabilities(gaps) >= 0.5) == (np.array(gaps) > 0))[
        one.probabilities(gaps) != 0.5
    ].all()


def test_what_cannot_be_calibrated_on_is_refused() -> None:
    with pytest.raises(EmptySetError, match="held-out labelled pairs"):
        fit_temperature([])
    with pytest.raises(ShapeError, match="one label a gap"):
        fit_temperature([1.0, 2.0], [1.0])
