# SPDX-License-Identifier: Apache-2.0
"""What a gain is worth in labels: read off the labels' own curve."""

import math

import pytest

from metarm.bench.summary import format_labels, labels_worth

GAINS = {30: 0.01, 100: 0.02, 1000: 0.05}


def test_a_gain_on_the_curve_is_its_number() -> None:
    for count, gain in GAINS.items():
        assert labels_worth(gain, GAINS) == pytest.approx(count)


def test_between_two_it_goes_by_the_logarithm() -> None:
    worth = labels_worth(0.035, GAINS)
    assert math.log1p(worth) == pytest.approx((math.log1p(100) + math.log1p(1000)) / 2)
    assert math.log1p(labels_worth(0.005, GAINS)) == pytest.approx(math.log1p(30) / 2)


def test_nothing_gained_is_no_label_and_more_than_all_is_said() -> None:
    assert labels_worth(0.0, GAINS) == labels_worth(-0.1, GAINS) == 0.0
    assert labels_worth(0.06, GAINS) == math.inf
    assert format_labels(labels_worth(0.06, GAINS), 1000) == ">1000"
    assert format_labels(147.3, 1000) == "150"


def test_a_curve_with_a_dent_is_made_to_rise() -> None:
    """30 and 100 labels gain 1.5 points together: more is not worse."""
    dent = {30: 0.02, 100: 0.01, 1000: 0.05}
    assert labels_worth(0.01, dent) < 30
    assert 30 <= labels_worth(0.016, dent) <= 1000
    harmful = {30: -0.02, 100: -0.01, 1000: 0.05}
    assert 100 < labels_worth(0.01, harmful) < 1000
