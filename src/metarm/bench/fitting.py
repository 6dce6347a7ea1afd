# SPDX-License-Identifier: Apache-2.0
"""One network trained as a recipe says, and its scores along the way.

The step itself is `metarm.meta_step`, the same code that trains whole models.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from metarm.bench.draws import dropout_noise, endless_batches, random_direction
from metarm.bench.label_choice import choose_labels
from metarm.bench.networks import FeatureHead, Network, TransformerScore
from metarm.bench.problem import Problem, SoftPairs
from metarm.bench.recipes import PLAIN, Recipe
from metarm.bench.settings import HeadSettings
from metarm.bench.sides import Critic, density_ratios
from metarm.bench.trajectory import Cost, Trajectory, accuracies
from metarm.data.meta_mixture import GroupMixture
from metarm.errors import ConfigError
from metarm.meta_step import (
    SIGNS,
    Direction,
    add_curvature,
    add_curvature_by_difference,
    add_gradients,
    look_ahead,
    measure_direction,
)
from metarm.objectives import batch_sum_penalty, bradley_terry_loss, difference_loss
from metarm.strength import NUM_REFERENCE_PAIRS, RewardUnits, StrengthGuard, mean_rank_correlation

__all__ = [
    "build_network",
    "train_network",
]

LABEL_REPEAT: Final = 10
# A gradient's gradient goes back through a forward and a backward pass: three times a backward.
EXACT_BACKWARDS: Final = 4
GROUPS_AT_ONCE: Final = 32


def build_network(
    problem: Problem, settings: HeadSettings, seed: int, recipe: Recipe = PLAIN
) -> Network:
    """A head on the problem's features, or on its backbone; new weights are drawn by the seed.

    Raises:
        ConfigError: When the recipe changes a head, and there is a backbone under it.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if problem.backbone is None:
            return FeatureHead(
                problem.features,
                settings.hidden,
                dropout=recipe.dropout,
                own_head=recipe.own_head,
                reconstructs=recipe.reconstruction > 0,
            )
        if recipe.needs_features:
            raise ConfigError(
                "dropout, reconstruct and N-labels-apart change a head on frozen features, and "
                "mix and its like choose labels by one: use them with trained=head"
            )
        return TransformerScore(problem.backbone)


@dataclass(eq=False)
class _Fit:
    """One network on its way."""

    problem: Problem
    recipe: Recipe
    settings: HeadSettings
    network: Network
    pairs: Tensor
    labels: Tensor | None
    """P(the first of each pair is better), shape (pairs,); None: 1."""
    is_own: Tensor
    """Which pairs are labelled shifted ones."""
    weights: Tensor | None
    critic: Critic | None
    guard: StrengthGuard | None
    noise: torch.Generator
    """Of random directions alone: the batches stay those of every other method."""
    cost: Cost = field(default_factory=Cost)
    units: RewardUnits = field(init=False)
    moved: list[Tensor] = field(init=False)
    """The weights that J moves."""
    stored: tuple[Direction, float] | None = None
    """J's gradient of the last meta step, and the multiple of it that a look-ahead moves by."""
    group_scores: Tensor | None = None
    """Of the groups that J was evaluated on last."""

    def __post_init__(self) -> None:
        self.units = RewardUnits(lambda: _reference_scores(self))
        is_head = self.recipe.moves == "head"
        self.moved = self.network.head() if is_head else self.network.trainable()

    @property
    def strength(self) -> float:
        """What a guard has left of the full strength."""
        return 1.0 if self.guard is None else self.guard.factor

    @property
    def num_groups(self) -> int:
        """Groups that a meta step measures J on."""
        return max(1, round(self.recipe.group_share * self.settings.num_groups))

    def scores(self, rows: Tensor, *, backwards: int = 1) -> Tensor:
        """Scores of texts with their graph, any shape of row numbers; 0 where one is -1.

        Args:
            rows: Row numbers of texts.
            backwards: Backward passes, or what costs as much, that their gradient will take.
        """
        is_text = rows >= 0
        count = int(is_text.sum())
        self.cost.forward += count
        self.cost.backward += backwards * count if torch.is_grad_enabled() else 0
        flat: Tensor = self.network(rows[is_text])
        return flat.new_zeros(rows.shape).masked_scatter(is_text, flat)

    def difference(
        self, groups: Tensor, *, backwards: int = 1, ranking: Tensor | None = None
    ) -> Tensor:
        """J of some groups; `ranking` as in `difference_loss`."""
        # A score layer's gradient needs no way back through the model under it.
        is_whole = len(self.moved) == len(self.network.trainable())
        scores = self.scores(groups, backwards=backwards if is_whole else 0)
        self.group_scores = scores.detach()
        return difference_loss(scores, groups >= 0, ranking=ranking)


def train_network(
    problem: Problem,
    recipe: Recipe,
    settings: HeadSettings,
    seed: int,
    *,
    member: int = 0,
    plain: Trajectory | None = None,
) -> Trajectory:
    """Train one network and score the texts along the way.

    Args:
        problem: Nothing in it is tested on.
        recipe: Its `members`, `seed_offset` and pseudo-labels are the caller's business.
        settings: Sizes and rates.
        seed: Start of the weights, order of the batches.
        member: Of an ensemble: another start, order and bootstrap draw.
        plain: The same network without the meta step, which a guard compares with.
    """
    started = time.monotonic()
    draw = torch.Generator().manual_seed(seed * 1009 + member)
    pairs, labels = _training_pairs(problem, recipe, seed)
    rows, first = torch.arange(len(pairs)), len(problem.pairs)
    is_own = (rows >= first) & (rows < first + LABEL_REPEAT * recipe.num_labels)
    if recipe.members > 1:
        rows = torch.randint(len(pairs), (len(pairs),), generator=draw)
        pairs, labels = pairs[rows], None if labels is None else labels[rows]
    # Averaged weights must lie in one basin: their members share a start.
    start = seed * 1009 + (0 if recipe.averages_weights else member)
    fit = _Fit(
        problem,
        recipe,
        settings,
        build_network(problem, settings, start, recipe),
        pairs,
        labels,
        is_own[rows],
        density_ratios(problem, pairs) if recipe.weighs_pairs else None,
        None,
        StrengthGuard(recipe.least_rank_correlation)
        if plain is not None and recipe.least_rank_correlation is not None
        else None,
        torch.Generator().manual_seed(start + 1),
    )
    if recipe.domain_weight:
        fit.critic = Critic(fit.network.width, seed)
    parameters = fit.network.trainable()
    optimizer = torch.optim.AdamW(
        parameters,
        lr=settings.learning_rate or fit.network.default_learning_rate,
        weight_decay=settings.weight_decay if recipe.weight_decay is None else recipe.weight_decay,
    )
    pair_rows = endless_batches(len(pairs), settings.batch_size, draw)
    group_rows = endless_batches(len(problem.groups), settings.num_groups, draw)
    mixture = None
    if recipe.source_floor is not None and len(set(problem.sources)) > 1:
        mixture = GroupMixture(problem.sources, floor=recipe.source_floor, seed=start)
    steps, scores, vectors, strength, held = [], [], [], [], []
    for step in range(1, settings.num_steps + 1):
        # Drawn in any case: pairs come from the same stream.
        chosen, drawn = next(pair_rows), next(group_rows)
        is_meta = (step - 1) % recipe.every == 0
        if mixture is not None and is_meta:
            drawn = _draw_by_source(fit, mixture, chosen, step)
        groups = problem.groups[drawn]
        optimizer.zero_grad(set_to_none=True)
        with (
            dropout_noise(recipe.dropout, start, step),
            _around(fit, chosen, groups[: fit.num_groups], is_meta=is_meta),
        ):
            _preference_loss(fit, chosen, groups).backward()
        optimizer.step()
        if step % settings.measure_every == 0 or step == settings.num_steps:
            steps.append(step)
            scores.append(_measure(fit))
            strength.append(fit.strength)
            if recipe.averages_weights:
                vectors.append(nn.utils.parameters_to_vector(parameters).detach().clone())
            if fit.guard is not None and plain is not None:
                fit.guard.observe(_agreement(problem, scores[-1], plain.at(step)))
                held.append(fit.guard.holds)
    fit.cost.seconds = time.monotonic() - started
    return Trajectory(
        tuple(steps),
        torch.stack(scores),
        accuracies(torch.stack(scores), problem.validation),
        fit.cost,
        tuple(vectors),
        tuple(strength),
        tuple(held),
    )


def _agreement(problem: Problem, scores: Tensor, plain: Tensor) -> float | None:
    """Rank correlation on the watched groups; scores that have diverged agree with nothing."""
    rows = problem.watched_groups[problem.watched_groups >= 0]
    if not (scores[rows].isfinite().all() and plain[rows].isfinite().all()):
        return -1.0
    return mean_rank_correlation(problem.watched_groups, scores, plain)


def _training_pairs(problem: Problem, recipe: Recipe, seed: int) -> tuple[Tensor, Tensor | None]:
    """Pairs, labelled original ones first, and how likely the first side of each is better."""
    pairs = problem.own_labels
    if not recipe.is_oracle:
        own = choose_labels(problem, recipe.label_choice, recipe.num_labels, seed)
        pairs = torch.cat([problem.pairs, own.repeat(LABEL_REPEAT, 1)])
    if problem.extra is None:
        return pairs, None
    return SoftPairs(pairs, torch.ones(len(pairs))).plus(problem.extra)


def _draw_by_source(fit: _Fit, mixture: GroupMixture, chosen: Tensor, step: int) -> Tensor:
    """The groups of a step by what its sources have lost so far, which they then are asked for."""
    problem = fit.problem
    drawn = mixture.draw(fit.num_groups, step)
    groups = problem.groups[drawn]
    with torch.no_grad():
        pairs = fit.scores(fit.pairs[chosen])
        sources = [problem.sources[row] for row in drawn]
        mixture.see_groups(fit.scores(groups), groups >= 0, sources)
    mixture.see_pairs(pairs[:, 0], pairs[:, 1])
    mixture.end_step()
    return torch.tensor(drawn)


def _pair_scores(fit: _Fit, chosen: Tensor) -> Tensor:
    """Scores of pairs, shape (pairs, 2); where there are two tasks, each by its own last layer."""
    rows = fit.pairs[chosen]
    if not fit.recipe.own_head:
        return fit.scores(rows)
    assert isinstance(fit.network, FeatureHead)
    fit.cost.forward += rows.numel()
    fit.cost.backward += rows.numel()
    is_own = fit.is_own[chosen].unsqueeze(1).expand_as(rows).reshape(-1)
    return fit.network.by_task(rows.reshape(-1), is_own).view_as(rows)


def _preference_loss(fit: _Fit, chosen: Tensor, groups: Tensor) -> Tensor:
    recipe = fit.recipe
    scores = _pair_scores(fit, chosen)
    labels = None if fit.labels is None else fit.labels[chosen]
    if fit.weights is None:
        loss = bradley_terry_loss(scores[:, 0], scores[:, 1], label=labels)
    else:
        gaps = scores[:, 0] - scores[:, 1]
        told = torch.ones_like(gaps) if labels is None else labels
        losses = functional.binary_cross_entropy_with_logits(gaps, told, reduction="none")
        loss = (fit.weights[chosen] * losses).mean()
    if recipe.centring:
        loss = loss + recipe.centring * scores.sum(1).square().mean()
    if recipe.batch_sum:
        loss = loss + recipe.batch_sum * batch_sum_penalty(scores)
    if recipe.reconstruction:
        loss = loss + recipe.reconstruction * fit.network.reconstruct(fit.pairs[chosen].reshape(-1))
    if fit.critic is not None:
        original = fit.network.hidden(fit.pairs[chosen].reshape(-1))
        shifted = fit.network.hidden(groups[groups >= 0])
        fit.cost.forward += len(original) + len(shifted)
        fit.cost.backward += len(original) + len(shifted)
        loss = loss + recipe.domain_weight * fit.critic.distance(original, shifted)
    return loss


@contextmanager
def _around(fit: _Fit, chosen: Tensor, groups: Tensor, *, is_meta: bool) -> Iterator[None]:
    """The recipe's step around the preference gradient; `metarm.meta_step` moves and puts back."""
    recipe = fit.recipe
    is_plain = not is_meta and recipe.between == "plain"
    if recipe.step == "off" or fit.strength == 0.0 or is_plain:
        yield
        return
    if is_meta or fit.stored is None:
        fit.stored = _measure_step(fit, chosen, groups)
    direction, size = fit.stored
    if recipe.step == "joint":
        yield
        add_gradients(fit.moved, direction.gradients, -_joint_weight(fit, direction))
        return
    with look_ahead(fit.moved, direction.gradients, size):
        yield
    if recipe.order == "exact":
        add_curvature(fit.moved, lambda: fit.difference(groups, backwards=EXACT_BACKWARDS), size)
    elif recipe.order == "finite-difference":
        ranking = fit.group_scores
        add_curvature_by_difference(
            fit.moved,
            lambda: measure_direction(fit.difference(groups, ranking=ranking), fit.moved),
            direction,
            size,
        )


def _measure_step(fit: _Fit, chosen: Tensor, groups: Tensor) -> tuple[Direction, float]:
    """Which way a meta step goes, and how far it looks ahead: 0 in `joint`, which does not."""
    recipe, parameters = fit.recipe, fit.moved
    if recipe.step == "sam":
        pairs = _pair_scores(fit, chosen)
        told = None if fit.labels is None else fit.labels[chosen]
        loss = bradley_terry_loss(pairs[:, 0], pairs[:, 1], label=told)
        direction = measure_direction(loss, parameters)
        return direction, recipe.strength / max(direction.norm, 1e-12)
    direction = measure_direction(fit.difference(groups), parameters)
    if recipe.step == "joint":
        return direction, 0.0
    if recipe.step == "random":
        direction = random_direction(direction, fit.noise)
    sign = SIGNS.get(recipe.step, 1.0)
    if recipe.reward_fraction is None:
        return direction, sign * recipe.strength * fit.strength
    step = fit.units.look_ahead_step(parameters, direction, recipe.reward_fraction)
    return direction, sign * fit.strength * step


def _joint_weight(fit: _Fit, direction: Direction) -> float:
    """The weight of J beside the preference gradient that is in `.grad`."""
    weight = fit.recipe.strength
    if fit.recipe.reward_fraction is not None:
        gradients = [p.grad for p in fit.moved]
        fraction = fit.recipe.reward_fraction
        weight = min(weight, fit.units.joint_weight(fit.moved, direction, gradients, fraction))
    return weight * fit.strength


def _reference_scores(fit: _Fit) -> Tensor:
    """Scores of a few original pairs, always the same, whose spread is the unit of rewards."""
    every = -(-len(fit.pairs) // NUM_REFERENCE_PAIRS)
    rows = fit.pairs[::every].reshape(-1)
    fit.cost.forward += len(rows)
    return fit.network.measure(rows)


def _measure(fit: _Fit) -> Tensor:
    """Scores of the texts that matter now; NaN for the others."""
    problem, network = fit.problem, fit.network
    rows = torch.arange(problem.num_texts) if problem.measured is None else problem.measured
    context = nullcontext()
    if fit.recipe.deploys_look_ahead:
        size = SIGNS.get(fit.recipe.step, 0.0) * fit.recipe.strength
        context = look_ahead(fit.moved, _whole_direction(fit), size)  # type: ignore[assignment]
    scores = torch.full((problem.num_texts,), torch.nan)
    with context:
        scores[rows] = network.measure(rows)
    return scores


def _whole_direction(fit: _Fit) -> list[Tensor | None]:
    """The gradient of J over all groups, a few at a time."""
    parameters, groups = fit.moved, fit.problem.groups
    total: list[Tensor | None] = [None] * len(parameters)
    for part in groups.split(GROUPS_AT_ONCE):
        share = len(part) / len(groups)
        found = measure_direction(share * fit.difference(part), parameters).gradients
        total = [
            new if old is None else old if new is None else old + new
            for old, new in zip(total, found, strict=True)
        ]
    return total
