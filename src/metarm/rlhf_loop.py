# SPDX-License-Identifier: Apache-2.0
"""Iterated RLHF: sample -> train the reward model -> optimise -> evaluate, for several arms.

A run is a folder, a seed a folder in it, a round a folder in that, and each stage of a round a
folder that is finished or absent: the same command goes on where a stopped one was.
"""

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch

from metarm.config import RunSettings
from metarm.protocols import ProgressReporter
from metarm.round_evaluation import SFT_ARM
from metarm.round_labels.stages import check_label_arms
from metarm.round_labels.waiting import Waiting, hand_out, mend_store
from metarm.run_folder import open_run_folder
from metarm.seed_run import SeedRun
from metarm.sources import prepare_sources
from metarm.workers import run_in_processes

__all__ = ["run_rounds", "run_seed"]


def run_rounds(settings: RunSettings, *, progress: ProgressReporter) -> Path:
    """Run every arm for every seed, or go on with a run that was stopped.

    A finished run goes on too: with more rounds, arms or seeds, in more workers, elsewhere. An arm
    that waits for people ends where it waits; all others go on to their end.

    Args:
        settings: The whole run.
        progress: Gets a bar for each stage.

    Returns:
        The run's folder.

    Raises:
        ConfigError: When labels are asked for by a strategy or of a judge that there is not.
        RunError: When the folder cannot be written, is in use, or a worker died.
        FingerprintError: When a finished stage was made with other settings.

    Writes:
        `config.yaml`, `run.json`, a folder for each seed and, where people are asked,
        `labels.sqlite`: docs/run-folder.md.
    """
    check_label_arms(settings)
    with open_run_folder(settings) as folder:
        mend_store(folder)
        jobs = {f"seed {seed}": partial(run_seed, settings, seed) for seed in settings.seeds}
        if settings.workers > 1 and len(jobs) > 1:
            run_in_processes(jobs, workers=settings.workers, progress=progress)
        else:
            with progress.stage("all seeds", len(jobs)) as bar:
                for name, job in jobs.items():
                    job(progress=progress)
                    bar.advance(1, f"{name} is done")
        # Here, where all seeds are: a label store has one writer.
        hand_out(folder)
    return folder


def run_seed(settings: RunSettings, seed: int, *, progress: ProgressReporter) -> None:
    """All arms of one seed, one after the other."""
    _set_threads(settings)
    folder = settings.output_dir / f"seed_{seed}"
    sources = prepare_sources(settings, folder, seed=seed, progress=progress)
    with _cheap_collection():
        _run_arms(SeedRun(settings, seed, folder, sources, progress))


def _run_arms(seed_run: "SeedRun") -> None:
    settings = seed_run.settings
    first_reward = seed_run.train_first_reward_model()
    start = seed_run.evaluate_sft(SFT_ARM, first_reward)
    for arm in settings.arms:
        if not settings.arm(arm).optimize and arm != SFT_ARM:
            seed_run.evaluate_sft(arm, first_reward)
    arms = [name for name in settings.arms if settings.arm(name).optimize]
    with seed_run.progress.stage("rounds of all arms", len(arms) * settings.rounds) as bar:
        for arm in arms:
            position = start
            for round_number in range(1, settings.rounds + 1):
                reached = seed_run.run_round(arm, round_number, position, first_reward)
                if isinstance(reached, Waiting):
                    left = settings.rounds + 1 - round_number
                    bar.advance(left, f"{arm} round {round_number} waits for labels")
                    break
                position = reached
                bar.advance(1, f"{arm} round {round_number}")


@contextmanager
def _cheap_collection() -> Iterator[None]:
    """A block whose garbage collections pass over the million objects that imports have made."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _set_threads(settings: RunSettings) -> None:
    """As many threads as were asked for; else an equal share of the cores for each worker."""
    if settings.threads is None and "OMP_NUM_THREADS" in os.environ:
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    share = (cores or 1) // min(settings.workers, len(settings.seeds))
    torch.set_num_threads(settings.threads or max(1, share))
