# SPDX-License-Identifier: Apache-2.0
"""The memory law tells what was counted; and the plan on it, what is known by hand."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from metarm.errors import ConfigError
from metarm.speed import trainers
from metarm.speed.counting import counting_tokens, peak_bytes
from metarm.speed.law import Recipe, step_cost
from metarm.speed.memory import Training, block_bytes, peak_memory
from metarm.speed.methods import METHODS
from metarm.speed.plan import GPUS, PLANNED, PlannedRun, plan_run
from metarm.speed.problem import Problem
from metarm.speed.results import Case
from metarm.speed.shapes import SHAPES
from metarm.speed.workload import Workload

# Method: gradient checkpointing, a move; and which of the shared passes is the largest.
WAYS = {
    "trl": (False, False),
    "trl-default": (True, False),
    "plain": (False, False),
    "meta": (False, True),
    "meta-every-4": (False, True),
}
KEPT_TOLERANCE = 0.05
"""The law leaves out masks, rotations, and the rest of a layer's odds and ends."""
LIVE_TOLERANCE = {"4m": 0.10, "tiny": 0.25}
"""The smaller a model, the more the odds and ends are of it."""


def _largest_pass(case: Case, name: str) -> int:
    """Tokens of the pass over the pairs, which no part of the groups is larger than here."""
    work = case.workload
    row = work.prompt_tokens + work.response_tokens
    if name.startswith("trl"):
        return 2 * work.num_pairs * row
    pairs = work.num_pairs * (work.prompt_tokens + 2 * work.response_tokens)
    groups = -(-2 * work.num_pairs // work.group_size)
    together = groups * (work.prompt_tokens + work.group_size * work.response_tokens)
    assert name == "plain" or together <= pairs, "the peak is in the pass over the pairs"
    return pairs


def _predicted(case: Case, name: str) -> float:
    recomputes, moves = WAYS[name]
    tokens = _largest_pass(case, name)
    training = Training(tokens, recomputes=recomputes, moves=moves, bf16=case.bf16)
    return peak_memory(SHAPES[case.size], training).total


def _kept() -> list:
    path = Path(__file__).parents[3] / "benchmarks" / "results" / "speed-xeon-2.json"
    found = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cases"]:
        case = Case.from_json(cell["case"])
        for name, measured in cell["methods"].items():
            if name in WAYS and measured["peak_bytes"] and not case.bf16:
                found.append(pytest.param(case, name, measured, id=f"{case.name} {name}"))
    return found


@pytest.mark.parametrize(("case", "name", "measured"), _kept())
def test_the_law_tells_what_was_counted_on_the_measured_models(case, name, measured) -> None:
    assert _predicted(case, name) == pytest.approx(measured["peak_bytes"], rel=KEPT_TOLERANCE)


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="allocators of GPUs count in blocks")
@pytest.mark.parametrize(
    ("size", "name", "bf16"),
    [
        ("4m", "trl", False),
        ("4m", "trl-default", True),
        ("4m", "plain", True),
        ("4m", "meta", False),
        ("tiny", "trl", True),
        ("tiny", "meta", False),
    ],
)
def test_the_law_tells_what_is_counted_here(monkeypatch, size, name, bf16) -> None:
    settings = trainers._settings
    monkeypatch.setattr(trainers, "_settings", lambda *a: settings(*a) | {"use_cpu": True})
    # Enough tokens that both models' prompts are worth sharing.
    work = Workload(96, 32, 4, num_pairs=4 if size == "4m" else 40, num_groups=4)
    case = Case("lengths", size, work, (name,), 1, 1, bf16=bf16, seed=0)
    problem = Problem(SHAPES[size], work, bf16=bf16)
    with peak_bytes() as peak:
        model = problem.build_model()
        with counting_tokens(model) as tokens:
            METHODS[name].run(problem, model, 0, 1, tokens.end_step)
    assert _predicted(case, name) == pytest.approx(peak[0], rel=LIVE_TOLERANCE[size])


def test_weights_cost_what_is_known_by_hand() -> None:
    shape = PLANNED["7b"]
    size = shape.num_weights
    plain = peak_memory(shape, Training(0))
    assert plain.total == 16 * size
    assert peak_memory(shape, Training(0, moves=True)).total == 20 * size
    whole = peak_memory(shape, Training(0, processes=8))
    assert whole.total == 20 * size  # DDP's buckets are one more copy of the gradients
    sharded = peak_memory(shape, Training(0, processes=8, is_sharded=True, moves=True))
    block = shape.token_weights + shape.row_weights
    gathered = 16 * block + 4 * shape.vocabulary * shape.hidden
    assert sharded.total == pytest.approx(20 * size / 8 + gathered)
    adapter = peak_memory(shape, Training(0, trained=10**7))
    assert adapter.total == 4 * size + 12 * 10**7


def test_activations_are_those_of_one_block_where_they_are_made_again() -> None:
    shape, tokens = replace(PLANNED["7b"], vocabulary=8), 10**6
    kept = peak_memory(shape, Training(tokens))
    assert kept.gradients == 0.0, "the peak is before the way back"
    passing = 8 * tokens * shape.intermediate
    assert kept.activations == shape.layers * tokens * block_bytes(shape) + passing
    again = peak_memory(shape, Training(tokens, recomputes=True))
    stream = 4 * tokens * shape.hidden
    one = tokens * block_bytes(shape)
    assert again.activations == shape.layers * stream + one + passing
    cast = peak_memory(shape, Training(tokens, bf16=True))
    assert block_bytes(shape, bf16=True) < 0.7 * block_bytes(shape)
    copies = 2 * shape.linear_weights
    expected = shape.layers * tokens * block_bytes(shape, bf16=True) + copies + passing / 2
    assert cast.activations == expected


def test_a_stage_has_the_operations_of_the_law() -> None:
    run = PlannedRun("7b", "h100", 8, num_pairs=640, batch_size=64, meta_batch_size=16)
    stages = {stage.name: stage for stage in plan_run(run)}
    pairs, groups = [run.bundle(2)] * 64, [run.bundle(5)] * 16
    plain = step_cost(PLANNED["7b"], Recipe(shares=False, recomputes=True), pairs, groups)
    meta = step_cost(
        PLANNED["7b"], Recipe(shares=False, group_share=1.0, recomputes=True), pairs, groups
    )
    assert stages["reward, plain"].flops == 10 * plain.flops
    assert stages["reward, meta step"].flops == 10 * meta.flops
    guarded = stages["reward, meta step and guard"]
    assert guarded.flops == 10 * (plain.flops + meta.flops)
    # 64 pairs are 128 rows and 16 groups are 80.
    assert meta.flops / plain.flops == pytest.approx(1 + 80 / 128)
    rate = 8 * GPUS["h100"].flops_per_second * 0.35
    assert guarded.hours >= guarded.flops / rate / 3600


def test_a_plan_says_what_fits() -> None:
    one = {stage.name: stage for stage in plan_run(PlannedRun("7b", "h100", 1))}
    assert not one["reward, plain"].fits
    eight = plan_run(PlannedRun("7b", "h100", 8))
    assert all(stage.fits for stage in eight)
    assert {stage.way for stage in eight if stage.memory} == {"FSDP2"}
    large = {stage.name: stage for stage in plan_run(PlannedRun("70b", "h100", 16))}
    assert not large["reward, meta step"].fits
    least = large["reward, meta step"].least_gpus
    assert least is not None
    assert 16 < least <= 64
    enough = {s.name: s for s in plan_run(PlannedRun("70b", "h100", least))}
    assert enough["reward, meta step"].fits
    half = {s.name: s for s in plan_run(PlannedRun("70b", "h100", least // 2))}
    assert not half["reward, meta step"].fits


def test_more_work_takes_longer_and_faster_links_do_not() -> None:
    base = PlannedRun("8b", "a100-80", 16)
    hours = [stage.hours for stage in plan_run(base)]
    assert all(x > 0 for x in hours)
    longer = [stage.hours for stage in plan_run(replace(base, response_tokens=512))]
    assert all(x >= y for x, y in zip(longer, hours, strict=True))
    alone = [stage.hours for stage in plan_run(replace(base, gpus=1))]
    more = plan_run(replace(base, gpus=1, response_tokens=512))
    assert all(x.hours > y for x, y in zip(more, alone, strict=True)), "nothing else to wait for"
    near = [stage.hours for stage in plan_run(replace(base, gpus_per_node=16))]
    assert all(x <= y for x, y in zip(near, hours, strict=True))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"parameters": "7x"}, "unknown parameters '7x'"),
        ({"gpu": "h101"}, "did you mean 'h100'"),
        ({"mfu": 0.0}, r"mfu .* got 0\.0"),
        ({"mfu": float("nan")}, "mfu .* got nan"),
    ],
)
def test_what_cannot_be_planned_is_refused(changes, words) -> None:
    with pytest.raises(ConfigError, match=words):
        plan_run(replace(PlannedRun("7b", "h100", 8), **changes))
