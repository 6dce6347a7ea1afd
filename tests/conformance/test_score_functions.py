# SPDX-License-Identifier: Apache-2.0
"""Every score function keeps the laws of `ScoreFunction`; every way to a score gives the same."""

import contextlib
import math

import datasets
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from trl import RewardConfig, RewardTrainer

from live_server import live_server
from metarm.config import WorldSettings
from metarm.models.reward_model import RewardModelScore, load_score_function
from metarm.protocols import ScoreFunction
from metarm.served_score import ServedScore
from metarm.training import MetaRewardConfig, MetaRewardTrainer
from metarm.world.language import GoldReward, build_language
from tiny_models import save_reward_model

PROMPTS = ["a", "b c", "a", "d e f a"]
RESPONSES = [" b", " c d e f", "", " a"]
OPTIONS = {
    "use_cpu": True,
    "bf16": False,
    "report_to": [],
    "save_strategy": "no",
    "dataloader_pin_memory": False,
    "disable_tqdm": True,
    "max_steps": 2,
    "learning_rate": 0.05,
}


def _reward_model(folder):
    return load_score_function(save_reward_model(folder))


def _reward_model_in_small_batches(folder):
    return load_score_function(save_reward_model(folder), batch_size=1)


def _gold_function(folder):
    return GoldReward(build_language(WorldSettings()))


@contextlib.contextmanager
def _served(folder):
    with live_server(save_reward_model(folder)) as live:
        yield ServedScore(live.url, batch_items=3)


SCORES = [_reward_model, _reward_model_in_small_batches, _gold_function, _served]


@pytest.fixture(params=SCORES, ids=lambda make: make.__name__.strip("_"))
def score(request, tmp_path):
    made = request.param(tmp_path)
    if not hasattr(made, "__enter__"):
        yield made
        return
    with made as opened:
        yield opened


def test_there_is_one_finite_float_a_response(score):
    assert isinstance(score, ScoreFunction)
    found = score(PROMPTS, RESPONSES)
    assert len(found) == len(RESPONSES)
    assert all(isinstance(value, float) and math.isfinite(value) for value in found)
    assert score([], []) == []


def test_the_same_input_has_the_same_score(score):
    assert score(PROMPTS, RESPONSES) == score(PROMPTS, RESPONSES)


def test_a_score_is_its_own_pairs_alone(score):
    together = score(PROMPTS, RESPONSES)
    alone = [score([p], [r])[0] for p, r in zip(PROMPTS, RESPONSES, strict=True)]
    turned = score(PROMPTS[::-1], RESPONSES[::-1])[::-1]
    assert together == pytest.approx(alone, abs=1e-5)
    assert together == pytest.approx(turned, abs=1e-5)


def test_a_served_score_is_the_local_one_to_the_last_bit(tmp_path):
    local = _reward_model(tmp_path / "model")
    with live_server(tmp_path / "model") as live:
        found = ServedScore(live.url)(PROMPTS, RESPONSES)
    assert found == [local([p], [r])[0] for p, r in zip(PROMPTS, RESPONSES, strict=True)]


def _scores_of(model, batch):
    model.eval()
    with torch.no_grad():
        return model(**batch, use_cache=False).logits.squeeze(-1).tolist()


@pytest.mark.parametrize("pad", ["<pad>", "</s>"], ids=["pad is not eos", "pad is eos"])
@pytest.mark.parametrize("kind", [RewardTrainer, MetaRewardTrainer], ids=lambda kind: kind.__name__)
def test_training_scoring_and_the_saved_model_agree(tmp_path, kind, pad):
    base, saved = save_reward_model(tmp_path / "base"), tmp_path / "saved"
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.pad_token = pad
    rows = [
        {"prompt": p, "chosen": r, "rejected": r + " f"}
        for p, r in zip(PROMPTS, RESPONSES, strict=True)
    ]
    meta = {}
    settings = RewardConfig(str(tmp_path), **OPTIONS)
    if kind is MetaRewardTrainer:
        settings = MetaRewardConfig(str(tmp_path), meta_mode="ascent", **OPTIONS)
        meta = {"meta_dataset": [{"prompt": "a", "responses": [" b", " c"]}]}
    trainer = kind(
        str(base),
        args=settings,
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=tokenizer,
        **meta,
    )
    trainer.train()
    trainer.save_model(str(saved))
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(len(rows))])
    in_training = _scores_of(trainer.model, batch)
    loaded = AutoModelForSequenceClassification.from_pretrained(saved, dtype=torch.float32)
    assert loaded.config.pad_token_id == tokenizer.pad_token_id
    assert _scores_of(loaded, batch) == in_training
    responses = [row[side] for side in ("chosen", "rejected") for row in rows]
    assert load_score_function(saved)(2 * PROMPTS, responses) == pytest.approx(
        in_training, abs=1e-5
    )
    reloaded = load_score_function(saved)
    assert isinstance(reloaded, RewardModelScore)
    # The place that is read: EOS, or the token before where EOS is padding.
    ids = reloaded.encoder.encode(PROMPTS[0], RESPONSES[0])
    at = -2 if pad == "</s>" else -1
    with torch.no_grad():
        hidden = loaded.model(torch.tensor([ids])).last_hidden_state[0, at]
        assert loaded.score(hidden).item() == pytest.approx(in_training[0], abs=1e-5)
