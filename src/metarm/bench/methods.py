# SPDX-License-Identifier: Apache-2.0
"""A method as its recipe says: one network, or several that teach, guard or average one another."""

import functools
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from metarm.bench.fitting import build_network, train_network
from metarm.bench.problem import Problem
from metarm.bench.recipes import Recipe
from metarm.bench.settings import HeadSettings
from metarm.bench.stretched import train_in_rounds, with_made_rows
from metarm.bench.trajectory import Cost, Trajectory, accuracies
from metarm.errors import EmptySetError

__all__ = ["train_recipe"]


def train_recipe(
    problem: Problem,
    recipe: Recipe,
    settings: HeadSettings,
    seed: int,
    *,
    plain: Trajectory | None = None,
    known: dict[Any, Trajectory] | None = None,
) -> Trajectory:
    """Train what a recipe asks for and score the texts along the way.

    Args:
        problem: Nothing in it is tested on.
        recipe: See `recipes.Recipe`.
        settings: Sizes and rates.
        seed: Start of the weights, order of the batches.
        plain: What the plain recipe gives for the same problem, settings and seed, where it is
            there already; what needs it is charged for it all the same.
        known: Networks that methods of the same problem and settings have in common, members and
            the plain twins of guarded ones; filled here.

    Raises:
        EmptySetError: When a recipe needs labels or groups that are not there.
    """
    if recipe.uses_labels and len(problem.own_labels) < max(recipe.num_labels, 1):
        raise EmptySetError(
            f"this method uses {recipe.num_labels or 'all'} labelled shifted pairs, and there are "
            f"{len(problem.own_labels)}"
        )
    seed += recipe.seed_offset
    plain = None if recipe.seed_offset else plain
    recipe = replace(recipe, seed_offset=0)
    if recipe.augments:
        problem = with_made_rows(problem, recipe.augments)
        recipe, plain, known = replace(recipe, augments=()), None, None
    if recipe.pseudo_rounds:
        teacher = plain if problem.measured is None else None

        def train(of: Problem, by: Recipe) -> Trajectory:
            return train_recipe(_measuring_groups(of), by, settings, seed)

        return train_in_rounds(problem, recipe, seed, train, teacher)
    if recipe.pseudo_confidence is not None:
        teacher = plain if problem.measured is None else None
        if teacher is None:
            teacher = train_recipe(_measuring_groups(problem), Recipe(), settings, seed)
        problem = _with_pseudo_labels(problem, teacher, recipe.pseudo_confidence)
        found = train_recipe(problem, replace(recipe, pseudo_confidence=None), settings, seed)
        return replace(found, cost=teacher.cost.plus(found.cost))
    known = {} if known is None else known
    members = []
    for member in range(recipe.members):
        # How members are put together is no part of their training.
        key = (replace(recipe, pessimism=None), seed, member)
        if key not in known:
            known[key] = _train_member(problem, recipe, settings, seed, member, plain, known)
        members.append(known[key])
    if len(members) == 1:
        return members[0]
    cost = functools.reduce(Cost.plus, (member.cost for member in members))
    if recipe.averages_weights:
        vectors = [
            torch.stack(point).mean(0) for point in zip(*(m.weights for m in members), strict=True)
        ]
        scores = torch.stack([_scores_at(problem, recipe, settings, vector) for vector in vectors])
    else:
        scores = _combine([_in_units(problem, m.scores) for m in members], recipe.pessimism)
    strength = tuple(
        sum(point) / len(members) for point in zip(*(m.strength for m in members), strict=True)
    )
    return Trajectory(
        members[0].steps,
        scores,
        accuracies(scores, problem.validation),
        cost,
        members[0].weights,
        strength,
    )


def _train_member(
    problem: Problem,
    recipe: Recipe,
    settings: HeadSettings,
    seed: int,
    member: int,
    plain: Trajectory | None,
    known: dict[Any, Trajectory],
) -> Trajectory:
    """One network; with a guard, after its plain twin, which stands in where nothing holds."""
    if recipe.least_rank_correlation is None:
        return train_network(problem, recipe, settings, seed, member=member)
    # All but the step: labels of the same recipe stay in what it is compared with.
    without = recipe.without_step
    if plain is None or without != Recipe():
        twin = (replace(without, pessimism=None), seed, member)
        if twin not in known:
            known[twin] = train_network(problem, without, settings, seed, member=member)
        plain = known[twin]
    found = train_network(problem, recipe, settings, seed, member=member, plain=plain)
    cost = plain.cost.plus(found.cost)
    off = tuple(0.0 for _ in plain.steps)
    if not any(found.held):
        return replace(plain, cost=cost, strength=off)
    if recipe.members > 1:
        # Members are averaged point by point: plain scores stand in where one has gone too far.
        held = torch.tensor(found.held)
        scores = torch.where(held[:, None], found.scores, plain.scores)
        strength = tuple(s * h for s, h in zip(found.strength, found.held, strict=True))
        weights = tuple(
            mine if holds else theirs
            for mine, theirs, holds in zip(found.weights, plain.weights, found.held, strict=False)
        )
        found = replace(found, scores=scores, strength=strength, weights=weights, held=())
    return replace(found, cost=cost)


def _combine(members: list[Tensor], pessimism: float | None) -> Tensor:
    """Mean, or -beta log E exp(-r / beta): towards the minimum as beta falls."""
    together = torch.stack(members)
    if pessimism is None:
        return together.mean(0)
    soft = torch.logsumexp(-together / pessimism, dim=0) - torch.tensor(len(members)).log()
    return -pessimism * soft


def _in_units(problem: Problem, scores: Tensor) -> Tensor:
    """Scores with mean 0 and spread 1 over original texts: members' scales differ."""
    seen = scores[:, problem.unit_rows]
    return (scores - seen.mean(1, keepdim=True)) / seen.std(1, keepdim=True).clamp(min=1e-6)


def _measuring_groups(problem: Problem) -> Problem:
    """The same, all groups among the texts that are measured."""
    if problem.measured is None:
        return problem
    groups = problem.groups[problem.groups >= 0]
    return replace(problem, measured=torch.cat([problem.measured, groups]).unique())


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


def _scores_at(problem: Problem, recipe: Recipe, settings: HeadSettings, vector: Tensor) -> Tensor:
    """Scores of the texts by a network of these weights."""
    network = build_network(problem, settings, 0, recipe)
    nn.utils.vector_to_parameters(vector, network.trainable())
    rows = torch.arange(problem.num_texts) if problem.measured is None else problem.measured
    scores = torch.full((problem.num_texts,), torch.nan)
    scores[rows] = network.measure(rows)
    return scores
