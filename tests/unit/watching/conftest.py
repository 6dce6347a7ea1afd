# SPDX-License-Identifier: Apache-2.0
"""A policy, a reward model, and probes of them, made once."""

from pathlib import Path

import pytest

from metarm.progress import SilentProgress
from metarm.watching.probes import ProbePlan, Probes, build_probes
from tiny_models import save_causal_lm, save_reward_model

PROMPTS = ["a b c", "b", "c d", "f", "e e", "d a"]


@pytest.fixture(scope="session")
def watched(tmp_path_factory) -> Path:
    """A folder with `policy`, `other` and `reward`; read only."""
    folder = tmp_path_factory.mktemp("watched")
    save_causal_lm(folder / "policy", seed=1)
    save_causal_lm(folder / "other", seed=2)
    save_reward_model(folder / "reward")
    return folder


@pytest.fixture(scope="session")
def probes(watched: Path, tmp_path_factory) -> Probes:
    """Six prompts, four reference responses and three fresh ones each."""
    plan = ProbePlan(num_prompts=6, num_reference=4, num_fresh=3, max_completion_length=5)
    folder = tmp_path_factory.mktemp("probes") / "probes"
    return build_probes(folder, watched / "policy", PROMPTS, plan, progress=SilentProgress())
