# SPDX-License-Identifier: Apache-2.0
"""The label-free figures on problems where each of them can be worked out by hand."""

import math
from dataclasses import asdict, replace

import pytest
import torch
from torch import Tensor

from metarm.bench.foretell import foretell, halve_pairs, main_axis, measure_figures
from metarm.bench.methods import train_recipe
from metarm.bench.problem import Problem
from metarm.bench.recipes import Recipe
from metarm.bench.settings import HeadSettings
from metarm.errors import EmptySetError


def by_hand() -> Problem:
    """Eight pairs that differ by a unit along one of two features, chosen first; two groups.

    Six of the eight chosen sides are higher along the first feature or level with the second's.
    """
    steps = [[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0],
             [0.0, -1.0]]  # fmt: skip
    sides = [row for step in steps for row in (step, [0.0, 0.0])]
    group = [[3.0, 0.0], [-3.0, 0.0], [0.0, 1.0], [0.0, -1.0]]
    features = torch.tensor([*sides, *group, *[[x, y + 7.0] for x, y in group]])
    pairs = torch.arange(16).reshape(-1, 2)
    return Problem(
        features=features,
        pairs=pairs,
        validation=pairs[[0, 3]],
        groups=torch.tensor([[16, 17, 18, 19, -1]]),
        watched_groups=torch.tensor([[20, 21, 22, 23, -1]]),
        own_labels=torch.empty(0, 2, dtype=torch.long),
    )


def test_the_main_axis_is_that_of_differences_within_groups() -> None:
    """The groups lie 7 apart along the second feature, which is not within one."""
    problem = by_hand()
    groups = torch.cat([problem.groups, problem.watched_groups])
    axis, share = main_axis(problem.features, groups)
    torch.testing.assert_close(axis.abs(), torch.tensor([1.0, 0.0]))
    assert share == pytest.approx(18 / 20)


def test_figures_of_a_linear_reward() -> None:
    problem = by_hand()
    angle = math.radians(60)
    plain = problem.features @ torch.tensor([math.cos(angle), math.sin(angle)])
    found = measure_figures(problem, plain, plain, -plain)
    # Validation: a pair along the first feature that is ordered rightly, and one that is not.
    assert found.validation_accuracy == 0.5
    assert found.pairs_per_dimension == pytest.approx(8 / 2)
    # Gaps: cos in four pairs, sin in four. Within a group: squares of +-3 cos, +-sin over 3.
    cos2, sin2 = math.cos(angle) ** 2, math.sin(angle) ** 2
    assert found.spread_ratio == pytest.approx(
        math.sqrt(2 * (18 * cos2 + 2 * sin2) / 3) / math.sqrt((cos2 + sin2) / 2)
    )
    assert found.agreement_original == -1.0
    assert found.agreement_shifted == pytest.approx(-1.0)
    assert found.axis_share == pytest.approx(0.9)
    assert found.axis_cosine == pytest.approx(0.5)
    assert found.axis_reliance == pytest.approx(
        18 * math.cos(angle) / math.sqrt(18 * (18 * cos2 + 2 * sin2))
    )
    # Ten labels: four pairs and two of validation along the axis, the rest level: one half each.
    wins = (3 + 1 + 4 * 0.5) / 10
    assert found.axis_accuracy == pytest.approx(wins)
    assert found.axis_evidence == pytest.approx(2 * math.sqrt(10) * (wins - 0.5), abs=1e-6)


def sides(distance: float) -> Problem:
    draw = torch.Generator().manual_seed(0)
    features = torch.randn(400, 5, generator=draw)
    features[200:, 0] += distance
    return Problem(
        features=features,
        pairs=torch.arange(200).reshape(-1, 2),
        validation=torch.arange(20).reshape(-1, 2),
        groups=torch.arange(200, 400).reshape(-1, 4)[:40],
        watched_groups=torch.arange(200, 400).reshape(-1, 4)[40:],
        own_labels=torch.empty(0, 2, dtype=torch.long),
    )


@pytest.mark.parametrize(("distance", "accuracy", "tolerance"), [(0, 0.5, 0.08), (20, 1, 0)])
def test_sides_are_told_apart_where_they_are(distance, accuracy, tolerance) -> None:
    problem = sides(distance)
    plain = problem.features[:, 1]
    found = measure_figures(problem, plain, plain, plain)
    assert found.domain_accuracy == pytest.approx(accuracy, abs=tolerance)
    assert found.agreement_original == found.agreement_shifted == 1.0


def texts_of(pairs: Tensor) -> set[int]:
    return set(pairs.flatten().tolist())


def test_halves_share_no_text_and_lose_no_pair() -> None:
    pairs = torch.tensor([[3 * n + a, 3 * n + b] for n in range(20) for a, b in ((0, 1), (1, 2))])
    problem = replace(sides(0), pairs=pairs)
    halves = [half.pairs for half in halve_pairs(problem, 3)]
    assert [len(half) for half in halves] == [20, 20]
    assert not texts_of(halves[0]) & texts_of(halves[1])
    assert sorted(torch.cat(halves).tolist()) == sorted(pairs.tolist())
    other = halve_pairs(problem, 4)[0].pairs
    assert texts_of(other) != texts_of(halves[0])


def test_pairs_that_hang_together_have_no_halves() -> None:
    chain = torch.tensor([[n, n + 1] for n in range(10)])
    with pytest.raises(EmptySetError, match="give pairs of more prompts"):
        halve_pairs(replace(sides(0), pairs=chain), 0)


def test_two_uneven_parts_are_two_halves() -> None:
    pairs = torch.tensor([[0, 1], [1, 2], [2, 3], [10, 11]])
    for seed in range(8):
        halves = [half.pairs for half in halve_pairs(replace(sides(0), pairs=pairs), seed)]
        assert sorted(len(half) for half in halves) == [1, 3]


def test_no_label_of_the_shifted_side_is_looked_at(made_up) -> None:
    _, problem = made_up()
    settings = HeadSettings(hidden=[4], num_steps=6, measure_every=3)
    trained = train_recipe(problem, Recipe(), settings, 0)
    plain = trained.scores[trained.best]
    found = foretell(problem, plain, settings, 0)
    turned = replace(problem, own_labels=problem.own_labels.flip(1))
    assert asdict(foretell(turned, plain, settings, 0)) == asdict(found)
    assert found.validation_accuracy == pytest.approx(trained.validation[trained.best])
    assert all(math.isfinite(value) for value in asdict(found).values())
