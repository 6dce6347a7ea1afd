# SPDX-License-Identifier: Apache-2.0
"""Scores come in the order of their responses, whatever batches they went through."""

import pytest
import torch

from metarm.errors import DataError, EmptySetError, ModelError
from metarm.models.reporting import StepReporter
from metarm.models.reward_model import RewardModelScore, load_score_function
from metarm.schema import PreferencePair
from tiny_models import CONTEXT
from unit.reward_problem import make_double_model, make_trainer

RESPONSES = [" a b c d e f", " a", " f e d", "", " b b b b b b b b b"]
PROMPTS = ["a", "b c d", "a", "f", "c"]


@pytest.fixture
def score(reward_model_dir):
    return load_score_function(reward_model_dir, batch_size=2)


def test_a_score_is_the_models_logit(score):
    expected = []
    for prompt, response in zip(PROMPTS, RESPONSES, strict=True):
        ids = torch.tensor([score.encoder.encode(prompt, response)])
        with torch.no_grad():
            expected.append(score.model(ids).logits.item())
    assert score(PROMPTS, RESPONSES) == pytest.approx(expected, abs=1e-5)
    assert len({round(value, 3) for value in expected}) == len(expected)


def test_a_bar_counts_every_response(score):
    bar = Recorder()
    assert score.reporting_to(bar)(PROMPTS, RESPONSES) == score(PROMPTS, RESPONSES)
    assert bar.steps == [2, 2, 1]


class Recorder:
    def __init__(self):
        self.steps = []

    def advance(self, steps=1, note=""):
        self.steps.append(steps)


def test_padding_moves_no_position(score):
    """This GPT-2's positions are absolute: padding on the left would change its scores."""
    together = RewardModelScore(make_double_model(), score.encoder, batch_size=5)
    alone = RewardModelScore(together.model, score.encoder, batch_size=1)
    assert together(PROMPTS, RESPONSES) == pytest.approx(alone(PROMPTS, RESPONSES), abs=1e-6)


def test_prompts_and_responses_come_in_pairs(score):
    with pytest.raises(ValueError, match="zip"):
        score(PROMPTS, RESPONSES[:-1])


def test_what_does_not_fit_is_named_and_never_cut(score):
    long = " a" * (CONTEXT - 2)  # with <s>, the prompt and EOS, one too many
    assert len(score.encoder.encode("b", long)) == CONTEXT + 1
    with pytest.raises(DataError, match=rf"'b'.* {CONTEXT + 1} tokens.* context is {CONTEXT}"):
        score(["b", "b"], [long, " a"])
    fits = " a" * (CONTEXT - 3)
    assert len(score(["b"], [fits])) == 1
    pairs = [PreferencePair("b", fits, " a"), PreferencePair("b", " a", long)]
    assert score.fitting_pairs(pairs) == pairs[:1]
    with pytest.raises(EmptySetError, match=f"none of the 1 pairs .* context of {CONTEXT}"):
        score.fitting_pairs(pairs[1:])


def test_a_broken_model_gives_no_scores(score):
    with torch.no_grad():
        score.model.score.weight.fill_(float("inf"))
    with pytest.raises(ModelError, match="not finite"):
        score(PROMPTS, RESPONSES)


class _Bar:
    def __init__(self):
        self.seen = []

    def advance(self, steps=1, note=""):
        self.seen.append((steps, note))


def test_a_bar_moves_with_each_step_and_shows_the_newest_loss(reward_model_dir, tmp_path):
    bar = _Bar()
    trainer = make_trainer(
        reward_model_dir, tmp_path, meta_mode="off", gradient_accumulation_steps=2
    )
    trainer.add_callback(StepReporter(bar))
    trainer.train()
    losses = [f"loss {e['loss']:.3f}" for e in trainer.state.log_history if "loss" in e]
    assert bar.seen == [(1, ""), (1, losses[0]), (1, losses[1])]
