# SPDX-License-Identifier: Apache-2.0
"""The difference loss J in float64: closed forms, derivatives, invariances, extremes."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metarm.errors import ShapeError
from metarm.objectives import difference_gradient, difference_loss


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def closed_form(groups):
    """J and c_i = dJ/ds_i of ragged lists, in plain Python; sign(0) = 0."""
    m = len(groups)
    value, slopes = 0.0, []
    for scores in groups:
        k = len(scores)
        for i in range(k):
            for j in range(i + 1, k):
                value += 2 / (m * k * k) * sigmoid(abs(scores[i] - scores[j]))
        for i in range(k):
            c = 0.0
            for j in range(k):
                gap = scores[i] - scores[j]
                s = sigmoid(abs(gap))
                c += ((gap > 0) - (gap < 0)) * s * (1 - s)
            slopes.append(2 / (m * k * k) * c)
    return value, slopes


def padded(groups, filler):
    """Ragged lists as a table and its mask, with `filler` where there is no response."""
    width = max(map(len, groups))
    scores = torch.tensor([g + [filler] * (width - len(g)) for g in groups], dtype=torch.float64)
    mask = torch.tensor([[True] * len(g) + [False] * (width - len(g)) for g in groups])
    return scores.requires_grad_(), mask


def test_two_responses_in_closed_form():
    scores = torch.tensor([[1.5, -0.5], [0.25, 1.0]], dtype=torch.float64)
    expected = (sigmoid(2.0) / 2 + sigmoid(0.75) / 2) / 2
    assert difference_loss(scores).item() == pytest.approx(expected, abs=1e-15)


def test_three_responses_in_closed_form():
    scores = torch.tensor([[0.0, 1.0, 3.0]], dtype=torch.float64)
    expected = 2 / 9 * (sigmoid(1.0) + sigmoid(3.0) + sigmoid(2.0))
    assert difference_loss(scores).item() == pytest.approx(expected, abs=1e-15)


# Scores on a coarse grid tie often; duplicates and groups of one come up as well.
ragged = st.lists(
    st.lists(st.integers(-12, 12).map(lambda n: n / 4), min_size=1, max_size=6),
    min_size=1,
    max_size=5,
)


@settings(deadline=None, derandomize=True, max_examples=150)
@given(ragged, st.sampled_from([0.0, 1e30, math.inf, -math.inf, math.nan]))
def test_value_and_slopes_equal_the_closed_form(groups, filler):
    scores, mask = padded(groups, filler)
    loss = difference_loss(scores, mask)
    loss.backward()
    value, slopes = closed_form(groups)
    assert loss.item() == pytest.approx(value, abs=1e-14)
    assert scores.grad[mask].tolist() == pytest.approx(slopes, abs=1e-15)
    assert torch.equal(scores.grad[~mask], torch.zeros_like(scores.grad[~mask]))


@settings(deadline=None, derandomize=True, max_examples=50)
@given(
    st.integers(1, 6).flatmap(
        lambda k: st.lists(
            st.lists(st.floats(-8, 8), min_size=k, max_size=k), min_size=1, max_size=4
        )
    )
)
def test_a_full_mask_is_no_mask(groups):
    scores, mask = padded(groups, 0.0)
    assert torch.equal(difference_loss(scores, mask), difference_loss(scores))
    assert difference_loss(scores).item() == pytest.approx(closed_form(groups)[0], abs=1e-14)


def test_derivatives_away_from_ties():
    generator = torch.Generator().manual_seed(0)
    steps = torch.rand(3, 5, generator=generator, dtype=torch.float64) + 0.1
    order = torch.argsort(torch.rand(3, 5, generator=generator), dim=1)
    scores = steps.cumsum(dim=1).gather(1, order).requires_grad_()
    mask = torch.tensor([[True] * 5, [True] * 4 + [False], [True, False, True, False, True]])
    assert torch.autograd.gradcheck(difference_loss, (scores,))
    assert torch.autograd.gradgradcheck(difference_loss, (scores,))
    assert torch.autograd.gradcheck(lambda s: difference_loss(s, mask), (scores,))
    assert torch.autograd.gradgradcheck(lambda s: difference_loss(s, mask), (scores,))


def test_ties_have_slope_zero_and_their_sides_a_quarter():
    tied = torch.zeros(1, 2, dtype=torch.float64, requires_grad=True)
    difference_loss(tied).backward()
    assert torch.equal(tied.grad, torch.zeros_like(tied))
    apart = torch.tensor([[1e-9, 0.0]], dtype=torch.float64, requires_grad=True)
    difference_loss(apart).backward()
    # d/dgap of sigmoid(|gap|) / 2 just off the tie.
    assert apart.grad.tolist()[0] == pytest.approx([1 / 8, -1 / 8], abs=1e-8)


def test_a_copied_response_adds_no_slope_of_its_own_pair():
    scores = torch.tensor([[1.0, 1.0, -0.5]], dtype=torch.float64, requires_grad=True)
    difference_loss(scores).backward()
    s = sigmoid(1.5)
    expected = [2 / 9 * s * (1 - s), 2 / 9 * s * (1 - s), -4 / 9 * s * (1 - s)]
    assert scores.grad.tolist()[0] == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize("k", [1, 2, 3, 5, 8])
def test_range_from_all_equal_to_all_apart(k):
    equal = torch.full((3, k), 7.25, dtype=torch.float64)
    assert difference_loss(equal).item() == pytest.approx((k - 1) / (2 * k), abs=1e-15)
    apart = torch.arange(k, dtype=torch.float64).repeat(3, 1) * 1e4
    assert difference_loss(apart).item() == pytest.approx((k - 1) / k, abs=1e-15)
    between = torch.randn(3, k, generator=torch.Generator().manual_seed(k), dtype=torch.float64)
    assert (k - 1) / (2 * k) <= difference_loss(between).item() <= (k - 1) / k


def test_groups_count_alike_whatever_their_size():
    one, other = [0.0, 2.0], [0.0, 1.0, 5.0, 5.5]
    scores, mask = padded([one, other], math.nan)
    apart = [difference_loss(torch.tensor([g], dtype=torch.float64)).item() for g in (one, other)]
    assert difference_loss(scores, mask).item() == pytest.approx(sum(apart) / 2, abs=1e-15)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(st.integers(1, 5), st.integers(1, 7), st.integers(0, 10_000))
def test_invariances(groups, k, seed):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(groups, k, generator=generator, dtype=torch.float64) * 3
    loss = difference_loss(scores).item()
    shift = torch.randn(groups, 1, generator=generator, dtype=torch.float64) * 10
    responses = torch.argsort(torch.rand(groups, k, generator=generator), dim=1)
    prompts = torch.randperm(groups, generator=generator)
    changed = {
        "shift a group": scores + shift,
        "permute responses": scores.gather(1, responses),
        "permute prompts": scores[prompts],
        "turn the sign": -scores,
    }
    for name, other in changed.items():
        assert difference_loss(other).item() == pytest.approx(loss, abs=1e-13), name


@settings(deadline=None, derandomize=True, max_examples=60)
@given(st.integers(1, 5), st.integers(1, 7), st.integers(0, 10_000))
def test_slopes_sum_to_zero_and_are_bounded(groups, k, seed):
    scores = torch.randn(groups, k, generator=torch.Generator().manual_seed(seed)).double()
    scores.requires_grad_()
    difference_loss(scores).backward()
    assert scores.grad.sum(dim=1).abs().max().item() < 1e-15
    assert scores.grad.abs().max().item() <= (k - 1) / (2 * groups * k * k) + 1e-15


def test_growing_gaps_grow_the_loss():
    scores = torch.tensor([[0.3, -0.2, 1.1], [0.0, 0.5, -2.0]], dtype=torch.float64)
    losses = [difference_loss(scale * scores).item() for scale in (0.0, 0.5, 1.0, 2.0, 4.0)]
    assert losses == sorted(set(losses))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_finite_at_huge_gaps(dtype):
    scores = torch.tensor([[1e4, -1e4, 0.0], [1e4, 1e4, -1e4]], dtype=dtype, requires_grad=True)
    loss = difference_loss(scores)
    loss.backward()
    # Group 1: three saturated pairs, group 2: two and a tie.
    assert loss.item() == pytest.approx((6 / 9 + (4 + 1) / 9) / 2, abs=1e-6)
    assert torch.isfinite(scores.grad).all()


def test_float32_agrees_with_float64():
    scores = torch.randn(6, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    single = difference_loss(scores.float())
    assert single.dtype == torch.float32
    assert single.item() == pytest.approx(difference_loss(scores).item(), abs=1e-6)


@pytest.mark.parametrize(
    ("scores", "mask"),
    [
        (torch.zeros(4), None),
        (torch.zeros(2, 3, 1), None),
        (torch.zeros(0, 3), None),
        (torch.zeros(2, 3), torch.ones(2, 1, dtype=torch.bool)),
        (torch.zeros(2, 3), torch.ones(2, 3)),
    ],
)
def test_wrong_shapes_are_refused(scores, mask):
    with pytest.raises(ShapeError, match="shape"):
        difference_loss(scores, mask)


@settings(deadline=None, derandomize=True, max_examples=150)
@given(ragged, st.sampled_from([0.0, 1e30, math.inf, -math.inf, math.nan]))
def test_the_gradient_in_closed_form_is_that_of_autograd(groups, filler):
    scores, mask = padded(groups, filler)
    difference_loss(scores, mask).backward()
    found = difference_gradient(scores.detach(), mask)
    torch.testing.assert_close(found, scores.grad, rtol=0.0, atol=1e-15)
    assert found.sum(dim=1).abs().max() < 1e-15
    _, slopes = closed_form(groups)
    assert found[mask].tolist() == pytest.approx(slopes, abs=1e-15)


def test_the_gradient_does_not_vanish_in_fp32_where_a_product_would():
    """s * (1 - s) is 0 in fp32 for gaps above 17."""
    found = difference_gradient(torch.tensor([[30.0, 0.0]]))
    assert found[0, 0].item() == pytest.approx(0.5 * math.exp(-30.0), rel=1e-5)


def test_the_gradient_is_in_fp32_for_bfloat16_scores():
    scores = torch.tensor([[1.0, 0.5, -2.0]], dtype=torch.bfloat16)
    assert torch.equal(difference_gradient(scores), difference_gradient(scores.float()))
    with pytest.raises(ShapeError, match=r"\(groups, k\)"):
        difference_gradient(torch.zeros(3))


@settings(deadline=None, derandomize=True, max_examples=150)
@given(ragged, st.randoms(use_true_random=False), st.sampled_from([0.0, math.inf, math.nan]))
def test_a_held_order_continues_j_past_ties(groups, draw, filler):
    """sigmoid(sign(r_i - r_j) (s_i - s_j)): J itself where the order is that of the scores."""
    scores, mask = padded(groups, filler)
    own = difference_loss(scores, mask, ranking=scores)
    apart = difference_loss(scores, mask)
    assert own.item() == pytest.approx(apart.item(), abs=1e-15)
    others = [draw.sample(group, len(group)) for group in groups]
    ranking = padded(others, filler)[0].detach()
    difference_loss(scores, mask, ranking=ranking).backward()
    found = difference_gradient(scores.detach(), mask, ranking=ranking)
    torch.testing.assert_close(found, scores.grad, rtol=0.0, atol=1e-15)
    expected = 0.0
    for group, order in zip(groups, others, strict=True):
        k = len(group)
        for i, j in itertools.combinations(range(k), 2):
            sign = (order[i] > order[j]) - (order[i] < order[j])
            expected += 2 / (len(groups) * k * k) * sigmoid(sign * (group[i] - group[j]))
    found_loss = difference_loss(scores.detach(), mask, ranking=ranking).item()
    assert found_loss == pytest.approx(expected, abs=1e-12)


def test_a_ranking_of_another_shape_is_refused():
    for function in (difference_loss, difference_gradient):
        with pytest.raises(ShapeError, match="ranking must have the shape"):
            function(torch.zeros(2, 3), ranking=torch.zeros(2, 1))
