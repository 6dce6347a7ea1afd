# SPDX-License-Identifier: Apache-2.0
"""Where the weights are during and after the meta step: moved, visible, and back bit for bit."""

import copy
import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from metarm.errors import PrecisionError
from metarm.meta_step import (
    check_precision,
    look_ahead,
    measure_direction,
    meta_step,
)
from metarm.objectives import difference_loss

ORDERS = pytest.mark.parametrize("order", ["first", "exact"])
MODES = pytest.mark.parametrize("mode", ["ascent", "descent"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@ORDERS
@MODES
def test_moved_inside_and_back_bit_for_bit(make_problem, dtype, mode, order):
    problem = make_problem(dtype=dtype)
    start = problem.weights()
    # 0.1 is no power of two: moving back by subtraction would leave rounding behind.
    with meta_step(
        problem.parameters, problem.difference, mode=mode, step_size=0.1, order=order
    ) as move:
        assert not problem.is_at(start)
        assert torch.equal(problem.model.running, start["running"])
        assert move.length > 0
        problem.preference().backward()
    assert problem.is_at(start)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, GeneratorExit])
@ORDERS
@MODES
def test_back_bit_for_bit_after_an_exception(make_problem, error, mode, order):
    problem = make_problem(dtype=torch.float32)
    start = problem.weights()

    def interrupted():
        step = {"mode": mode, "step_size": 0.1, "order": order}
        with meta_step(problem.parameters, problem.difference, **step):
            problem.preference().backward()
            assert not problem.is_at(start)
            raise error

    with pytest.raises(error):
        interrupted()
    assert problem.is_at(start)


@pytest.mark.parametrize("settings", [{"mode": "ascent", "order": "exact"}, {"mode": "joint"}])
def test_earlier_gradients_survive_an_exception(problem, settings):
    problem.preference().backward()
    earlier = problem.gradients()
    with (
        pytest.raises(KeyboardInterrupt),
        meta_step(problem.parameters, problem.difference, **settings),
    ):
        raise KeyboardInterrupt
    assert all(torch.equal(a, b) for a, b in zip(problem.gradients(), earlier, strict=True))


def test_a_move_that_fails_half_way_is_undone(problem):
    start = problem.weights()
    gradients = [torch.ones_like(p) for p in problem.parameters]
    gradients[2] = torch.ones(7, 7, dtype=torch.float64)
    with (
        pytest.raises(RuntimeError, match="size of tensor"),
        look_ahead(problem.parameters, gradients, 0.1),
    ):
        pytest.fail("entered")
    assert problem.is_at(start)


@settings(
    deadline=None,
    derandomize=True,
    max_examples=40,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    seed=st.integers(0, 1000),
    groups=st.integers(1, 4),
    k=st.integers(2, 6),
    pairs=st.integers(1, 5),
    features=st.integers(1, 5),
    hidden=st.integers(1, 6),
    length=st.floats(1e-3, 10),
    mode=st.sampled_from(["ascent", "descent"]),
)
def test_any_shape_moves_by_the_length_along_the_slope_and_back(
    make_problem, seed, groups, k, pairs, features, hidden, length, mode
):
    problem = make_problem(seed, groups=groups, k=k, pairs=pairs, features=features, hidden=hidden)
    start = problem.weights()
    slopes = torch.autograd.grad(problem.difference(), problem.parameters)
    norm = math.sqrt(sum(g.square().sum().item() for g in slopes))
    sign = 1.0 if mode == "ascent" else -1.0
    with meta_step(problem.parameters, problem.difference, mode=mode, step_length=length) as move:
        for (name, parameter), slope in zip(problem.model.named_parameters(), slopes, strict=True):
            aim = start[name] + sign * length / norm * slope
            assert torch.allclose(parameter, aim, rtol=0, atol=1e-12)
        problem.preference().backward()
    assert move.length == pytest.approx(length, rel=1e-9)
    assert move.realised_fraction == pytest.approx(1.0, abs=1e-9)
    assert problem.is_at(start)


@pytest.mark.parametrize("length", [1e-3, 0.5, 4.0])
@MODES
def test_a_fixed_length_is_that_length(make_problem, length, mode):
    problem = make_problem(dtype=torch.float32)
    start = problem.weights()
    with meta_step(
        problem.parameters, problem.difference, mode=mode, step_size=9.0, step_length=length
    ) as move:
        moved = [(p - start[n]).square().sum() for n, p in problem.model.named_parameters()]
        assert torch.stack(moved).sum().sqrt().item() == pytest.approx(length, rel=1e-3)
    assert move.length == pytest.approx(length, rel=1e-3)


@ORDERS
def test_without_a_slope_there_is_no_move(make_problem, order):
    problem = make_problem(k=3)
    problem.groups.copy_(problem.groups[:, :1].expand_as(problem.groups).clone())
    start = problem.weights()
    with meta_step(
        problem.parameters, problem.difference, mode="ascent", step_length=1.0, order=order
    ) as move:
        assert problem.is_at(start)
        problem.preference().backward()
    assert (move.length, move.realised_fraction) == (0.0, 1.0)
    assert all(torch.isfinite(gradient).all() for gradient in problem.gradients())


@pytest.mark.parametrize("mode", ["off", "joint"])
def test_modes_that_do_not_look_ahead_do_not_move(problem, mode):
    start = problem.weights()
    with meta_step(problem.parameters, problem.difference, mode=mode, step_size=1.0) as move:
        assert move is None
        assert problem.is_at(start)
    assert problem.is_at(start)


@ORDERS
def test_frozen_parameters_stay_where_they_are(problem, order):
    frozen = problem.parameters[0].requires_grad_(False)
    before = frozen.clone()
    slopes = torch.autograd.grad(problem.difference(), problem.parameters[1:])
    norm = math.sqrt(sum(g.square().sum().item() for g in slopes))
    with meta_step(
        problem.parameters, problem.difference, mode="ascent", step_size=0.5, order=order
    ) as move:
        assert torch.equal(frozen, before)
        problem.preference().backward()
    assert move.length == pytest.approx(0.5 * norm, rel=1e-9)
    assert frozen.grad is None
    assert torch.equal(frozen, before)


class TiedModel(nn.Module):
    """One matrix used as both layers, as language models tie embedding and head."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 4, bias=False)
        self.second = nn.Linear(4, 4, bias=False)
        self.second.weight = self.first.weight

    def forward(self, inputs):
        return self.second(torch.tanh(self.first(inputs))).sum(dim=-1)


@pytest.mark.parametrize("mode", ["ascent", "joint"])
@ORDERS
def test_tied_weights_count_once(mode, order):
    torch.manual_seed(0)
    model = TiedModel().double()
    groups, pairs = torch.randn(3, 4, 4).double(), torch.randn(5, 4).double()
    weight = model.first.weight
    start = weight.detach().clone()
    taken = []
    for parameters in ([weight], [model.first.weight, model.second.weight]):
        weight.grad = None
        with meta_step(
            parameters,
            lambda: difference_loss(model(groups)),
            mode=mode,
            step_size=0.3,
            order=order,
        ):
            model(pairs).sum().backward()
        assert model.second.weight is weight
        assert torch.equal(weight, start)
        taken.append(weight.grad)
    assert torch.equal(taken[0], taken[1])


@pytest.mark.parametrize("mode", ["off", "ascent", "descent", "joint"])
def test_optimiser_state_is_untouched(problem, mode):
    optimizer = torch.optim.Adam(problem.parameters, lr=0.01)
    problem.preference().backward()
    optimizer.step()
    before = copy.deepcopy(optimizer.state_dict())
    with meta_step(problem.parameters, problem.difference, mode=mode, step_size=1.0):
        problem.preference().backward()
    after = optimizer.state_dict()
    assert after["param_groups"] == before["param_groups"]
    assert after["state"].keys() == before["state"].keys()
    for index, entries in before["state"].items():
        assert after["state"][index].keys() == entries.keys()
        assert all(torch.equal(after["state"][index][key], entries[key]) for key in entries)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mode", ["ascent", "descent", "joint"])
def test_low_precision_parameters_are_refused(make_problem, dtype, mode):
    problem = make_problem(dtype=dtype)
    start = problem.weights()
    with (
        pytest.raises(PrecisionError, match=r"float32.*16"),
        meta_step(problem.parameters, lambda: pytest.fail("evaluated"), mode=mode),
    ):
        pytest.fail("entered")
    with (
        pytest.raises(PrecisionError),
        look_ahead(problem.parameters, [torch.ones_like(p) for p in problem.parameters], 0.1),
    ):
        pytest.fail("entered")
    assert problem.is_at(start)


def test_frozen_low_precision_parameters_are_fine(make_problem):
    problem = make_problem(dtype=torch.float32)
    frozen = nn.Parameter(torch.ones(3, dtype=torch.bfloat16), requires_grad=False)
    parameters = [*problem.parameters, frozen]
    with meta_step(parameters, problem.difference, mode="ascent", step_size=0.1) as move:
        assert move.length > 0
    check_precision(problem.parameters)


def scores(problem):
    return problem.model(problem.groups).detach().clone()


def test_visible_inside_one_autocast_context(make_problem):
    """Autocast caches bf16 copies of the weights: stale ones would hide the move."""
    problem = make_problem(dtype=torch.float32)
    sizes = {"mode": "ascent", "step_length": 2.0}
    with (
        meta_step(problem.parameters, problem.difference, **sizes),
        torch.autocast("cpu", dtype=torch.bfloat16),
    ):
        expected_moved = scores(problem)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected_kept = scores(problem)
    assert not torch.equal(expected_moved, expected_kept)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(scores(problem), expected_kept)
        direction = measure_direction(problem.difference().float(), problem.parameters)
        step = 2.0 / direction.norm
        with look_ahead(problem.parameters, direction.gradients, step):
            moved = scores(problem)
        assert not torch.equal(moved, expected_kept)
        assert torch.equal(scores(problem), expected_kept)
        # Full precision agrees with it up to bf16: it is the move, not some noise.
        assert (moved - expected_moved).abs().max() < 0.1 * (moved - expected_kept).abs().max()


def test_move_says_what_rounding_swallowed():
    # Of two equal aims, 1 +- 0.4 ulp(1) is lost and the small weight keeps its part.
    aim = 0.4 * torch.finfo(torch.float32).eps
    parameters = [
        torch.tensor([value], dtype=torch.float32, requires_grad=True) for value in (1.0, 2.0**-10)
    ]
    gradients = [torch.ones(1), torch.ones(1)]
    with look_ahead(parameters, gradients, aim) as move:
        assert parameters[0].item() == 1.0
        assert parameters[1].item() > 2.0**-10
    assert move.realised_fraction == pytest.approx(0.5, abs=1e-3)
    assert move.length == pytest.approx(aim, rel=1e-3)


def test_tiny_steps_are_swallowed_in_fp32_and_not_in_fp64(make_problem):
    fractions = {}
    for dtype in (torch.float32, torch.float64):
        problem = make_problem(dtype=dtype, hidden=40)
        with meta_step(
            problem.parameters, problem.difference, mode="ascent", step_length=1e-8
        ) as move:
            fractions[dtype] = move.realised_fraction
    assert fractions[torch.float64] == pytest.approx(1.0, abs=1e-6)
    assert fractions[torch.float32] < 0.9


def test_a_move_that_is_rounded_up_counts_along_the_aim():
    ulp = torch.finfo(torch.float32).eps
    weight = torch.ones(1, requires_grad=True)
    with look_ahead([weight], [torch.ones(1)], 0.75 * ulp) as move:
        assert weight.item() == 1.0 + ulp
    assert move.realised_fraction == pytest.approx(1 / 0.75, rel=1e-6)
    assert move.length == pytest.approx(ulp)


def test_a_move_that_is_lost_whole():
    weight = torch.ones(5, requires_grad=True)
    with look_ahead([weight], [torch.ones(5)], 1e-9) as move:
        assert torch.equal(weight, torch.ones(5))
    assert (move.length, move.realised_fraction) == (0.0, 0.0)


def test_gradients_that_are_missing_leave_their_parameter():
    one, other = (torch.ones(2, requires_grad=True) for _ in range(2))
    with look_ahead([one, other], [None, torch.ones(2)], 0.5):
        assert one.tolist() == [1.0, 1.0]
        assert other.tolist() == [1.5, 1.5]
    assert other.tolist() == [1.0, 1.0]


def test_a_backward_pass_after_the_block_is_an_error():
    """The graph was built at other weights: a gradient of neither would come out."""
    weight = torch.ones(3, requires_grad=True)
    with look_ahead([weight], [torch.ones(3)], 0.5):
        loss = (weight * weight).sum()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    before = (weight * weight).sum()
    with (
        look_ahead([weight], [torch.ones(3)], 0.5),
        pytest.raises(RuntimeError, match="modified by an inplace operation"),
    ):
        before.backward()
