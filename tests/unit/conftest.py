# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the unit tests: a folder with a tiny reward model, made once."""

import gc
from pathlib import Path

import pytest

from tiny_models import save_reward_model


@pytest.fixture(scope="session")
def reward_model_dir(tmp_path_factory) -> Path:
    """A sequence classifier of one score with its tokenizer; read only."""
    # Each `train()` collects garbage: half a second while the imported libraries are gone through.
    gc.freeze()
    return save_reward_model(tmp_path_factory.mktemp("reward_model"))
