# SPDX-License-Identifier: Apache-2.0
"""Best-of-n: draw n responses, keep the one with the highest score; nothing is trained."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from metarm.config_optimize import OptimizeSettings
from metarm.errors import EmptySetError
from metarm.policy.sampling import BEST_OF_N_FILE, BestOfN, SampledPolicy
from metarm.protocols import ProgressReporter, ScoreFunction
from metarm.schema import Prompt
from metarm.storage import append_json_line, write_json

__all__ = ["optimize_best_of_n"]


def optimize_best_of_n(
    *,
    policy_dir: Path,
    reference_dir: Path,
    reward_model_dir: Path,
    score: ScoreFunction,
    prompts: Sequence[Prompt],
    output_dir: Path,
    seed: int,
    monitor: ScoreFunction | None,
    progress: ProgressReporter,
    settings: OptimizeSettings,
) -> Mapping[str, float]:
    """Write down how to sample the policy, and measure it once: a `protocols.PolicyOptimizer`.

    It always starts from the reference: best-of-n of best-of-n would only raise n. Candidates are
    ranked by the reward model in `reward_model_dir`, wherever the policy is sampled later.

    Raises:
        EmptySetError: When there are no prompts.

    Writes:
        `best_of_n.json`, read by `policy.sampling`, and one line of `metrics.jsonl`.
    """
    if not prompts:
        raise EmptySetError("best-of-n needs at least one prompt to be measured on, got none")
    best_of_n = BestOfN(
        _place(reference_dir),
        _place(reward_model_dir),
        settings.num_candidates,
        _place_from(output_dir, reference_dir),
        _place_from(output_dir, reward_model_dir),
    )
    write_json(output_dir / BEST_OF_N_FILE, asdict(best_of_n))
    sampled = SampledPolicy(output_dir)
    prompts = prompts[: settings.batch_size]
    with progress.stage("best of n", sampled.num_responses(len(prompts), 1)) as bar:
        groups = sampled.sample(
            prompts,
            num_generations=1,
            temperature=settings.temperature,
            top_p=1.0,
            max_completion_length=settings.max_completion_length,
            batch_size=settings.batch_size,
            seed=seed,
            bar=bar,
        )
    responses = [group[0].response for group in groups]
    scores = score(prompts, responses)
    metrics = {
        "iteration": 1,
        "objective/kl": sampled.kl_of_best_of_n() or 0.0,
        "objective/scores": sum(scores) / len(scores),
    }
    if monitor is not None:
        metrics["objective/gold"] = sum(monitor(prompts, responses)) / len(responses)
    append_json_line(output_dir / "metrics.jsonl", metrics)
    return metrics


def _place(model: Path) -> str:
    """A folder from the root, so that it is found from anywhere; a hub id as it is."""
    return str(model.resolve() if model.is_dir() else model)


def _place_from(folder: Path, model: Path) -> str:
    """A model's folder relative to `folder`; empty for a hub id."""
    return os.path.relpath(model.resolve(), folder.resolve()) if model.is_dir() else ""
