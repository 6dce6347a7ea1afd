# SPDX-License-Identifier: Apache-2.0
"""The cost law counts what torch counts, and gives the ratios that are known by hand."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from metarm.models.shared_prompts import SharedPrompts
from metarm.speed.law import Cost, Recipe, packed_cost, padded_cost, step_cost
from metarm.speed.problem import Problem
from metarm.speed.shapes import SHAPES
from metarm.speed.workload import Bundle, Workload

SHAPE = replace(SHAPES["4m"], layers=3, vocabulary=64)
WORKLOAD = Workload(24, 10, 4, num_pairs=3, num_groups=2, length_spread=0.4)


def _count(problem: Problem, attention: str, *, shares: bool) -> int:
    """Operations of a forward and backward pass over the groups, as torch counts them."""
    model = problem.build_model(attention)
    batch, _ = problem.group_batch()
    group_of_row = [row // 4 for row in range(len(batch.input_ids))]
    prompts = SharedPrompts(model)

    def work() -> None:
        model(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask
        ).logits.sum().backward()

    if not shares:
        with FlopCounterMode(display=False) as counter:
            work()
        return counter.get_total_flops()
    with prompts.sharing(*batch, group_of_row), FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def test_rows_of_their_own_are_counted_as_torch_counts_them() -> None:
    problem = Problem(SHAPE, WORKLOAD)
    law = padded_cost(SHAPE, problem.group_lengths, dense_attention=True)
    assert law.flops == pytest.approx(_count(problem, "eager", shares=False), rel=1e-3)
    causal = padded_cost(SHAPE, problem.group_lengths)
    assert causal.attention == law.attention / 2
    assert causal.linear == law.linear
    again = padded_cost(SHAPE, problem.group_lengths, recomputes=True)
    assert again.flops == pytest.approx(4 / 3 * causal.flops)


def test_shared_prompts_are_counted_as_torch_counts_them() -> None:
    """Torch does not count attention on a CPU: its figure is the linear layers'."""
    problem = Problem(SHAPE, WORKLOAD)
    law = packed_cost(SHAPE, problem.group_lengths)
    assert law.linear == pytest.approx(_count(problem, "sdpa", shares=True), rel=1e-3)


def test_attention_of_shared_prompts_is_that_of_the_tokens_that_see_each_other() -> None:
    bundle = Bundle(3, (2, 4))
    # Each token sees itself and what stands before it in its own text.
    pairs = sum(range(1, 4)) + sum(range(4, 6)) + sum(range(4, 8))
    law = packed_cost(SHAPE, [bundle], trims=False)
    whole = 4 * SHAPE.hidden * SHAPE.layers * 3 * pairs
    # The law takes half of a square for a triangle with its diagonal.
    assert law.attention == pytest.approx(whole, rel=0.2)
    assert law.attention < whole


def test_ratios_known_by_hand() -> None:
    """performance.md, section 1: P = 256, R = 64, k = 5 costs 3.5 naively and 1.5 shared."""
    pairs, groups = [Bundle(256, (64, 64))] * 4, [Bundle(256, (64,) * 5)] * 4
    unit = padded_cost(SHAPE, pairs)
    naive = unit + padded_cost(SHAPE, groups)
    assert naive.linear / unit.linear == pytest.approx(3.5)
    shared = packed_cost(SHAPE, pairs, trims=False) + packed_cost(SHAPE, groups, trims=False)
    assert shared.linear / unit.linear == pytest.approx(1.5, rel=1e-3)
    assert shared.tokens == 4 * (256 + 2 * 64 + 256 + 5 * 64)


def test_a_step_is_its_passes_and_the_bytes_of_its_weights() -> None:
    pairs, groups = [Bundle(16, (8, 8))], [Bundle(16, (8,) * 3)]
    weights = SHAPE.num_weights
    plain = step_cost(SHAPE, Recipe(shares=True), pairs, groups)
    assert plain.flops == packed_cost(SHAPE, pairs).flops
    assert plain.bytes == 32 * weights
    rare = step_cost(SHAPE, Recipe(shares=True, group_share=0.25), pairs, groups)
    assert rare.flops == pytest.approx(plain.flops + packed_cost(SHAPE, groups).flops / 4)
    assert rare.bytes == 44 * weights
    assert Cost(linear=100.0, bytes=50.0).seconds(10.0, 25.0) == 12.0


def test_weights_are_those_of_the_model() -> None:
    problem = Problem(SHAPE, WORKLOAD)
    model = problem.build_model()
    assert sum(p.numel() for p in model.parameters()) == SHAPE.num_weights
    matrices = [p for name, p in model.named_parameters() if "_proj" in name]
    assert sum(p.numel() for p in matrices) == SHAPE.linear_weights
    assert all(p.dtype == torch.float32 for p in model.parameters())
