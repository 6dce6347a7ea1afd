# SPDX-License-Identifier: Apache-2.0
"""Labelled shifted pairs by choice: which they are, and that no label is seen too early."""

from dataclasses import replace

import pytest
import torch

from metarm.bench.fitting import train_network
from metarm.bench.label_choice import choose_labels
from metarm.bench.recipes import read_recipe
from metarm.bench.settings import HeadSettings

STRATEGIES = ["mix", "d-optimal", "information-gain", "disagreement", "near-tie"]


def rows(pairs: torch.Tensor) -> list[tuple[int, int]]:
    return [tuple(pair) for pair in pairs.tolist()]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_so_many_different_labels(made_up, strategy) -> None:
    _, problem = made_up()
    found = rows(choose_labels(problem, strategy, 20, 0))
    assert len(set(found)) == 20
    assert set(found) <= set(rows(problem.own_labels))
    assert found != rows(problem.own_labels[:20])


def test_at_random_they_are_the_first(made_up) -> None:
    _, problem = made_up()
    assert rows(choose_labels(problem, "random", 7, 0)) == rows(problem.own_labels[:7])


def test_a_label_is_not_seen_before_it_is_chosen(made_up) -> None:
    _, problem = made_up()
    turned = replace(problem, own_labels=problem.own_labels.flip(1))
    for strategy in ("d-optimal", "mix"):
        mine = choose_labels(problem, strategy, 30, 0)
        assert rows(choose_labels(turned, strategy, 30, 0).flip(1)) == rows(mine)


def test_the_shifted_axis_is_asked_for_first(made_up) -> None:
    """Shifted responses differ along the last feature alone; the widest pairs tell most of it."""
    _, problem = made_up()

    def width(pairs):
        x = problem.features[:, -1]
        return (x[pairs[:, 0]] - x[pairs[:, 1]]).abs().mean()

    chosen = choose_labels(problem, "d-optimal", 10, 0)
    assert width(chosen) > 1.3 * width(problem.own_labels)


def test_a_recipe_trains_on_its_choice(made_up) -> None:
    _, problem = made_up()
    settings = HeadSettings(hidden=[4], num_steps=2, measure_every=2, batch_size=8, num_groups=4)
    chosen = choose_labels(problem, "mix", 20, 0)
    as_given = replace(problem, own_labels=chosen)
    found = train_network(problem, read_recipe("20-labels+mix"), settings, 0)
    expected = train_network(as_given, read_recipe("20-labels"), settings, 0)
    torch.testing.assert_close(found.scores, expected.scores)
