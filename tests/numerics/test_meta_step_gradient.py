# SPDX-License-Identifier: Apache-2.0
"""Which gradient the meta step leaves behind: closed forms, first against exact, joint."""

import itertools
from dataclasses import replace

import pytest
import torch
from torch.func import functional_call

from metarm.errors import ConfigError
from metarm.meta_step import (
    Direction,
    add_curvature,
    add_curvature_by_difference,
    add_gradients,
    check_mode,
    look_ahead,
    measure_direction,
    meta_step,
    signed_step,
    through_look_ahead,
)
from metarm.objectives import bradley_terry_loss, difference_loss

SIGN = {"ascent": 1.0, "descent": -1.0}


def largest_error(ours, expected):
    return max((a - b).abs().max().item() for a, b in zip(ours, expected, strict=True))


def taken(problem, **settings):
    """The gradient of a fresh meta step around the problem's preference loss."""
    problem.model.zero_grad()
    with meta_step(problem.parameters, problem.difference, **settings):
        problem.preference().backward()
    return problem.gradients()


def after_look_ahead(problem, step):
    """theta -> L(theta + step * grad J(theta)) with its graph, by torch.func."""
    names = [name for name, _ in problem.model.named_parameters()]

    def scores(values, inputs):
        state = dict(zip(names, values, strict=True))
        return functional_call(problem.model, state, (inputs,)).squeeze(-1)

    def loss(*values):
        difference = difference_loss(scores(values, problem.groups))
        slopes = torch.autograd.grad(difference, values, create_graph=True)
        moved = [value + step * slope for value, slope in zip(values, slopes, strict=True)]
        return bradley_terry_loss(scores(moved, problem.chosen), scores(moved, problem.rejected))

    return loss


@pytest.mark.parametrize("mode", ["ascent", "descent"])
def test_quadratic_in_closed_form(mode):
    generator = torch.Generator().manual_seed(0)
    A, B = (m @ m.T for m in torch.randn(2, 4, 4, generator=generator, dtype=torch.float64))
    a, b, start = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    theta = start.clone().requires_grad_()
    eta = 0.3

    def loss():
        return (theta - a) @ A @ (theta - a) / 2

    def difference():
        return b @ theta + theta @ B @ theta / 2

    there = start + SIGN[mode] * eta * (b + B @ start)
    first = A @ (there - a)
    exact = first + SIGN[mode] * eta * B @ first
    for order, expected in (("first", first), ("exact", exact)):
        theta.grad = None
        with meta_step([theta], difference, mode=mode, step_size=eta, order=order):
            assert largest_error([theta.detach()], [there]) < 1e-14
            loss().backward()
        assert largest_error([theta.grad], [expected]) < 1e-12
        assert torch.equal(theta, start)


@pytest.mark.parametrize("mode", ["ascent", "descent"])
def test_linear_reward_model_in_closed_form(mode):
    generator = torch.Generator().manual_seed(1)
    groups = torch.randn(6, 5, 3, generator=generator, dtype=torch.float64)
    chosen, rejected = torch.randn(2, 8, 3, generator=generator, dtype=torch.float64)
    start = torch.randn(3, generator=generator, dtype=torch.float64)
    w = start.clone().requires_grad_()
    step = SIGN[mode] * 2.0

    slope, curvature = torch.zeros(3).double(), torch.zeros(3, 3).double()
    for group in groups:
        for i, j in itertools.combinations(range(5), 2):
            apart = group[i] - group[j]
            gap = apart @ start
            s = 1 / (1 + torch.exp(-gap.abs()))
            slope += 2 / (6 * 25) * s * (1 - s) * gap.sign() * apart
            curvature += 2 / (6 * 25) * s * (1 - s) * (1 - 2 * s) * torch.outer(apart, apart)
    there = start + step * slope
    gaps = chosen - rejected
    first = -(gaps / (1 + torch.exp(gaps @ there))[:, None]).mean(dim=0)
    correction = step * curvature @ first

    def difference():
        return difference_loss(groups @ w)

    ours = {}
    for order in ("first", "exact"):
        w.grad = None
        with meta_step([w], difference, mode=mode, step_size=2.0, order=order):
            bradley_terry_loss(chosen @ w, rejected @ w).backward()
        ours[order] = w.grad
    assert largest_error([ours["first"]], [first]) < 1e-15
    assert largest_error([ours["exact"]], [first + correction]) < 1e-15
    # The two differ, and by just this: near would not be enough.
    assert correction.abs().max().item() > 1e-3
    assert largest_error([ours["exact"] - ours["first"]], [correction]) < 1e-15


@pytest.mark.parametrize(("mode", "seed"), itertools.product(SIGN, range(2)))
def test_exact_equals_central_differences(make_problem, mode, seed):
    problem = make_problem(seed)
    eta, h = 0.5, 1e-3
    ours = taken(problem, mode=mode, step_size=eta, order="exact")
    loss = after_look_ahead(problem, SIGN[mode] * eta)
    worst = 0.0
    for index, parameter in enumerate(problem.parameters):
        for place in range(parameter.numel()):
            values = {}
            for shift in (-2, -1, 1, 2):
                point = [p.detach().clone() for p in problem.parameters]
                point[index].view(-1)[place] += shift * h
                values[shift] = loss(*(p.requires_grad_() for p in point)).item()
            # The five-point stencil: its error is of order h^4.
            slope = (values[-2] - 8 * values[-1] + 8 * values[1] - values[2]) / (12 * h)
            worst = max(worst, abs(slope - ours[index].view(-1)[place].item()))
    assert worst < 1e-9


@pytest.mark.parametrize(("mode", "seed"), itertools.product(SIGN, range(4)))
def test_exact_equals_autograd_through_the_look_ahead(make_problem, mode, seed):
    problem = make_problem(seed, groups=3, k=5, hidden=7)
    ours = taken(problem, mode=mode, step_size=0.8, order="exact")
    through = torch.autograd.grad(
        after_look_ahead(problem, SIGN[mode] * 0.8)(*problem.parameters), problem.parameters
    )
    assert largest_error(ours, through) < 1e-13
    first = taken(problem, mode=mode, step_size=0.8, order="first")
    assert largest_error(first, through) > 1e-3


@pytest.mark.parametrize(("mode", "seed"), itertools.product(SIGN, range(4)))
def test_a_finite_difference_is_near_the_exact_gradient(make_problem, mode, seed):
    problem = make_problem(seed, groups=3, k=5, hidden=7)
    settings = {"mode": mode, "step_size": 0.8}
    first = taken(problem, **settings, order="first")
    exact = taken(problem, **settings, order="exact")
    near = taken(problem, **settings, order="finite-difference")
    correction = sum((a - b).square().sum() for a, b in zip(exact, first, strict=True)).sqrt()
    error = sum((a - b).square().sum() for a, b in zip(exact, near, strict=True)).sqrt()
    assert error < 0.01 * correction


@pytest.mark.parametrize("seed", range(4))
def test_a_finite_difference_with_a_held_order_does_not_see_ties(make_problem, seed):
    """Texts of nearly one score: the probe turns their order round, where J has a kink."""
    problem = make_problem(seed, groups=2000, k=5, hidden=7)
    with torch.no_grad():
        texts = problem.groups.flatten(0, 1)
        nearest = problem.model(texts).squeeze(-1).abs().argsort()[:15]
    problem = replace(problem, groups=texts[nearest].view(3, 5, -1))
    step, parameters = -0.8, problem.parameters

    def scores():
        return problem.model(problem.groups).squeeze(-1)

    def measure(ranking=None):
        return measure_direction(difference_loss(scores(), ranking=ranking), parameters)

    def corrected(add):
        problem.model.zero_grad()
        problem.preference().backward()
        before = problem.gradients()
        add()
        return [new - old for new, old in zip(problem.gradients(), before, strict=True)]

    ranking, direction = scores().detach(), measure()
    exact = corrected(lambda: add_curvature(parameters, problem.difference, step))
    held, free = (
        corrected(
            lambda order=order: add_curvature_by_difference(
                parameters, lambda: measure(order), direction, step
            )
        )
        for order in (ranking, None)
    )
    size = max(c.abs().max().item() for c in exact)
    assert largest_error(held, exact) < 0.05 * size
    assert largest_error(free, exact) > 10 * size


@pytest.mark.parametrize(("mode", "seed"), itertools.product(SIGN, range(3)))
def test_first_order_is_the_gradient_at_the_moved_weights(make_problem, mode, seed):
    problem = make_problem(seed)
    ours = taken(problem, mode=mode, step_size=0.7)
    slopes = torch.autograd.grad(problem.difference(), problem.parameters)
    moved = make_problem(seed)
    with torch.no_grad():
        for parameter, slope in zip(moved.parameters, slopes, strict=True):
            parameter += SIGN[mode] * 0.7 * slope
    moved.preference().backward()
    assert largest_error(ours, moved.gradients()) < 1e-15


@pytest.mark.parametrize("seed", range(3))
def test_joint_is_the_gradient_of_loss_minus_weighted_difference(make_problem, seed):
    problem = make_problem(seed)
    ours = taken(problem, mode="joint", weight=0.3)
    loss = problem.preference() - 0.3 * problem.difference()
    assert largest_error(ours, torch.autograd.grad(loss, problem.parameters)) < 1e-15


@pytest.mark.parametrize(
    "settings",
    [
        {"mode": "off"},
        {"mode": "ascent", "step_size": 0.0},
        {"mode": "descent", "step_size": 0.0},
        {"mode": "ascent", "step_size": 0.0, "order": "exact"},
        {"mode": "ascent", "step_length": 0.0},
        {"mode": "joint", "weight": 0.0},
    ],
    ids=str,
)
def test_a_step_of_nothing_trains_as_plain_bit_for_bit(make_problem, settings):
    plain = train(make_problem(dtype=torch.float32), {"mode": "off"}, is_plain=True)
    ours = train(make_problem(dtype=torch.float32), settings)
    assert all(torch.equal(ours[name], plain[name]) for name in plain)


@pytest.mark.parametrize("mode", ["ascent", "descent", "joint"])
@pytest.mark.parametrize("order", ["first", "exact"])
def test_groups_of_one_train_as_plain_bit_for_bit(make_problem, mode, order):
    settings = {"mode": mode, "order": order, "step_size": 0.5}
    problem = make_problem(dtype=torch.float32, k=1)
    plain = train(make_problem(dtype=torch.float32, k=1), {"mode": "off"}, is_plain=True)
    ours = train(problem, settings)
    assert all(torch.equal(ours[name], plain[name]) for name in plain)


@pytest.mark.parametrize("mode", ["ascent", "descent", "joint"])
@pytest.mark.parametrize("order", ["first", "exact"])
def test_the_same_seed_gives_the_same_bits(make_problem, mode, order):
    settings = {"mode": mode, "order": order, "step_size": 0.5}
    one, other = (train(make_problem(dtype=torch.float32), settings) for _ in range(2))
    plain = train(make_problem(dtype=torch.float32), {"mode": "off"})
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert any(not torch.equal(one[name], plain[name]) for name in one)


def train(problem, settings, *, is_plain=False):
    """The weights after 20 steps of Adam, with the meta step or with none in the code at all."""
    optimizer = torch.optim.Adam(problem.parameters, lr=0.05)
    for _ in range(20):
        optimizer.zero_grad()
        if is_plain:
            problem.preference().backward()
        else:
            with meta_step(problem.parameters, problem.difference, **settings):
                problem.preference().backward()
        optimizer.step()
    return problem.weights()


@pytest.mark.parametrize(
    "settings",
    [
        {"mode": "off"},
        {"mode": "ascent", "step_size": 0.5},
        {"mode": "descent", "step_size": 0.5, "order": "exact"},
        {"mode": "joint", "weight": 0.5},
    ],
    ids=str,
)
@pytest.mark.parametrize("has_earlier", [(True, True, True, True), (True, False, False, True)])
def test_gradients_accumulated_before_are_kept(problem, settings, has_earlier):
    fresh = taken(problem, **settings)
    generator = torch.Generator().manual_seed(5)
    earlier = [
        torch.randn(p.shape, generator=generator, dtype=p.dtype) if has else None
        for p, has in zip(problem.parameters, has_earlier, strict=True)
    ]
    for parameter, gradient in zip(problem.parameters, earlier, strict=True):
        parameter.grad = None if gradient is None else gradient.clone()
    with meta_step(problem.parameters, problem.difference, **settings):
        problem.preference().backward()
    expected = [new if old is None else old + new for old, new in zip(earlier, fresh, strict=True)]
    assert largest_error(problem.gradients(), expected) < 1e-14


@pytest.mark.parametrize("size", [1, 2, 3, 6])
@pytest.mark.parametrize("order", ["first", "exact"])
def test_micro_batches_sum_to_the_full_batch(make_problem, size, order):
    problem = make_problem(groups=6, pairs=6)
    full = taken(problem, mode="ascent", step_size=0.6, order=order)
    problem.model.zero_grad()
    parts = [slice(start, start + size) for start in range(0, 6, size)]
    share = size / 6
    total = [torch.zeros_like(p) for p in problem.parameters]
    for part in parts:
        direction = measure_direction(problem.difference(part), problem.parameters)
        total = [t + share * g for t, g in zip(total, direction.gradients, strict=True)]
    whole = measure_direction(problem.difference(), problem.parameters)
    assert largest_error(total, whole.gradients) < 1e-14

    def backward():
        with look_ahead(problem.parameters, total, 0.6):
            for part in parts:
                (share * problem.preference(part)).backward()

    if order == "first":
        backward()
    else:
        with through_look_ahead(problem.parameters, problem.difference, 0.6):
            backward()
    assert largest_error(problem.gradients(), full) < 1e-13


@pytest.mark.parametrize("seed", range(3))
def test_slope_of_the_difference_along_the_step(make_problem, seed):
    problem = make_problem(seed)
    direction = measure_direction(problem.difference(), problem.parameters)
    assert direction.difference == problem.difference().item()
    errors = []
    for eta in (1e-2, 1e-3, 1e-4):
        for mode in SIGN:
            with (
                meta_step(problem.parameters, problem.difference, mode=mode, step_size=eta),
                torch.no_grad(),
            ):
                rise = problem.difference().item() - direction.difference
            assert SIGN[mode] * rise > 0
            errors.append(abs(rise / (SIGN[mode] * eta * direction.norm**2) - 1))
    assert errors[0] < 0.05
    assert errors[2] < 0.2 * errors[0]
    assert errors[4] < 0.2 * errors[2]


def test_measuring_the_direction_leaves_gradients_alone(problem):
    problem.preference().backward()
    before = problem.gradients()
    direction = measure_direction(problem.difference(), problem.parameters)
    assert largest_error(problem.gradients(), before) == 0.0
    expected = torch.autograd.grad(problem.difference(), problem.parameters)
    assert largest_error(direction.gradients, expected) == 0.0
    assert direction.norm == pytest.approx(torch.cat([g.view(-1) for g in expected]).norm().item())


@pytest.mark.parametrize(("order", "calls"), [("first", 1), ("exact", 2)])
def test_how_often_the_difference_is_evaluated(problem, order, calls):
    seen = []

    def difference():
        seen.append(problem.weights())
        return problem.difference()

    start = problem.weights()
    with meta_step(problem.parameters, difference, mode="ascent", step_size=1.0, order=order):
        problem.preference().backward()
    assert len(seen) == calls
    assert all(torch.equal(at[name], start[name]) for at in seen for name in start)
    with meta_step(problem.parameters, lambda: pytest.fail("evaluated for off"), mode="off"):
        pass


@pytest.mark.parametrize("settings", [{"order": "first"}, {"order": "exact"}, {"mode": "joint"}])
def test_parameters_that_a_loss_does_not_see(settings):
    shared, only_meta, only_pairs, unseen = (
        torch.tensor([value], dtype=torch.float64, requires_grad=True)
        for value in (0.7, -0.4, 1.3, 2.0)
    )
    parameters = [shared, only_meta, only_pairs, unseen]
    with meta_step(
        parameters,
        lambda: (shared**2 * only_meta).sum(),
        **({"mode": "ascent", "step_size": 0.1, "weight": 0.1} | settings),
    ):
        (shared * only_pairs).sum().backward()
    s, m, p, eta = 0.7, -0.4, 1.3, 0.1
    first = [p, None, s + eta * 2 * s * m]
    # H_J of s^2 m has the rows (2 m, 2 s) and (2 s, 0).
    exact = [p + eta * 2 * m * p, eta * 2 * s * p, first[2]]
    joint = [p - eta * 2 * s * m, -eta * s**2, s]
    expected = joint if "mode" in settings else {"first": first, "exact": exact}[settings["order"]]
    for parameter, value in zip(parameters, [*expected, None], strict=True):
        if value is None:
            assert parameter.grad is None
        else:
            assert parameter.grad.item() == pytest.approx(value, abs=1e-15)


def test_exact_where_the_difference_sees_no_parameter():
    theta = torch.tensor([2.0], dtype=torch.float64, requires_grad=True)
    other = torch.tensor([3.0], dtype=torch.float64, requires_grad=True)
    with meta_step([theta], lambda: (other**2).sum(), mode="ascent", order="exact"):
        (theta**2).sum().backward()
    assert theta.grad.item() == 4.0


def test_a_linear_difference_has_no_curvature_to_correct():
    theta = torch.tensor([2.0], dtype=torch.float64, requires_grad=True)
    with meta_step([theta], lambda: (3 * theta).sum(), mode="ascent", step_size=1, order="exact"):
        (theta**2).sum().backward()
    assert theta.grad.item() == 10.0


def test_signed_step():
    direction = Direction(0.5, (torch.tensor([3.0, 4.0]),), 5.0)
    assert signed_step("ascent", direction, step_size=0.2) == 0.2
    assert signed_step("descent", direction, step_size=0.2) == -0.2
    assert signed_step("ascent", direction, step_size=9.0, step_length=0.5) == 0.1
    assert signed_step("descent", direction, step_size=9.0, step_length=0.5) == -0.1
    assert signed_step("off", direction, step_size=0.2) == 0.0
    assert signed_step("joint", direction, step_size=0.2, step_length=1.0) == 0.0


def test_adding_gradients():
    one, other, third = (torch.zeros(2, requires_grad=True) for _ in range(3))
    one.grad = torch.tensor([1.0, 2.0])
    gradient = torch.tensor([10.0, 20.0])
    add_gradients([one, other, third], [gradient, gradient, None], -0.5)
    assert one.grad.tolist() == [-4.0, -8.0]
    assert other.grad.tolist() == [-5.0, -10.0]
    assert third.grad is None
    assert gradient.tolist() == [10.0, 20.0]


@pytest.mark.parametrize(
    ("settings", "nearest"),
    [
        ({"mode": "decsent"}, "'descent'"),
        ({"mode": "Off"}, "'off'"),
        ({"mode": "ascent", "order": "frist"}, "'first'"),
        ({"mode": "ascent", "order": "2"}, "exact, finite-difference, first"),
    ],
)
def test_unknown_names_are_refused_with_the_nearest(problem, settings, nearest):
    with (
        pytest.raises(ConfigError, match=nearest),
        meta_step(problem.parameters, problem.difference, **settings),
    ):
        pytest.fail("entered")


def test_known_modes_pass():
    for mode in ("off", "ascent", "descent", "joint"):
        check_mode(mode)
