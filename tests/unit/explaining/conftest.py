# SPDX-License-Identifier: Apache-2.0
"""Tiny reward models in float64: a language model, an encoder, an ensemble."""

from pathlib import Path

import pytest
import torch
from transformers import RobertaConfig, RobertaForSequenceClassification

from metarm.models.ensemble import EnsembleScore
from metarm.models.reward_model import RewardModelScore, load_score_function
from tiny_models import CONTEXT, SPECIAL, WORDS, save_reward_model, save_tokenizer


def save_encoder_model(folder: Path) -> Path:
    """An encoder with one score, which it reads at the first token through two layers."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = RobertaConfig(
            vocab_size=len(SPECIAL) + len(WORDS),
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=CONTEXT + 2,
            num_labels=1,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            initializer_range=0.3,
        )
        RobertaForSequenceClassification(config).save_pretrained(folder)
    return save_tokenizer(folder)


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
