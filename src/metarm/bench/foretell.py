# SPDX-License-Identifier: Apache-2.0
"""Figures that need no label of the shifted side, to foretell whether the step will help there.

The main axis is the first principal axis of the shifted responses' features within their groups.
Whether the true reward lies along it decides what the step does (`docs/does-it-work.md`), and the
original labels say something of that.
"""

from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from metarm.bench.methods import train_recipe
from metarm.bench.problem import Problem
from metarm.bench.recipes import Recipe
from metarm.bench.settings import HeadSettings
from metarm.errors import EmptySetError
from metarm.strength import mean_rank_correlation

__all__ = ["Figures", "foretell", "halve_pairs", "main_axis", "measure_figures"]

CLASSIFIER_RIDGE: Final = 0.1
"""Of the mean variance: the classifier of sides has more features than some sides have texts."""


@dataclass(frozen=True, slots=True)
class Figures:
    """What a problem and plain heads on it say without a label of the shifted side."""

    validation_accuracy: float
    """Of plain on original pairs of prompts that were not trained on; 0.5 is guessing."""
    pairs_per_dimension: float
    """Training pairs over the effective number of dimensions in which their sides differ,
    (sum of variances)^2 / sum of squared variances.
    """
    spread_ratio: float
    """Standard deviation of plain's gaps within shifted groups over that within original pairs;
    below 1 where it has lost discrimination.
    """
    agreement_original: float
    """Rank correlation, within original validation pairs, of plain heads trained on two halves
    of the pairs that share no text; 1 where nothing is left to chance.
    """
    agreement_shifted: float
    """The same within shifted groups."""
    domain_accuracy: float
    """Of a linear classifier between original and shifted texts, on texts it was not fitted to,
    mean of both sides; 0.5 where their means are alike.
    """
    axis_share: float
    """Share of the shifted responses' variance within groups along the main axis."""
    axis_cosine: float
    """Cosine of the main axis with the direction of plain's reward, in the metric of original
    pairs: |correlation about 0| of plain's gaps with differences along the axis.
    """
    axis_reliance: float
    """|Correlation| of plain's rewards with the place along the main axis, within groups."""
    axis_accuracy: float
    """Of the place along the axis alone on the original pairs, its better sign; 0.5 is none."""
    axis_evidence: float
    """How far that is from a coin's, in standard errors of as many coins as pairs: about 0.8 where
    the labels say nothing of the axis.
    """


def foretell(problem: Problem, plain: Tensor, settings: HeadSettings, seed: int) -> Figures:
    """The figures of a problem; trains two further plain heads, each on half of the pairs.

    Args:
        problem: Its labelled shifted pairs are not looked at.
        plain: Scores of all texts by plain training with the same settings, shape (texts,).
        settings: Of the heads.
        seed: Of the heads, and of the halves.
    """
    halves = [
        train_recipe(half, Recipe(), settings, seed + 1 + place)
        for place, half in enumerate(halve_pairs(problem, seed))
    ]
    first, second = (half.scores[half.best] for half in halves)
    return measure_figures(problem, plain, first, second)


def halve_pairs(problem: Problem, seed: int) -> tuple[Problem, Problem]:
    """Two problems of half the pairs each; pairs that share a text are in the same one.

    Raises:
        EmptySetError: When all pairs hang together, so that there are no halves.
    """
    pairs = problem.pairs.numpy()
    size = len(problem.features)
    links = coo_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(size, size))
    _, part_of_text = connected_components(links, directed=False)
    part = part_of_text[pairs[:, 0]]
    names, counts = np.unique(part, return_counts=True)
    if len(names) < 2:
        raise EmptySetError(
            "expected original pairs that fall into two halves without a common text, got pairs "
            "that all hang together; give pairs of more prompts"
        )
    order = np.random.default_rng(seed).permutation(len(names))
    before = np.cumsum(counts[order]) - counts[order]
    is_first = np.isin(part, names[order][before < len(pairs) / 2])
    first, second = (problem.pairs[torch.from_numpy(rows)] for rows in (is_first, ~is_first))
    if len(second) == 0:
        last = torch.from_numpy(part == names[order][-1])
        first, second = problem.pairs[~last], problem.pairs[last]
    return replace(problem, pairs=first), replace(problem, pairs=second)


def measure_figures(problem: Problem, plain: Tensor, first: Tensor, second: Tensor) -> Figures:
    """The figures, from scores of all texts, shape (texts,), by plain and by its two halves."""
    groups = torch.cat([problem.groups, problem.watched_groups])
    axis, share = main_axis(problem.features, groups)
    place = problem.features @ axis
    along = place[problem.pairs[:, 0]] - place[problem.pairs[:, 1]]
    gaps = plain[problem.pairs[:, 0]] - plain[problem.pairs[:, 1]]
    rewards, places = _within(plain, groups), _within(place, groups)
    labels = torch.cat([problem.pairs, problem.validation])
    wins = ((1 + (place[labels[:, 0]] - place[labels[:, 1]]).sign()) / 2).mean().item()
    kept = plain[problem.validation[:, 0]] - plain[problem.validation[:, 1]]
    return Figures(
        validation_accuracy=((1 + kept.sign()) / 2).mean().item(),
        pairs_per_dimension=len(problem.pairs) / _effective_dimensions(problem),
        # A gap is a difference of two: twice the variance within a group.
        spread_ratio=(
            2**0.5 * _group_deviation(rewards, groups) / gaps.square().mean().sqrt().clamp(min=1e-9)
        ).item(),
        agreement_original=mean_rank_correlation(problem.validation, first, second) or 0.0,
        agreement_shifted=mean_rank_correlation(groups, first, second) or 0.0,
        domain_accuracy=_domain_accuracy(problem),
        axis_share=share,
        axis_cosine=_alignment(gaps, along),
        axis_reliance=_alignment(rewards, places),
        axis_accuracy=max(wins, 1 - wins),
        axis_evidence=2 * len(labels) ** 0.5 * abs(wins - 0.5),
    )


def main_axis(features: Tensor, groups: Tensor) -> tuple[Tensor, float]:
    """The axis along which responses differ most within groups, and its share of the variance.

    Args:
        features: Shape (texts, size).
        groups: Shape (groups, k), rows of the features; -1 where a group is smaller.

    Returns:
        A vector of length 1, its sign without meaning; a share in [0, 1].
    """
    states = _within(features, groups)
    values, vectors = torch.linalg.eigh((states.mT @ states).double())
    total = values.clamp(min=0).sum().clamp(min=1e-30)
    return vectors[:, -1].to(features.dtype), (values[-1] / total).item()


def _within(values: Tensor, groups: Tensor) -> Tensor:
    """Values of the groups' responses less their group's mean, (responses, ...)."""
    mask = groups >= 0
    own = values[groups.clamp(min=0)]
    shape = (*groups.shape, *[1] * (own.dim() - 2))
    weight = mask.reshape(shape).to(own.dtype)
    mean = (own * weight).sum(1, keepdim=True) / weight.sum(1, keepdim=True).clamp(min=1)
    return (own - mean)[mask]


def _group_deviation(centred: Tensor, groups: Tensor) -> Tensor:
    """Standard deviation within groups, from values less their group's mean."""
    sizes = (groups >= 0).sum(1)
    freedom = (sizes - 1).clamp(min=0).sum().clamp(min=1)
    return (centred.square().sum() / freedom).sqrt()


def _alignment(one: Tensor, other: Tensor) -> float:
    scale = one.norm() * other.norm()
    return ((one @ other).abs() / scale).item() if scale > 0 else 0.0


def _effective_dimensions(problem: Problem) -> float:
    sides = problem.features[problem.pairs]
    states = sides[:, 0] - sides[:, 1]
    # The smaller of the two products has the same eigenvalues.
    product = states.mT @ states if len(states) > states.shape[1] else states @ states.mT
    trace = product.diagonal().sum()
    return (trace.square() / product.square().sum().clamp(min=1e-30)).item()


def _domain_accuracy(problem: Problem) -> float:
    """Least squares between the sides on every second text, tested on the others, and back."""
    original = problem.pairs.unique()
    groups = torch.cat([problem.groups, problem.watched_groups])
    shifted = groups[groups >= 0].unique()
    original, shifted = (
        rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))]
        for rows in (original, shifted)
    )
    found = []
    for part in (0, 1):
        fit, test = (
            [problem.features[rows[place::2]].double() for rows in (original, shifted)]
            for place in (part, 1 - part)
        )
        means = [side.mean(0) for side in fit]
        states = torch.cat([side - mean for side, mean in zip(fit, means, strict=True)])
        spread = states.mT @ states / len(states)
        ridge = CLASSIFIER_RIDGE * spread.diagonal().mean().clamp(min=1e-9)
        spread.diagonal().add_(ridge)
        weight = torch.linalg.solve(spread, means[1] - means[0])
        cut = weight @ (means[0] + means[1]) / 2
        found += [
            (test[0] @ weight < cut).double().mean(),
            (test[1] @ weight > cut).double().mean(),
        ]
    return float(torch.stack(found).mean())
