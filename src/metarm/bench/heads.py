# SPDX-License-Identifier: Apache-2.0
"""A small reward head on frozen features, trained as a recipe says; hundreds of steps a second.

The step itself is `metarm.meta_step`, the same code that trains whole models.
"""

import functools
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from metarm.bench.problem import Problem
from metarm.bench.recipes import MOST_HALVINGS, Recipe
from metarm.config import HeadSettings
from metarm.data.meta_mixture import GroupMixture
from metarm.errors import EmptySetError
from metarm.meta_step import (
    SIGNS,
    Direction,
    add_gradients,
    look_ahead,
    measure_direction,
    step_in_reward_units,
)
from metarm.metrics import mean_group_spearman
from metarm.objectives import bradley_terry_loss, difference_loss

__all__ = ["Cost", "Trajectory", "mean_rank_correlation", "train_recipe"]

LABEL_REPEAT: Final = 10
CRITIC_STEPS: Final = 3
GRADIENT_PENALTY: Final = 10.0
RATIO_LIMITS: Final = (0.1, 10.0)


@dataclass(slots=True)
class Cost:
    """Responses sent through a head while training."""

    forward: int = 0
    backward: int = 0

    def plus(self, other: "Cost") -> "Cost":
        """Both together."""
        return Cost(self.forward + other.forward, self.backward + other.backward)


@dataclass(frozen=True, slots=True, eq=False)
class Trajectory:
    """All texts' scores along training, and which point the stopping rule takes."""

    steps: tuple[int, ...]
    scores: Tensor
    """Shape (points, texts), in logits."""
    validation: tuple[float, ...]
    """Accuracy on original pairs of prompts that were not trained on, at each point."""
    cost: Cost
    weights: tuple[Tensor, ...] = ()
    """The head's weights at each point, as one vector each."""

    @property
    def best(self) -> int:
        """The point with the highest validation accuracy, mean of it and its two neighbours.

        A few hundred pairs measure an accuracy to 2 points: alone, the highest is chosen by luck.
        """
        known = torch.tensor(self.validation)
        smooth = torch.stack([known[max(i - 1, 0) : i + 2].mean() for i in range(len(known))])
        return int(smooth.argmax())

    def at(self, step: int) -> Tensor:
        """All texts' scores at a step, or at the last one where it was not measured."""
        return self.scores[self.steps.index(step) if step in self.steps else -1]


class _Head(nn.Module):
    """features -> hidden layers -> one score."""

    def __init__(self, size: int, hidden: tuple[int, ...]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width in hidden:
            layers += [nn.Linear(size, width), nn.ReLU()]
            size = width
        self.trunk = nn.Sequential(*layers)
        self.score = nn.Linear(size, 1)

    def forward(self, features: Tensor) -> Tensor:
        scores: Tensor = self.score(self.trunk(features)).squeeze(-1)
        return scores


def train_recipe(problem: Problem, recipe: Recipe, settings: HeadSettings, seed: int) -> Trajectory:
    """Train what a recipe asks for and score every text along the way.

    Args:
        problem: Nothing in it is tested on.
        recipe: See `recipes.Recipe`.
        settings: Sizes and rates of the head.
        seed: Start of the weights, order of the batches.

    Raises:
        EmptySetError: When a recipe needs labels or groups that are not there.
    """
    if recipe.uses_labels and len(problem.own_labels) < max(recipe.num_labels, 1):
        raise EmptySetError(
            f"this method uses {recipe.num_labels or 'all'} labelled shifted pairs, and there are "
            f"{len(problem.own_labels)}"
        )
    seed += recipe.seed_offset
    recipe = replace(recipe, seed_offset=0)
    if recipe.least_rank_correlation is not None:
        return _train_guarded(problem, recipe, settings, seed)
    if recipe.pseudo_confidence is not None:
        teacher = train_recipe(problem, Recipe(), settings, seed)
        problem = _with_pseudo_labels(problem, teacher, recipe.pseudo_confidence)
        found = train_recipe(problem, replace(recipe, pseudo_confidence=None), settings, seed)
        return replace(found, cost=teacher.cost.plus(found.cost))
    members = [
        _train_head(problem, recipe, settings, seed, member) for member in range(recipe.members)
    ]
    if len(members) == 1:
        return members[0]
    cost = functools.reduce(Cost.plus, (member.cost for member in members))
    if recipe.averages_weights:
        vectors = [
            torch.stack(point).mean(0) for point in zip(*(m.weights for m in members), strict=True)
        ]
        scores = torch.stack([_scores_at(problem, settings, vector) for vector in vectors])
    else:
        scores = _combine([_in_units(problem, m.scores) for m in members], recipe.pessimism)
    return Trajectory(
        members[0].steps, scores, _accuracies(scores, problem.validation), cost, members[0].weights
    )


def _train_guarded(
    problem: Problem, recipe: Recipe, settings: HeadSettings, seed: int
) -> Trajectory:
    """Half the strength until the rewards still order responses as plain ones do, else plain."""
    assert recipe.least_rank_correlation is not None
    # All but the step: labels and members of the same recipe stay in what it is compared with.
    without = replace(
        recipe, step="off", strength=0.0, reward_fraction=None, least_rank_correlation=None
    )
    plain = train_recipe(problem, without, settings, seed)
    cost = plain.cost
    for halving in range(MOST_HALVINGS + 1):
        weaker = replace(
            recipe,
            strength=recipe.strength / 2**halving,
            reward_fraction=recipe.reward_fraction and recipe.reward_fraction / 2**halving,
            least_rank_correlation=None,
        )
        found = train_recipe(problem, weaker, settings, seed)
        cost = cost.plus(found.cost)
        correlation = mean_rank_correlation(
            problem.watched_groups, found.scores[found.best], plain.at(found.steps[found.best])
        )
        if correlation is not None and correlation >= recipe.least_rank_correlation:
            return replace(found, cost=cost)
    return replace(plain, cost=cost)


def mean_rank_correlation(groups: Tensor, scores: Tensor, reference: Tensor) -> float | None:
    """Mean within-group Spearman correlation, groups of any sizes; None where none has an order.

    Args:
        groups: Shape (groups, k), rows of the scores; -1 where a group is smaller.
        scores: Shape (texts,).
        reference: Shape (texts,).
    """
    sizes = (groups >= 0).sum(1)
    found = []
    for size in sorted(set(sizes.tolist())):
        rows = groups[sizes == size][:, :size]
        value = mean_group_spearman(scores[rows].numpy(), reference[rows].numpy())
        if value is not None:
            found.append((value, len(rows)))
    total = sum(count for _, count in found)
    return sum(value * count for value, count in found) / total if total else None


def _combine(members: list[Tensor], pessimism: float | None) -> Tensor:
    """Mean, or -beta log E exp(-r / beta): towards the minimum as beta falls."""
    together = torch.stack(members)
    if pessimism is None:
        return together.mean(0)
    soft = torch.logsumexp(-together / pessimism, dim=0) - torch.tensor(len(members)).log()
    return -pessimism * soft


def _in_units(problem: Problem, scores: Tensor) -> Tensor:
    """Scores with mean 0 and spread 1 over the original pairs: members' scales differ."""
    seen = scores[:, problem.pairs.unique()]
    return (scores - seen.mean(1, keepdim=True)) / seen.std(1, keepdim=True).clamp(min=1e-6)


def _accuracies(scores: Tensor, pairs: Tensor) -> tuple[float, ...]:
    gaps = scores[:, pairs[:, 0]] - scores[:, pairs[:, 1]]
    return tuple(((1 + gaps.sign()) / 2).mean(1).tolist())


def _with_pseudo_labels(problem: Problem, teacher: Trajectory, confidence: float) -> Problem:
    """West-of-n: best against worst of each group where the teacher is sure enough."""
    scores = teacher.scores[teacher.best]
    found = []
    for group in problem.groups:
        rows = group[group >= 0]
        own = scores[rows]
        if torch.sigmoid(own.max() - own.min()) >= confidence:
            found.append(torch.stack([rows[own.argmax()], rows[own.argmin()]]))
    pseudo = torch.stack(found) if found else problem.pairs[:0]
    return replace(problem, pairs=torch.cat([problem.pairs, pseudo]))


@dataclass(eq=False)
class _Training:
    """One head on its way."""

    problem: Problem
    recipe: Recipe
    settings: HeadSettings
    head: _Head
    pairs: Tensor
    weights: Tensor | None
    noise: torch.Generator
    """Of random directions alone: the batches stay those of every other method."""
    cost: Cost = field(default_factory=Cost)

    def scores(self, rows: Tensor) -> Tensor:
        """Scores of texts with their graph, any shape of row numbers."""
        count = int((rows >= 0).sum())
        self.cost.forward += count
        self.cost.backward += count if torch.is_grad_enabled() else 0
        flat: Tensor = self.head(self.problem.features[rows.clamp(min=0).reshape(-1)])
        return flat.reshape(rows.shape)

    def difference(self, groups: Tensor) -> Tensor:
        """J of some groups."""
        return difference_loss(self.scores(groups), groups >= 0)


def _train_head(
    problem: Problem, recipe: Recipe, settings: HeadSettings, seed: int, member: int
) -> Trajectory:
    draw = torch.Generator().manual_seed(seed * 1009 + member)
    pairs = _training_pairs(problem, recipe)
    if recipe.members > 1:
        pairs = pairs[torch.randint(len(pairs), (len(pairs),), generator=draw)]
    # Averaged weights must lie in one basin: their members share a start.
    start = seed * 1009 + (0 if recipe.averages_weights else member)
    run = _Training(
        problem,
        recipe,
        settings,
        _new_head(problem, settings, start),
        pairs,
        None,
        torch.Generator().manual_seed(start + 1),
    )
    if recipe.weighs_pairs:
        run.weights = _density_ratios(problem, pairs)
    optimizer = torch.optim.AdamW(
        run.head.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
    )
    critic = _Critic(settings.hidden[-1], seed) if recipe.domain_weight else None
    pair_rows = _endless(len(pairs), settings.batch_size, draw)
    group_rows = _endless(len(problem.groups), settings.num_groups, draw)
    mixture = None
    if recipe.source_floor is not None and len(set(problem.sources)) > 1:
        mixture = GroupMixture(problem.sources, floor=recipe.source_floor, seed=start)
    points: list[tuple[int, Tensor, Tensor]] = []
    for step in range(1, settings.num_steps + 1):
        # Drawn in any case: pairs come from the same stream.
        chosen, drawn = next(pair_rows), next(group_rows)
        if mixture is not None:
            drawn = _draw_by_source(run, mixture, chosen, step)
        groups = problem.groups[drawn]
        optimizer.zero_grad(set_to_none=True)
        with _around(run, chosen, groups):
            _preference_loss(run, chosen, groups, critic).backward()
        optimizer.step()
        if step % settings.measure_every == 0 or step == settings.num_steps:
            points.append((step, *_measure(run)))
    scores = torch.stack([scores for _, scores, _ in points])
    return Trajectory(
        tuple(step for step, *_ in points),
        scores,
        _accuracies(scores, problem.validation),
        run.cost,
        tuple(vector for *_, vector in points) if recipe.averages_weights else (),
    )


def _training_pairs(problem: Problem, recipe: Recipe) -> Tensor:
    if recipe.is_oracle:
        return problem.own_labels
    labels = problem.own_labels[: recipe.num_labels].repeat(LABEL_REPEAT, 1)
    return torch.cat([problem.pairs, labels])


def _new_head(problem: Problem, settings: HeadSettings, seed: int) -> _Head:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _Head(problem.features.shape[1], tuple(settings.hidden))


def _endless(size: int, batch: int, draw: torch.Generator) -> Iterator[Tensor]:
    """Batches of row numbers; each comes once before any comes again."""
    waiting = torch.empty(0, dtype=torch.long)
    while True:
        while len(waiting) < batch:
            waiting = torch.cat([waiting, torch.randperm(size, generator=draw)])
        yield waiting[:batch]
        waiting = waiting[batch:]


def _draw_by_source(run: _Training, mixture: GroupMixture, chosen: Tensor, step: int) -> Tensor:
    """The groups of a step by what its sources have lost so far, which they then are asked for."""
    problem = run.problem
    drawn = mixture.draw(run.settings.num_groups, step)
    groups = problem.groups[drawn]
    with torch.no_grad():
        pairs = run.scores(run.pairs[chosen])
        sources = [problem.sources[row] for row in drawn]
        mixture.see_groups(run.scores(groups), groups >= 0, sources)
    mixture.see_pairs(pairs[:, 0], pairs[:, 1])
    mixture.end_step()
    return torch.tensor(drawn)


def _preference_loss(
    run: _Training, chosen: Tensor, groups: Tensor, critic: "_Critic | None"
) -> Tensor:
    recipe = run.recipe
    scores = run.scores(run.pairs[chosen])
    if run.weights is None:
        loss = bradley_terry_loss(scores[:, 0], scores[:, 1])
    else:
        loss = -(run.weights[chosen] * functional.logsigmoid(scores[:, 0] - scores[:, 1])).mean()
    if recipe.centring:
        loss = loss + recipe.centring * scores.sum(1).square().mean()
    if recipe.batch_sum:
        loss = loss + recipe.batch_sum * scores.mean().square() * scores.numel()
    if critic is not None:
        original = run.head.trunk(run.problem.features[run.pairs[chosen].reshape(-1)])
        shifted = run.head.trunk(run.problem.features[groups[groups >= 0]])
        run.cost.forward += len(original) + len(shifted)
        run.cost.backward += len(original) + len(shifted)
        loss = loss + recipe.domain_weight * critic.distance(original, shifted)
    return loss


@contextmanager
def _around(run: _Training, chosen: Tensor, groups: Tensor) -> Iterator[None]:
    """The recipe's step around the preference gradient; `metarm.meta_step` moves and puts back."""
    recipe, parameters = run.recipe, list(run.head.parameters())
    if recipe.step == "off":
        yield
        return
    if recipe.step == "sam":
        pairs = run.scores(run.pairs[chosen])
        direction = measure_direction(bradley_terry_loss(pairs[:, 0], pairs[:, 1]), parameters)
        size = recipe.strength / max(direction.norm, 1e-12)
    else:
        direction = measure_direction(run.difference(groups), parameters)
        size = SIGNS.get(recipe.step, 1.0) * recipe.strength
        if recipe.reward_fraction is not None:
            size = SIGNS.get(recipe.step, 1.0) * _step_in_reward_units(
                run, direction, chosen, recipe.reward_fraction
            )
    if recipe.step == "random":
        direction = _random_direction(direction, run.noise)
    if recipe.step == "joint":
        yield
        add_gradients(parameters, direction.gradients, -recipe.strength)
        return
    with look_ahead(parameters, direction.gradients, size):
        yield


def _step_in_reward_units(
    run: _Training, direction: Direction, chosen: Tensor, fraction: float
) -> float:
    """The step that changes the scores of a batch of pairs by `fraction` of their spread."""
    rows = run.problem.features[run.pairs[chosen].reshape(-1)]
    run.cost.forward += 2 * len(rows)
    with torch.no_grad():
        return step_in_reward_units(
            list(run.head.parameters()), direction, lambda: run.head(rows), fraction
        )


def _random_direction(direction: Direction, draw: torch.Generator) -> Direction:
    """Another direction of the same length: what moving the weights anywhere would do."""
    noise = [
        None if g is None else torch.randn(g.shape, generator=draw) for g in direction.gradients
    ]
    length = sum(float(n.square().sum()) for n in noise if n is not None) ** 0.5
    scale = direction.norm / max(length, 1e-12)
    return Direction(
        direction.difference,
        tuple(None if n is None else n * scale for n in noise),
        direction.norm,
    )


def _measure(run: _Training) -> tuple[Tensor, Tensor]:
    """Scores of every text now, and the weights as one vector."""
    head, problem = run.head, run.problem
    context = nullcontext()
    if run.recipe.deploys_look_ahead:
        parameters = list(head.parameters())
        direction = measure_direction(run.difference(problem.groups), parameters)
        size = SIGNS.get(run.recipe.step, 0.0) * run.recipe.strength
        context = look_ahead(parameters, direction.gradients, size)  # type: ignore[assignment]
    with context, torch.no_grad():
        scores = head(problem.features)
    vector = nn.utils.parameters_to_vector(head.parameters()).detach().clone()
    return scores, vector


def _scores_at(problem: Problem, settings: HeadSettings, vector: Tensor) -> Tensor:
    head = _new_head(problem, settings, 0)
    nn.utils.vector_to_parameters(vector, head.parameters())
    with torch.no_grad():
        scores: Tensor = head(problem.features)
    return scores


def _density_ratios(problem: Problem, pairs: Tensor) -> Tensor:
    """How much likelier each pair's texts are among the shifted ones; mean 1.

    The odds of a logistic classifier between the two sides, cut to `RATIO_LIMITS`.
    """
    shifted = problem.groups[problem.groups >= 0]
    rows = torch.cat([pairs.reshape(-1), shifted])
    is_shifted = torch.cat([torch.zeros(pairs.numel()), torch.ones(len(shifted))])
    weight = torch.zeros(problem.features.shape[1], requires_grad=True)
    bias = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=50, line_search_fn="strong_wolfe")
    inputs = problem.features[rows]

    def closure() -> Tensor:
        optimizer.zero_grad()
        logits = inputs @ weight + bias
        loss = functional.binary_cross_entropy_with_logits(logits, is_shifted)
        loss = loss + 1e-2 * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    with torch.no_grad():
        ratios = (problem.features[pairs] @ weight + bias).exp().mean(1)
        ratios = (ratios / ratios.mean()).clamp(*RATIO_LIMITS)
    return ratios / ratios.mean()


class _Critic:
    """A Wasserstein critic with gradient penalty (Gulrajani et al. 2017) on the head's trunk."""

    def __init__(self, size: int, seed: int) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed + 1)
            self.net = nn.Sequential(nn.Linear(size, 32), nn.ReLU(), nn.Linear(32, 1))
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=1e-3)

    def distance(self, original: Tensor, shifted: Tensor) -> Tensor:
        """The distance of two sets of hidden states, after a few steps of the critic's own."""
        count = min(len(original), len(shifted))
        for _ in range(CRITIC_STEPS):
            one, two = original[:count].detach(), shifted[:count].detach()
            middle = ((one + two) / 2).requires_grad_()
            (slope,) = torch.autograd.grad(self.net(middle).sum(), middle, create_graph=True)
            penalty = (slope.norm(dim=1) - 1).square().mean()
            loss = self.net(two).mean() - self.net(one).mean() + GRADIENT_PENALTY * penalty
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
        gap: Tensor = self.net(original).mean() - self.net(shifted).mean()
        return gap
