# SPDX-License-Identifier: Apache-2.0
"""Tiny reward models in float64: a language model, an encoder, an ensemble."""

from pathlib import Path

import pytest

from metarm.models.ensemble import EnsembleScore
from metarm.models.reward_model import RewardModelScore, load_score_function
from tiny_models import save_encoder_model, save_reward_model


def _double(folder: Path) -> RewardModelScore:
    score = load_score_function(folder)
    score.model.double()
    return score


@pytest.fixture(scope="session")
def scores(tmp_path_factory) -> dict[str, RewardModelScore | EnsembleScore]:
    """By architecture."""
    folder = tmp_path_factory.mktemp("explained")
    llama = _double(save_reward_model(folder / "llama"))
    other = _double(save_reward_model(folder / "other", seed=1))
    encoder = _double(save_encoder_model(folder / "encoder"))
    ensemble = EnsembleScore([llama, other], [0.3, -0.2], [2.0, 0.5], pessimism=0.7)
    return {"llama": llama, "encoder": encoder, "ensemble": ensemble}
