# SPDX-License-Identifier: Apache-2.0
"""What a run would take: memory of each GPU and hours of each stage, from the cost laws; no torch.

Operations are the law's (`law.py`), bytes those of `memory.py`; what no law gives, how well a GPU
is used, is an assumption that is named beside the figures, with its source.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from metarm.errors import ConfigError, nearest_names
from metarm.speed.law import BACKWARD, Recipe, padded_cost, step_cost
from metarm.speed.memory import BF16, FP32, Memory, Training, peak_memory
from metarm.speed.shapes import SHAPES, ModelShape
from metarm.speed.workload import Bundle

__all__ = ["ASSUMPTIONS", "GPUS", "PLANNED", "Gpu", "PlannedRun", "StagePlan", "plan_run"]

GB: Final = 1e9
USABLE: Final = 0.92


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU by its data sheet."""

    bytes: float
    flops_per_second: float
    """Dense bfloat16."""
    bytes_per_second: float
    """Of its memory."""
    link: float
    """Bytes a second to the others of its node, one way."""
    network: float
    """The same to other nodes, one network card a GPU."""


GPUS: Final[Mapping[str, Gpu]] = {
    "a100-40": Gpu(40 * GB, 312e12, 1.555e12, 300e9, 25e9),
    "a100-80": Gpu(80 * GB, 312e12, 2.039e12, 300e9, 25e9),
    "h100": Gpu(80 * GB, 989e12, 3.35e12, 450e9, 50e9),
    "h200": Gpu(141 * GB, 989e12, 4.8e12, 450e9, 50e9),
    "b200": Gpu(180 * GB, 2250e12, 8e12, 900e9, 50e9),
}
"""NVIDIA's data sheets, SXM forms, without sparsity."""

PLANNED: Final[Mapping[str, ModelShape]] = {
    **SHAPES,
    "7b": ModelShape(4096, 32, 11008, 32, 32, 32000),
    "8b": ModelShape(4096, 32, 14336, 32, 8, 128256),
    "70b": ModelShape(8192, 80, 28672, 64, 8, 128256),
}
"""Those of `metarm bench`, and Llama 2 7B (the paper's), Llama 3.1 8B and 70B."""

ASSUMPTIONS: Final[tuple[str, ...]] = (
    "float32 weights and gradients, AdamW's two moments in float32; bfloat16 autocast; gradient "
    "checkpointing (one more forward)",
    "mfu: the share of a GPU's dense bfloat16 rate that a training reaches. 0.35, below the 0.38 "
    "to 0.43 of Llama 3's pre-training on H100 (arXiv 2407.21783, table 4), whose rows are longer",
    "rows are padded to prompt_tokens + response_tokens; shared prompts (one process, DDP) are not "
    "counted on, so their gain comes on top",
    "FSDP2 gathers float32 weights twice and adds up float32 gradients once in each pass; that "
    "hides behind computing, or computing behind it: the longer of the two is counted",
    "sampling reads all weights in bfloat16 and the cache of every row once a token, at half of "
    "the memory's rate; as many rows at once as the memory has room for, 256 at most",
    "PPO: a policy and a critic are trained, a reward model and a reference read, four passes over "
    "each batch; metarm's own PPO is one process, so above one GPU this is another package's "
    "(docs/scale.md)",
    "memory: 92 % of a GPU's is usable; nothing for fragmentation beyond that",
    "loading, evaluation, saving and waiting for stragglers are not counted",
)
"""What the figures rest on; printed with them."""

MFU: Final = 0.35
DECODE_SHARE: Final = 0.5
MOST_ROWS: Final = 256


@dataclass(frozen=True, slots=True)
class PlannedRun:
    """What is to be trained, on what."""

    parameters: str
    gpu: str
    gpus: int
    gpus_per_node: int = 8
    prompt_tokens: int = 256
    response_tokens: int = 256
    num_pairs: int = 100_000
    num_demonstrations: int = 100_000
    batch_size: int = 64
    """Pairs, demonstrations or PPO responses an optimiser step, over all GPUs."""
    meta_batch_size: int = 16
    group_size: int = 5
    num_meta_prompts: int = 10_000
    """Prompts that the policy answers `group_size` times."""
    ppo_responses: int = 100_000
    ppo_epochs: int = 1
    mfu: float = MFU

    @property
    def tokens(self) -> int:
        """Of a row."""
        return self.prompt_tokens + self.response_tokens

    def bundle(self, responses: int) -> Bundle:
        """A prompt with so many responses."""
        return Bundle(self.prompt_tokens, (self.response_tokens,) * responses)


@dataclass(frozen=True, slots=True)
class StagePlan:
    """A stage of the run."""

    name: str
    flops: float
    """Of all GPUs, the whole stage."""
    hours: float
    memory: Memory | None
    """Of each GPU, sharded where that is needed; None: only weights and a cache."""
    bytes: float
    """Of each GPU at the peak."""
    way: str
    """`one GPU`, `DDP` or `FSDP2`."""
    fits: bool
    least_gpus: int | None
    """The fewest on which it would fit, in powers of two; None: more than 4,096."""


def plan_run(run: PlannedRun) -> list[StagePlan]:
    """Every stage of a run.

    Raises:
        ConfigError: When the model's size or the GPU is unknown, or a number is out of its range.
    """
    for name, value, known in (("parameters", run.parameters, PLANNED), ("gpu", run.gpu, GPUS)):
        if value not in known:
            raise ConfigError(f"unknown {name} {value!r}: {nearest_names(value, known)}")
    if not 0.0 < run.mfu <= 1.0:
        raise ConfigError(f"mfu is a share of the GPU's rate, in (0, 1], got {run.mfu}")
    return [
        _sft(run),
        _reward(run, "reward, plain", recipe=Recipe(shares=False, recomputes=True)),
        _reward(
            run,
            "reward, meta step",
            recipe=Recipe(shares=False, group_share=1.0, recomputes=True),
        ),
        _reward(
            run,
            "reward, meta step and guard",
            recipe=Recipe(shares=False, group_share=1.0, recomputes=True),
            is_guarded=True,
        ),
        _sampling(run, "sampling the meta set", run.num_meta_prompts * run.group_size),
        _ppo(run),
    ]


def _sft(run: PlannedRun) -> StagePlan:
    shape = PLANNED[run.parameters]
    rows = -(-run.batch_size // run.gpus)
    steps = -(-run.num_demonstrations // run.batch_size)
    step = padded_cost(shape, [run.bundle(1)] * run.batch_size, recomputes=True).flops
    # The language model's head is a matrix of its own, and its logits are float32 with a gradient.
    head = BACKWARD * 2 * shape.vocabulary * shape.hidden * run.batch_size * run.tokens
    logits = rows * run.tokens * shape.vocabulary * (BF16 + 2 * FP32)
    training = Training(rows * run.tokens, recomputes=True, bf16=True)
    return _trained(run, "SFT", [training], steps * (step + head), steps, passes=1, more=logits)


def _reward(run: PlannedRun, name: str, *, recipe: Recipe, is_guarded: bool = False) -> StagePlan:
    shape = PLANNED[run.parameters]
    steps = -(-run.num_pairs // run.batch_size)
    pairs = [run.bundle(2)] * run.batch_size
    groups = [run.bundle(run.group_size)] * run.meta_batch_size
    step = step_cost(shape, recipe, pairs, groups).flops
    passes = 1.0 + recipe.group_share
    if is_guarded:
        step += step_cost(shape, replace(recipe, group_share=0.0), pairs, groups).flops
        passes += 1.0
    rows = 2 * -(-run.batch_size // run.gpus)
    if recipe.group_share:
        # The meta batch goes in whole groups, as many as have the responses of the pairs.
        own = run.group_size * -(-run.meta_batch_size // run.gpus)
        rows = max(rows, min(own, run.group_size * -(-rows // run.group_size)))
    training = Training(rows * run.tokens, recomputes=True, bf16=True, moves=recipe.group_share > 0)
    return _trained(run, name, [training], steps * step, steps, passes=passes)


def _trained(
    run: PlannedRun,
    name: str,
    trainings: list[Training],
    flops: float,
    steps: int,
    *,
    passes: float,
    more: float = 0.0,
    held: float = 0.0,
    extra_hours: float = 0.0,
) -> StagePlan:
    """A stage that trains: on each GPU whole where that fits, else sharded.

    Args:
        run: The run.
        name: Of the stage.
        trainings: Of each model that is trained at once, for one process.
        flops: Of the whole stage.
        steps: Optimiser steps.
        passes: Forward and backward passes a step.
        more: Bytes of each GPU beside the models' own, of its rows.
        held: Bytes of all GPUs together, of what is only read.
        extra_hours: What does not depend on the operations.
    """
    shape, gpu = PLANNED[run.parameters], GPUS[run.gpu]

    def need(gpus: int, *, is_sharded: bool) -> tuple[Memory, float]:
        found = [
            peak_memory(
                shape,
                # As many rows in all, on other numbers of GPUs.
                replace(
                    training,
                    tokens=max(run.tokens, training.tokens * run.gpus // gpus)
                    if training.tokens
                    else 0,
                    processes=gpus,
                    is_sharded=is_sharded,
                ),
            )
            for training in trainings
        ]
        parts = gpus if is_sharded else 1
        beside = more * run.gpus / gpus + held / parts
        return found[0], sum(memory.total for memory in found) + beside

    room = USABLE * gpu.bytes
    memory, whole = need(run.gpus, is_sharded=False)
    is_sharded = run.gpus > 1 and whole > room
    if is_sharded:
        memory, whole = need(run.gpus, is_sharded=True)
    counts = (2**power for power in range(13))
    least = next((n for n in counts if need(n, is_sharded=n > 1)[1] <= room), None)
    seconds = flops / (run.gpus * gpu.flops_per_second * run.mfu)
    seconds = max(seconds, _sent_seconds(run, steps, passes, is_sharded=is_sharded))
    way = "FSDP2" if is_sharded else ("DDP" if run.gpus > 1 else "one GPU")
    hours = seconds / 3600 + extra_hours
    return StagePlan(name, flops, hours, memory, whole, way, whole <= room, least)


def _sent_seconds(run: PlannedRun, steps: int, passes: float, *, is_sharded: bool) -> float:
    """What processes send each other, at the rate of the slowest way between them."""
    if run.gpus == 1:
        return 0.0
    gpu, weights = GPUS[run.gpu], PLANNED[run.parameters].num_weights
    rate = gpu.link if run.gpus <= run.gpus_per_node else gpu.network
    share = (run.gpus - 1) / run.gpus
    # Gathered forward and back, and gradients once; DDP adds gradients up, there and back.
    times = 3 * passes if is_sharded else 2 * passes
    return steps * times * FP32 * weights * share / rate


def _cache_bytes(shape: ModelShape, tokens: int) -> float:
    """Keys and values of a row, in bfloat16."""
    return 2.0 * BF16 * shape.layers * shape.kv_heads * (shape.hidden // shape.heads) * tokens


def _decode(run: PlannedRun, num_rows: int) -> tuple[float, float, float, int]:
    """Operations, hours, bytes of each GPU, and GPUs a copy of the model takes."""
    shape, gpu = PLANNED[run.parameters], GPUS[run.gpu]
    weights = float(BF16 * (shape.num_weights + shape.vocabulary * shape.hidden))
    room, cache = USABLE * gpu.bytes, _cache_bytes(shape, run.tokens)
    copy = 1
    while copy * room < weights + cache * 8 and copy < 4096:
        copy *= 2
    at_once = max(1, min(MOST_ROWS, int((copy * room - weights) // cache)))
    copies = max(1, run.gpus // copy)
    rounds = -(-num_rows // (copies * at_once))
    forward = padded_cost(shape, [run.bundle(1)]).flops / BACKWARD
    flops = num_rows * (forward + 2.0 * shape.vocabulary * shape.hidden * run.response_tokens)
    read = run.response_tokens * (weights + at_once * cache / 2) / copy
    seconds = rounds * read / (DECODE_SHARE * gpu.bytes_per_second)
    # Prompts go through at once, as training's forward passes do.
    prompts = num_rows * forward * run.prompt_tokens / run.tokens
    seconds += prompts / (run.gpus * gpu.flops_per_second * run.mfu)
    return flops, seconds / 3600, (weights + at_once * cache) / copy, copy


def _sampling(run: PlannedRun, name: str, num_rows: int) -> StagePlan:
    flops, hours, held, copy = _decode(run, num_rows)
    fits = copy <= run.gpus and held <= USABLE * GPUS[run.gpu].bytes
    way = "one GPU" if copy == 1 else f"{copy} GPUs a copy"
    return StagePlan(name, flops, hours, None, held, way, fits, copy if copy < 4096 else None)


def _ppo(run: PlannedRun) -> StagePlan:
    shape = PLANNED[run.parameters]
    decoded, hours, _, _ = _decode(run, run.ppo_responses)
    row = padded_cost(shape, [run.bundle(1)], recomputes=True).flops
    forward = padded_cost(shape, [run.bundle(1)]).flops / BACKWARD
    # Scores, the reference's and both old values forward; policy and critic back, each epoch.
    trained = run.ppo_responses * (4 * forward + 2 * run.ppo_epochs * row)
    rows = -(-run.batch_size // run.gpus)
    training = Training(rows * run.tokens, recomputes=True, bf16=True)
    logits = rows * run.tokens * shape.vocabulary * (BF16 + 2 * FP32)
    steps = run.ppo_epochs * -(-run.ppo_responses // run.batch_size)
    plan = _trained(
        run,
        "PPO",
        # The critic's activations come after the policy's: only what it holds counts twice.
        [training, replace(training, tokens=0)],
        trained,
        steps,
        passes=2 + 4 / 3,
        more=logits,
        held=2.0 * BF16 * shape.num_weights,
        extra_hours=hours,
    )
    return replace(plan, flops=plan.flops + decoded)
