# SPDX-License-Identifier: Apache-2.0
"""Every method makes the step that it is named after: its tokens, its gradient, its log."""

import pytest
import torch

from metarm.meta_step import meta_step
from metarm.objectives import bradley_terry_loss, difference_loss
from metarm.speed import peers
from metarm.speed.counting import LiveBytes, counting_tokens, peak_bytes
from metarm.speed.law import step_cost
from metarm.speed.methods import METHODS
from metarm.speed.problem import Problem
from metarm.speed.results import PARTS
from metarm.speed.shapes import SHAPES
from metarm.speed.summary import LABELS, RECIPES
from metarm.speed.workload import Workload

WORKLOAD = Workload(16, 6, 3, num_pairs=2, num_groups=2, length_spread=0.3)
PROBLEM = Problem(SHAPES["tiny"], WORKLOAD)
HERE = [name for name in METHODS if name not in ("torchopt", "learn2learn")]


def test_every_method_is_described() -> None:
    assert list(LABELS) == list(METHODS)
    assert set(METHODS) - set(RECIPES) == {"torchopt"}
    assert {name for name, method in METHODS.items() if method.is_peer} == set(peers.PEERS)


@pytest.mark.parametrize("name", HERE)
def test_tokens_are_those_of_the_law(name: str) -> None:
    method = METHODS[name]
    model = PROBLEM.build_model(method.attention)
    with counting_tokens(model) as count:
        block = method.run(PROBLEM, model, 0, method.cycle, count.end_step)
    law = step_cost(PROBLEM.shape, RECIPES[name], PROBLEM.pair_lengths, PROBLEM.group_lengths)
    assert count.per_step == law.tokens
    assert len(block.seconds) == method.cycle
    if not method.is_peer:
        assert set(block.parts) == set(PARTS)
        total = sum(block.mean_of(part) for part in PARTS)
        assert total == pytest.approx(block.mean)


@pytest.mark.parametrize("name", ["sam", "functional-call"])
def test_peers_take_the_gradient_of_the_meta_step(name: str, monkeypatch) -> None:
    monkeypatch.setattr(peers, "STEP_SIZE", 3.0)
    model = PROBLEM.build_model()
    before = [p.detach().clone() for p in model.parameters()]
    loss = peers.PEERS[name](PROBLEM, model)()
    taken = [p.grad for p in model.parameters()]
    assert all(torch.equal(p, kept) for p, kept in zip(model.parameters(), before, strict=True))

    ours = PROBLEM.build_model()

    def score(batch) -> torch.Tensor:
        return ours(*batch, use_cache=False).logits.squeeze(-1)

    def difference() -> torch.Tensor:
        batch, mask = PROBLEM.group_batch()
        return difference_loss(torch.zeros(mask.shape).masked_scatter(mask, score(batch)), mask)

    plain = bradley_terry_loss(*score(PROBLEM.pair_batch()).chunk(2))
    with meta_step(ours.parameters(), difference, mode="descent", step_size=3.0):
        expected = bradley_terry_loss(*score(PROBLEM.pair_batch()).chunk(2))
        expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-6)
    assert loss != pytest.approx(plain.item(), rel=1e-6)
    for found, parameter in zip(taken, ours.parameters(), strict=True):
        torch.testing.assert_close(found, parameter.grad, rtol=1e-4, atol=1e-7)


def test_blocks_begin_where_they_are_told() -> None:
    """A step that meta_every skips is skipped, and ten timed steps have one log."""
    method = METHODS["meta-every-4"]

    def tokens(first_step: int, num_steps: int = 1) -> float:
        model = PROBLEM.build_model()
        with counting_tokens(model) as count:
            method.run(PROBLEM, model, first_step, num_steps, count.end_step)
        return count.per_step

    # The second step of a block is the timed one.
    assert tokens(0) == tokens(1) < tokens(3)
    groups = tokens(3) - tokens(0)
    # Before a log J is measured once more, where the weights have moved.
    metas, logs = 3, 1
    law = 12 * tokens(0) + (metas + logs) * groups
    assert tokens(method.first_step, 12) == pytest.approx(law / 12)


def test_live_bytes_follow_storages() -> None:
    with LiveBytes() as mode:
        whole = torch.ones(1000)
        view = whole.view(10, 100)
        assert mode.live == 4000
        other = view + 1
        del whole, view
        assert mode.live == 4000
        del other
    assert (mode.live, mode.peak) == (0, 8000)


def test_peak_bytes_hold_weights_gradients_and_moments() -> None:
    method = METHODS["trl"]
    with peak_bytes() as found:
        method.run(PROBLEM, PROBLEM.build_model(), 0, 1, lambda: None)
    assert found[0] > 16 * PROBLEM.shape.num_weights
