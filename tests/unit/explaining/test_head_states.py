# SPDX-License-Identifier: Apache-2.0
"""States and weights sum to the reward, for every architecture."""

import numpy as np
import pytest
import torch
from torch import nn

from metarm.errors import ModelError
from metarm.explaining.head_states import head_states
from metarm.models.reward_model import RewardModelScore
from metarm.schema import ResponseGroup
from metarm.watching.measuring import last_states

PROMPTS = ["a b", "f", "a b", "c"]
RESPONSES = [" c d e f a", " a", "", " b b b"]


@pytest.mark.parametrize("kind", ["llama", "encoder"])
def test_the_decomposition_sums_to_the_reward(scores, kind: str) -> None:
    found = head_states(scores[kind], PROMPTS, RESPONSES)
    assert found.states.shape == (4, 16)
    assert found.scores == pytest.approx(scores[kind](PROMPTS, RESPONSES), abs=1e-6)


def test_an_ensembles_sums_to_the_mean_of_its_members(scores) -> None:
    score = scores["ensemble"]
    found = head_states(score, PROMPTS, RESPONSES)
    raw = np.array([member(PROMPTS, RESPONSES) for member in score.members])
    standard = (raw - np.array([[0.3], [-0.2]])) / np.array([[2.0], [0.5]])
    assert found.states.shape == (4, 32)
    assert found.scores == pytest.approx(standard.mean(axis=0), abs=1e-6)


def test_a_language_models_are_its_last_states(scores) -> None:
    groups = [ResponseGroup(p, (r,)) for p, r in zip(PROMPTS, RESPONSES, strict=True)]
    theirs = last_states(scores["llama"], groups)[:, 0]
    assert head_states(scores["llama"], PROMPTS, RESPONSES).states == pytest.approx(theirs)


def test_a_score_without_a_linear_layer_is_refused(scores) -> None:
    model = nn.Sequential(nn.Linear(3, 2))
    model.device = torch.device("cpu")
    with pytest.raises(ModelError, match="linear layer of one output"):
        head_states(RewardModelScore(model, scores["llama"].encoder), ["a"], [" b"])
