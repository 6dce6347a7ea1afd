# SPDX-License-Identifier: Apache-2.0
"""States and weights sum to the reward, for every architecture, and for all who read them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from metarm.choosing.pairs import list_candidates, pool_of_model
from metarm.errors import ModelError
from metarm.models.ensemble import EnsembleScore
from metarm.models.head_states import head_states
from metarm.models.reward_model import RewardModelScore, load_score_function
from metarm.schema import ResponseGroup
from metarm.watching.measuring import last_states
from tiny_models import ENCODERS, save_encoder_model, save_reward_model

PROMPTS = ["a b", "f", "a b", "c"]
RESPONSES = [" c d e f a", " a", "", " b b b"]


def _llama(folder: Path) -> RewardModelScore:
    return load_score_function(save_reward_model(folder))


def _padded_with_eos(folder: Path) -> RewardModelScore:
    """Its score is read before the EOS, which is padding to it."""
    score = _llama(folder)
    score.encoder.tokenizer.pad_token = score.encoder.tokenizer.eos_token
    score.model.config.pad_token_id = score.encoder.pad_token_id
    return score


KINDS: dict[str, Callable[[Path], RewardModelScore]] = {
    "llama": _llama,
    "llama padded with eos": _padded_with_eos,
    **{
        kind: lambda folder, kind=kind: load_score_function(save_encoder_model(folder, kind))
        for kind in ENCODERS
    },
}


@pytest.fixture(scope="module")
def scores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, RewardModelScore]:
    folder = tmp_path_factory.mktemp("heads")
    found = {name: build(folder / name.replace(" ", "_")) for name, build in KINDS.items()}
    for score in found.values():
        score.model.double()
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_the_decomposition_sums_to_the_reward(scores, kind: str) -> None:
    found = head_states(scores[kind], PROMPTS, RESPONSES)
    assert found.states.shape == (4, 16)
    # The score function rounds to float32.
    assert found.scores == pytest.approx(scores[kind](PROMPTS, RESPONSES), abs=1e-6)
    assert len({round(score, 4) for score in found.scores}) == 4


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_chosen_from_is_what_the_reward_comes_from(scores, kind: str) -> None:
    """No part of a candidate's reward gap is left that a head on its gaps cannot give."""
    words = ("", " a", " b c", " d e f", " a a", " f d", " c", " e b a")
    groups = [ResponseGroup(prompt, words) for prompt in ("a b", "f", "c d")]
    pairs = list_candidates(groups).pairs
    pool = pool_of_model(scores[kind], pairs)
    assert len(pool) > pool.gaps.shape[1] + 20
    head, *_ = np.linalg.lstsq(pool.gaps, pool.means, rcond=None)
    left = np.abs(pool.gaps @ head - pool.means).max()
    assert left < 1e-5 * np.abs(pool.means).max()
    states = last_states(scores[kind], groups).reshape(-1, 16)
    found = head_states(scores[kind], [g.prompt for g in groups for _ in words], words * 3)
    np.testing.assert_array_equal(states, found.states)


def test_an_ensembles_sums_to_the_mean_of_its_members(scores, tmp_path: Path) -> None:
    other = load_score_function(save_reward_model(tmp_path / "other", seed=1))
    other.model.double()
    score = EnsembleScore([scores["llama"], other], [0.3, -0.2], [2.0, 0.5], pessimism=0.7)
    found = head_states(score, PROMPTS, RESPONSES)
    raw = np.array([member(PROMPTS, RESPONSES) for member in score.members])
    standard = (raw - np.array([[0.3], [-0.2]])) / np.array([[2.0], [0.5]])
    assert found.states.shape == (4, 32)
    assert found.scores == pytest.approx(standard.mean(axis=0), abs=1e-6)


def test_a_language_models_are_its_last_states(scores) -> None:
    score = scores["llama"]
    found = head_states(score, PROMPTS, RESPONSES).states
    for prompt, response, own in zip(PROMPTS, RESPONSES, found, strict=True):
        ids = torch.tensor([score.encoder.encode(prompt, response)])
        with torch.no_grad():
            expected = score.model.base_model(input_ids=ids).last_hidden_state[0, -1]
        np.testing.assert_allclose(own, expected, atol=1e-12)


class Squashed(nn.Module):
    """A score that is not what its last linear layer gives."""

    def __init__(self, score: RewardModelScore) -> None:
        super().__init__()
        self.inner = score.model
        self.device = torch.device("cpu")

    def forward(self, **inputs):
        found = self.inner(**inputs)
        found.logits = found.logits.tanh()
        return found


def test_a_score_that_is_not_linear_in_states_is_refused(scores) -> None:
    squashed = RewardModelScore(Squashed(scores["llama"]), scores["llama"].encoder)
    with pytest.raises(ModelError, match="what its last linear layer gives"):
        head_states(squashed, PROMPTS, RESPONSES)


class Upcast(Squashed):
    """A model in bfloat16 whose scores are told in float32."""

    def forward(self, **inputs):
        found = self.inner(**inputs)
        found.logits = found.logits.float()
        return found


def test_scores_that_a_short_layer_gives_may_be_told_in_a_longer_type(tmp_path: Path) -> None:
    score = load_score_function(save_reward_model(tmp_path / "short"))
    score.model.bfloat16()
    found = head_states(RewardModelScore(Upcast(score), score.encoder), PROMPTS, RESPONSES)
    assert found.scores == pytest.approx(score(PROMPTS, RESPONSES), rel=0.05, abs=0.05)


def test_a_score_without_a_linear_layer_is_refused(scores) -> None:
    model = nn.Sequential(nn.Linear(3, 2))
    model.device = torch.device("cpu")
    with pytest.raises(ModelError, match="linear layer of one output"):
        head_states(RewardModelScore(model, scores["llama"].encoder), ["a"], [" b"])
