# SPDX-License-Identifier: Apache-2.0
"""What the signs of the meta step do to the weights that are kept, on a linear toy.

The look-ahead of Algorithm 1 ascends the difference loss J, yet training then leaves the kept
weights with a LOWER J than plain training, and gives the pairs that agree with the ascent LESS
weight. These tests state it; they hold signs and orders, not digits.
"""

import itertools
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from metarm.meta_step import look_ahead, measure_direction, meta_step
from metarm.objectives import bradley_terry_loss, difference_loss

SEEDS = range(3)
ETAS = (-2.0, 0.0, 1.0, 2.0, 5.0)


@dataclass(frozen=True)
class Toy:
    truth: Tensor
    pairs: Tensor
    """Features of the chosen minus those of the rejected response, (300, 10)."""
    groups: Tensor
    """Features of 5 responses to each of 40 prompts, shifted away from the pairs."""


@pytest.fixture(params=SEEDS)
def toy(request) -> Toy:
    generator = np.random.default_rng(request.param)
    truth = generator.normal(size=10)
    apart = generator.normal(size=(300, 10))
    is_right = generator.random(300) < 1 / (1 + np.exp(-apart @ truth))
    prompts = generator.normal(0, 0.5, (40, 1, 10))
    shift = generator.normal(0, 2.0, 10)
    noise = generator.normal(0, 0.4, (40, 5, 10))
    return Toy(
        torch.from_numpy(truth),
        torch.from_numpy(np.where(is_right[:, None], apart, -apart)),
        torch.from_numpy(prompts + shift + noise),
    )


def preference(toy, w):
    gaps = toy.pairs @ w
    return bradley_terry_loss(gaps, torch.zeros_like(gaps))


def train(toy, *, steps, **settings):
    """The weights that full-batch gradient descent with learning rate 1 keeps."""
    w = torch.zeros(10, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([w], lr=1.0)
    for _ in range(steps):
        optimizer.zero_grad()
        with meta_step([w], lambda: difference_loss(toy.groups @ w), **settings):
            preference(toy, w).backward()
        optimizer.step()
    return w


def by_eta(eta):
    return {"mode": "ascent" if eta >= 0 else "descent", "step_size": abs(eta)}


def is_rising(values):
    return all(before < after for before, after in itertools.pairwise(values))


def is_falling(values):
    return is_rising(values[::-1])


def measure(toy, w, eta=0.0):
    """J and L of the kept weights and of the looked-ahead ones, and the length of the kept."""
    direction = measure_direction(difference_loss(toy.groups @ w), [w])
    with torch.no_grad(), look_ahead([w], direction.gradients, eta):
        ahead = difference_loss(toy.groups @ w).item(), preference(toy, w).item()
    return {
        "kept J": direction.difference,
        "kept L": preference(toy, w).item(),
        "ahead J": ahead[0],
        "ahead L": ahead[1],
        "length": w.norm().item(),
        "cosine": torch.cosine_similarity(w, toy.truth, dim=0).item(),
    }


def test_ascent_lowers_the_difference_of_the_kept_weights(toy):
    rows = [measure(toy, train(toy, steps=400, **by_eta(eta)), eta) for eta in ETAS]
    table = {name: [row[name] for row in rows] for name in rows[0]}
    assert is_falling(table["kept J"])
    assert is_falling(table["length"])
    # Only the discarded look-ahead is where plain training ends.
    assert np.ptp(table["ahead J"]) < 0.01 * np.ptp(table["kept J"])
    assert np.ptp(table["ahead L"]) < 0.02 * np.ptp(table["kept L"])
    # The plain loss is least without a meta step and grows with its size, on either side.
    assert table["kept L"][0] > table["kept L"][1]
    assert is_rising(table["kept L"][1:])
    assert min(table["cosine"]) > 0.9


def test_the_sign_is_the_same_far_from_convergence(toy):
    rows = [measure(toy, train(toy, steps=15, **by_eta(eta)), eta) for eta in (-5.0, 0.0, 5.0)]
    table = {name: [row[name] for row in rows] for name in rows[0]}
    assert is_falling(table["kept J"])
    assert is_falling(table["length"])
    assert is_rising(table["kept L"])


def test_pairs_that_agree_with_the_ascent_weigh_less(toy):
    w = train(toy, steps=50, mode="off")
    direction = measure_direction(difference_loss(toy.groups @ w), [w])
    agreement = toy.pairs @ direction.gradients[0]

    def weights():
        # The share of a pair in the gradient of L: the chance the model gives to the rejected.
        gaps = (toy.pairs @ w).detach().requires_grad_()
        loss = bradley_terry_loss(gaps, torch.zeros_like(gaps))
        return -torch.autograd.grad(loss, gaps)[0]

    plain = weights()
    for eta in (1.0, -1.0):
        with look_ahead([w], direction.gradients, eta):
            ratio = weights() / plain
        lighter = agreement > 0 if eta > 0 else agreement < 0
        assert 0 < lighter.sum() < len(lighter)
        assert (ratio[lighter] < 1).all()
        assert (ratio[~lighter] > 1).all()


def test_joint_inflates_the_scores_and_hardly_moves_their_order(toy):
    plain = measure(toy, train(toy, steps=400, mode="off"))
    rows = [plain] + [
        measure(toy, train(toy, steps=400, mode="joint", weight=weight))
        for weight in (0.1, 0.5, 1.0, 2.0)
    ]
    table = {name: [row[name] for row in rows] for name in rows[0]}
    assert is_rising(table["kept J"])
    assert is_rising(table["kept L"])
    assert is_rising(table["length"])
    assert table["length"][-1] > 1.5 * table["length"][0]
    # In most draws the direction drifts from the truth, in some it gains: never by much.
    assert abs(table["cosine"][-1] - table["cosine"][0]) < 0.01


def test_the_step_of_the_paper_changes_next_to_nothing(toy):
    plain = train(toy, steps=400, mode="off")
    ours = train(toy, steps=400, mode="ascent", step_size=5e-6)
    assert 0 < (ours - plain).norm().item() < 1e-5 * plain.norm().item()
