# SPDX-License-Identifier: Apache-2.0
"""The Bradley-Terry loss L in float64: anchors, symmetries, limits, parity, shapes."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metarm.errors import ShapeError
from metarm.objectives import bradley_terry_loss

PAIRS = st.lists(st.tuples(st.floats(-20, 20), st.floats(-20, 20)), min_size=1, max_size=8)


def columns(rows):
    return torch.tensor(rows, dtype=torch.float64).unbind(dim=1)


def by_hand(rows, margins, labels):
    """The mean of -[p log P + (1 - p) log(1 - P)] with P written out, in plain Python."""
    total = 0.0
    for (chosen, rejected), margin, p in zip(rows, margins, labels, strict=True):
        gap = chosen - rejected - margin
        total += p * math.log1p(math.exp(-gap)) + (1 - p) * math.log1p(math.exp(gap))
    return total / len(rows)


def test_log_two_at_no_gap():
    zeros = torch.zeros(3, dtype=torch.float64)
    assert bradley_terry_loss(zeros, zeros).item() == pytest.approx(math.log(2), abs=1e-15)


@settings(deadline=None, derandomize=True, max_examples=80)
@given(PAIRS, st.data())
def test_parity_with_the_likelihood_written_out(rows, data):
    chosen, rejected = columns(rows)
    numbers = st.lists(st.floats(-3, 3), min_size=len(rows), max_size=len(rows))
    margins = data.draw(numbers)
    labels = [abs(number) / 3 for number in data.draw(numbers)]
    plain = bradley_terry_loss(chosen, rejected)
    assert plain.item() == pytest.approx(
        by_hand(rows, [0.0] * len(rows), [1.0] * len(rows)), abs=1e-12
    )
    full = bradley_terry_loss(
        chosen,
        rejected,
        margin=torch.tensor(margins, dtype=torch.float64),
        label=torch.tensor(labels, dtype=torch.float64),
    )
    assert full.item() == pytest.approx(by_hand(rows, margins, labels), abs=1e-12)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(PAIRS, st.floats(0, 1), st.floats(-2, 2))
def test_swapping_the_responses_swaps_the_label(rows, p, margin):
    chosen, rejected = columns(rows)
    label = torch.full_like(chosen, p)
    swapped = bradley_terry_loss(rejected, chosen, margin=-margin, label=1 - label)
    straight = bradley_terry_loss(chosen, rejected, margin=margin, label=label)
    assert straight.item() == pytest.approx(swapped.item(), abs=1e-12)


def test_limits_of_label_and_margin():
    chosen, rejected = columns([(1.0, 0.5), (-2.0, 1.0), (0.0, 0.0)])
    plain = bradley_terry_loss(chosen, rejected)
    ones = torch.ones_like(chosen)
    assert torch.equal(bradley_terry_loss(chosen, rejected, label=ones), plain)
    assert torch.equal(bradley_terry_loss(chosen, rejected, margin=0.0), plain)
    assert torch.equal(
        bradley_terry_loss(chosen, rejected, label=0 * ones), bradley_terry_loss(rejected, chosen)
    )
    # A margin as large as the gap is a coin flip; a number is the same as one a pair.
    gap = chosen - rejected
    coin = bradley_terry_loss(chosen, rejected, margin=gap)
    assert coin.item() == pytest.approx(math.log(2), abs=1e-15)
    assert torch.equal(
        bradley_terry_loss(chosen, rejected, margin=0.7),
        bradley_terry_loss(chosen, rejected, margin=0.7 * ones),
    )


def test_a_coin_flip_label_is_least_at_no_gap():
    half = torch.full((1,), 0.5, dtype=torch.float64)
    gap = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    bradley_terry_loss(gap, torch.zeros_like(gap), label=half).backward()
    assert gap.grad.item() == 0.0


def test_slope_is_minus_the_chance_to_lose():
    chosen, rejected = (
        column.requires_grad_() for column in columns([(0.5, -1.0), (-3.0, 2.0), (1.0, 1.0)])
    )
    bradley_terry_loss(chosen, rejected).backward()
    expected = [-1 / (3 * (1 + math.exp(gap))) for gap in (1.5, -5.0, 0.0)]
    assert chosen.grad.tolist() == pytest.approx(expected, abs=1e-15)
    assert rejected.grad.tolist() == pytest.approx([-slope for slope in expected], abs=1e-15)


def test_derivatives():
    generator = torch.Generator().manual_seed(0)
    chosen, rejected, margin = torch.randn(3, 6, generator=generator, dtype=torch.float64)
    chosen.requires_grad_()
    rejected.requires_grad_()
    label = torch.rand(6, generator=generator, dtype=torch.float64)

    def loss(one, other):
        return bradley_terry_loss(one, other, margin=margin, label=label)

    assert torch.autograd.gradcheck(loss, (chosen, rejected))
    assert torch.autograd.gradgradcheck(loss, (chosen, rejected))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_badly_wrong_pairs_keep_their_slope(dtype):
    chosen = torch.tensor([-1e4, 1e4], dtype=dtype, requires_grad=True)
    loss = bradley_terry_loss(chosen, torch.zeros(2, dtype=dtype))
    loss.backward()
    assert loss.item() == pytest.approx(5e3)
    assert chosen.grad.tolist() == [-0.5, 0.0]


@pytest.mark.parametrize(
    "arguments",
    [
        {"chosen": torch.zeros(3), "rejected": torch.zeros(3, 1)},
        {"chosen": torch.zeros(3, 1), "rejected": torch.zeros(3, 1)},
        {"chosen": torch.zeros(3), "rejected": torch.zeros(1)},
        {"chosen": torch.zeros(()), "rejected": torch.zeros(())},
        {"chosen": torch.zeros(3), "rejected": torch.zeros(3), "margin": torch.zeros(3, 1)},
        {"chosen": torch.zeros(3), "rejected": torch.zeros(3), "label": torch.zeros(1)},
    ],
)
def test_what_would_broadcast_is_refused(arguments):
    with pytest.raises(ShapeError, match=r"\(pairs,\)"):
        bradley_terry_loss(**arguments)
