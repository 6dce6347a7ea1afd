# SPDX-License-Identifier: Apache-2.0
"""The evaluation stages of a round: on original prompts and, if there is one, on the new task."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from metarm.chunk_log import ChunkLog
from metarm.config import RunSettings
from metarm.data.meta_sets import load_groups, save_groups
from metarm.evaluation.scorecard import ScoreFunctions, evaluate_round, sample_for_evaluation
from metarm.models.ensemble import load_reward
from metarm.protocols import ProgressReporter
from metarm.schema import PreferencePair, Prompt
from metarm.sources import Sources
from metarm.storage import Stage, build_stage, checkpoints_of, write_json, write_json_lines

__all__ = ["SFT_ARM", "EvaluationWork", "evaluate"]

SFT_ARM: Final = "sft"
ORIGINAL: Final = "evaluation"
NEW_TASK: Final = "evaluation_new_task"


@dataclass(frozen=True, slots=True)
class EvaluationWork:
    """One round of one arm that is evaluated."""

    settings: RunSettings
    arm: str
    seed: int
    round: int
    place: Path
    """The round's folder."""
    seed_folder: Path
    sources: Sources
    first_reward: Stage
    progress: ProgressReporter


def evaluate(
    work: EvaluationWork,
    policy: Stage,
    reward: Stage,
    before: tuple[Stage | None, Stage | None],
    seconds: float,
) -> tuple[Stage, Stage | None]:
    """The round's evaluation on original prompts and, where there is one, on the new task.

    Args:
        work: Which round of which arm.
        policy: The policy that ended the round.
        reward: The reward model that it was optimised against.
        before: The same two evaluations of the round before; None: there is none.
        seconds: What the round's other stages took.
    """
    sources = work.sources
    original = _evaluation_stage(
        work, ORIGINAL, policy, reward, before[0], seconds, sources.test_prompts, sources.test_pairs
    )
    if not sources.new_task_test_prompts:
        return original, None
    return original, _evaluation_stage(
        work, NEW_TASK, policy, reward, before[1], seconds, sources.new_task_test_prompts, ()
    )


def _evaluation_stage(
    work: EvaluationWork,
    name: str,
    policy: Stage,
    reward: Stage,
    previous: Stage | None,
    seconds: float,
    test_prompts: Sequence[Prompt],
    held_out: Sequence[PreferencePair],
) -> Stage:
    settings, optimize = work.settings.evaluation, work.settings.for_arm(work.arm).optimize
    prompts = test_prompts[: settings.num_prompts]
    sft = work.seed_folder / "arms" / SFT_ARM / "round_00" / name / "groups.jsonl"

    def build(folder: Path) -> dict[str, Any]:
        started, log = time.monotonic(), ChunkLog(checkpoints_of(folder) / "parts.jsonl")
        samples = sample_for_evaluation(
            policy.folder,
            work.sources.policy.folder,
            prompts,
            settings,
            optimize,
            batch_size=work.settings.sampling.batch_size,
            seed=work.seed,
            progress=work.progress,
            log=log,
        )
        save_groups(folder / "groups.jsonl", samples.groups)
        score = load_reward(reward.folder)
        test_pairs = score.fitting_pairs(held_out) if held_out else []
        # By the reward model: own, SFT's and the last policy's; by the first one: own.
        num_scores = 4 * len(prompts) * settings.num_generations + 2 * len(test_pairs)
        with work.progress.stage("evaluate: score responses", num_scores) as bar:
            card, rows = evaluate_round(
                arm=work.arm,
                seed=work.seed,
                round_number=work.round,
                samples=samples,
                sft_groups=load_groups(sft) if previous else samples.groups,
                previous_groups=load_groups(previous.folder / "groups.jsonl") if previous else None,
                test_pairs=test_pairs,
                scores=ScoreFunctions(
                    reward=score.reporting_to(bar),
                    first=load_reward(work.first_reward.folder).reporting_to(bar),
                    gold=work.sources.gold,
                ).kept_in(log, bar),
                settings=settings,
                seconds_before=seconds + time.monotonic() - started,
            )
        write_json(folder / "scorecard.json", card.to_json())
        write_json_lines(folder / "samples.jsonl", rows)
        return {}

    record = {
        "evaluation": settings.model_dump(),
        "sampling": {
            "temperature": optimize.temperature,
            "max_completion_length": optimize.max_completion_length,
            "batch_size": work.settings.sampling.batch_size,
        },
        "arm": work.arm,
        "round": work.round,
        "seed": work.seed,
        **({"task": name} if name == NEW_TASK else {}),
    }
    inputs = [policy, reward, work.first_reward, *([previous] if previous else [])]
    return build_stage(work.place / name, record, inputs, build, goes_on=True)
