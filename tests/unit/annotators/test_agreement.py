# SPDX-License-Identifier: Apache-2.0
"""Agreement of judges, against worked examples that are published and against evalica."""

import evalica
import numpy as np
import pandas
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from metarm.annotators.agreement import (
    agreement_fraction,
    alpha_estimate,
    cohens_kappa,
    krippendorffs_alpha,
)
from metarm.errors import EmptySetError, ShapeError

# Krippendorff 2011, Computing Krippendorff's alpha-reliability, example C; 0 is missing.
OBSERVERS = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, 0, 0, 0],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, 0, 3],
    [0, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, 0],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, 0],
]


def test_alpha_of_the_published_example() -> None:
    ratings = [[value or None for value in row] for row in OBSERVERS]
    assert krippendorffs_alpha(ratings) == pytest.approx(0.743, abs=5e-4)


def test_kappa_of_three_labels_by_hand() -> None:
    """Observed 7/10; chance (4 * 5 + 3 * 3 + 3 * 2) / 100."""
    first = [*"aaaabbbccc"]
    second = [*"aaaabbacba"]
    assert agreement_fraction(first, second) == 0.7
    chance = (4 * 6 + 3 * 3 + 3 * 1) / 100
    assert cohens_kappa(first, second) == pytest.approx((0.7 - chance) / (1 - chance))


def test_judges_of_one_label_say_nothing() -> None:
    assert cohens_kappa(["tie"] * 5, ["tie"] * 5) is None
    assert krippendorffs_alpha([["tie"] * 5, ["tie"] * 5]) is None
    assert cohens_kappa(["a"] * 5, ["b"] * 5) == 0.0


def test_bad_input_is_said() -> None:
    with pytest.raises(ShapeError):
        cohens_kappa(["a"], ["a", "b"])
    with pytest.raises(EmptySetError):
        agreement_fraction([], [])
    with pytest.raises(EmptySetError, match="two labels"):
        krippendorffs_alpha([["a", None], [None, "b"]])
    with pytest.raises(ShapeError):
        krippendorffs_alpha([["a"], ["a", "b"]])


LABELS = st.sampled_from([1.0, 2.0, 3.0, None])


@given(st.integers(2, 4).flatmap(lambda n: st.lists(st.tuples(*[LABELS] * n), min_size=2)))
def test_alpha_is_evalicas(items: list[tuple[float | None, ...]]) -> None:
    ratings = [list(row) for row in zip(*items, strict=True)]
    pairable = [item for item in items if sum(value is not None for value in item) > 1]
    assume(len({value for item in pairable for value in item if value is not None}) > 1)
    expected = evalica.alpha(pandas.DataFrame(ratings, dtype=float), distance="nominal").alpha
    assert krippendorffs_alpha(ratings) == pytest.approx(expected, abs=1e-9)


def test_alpha_of_pairs_does_not_know_which_side_was_written_first() -> None:
    """People and a judge who agree on 9 of 10; the better response always first, or anywhere."""
    draw = np.random.default_rng(0)
    truth = np.ones(200, dtype=bool)
    judge = draw.random(200) < 0.9
    names = np.array(["second", "first"])
    always = [names[truth.astype(int)].tolist(), names[judge.astype(int)].tolist()]
    turned = draw.random(200) < 0.5
    mixed = [names[(own ^ turned).astype(int)].tolist() for own in (truth, judge)]
    sides = ("first", "second")
    assert krippendorffs_alpha(always) < 0.0
    expected = krippendorffs_alpha(mixed)
    for ratings in (always, mixed):
        found = krippendorffs_alpha(ratings, sides=sides)
        assert found == pytest.approx(expected, abs=0.01)
        estimate = alpha_estimate(ratings, sides=sides)
        assert estimate.value == found
        assert estimate.low < found < estimate.high
    assert alpha_estimate(always, sides=sides) == alpha_estimate(mixed, sides=sides)
    assert krippendorffs_alpha([["first"] * 3, ["first"] * 3], sides=sides) == 1.0
