# SPDX-License-Identifier: Apache-2.0
"""Many small heads trained at once: recipes x seeds of problems of one size, as stacked weights.

The same numbers as `train_recipe` gives one head at a time, to rounding: for maps of thousands of
runs. Only the steps that a map asks for: off, ascent, descent, joint.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from metarm.bench.problem import Problem
from metarm.bench.recipes import Recipe
from metarm.bench.settings import HEAD_LEARNING_RATE, HeadSettings
from metarm.bench.trajectory import Cost, Trajectory
from metarm.errors import ConfigError, ShapeError
from metarm.meta_step import SIGNS, TINY_NORM
from metarm.strength import LONGEST_FRACTION, NUM_REFERENCE_PAIRS, PROBE_EVERY, PROBE_FRACTION

__all__ = ["train_stacked"]

STEPS: Final = ("off", "ascent", "descent", "joint")
ROWS_AT_ONCE: Final = 4096

Weights = list[Tensor]
"""By layer: a matrix (seeds, recipes, out, in), then a bias (seeds, recipes, out)."""


def train_stacked(
    problems: Sequence[Problem],
    recipes: Sequence[Recipe],
    settings: HeadSettings,
    seeds: Sequence[int],
) -> list[list[Trajectory]]:
    """What `train_recipe(problems[s], recipes[m], settings, seeds[s])` gives, as [s][m].

    Costs are not counted.

    Raises:
        ConfigError: When a recipe is more than a step with a strength.
        ShapeError: When the problems are not all of one size.
    """
    for recipe in recipes:
        _check_recipe(recipe)
    sizes = {(p.features.shape, p.pairs.shape, p.groups.shape) for p in problems}
    if len(sizes) != 1 or len(problems) != len(seeds):
        raise ShapeError(
            f"expected problems of one size, each with its seed, got sizes {sizes} and "
            f"{len(seeds)} seeds"
        )
    features = torch.stack([problem.features for problem in problems])
    weights = _new_weights(features.shape[2], settings, seeds, len(recipes))
    optimizer = torch.optim.AdamW(
        weights, lr=settings.learning_rate or HEAD_LEARNING_RATE, weight_decay=settings.weight_decay
    )
    strengths, units = _Strengths(recipes), _RewardUnits(features, problems)
    draws = [_Batches(p, settings, seed) for p, seed in zip(problems, seeds, strict=True)]
    points: list[tuple[int, Tensor]] = []
    for step in range(1, settings.num_steps + 1):
        pairs, groups = (torch.stack(rows) for rows in zip(*map(next, draws), strict=True))
        for weight, gradient in zip(
            weights, _gradients(features, weights, pairs, groups, strengths, units), strict=True
        ):
            weight.grad = gradient
        optimizer.step()
        if step % settings.measure_every == 0 or step == settings.num_steps:
            with torch.no_grad():
                parts = features.split(ROWS_AT_ONCE, dim=1)
                scores = torch.cat([_scores(weights, part) for part in parts], dim=2)
                points.append((step, scores))
    steps = tuple(step for step, _ in points)
    every = torch.stack([scores for _, scores in points], dim=2)
    return [
        [
            Trajectory(steps, scores, _accuracies(scores, problem.validation), Cost())
            for scores in own
        ]
        for problem, own in zip(problems, every, strict=True)
    ]


def _check_recipe(recipe: Recipe) -> None:
    plain = Recipe(
        step=recipe.step, strength=recipe.strength, reward_fraction=recipe.reward_fraction
    )
    in_reward_units = recipe.step == "joint" and recipe.reward_fraction is not None
    if recipe != plain or recipe.step not in STEPS or in_reward_units:
        raise ConfigError(
            f"expected a step of {', '.join(STEPS)} with a strength and nothing else, got "
            f"{recipe}; train it with train_recipe"
        )


class _Strengths:
    """What each recipe does with the gradient of J, shape (recipes,)."""

    def __init__(self, recipes: Sequence[Recipe]) -> None:
        dtype = torch.get_default_dtype()
        self.signs = torch.tensor([SIGNS.get(r.step, 0.0) for r in recipes], dtype=dtype)
        eta = [0.0 if r.reward_fraction is not None else r.strength for r in recipes]
        self.eta = torch.tensor(eta, dtype=dtype)
        joint = [r.strength if r.step == "joint" else 0.0 for r in recipes]
        self.joint = torch.tensor(joint, dtype=dtype)
        fractions = [r.reward_fraction for r in recipes]
        self.in_reward_units = [m for m, fraction in enumerate(fractions) if fraction is not None]
        self.fractions = torch.tensor([f for f in fractions if f is not None], dtype=dtype)
        self.needs_groups = any(r.step != "off" for r in recipes)


class _Batches:
    """Rows of pairs and groups for each step, drawn as `train_recipe` draws them."""

    def __init__(self, problem: Problem, settings: HeadSettings, seed: int) -> None:
        self.problem, self.settings = problem, settings
        self.draw = torch.Generator().manual_seed(seed * 1009)
        self.waiting = {name: torch.empty(0, dtype=torch.long) for name in ("pairs", "groups")}

    def __next__(self) -> tuple[Tensor, Tensor]:
        pairs = self.problem.pairs[self._take("pairs", self.settings.batch_size)]
        groups = self.problem.groups[self._take("groups", self.settings.num_groups)]
        return pairs, groups

    def _take(self, name: str, count: int) -> Tensor:
        size = len(getattr(self.problem, name))
        while len(self.waiting[name]) < count:
            more = torch.randperm(size, generator=self.draw)
            self.waiting[name] = torch.cat([self.waiting[name], more])
        taken, self.waiting[name] = self.waiting[name][:count], self.waiting[name][count:]
        return taken


def _new_weights(size: int, settings: HeadSettings, seeds: Sequence[int], count: int) -> Weights:
    """The starts of `train_recipe`'s heads; all recipes of a seed share one."""
    starts: list[Weights] = []
    for seed in seeds:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed * 1009)
            widths = [size, *settings.hidden, 1]
            layers = [nn.Linear(a, b) for a, b in itertools.pairwise(widths)]
        starts.append([p.detach() for layer in layers for p in (layer.weight, layer.bias)])
    stacked = [torch.stack(tensors) for tensors in zip(*starts, strict=True)]
    return [
        t.unsqueeze(1).expand(-1, count, *t.shape[1:]).clone().requires_grad_() for t in stacked
    ]


def _scores(weights: Sequence[Tensor], inputs: Tensor) -> Tensor:
    """Scores, shape (seeds, recipes, rows), of inputs of shape (seeds, rows, size)."""
    matrix, bias = weights[0], weights[1]
    # Recipes of a seed see the same rows: the first layer of all is one product.
    states = (inputs @ matrix.flatten(1, 2).mT).unflatten(2, matrix.shape[1:3]).transpose(1, 2)
    states = states + bias.unsqueeze(2)
    for matrix, bias in zip(weights[2::2], weights[3::2], strict=True):
        states = functional.relu(states) @ matrix.mT + bias.unsqueeze(2)
    scores: Tensor = states.squeeze(-1)
    return scores


def _at(features: Tensor, rows: Tensor) -> Tensor:
    """The features of rows of any shape (seeds, ...), flat: (seeds, rows, size)."""
    seeds = torch.arange(len(features)).unsqueeze(1)
    return features[seeds, rows.clamp(min=0).flatten(1)]


class _RewardUnits:
    """`strength.RewardUnits` of each head, on the pairs that `train_recipe` takes."""

    def __init__(self, features: Tensor, problems: Sequence[Problem]) -> None:
        rows = [p.pairs[:: -(-len(p.pairs) // NUM_REFERENCE_PAIRS)].reshape(-1) for p in problems]
        self.inputs = _at(features, torch.stack(rows))
        self.calls = 0

    def look_ahead_steps(
        self, weights: Sequence[Tensor], gradients: Sequence[Tensor], fractions: Tensor
    ) -> Tensor:
        """Shape (seeds, recipes)."""
        norm, size = (
            torch.stack([t.double().square().flatten(2).sum(2) for t in many]).sum(0).sqrt()
            for many in (gradients, weights)
        )
        safe = norm.clamp(min=TINY_NORM)
        if self.calls < PROBE_EVERY or self.calls % PROBE_EVERY == 0:
            probe = PROBE_FRACTION * size
            along = (probe / safe).to(self.inputs.dtype)
            moved = [w + _spread(along, g) * g for w, g in zip(weights, gradients, strict=True)]
            before, after = (_scores(many, self.inputs).double() for many in (weights, moved))
            self.spread, self.speed = before.std(-1), (after - before).std(-1) / probe
        self.calls += 1
        wanted = torch.where(self.speed > 0, fractions * self.spread / self.speed, 0.0)
        found = torch.minimum(wanted, LONGEST_FRACTION * size) / safe
        return torch.where(norm > TINY_NORM, found, 0.0).to(self.inputs.dtype)


def _gradients(
    features: Tensor,
    weights: Weights,
    pairs: Tensor,
    groups: Tensor,
    strengths: _Strengths,
    units: _RewardUnits,
) -> Sequence[Tensor]:
    """Of each head's own loss: heads share no weight, so one backward pass serves all."""
    inputs = _at(features, pairs)
    if not strengths.needs_groups:
        return torch.autograd.grad(_preference_losses(weights, inputs), weights)
    scores = _scores(weights, _at(features, groups))
    difference = _differences(scores.unflatten(2, groups.shape[1:]), groups >= 0)
    rising = torch.autograd.grad(difference, weights)
    with torch.no_grad():
        size = strengths.eta.expand(weights[0].shape[:2]).clone()
        if own := strengths.in_reward_units:
            size[:, own] = units.look_ahead_steps(
                [w[:, own] for w in weights], [g[:, own] for g in rising], strengths.fractions
            )
        step = strengths.signs * size
    ahead = [
        (w.detach() + _spread(step, g) * g).requires_grad_()
        for w, g in zip(weights, rising, strict=True)
    ]
    found = torch.autograd.grad(_preference_losses(ahead, inputs), ahead)
    return [
        f - _spread(strengths.joint.expand_as(step), g) * g
        for f, g in zip(found, rising, strict=True)
    ]


def _spread(factors: Tensor, like: Tensor) -> Tensor:
    """(seeds, recipes) as a factor of a tensor that has more dimensions."""
    return factors.reshape(*factors.shape, *[1] * (like.dim() - 2))


def _preference_losses(weights: Sequence[Tensor], inputs: Tensor) -> Tensor:
    """The sum over heads of Bradley-Terry's loss, `objectives.bradley_terry_loss`."""
    scores = _scores(weights, inputs).unflatten(2, (-1, 2))
    return -functional.logsigmoid(scores[..., 0] - scores[..., 1]).mean(-1).sum()


def _differences(scores: Tensor, mask: Tensor) -> Tensor:
    """The sum over heads of J, `objectives.difference_loss`; scores (seeds, recipes, groups, k)."""
    first, second = torch.triu_indices(scores.shape[-1], scores.shape[-1], offset=1)
    is_pair = (mask[..., first] & mask[..., second]).unsqueeze(1)
    apart = torch.sigmoid((scores[..., first] - scores[..., second]).abs())
    size = mask.sum(-1).clamp(min=1).to(scores.dtype).unsqueeze(1)
    return (2 / size.square() * (apart * is_pair).sum(-1)).mean(-1).sum()


def _accuracies(scores: Tensor, pairs: Tensor) -> tuple[float, ...]:
    if len(pairs) == 0:
        return (math.nan,) * len(scores)
    gaps = scores[:, pairs[:, 0]] - scores[:, pairs[:, 1]]
    return tuple(((1 + gaps.sign()) / 2).mean(1).tolist())
