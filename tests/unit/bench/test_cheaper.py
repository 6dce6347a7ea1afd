# SPDX-License-Identifier: Apache-2.0
"""Meta steps that are cheaper, or dearer, by choice: what they compute, and how often."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from metarm.bench.methods import train_recipe
from metarm.bench.problem import Problem
from metarm.bench.recipes import Recipe, read_recipe
from metarm.bench.settings import HeadSettings
from metarm.objectives import bradley_terry_loss, difference_loss

SETTINGS = HeadSettings(
    hidden=[8], num_steps=12, measure_every=4, batch_size=16, num_groups=8, learning_rate=1e-2
)
PAIRS, GROUPS = 2 * SETTINGS.batch_size, 4 * SETTINGS.num_groups
"""Responses of a step's pairs, and of its groups of four."""
# A score without hidden layers, and all pairs and groups at each step: nothing is drawn.
LINEAR = SETTINGS.model_copy(
    update={"hidden": [], "weight_decay": 0.0, "measure_every": 3, "learning_rate": 0.05}
)


def everything(problem: Problem) -> HeadSettings:
    whole = {"batch_size": len(problem.pairs), "num_groups": len(problem.groups)}
    return LINEAR.model_copy(update=whole)


def by_hand(problem: Problem, gradient: Callable[[Tensor, Callable, Callable, int], Tensor]):
    """Scores of a linear head trained by AdamW on a gradient that the test works out itself."""
    torch.manual_seed(0)
    start = torch.nn.Linear(problem.features.shape[1], 1)
    weights = start.weight.detach().double().squeeze(0).requires_grad_()
    features, optimizer = problem.features.double(), None
    optimizer = torch.optim.AdamW([weights], lr=LINEAR.learning_rate, weight_decay=0.0)

    def preference(at: Tensor) -> Tensor:
        scores = features[problem.pairs] @ at
        return bradley_terry_loss(scores[:, 0], scores[:, 1])

    def difference(at: Tensor) -> Tensor:
        return difference_loss(features[problem.groups] @ at)

    for step in range(LINEAR.num_steps):
        weights.grad = gradient(weights, preference, difference, step).detach()
        optimizer.step()
    return (features @ weights).detach().float()


def slope(loss: Callable[[Tensor], Tensor], at: Tensor, **options: bool) -> Tensor:
    return torch.autograd.grad(loss(at), at, **options)[0]


def contrasts(problem: Problem, scores: Tensor) -> Tensor:
    """Differences of scores: a shared constant, which no loss sees, is left out."""
    return scores[problem.pairs[:, 0]] - scores[problem.pairs[:, 1]]


@pytest.mark.parametrize("name", ["joint", "descent", "joint-auto", "sam", "random-direction"])
def test_each_step_with_all_groups_is_the_method_itself(made_up, name: str) -> None:
    _, problem = made_up()
    own = train_recipe(problem, read_recipe(name), SETTINGS, 0)
    for part in ("every-1", "stored-1", "head-only"):
        found = train_recipe(problem, read_recipe(f"{name}+{part}"), SETTINGS, 0)
        assert torch.equal(found.scores, own.scores), part
        assert (found.cost.forward, found.cost.backward) == (own.cost.forward, own.cost.backward)


def test_without_a_step_they_are_plain_training(made_up) -> None:
    _, problem = made_up()
    plain = train_recipe(problem, Recipe(), SETTINGS, 0)
    for name in ("every-4", "stored-4", "quarter-groups", "head-only", "exact"):
        found = train_recipe(problem, read_recipe(name), SETTINGS, 0)
        assert torch.equal(found.scores, plain.scores), name


@pytest.mark.parametrize("between", ["every", "stored"])
def test_steps_between_are_plain_or_go_along_the_last_gradient(made_up, between: str) -> None:
    _, problem = made_up()
    kept = [torch.zeros(())]

    def gradient(at: Tensor, preference: Callable, difference: Callable, step: int) -> Tensor:
        if step % 3 == 0:
            kept[0] = slope(difference, at)
        share = 2.0 if step % 3 == 0 or between == "stored" else 0.0
        return slope(preference, at) - share * kept[0]

    found = train_recipe(problem, read_recipe(f"joint@2+{between}-3"), everything(problem), 0)
    expected = by_hand(problem, gradient)
    assert torch.allclose(
        contrasts(problem, found.scores[-1]), contrasts(problem, expected), atol=1e-4
    )
    each_step = train_recipe(problem, read_recipe("joint@2"), everything(problem), 0)
    gap = contrasts(problem, each_step.scores[-1]) - contrasts(problem, found.scores[-1])
    assert gap.abs().max() > 1e-3, "the test could not tell them apart"


def test_a_stored_gradient_that_does_not_change_is_as_good_as_a_new_one(made_up) -> None:
    """Gaps so small that J's slope is 1/4 to rounding, along an axis whose sign stays: constant."""
    _, problem = made_up()
    rows = problem.groups[0, :2]
    features = problem.features.clone()
    features[rows] = torch.zeros(2, features.shape[1])
    features[rows[0], -1] = 1e-5
    one = replace(problem, features=features, groups=rows[None])
    settings = LINEAR.model_copy(update={"num_groups": 1, "learning_rate": 1e-3})
    for method in ("joint@100000", "descent@100000"):
        each, stored, plain = (
            train_recipe(one, read_recipe(name), settings, 0)
            for name in (method, f"{method}+stored-100", f"{method}+every-100")
        )
        assert torch.equal(each.scores, stored.scores), method
        assert not torch.equal(each.scores, plain.scores), method
        pairs = settings.num_steps * 2 * settings.batch_size
        assert each.cost.forward == pairs + 2 * settings.num_steps
        assert stored.cost.forward == plain.cost.forward == pairs + 2


def test_a_quarter_of_the_groups_are_the_first_of_the_step(made_up) -> None:
    _, problem = made_up()
    first = SETTINGS.model_copy(update={"num_steps": 1, "measure_every": 1})
    few = first.model_copy(update={"num_groups": 2})
    whole = train_recipe(problem, read_recipe("joint"), few, 0)
    quarter = train_recipe(problem, read_recipe("joint+quarter-groups"), first, 0)
    assert torch.equal(whole.scores, quarter.scores)


def test_orders_are_those_of_autograd(made_up) -> None:
    """Exact is the gradient of L(theta - 9 grad J(theta)), the difference nearly so."""
    _, problem = made_up()

    def gradient(at: Tensor, preference: Callable, difference: Callable, step: int) -> Tensor:
        def ahead(weights: Tensor) -> Tensor:
            return preference(weights - 9.0 * slope(difference, weights, create_graph=True))

        return slope(ahead, at)

    expected = contrasts(problem, by_hand(problem, gradient))
    first, exact, difference = (
        contrasts(
            problem, train_recipe(problem, read_recipe(name), everything(problem), 0).scores[-1]
        )
        for name in ("descent@9", "descent@9+exact", "descent@9+finite-difference")
    )
    assert torch.allclose(exact, expected, atol=1e-4)
    away = (first - expected).abs().max()
    assert (difference - expected).abs().max() < 0.01 * away
    assert away > 1e-2


@pytest.mark.parametrize(
    ("name", "forward", "backward"),
    [
        ("joint", 12 * GROUPS, 12 * GROUPS),
        ("joint+every-4", 3 * GROUPS, 3 * GROUPS),
        ("joint+every-5", 3 * GROUPS, 3 * GROUPS),
        ("descent+stored-4", 3 * GROUPS, 3 * GROUPS),
        ("joint+quarter-groups", 3 * GROUPS, 3 * GROUPS),
        ("joint+stored-4+quarter-groups", 3 * GROUPS // 4, 3 * GROUPS // 4),
        ("descent+finite-difference", 2 * 12 * GROUPS, 2 * 12 * GROUPS),
        ("descent+exact", 2 * 12 * GROUPS, 5 * 12 * GROUPS),
        ("descent+exact+every-4", 2 * 3 * GROUPS, 5 * 3 * GROUPS),
    ],
)
def test_what_is_computed_is_counted(made_up, name: str, forward: int, backward: int) -> None:
    _, problem = made_up()
    cost = train_recipe(problem, read_recipe(name), SETTINGS, 0).cost
    assert cost.forward == SETTINGS.num_steps * PAIRS + forward
    assert cost.backward == SETTINGS.num_steps * PAIRS + backward


def test_a_guard_compares_with_the_plain_training_that_is_there(made_up) -> None:
    _, problem = made_up()
    plain = train_recipe(problem, Recipe(), SETTINGS, 0)
    marked = replace(plain, scores=-plain.scores)
    recipe = replace(read_recipe("joint-auto+stored-4"), least_rank_correlation=1.1)
    found = train_recipe(problem, recipe, SETTINGS, 0, plain=marked)
    assert torch.equal(found.scores, marked.scores), "another plain head was trained"
