# SPDX-License-Identifier: Apache-2.0
"""Log-probabilities and values in padded batches are those of each response read alone."""

import pytest
import torch

from metarm.models.loading import load_causal_lm, load_encoder, load_reward_model
from metarm.policy.decoding import decode
from metarm.policy.ppo_models import token_values
from metarm.policy.sampling import generate, join_rows, nucleus_draw, response_log_probs
from tiny_models import EOS, save_causal_lm, save_reward_model

PROMPTS = ["a b c d e", "b", "c c a", "f e d c b a"]
RESPONSES = [[4, 5, EOS], [6, 7, 8, 9, 4], [EOS], [9, 9, 9, EOS]]


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return load_causal_lm(save_causal_lm(tmp_path_factory.mktemp("policy")))


@pytest.fixture(scope="module")
def value_model(tmp_path_factory, encoder):
    return load_reward_model(save_reward_model(tmp_path_factory.mktemp("reward")), encoder)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return load_encoder(save_causal_lm(tmp_path_factory.mktemp("encoder")))


@pytest.fixture
def batch(encoder):
    return join_rows(encoder, PROMPTS, RESPONSES)


def test_rows_meet_at_one_column(encoder, batch):
    width = max(len(encoder.encode_prompt(prompt)) for prompt in PROMPTS)
    for row, (prompt, response) in enumerate(zip(PROMPTS, RESPONSES, strict=True)):
        ids = batch.input_ids[row][batch.attention_mask[row].bool()].tolist()
        assert ids == encoder.encode_prompt(prompt) + response
        assert batch.input_ids[row, width : width + len(response)].tolist() == response
        assert batch.response_mask[row].sum() == len(response)


@pytest.mark.parametrize("temperature", [1.0, 0.7, 2.0])
@torch.no_grad()
def test_log_probs_equal_a_plain_forward_of_each_response(policy, encoder, batch, temperature):
    ours = response_log_probs(policy, batch, temperature)
    for row, (prompt, response) in enumerate(zip(PROMPTS, RESPONSES, strict=True)):
        prompt_ids = encoder.encode_prompt(prompt)
        logits = policy(input_ids=torch.tensor([prompt_ids + response])).logits[0]
        plain = torch.log_softmax(logits / temperature, dim=-1)
        expected = [
            plain[len(prompt_ids) - 1 + place, token].item() for place, token in enumerate(response)
        ]
        assert ours[row, : len(response)].tolist() == pytest.approx(expected, abs=1e-5)
        assert (ours[row, len(response) :] == 0).all()


@torch.no_grad()
def test_positions_matter_in_this_model(policy, encoder):
    """Else the test above would not see a wrong position."""
    ids = torch.tensor([encoder.encode_prompt(PROMPTS[0])])
    places = torch.arange(ids.shape[1])[None]
    shifted = torch.cat([places[:, :2], places[:, 2:] + 5], dim=1)
    usual = policy(input_ids=ids, position_ids=places).logits[0, -1]
    assert (policy(input_ids=ids, position_ids=shifted).logits[0, -1] - usual).abs().max() > 1e-3


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@torch.no_grad()
def test_log_probs_are_those_that_sampling_drew_from(policy, encoder, temperature):
    """Recorded while sampling, token by token with its cache, against the one pass afterwards."""
    drawn = []
    draw = nucleus_draw(len(PROMPTS), temperature=temperature, top_p=1.0)

    def choose(logits, rows):
        drawn.append(dict(zip(rows.tolist(), logits, strict=True)))
        return draw(logits, rows)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        written = decode(
            policy,
            [encoder.encode_prompt(prompt) for prompt in PROMPTS],
            max_new_tokens=8,
            ends=[encoder.eos_token_id],
            pad_token_id=encoder.pad_token_id,
            choose=choose,
        )
    options = {"temperature": temperature, "top_p": 1.0, "max_completion_length": 8, "seed": 3}
    samples = generate(policy, encoder, PROMPTS, **options)
    assert written == [sample.response_ids for sample in samples]
    ours = response_log_probs(policy, join_rows(encoder, PROMPTS, written), temperature)
    for row, response in enumerate(written):
        expected = [
            torch.log_softmax(drawn[place][row] / temperature, dim=-1)[token].item()
            for place, token in enumerate(response)
        ]
        assert ours[row, : len(expected)].tolist() == pytest.approx(expected, abs=1e-5)


@torch.no_grad()
def test_old_log_probs_do_not_depend_on_the_mini_batch(policy, batch):
    """The first ratio of every iteration is 1: both sides are the same numbers."""
    whole = response_log_probs(policy, batch, 0.7)
    for rows in (torch.tensor([2]), torch.tensor([3, 0])):
        part = response_log_probs(policy, type(batch)(*(t[rows] for t in batch)), 0.7)
        assert (part - whole[rows]).abs().max() < 1e-5


@torch.no_grad()
def test_a_value_stands_before_its_token(value_model, batch):
    """Token t changes the values after t and no other."""
    before = token_values(value_model, batch)
    assert before.shape == batch.response_mask.shape
    for row, response in enumerate(RESPONSES):
        for place in range(len(response)):
            changed = type(batch)(*(tensor.clone() for tensor in batch))
            column = batch.input_ids.shape[1] - batch.response_ids.shape[1] + place
            changed.input_ids[row, column] = 4 if response[place] != 4 else 5
            after = token_values(value_model, changed)
            moved = (after - before).abs() > 1e-6
            assert not moved[row, : place + 1].any()
            assert moved[row, place + 1 : len(response)].all()
            assert not moved[torch.arange(len(RESPONSES)) != row].any()


@torch.no_grad()
def test_values_equal_the_score_of_the_text_so_far(value_model, encoder, batch):
    """The value before token t is what the reward model says of prompt and response up to t."""
    ours = token_values(value_model, batch)
    for row, (prompt, response) in enumerate(zip(PROMPTS, RESPONSES, strict=True)):
        prompt_ids = encoder.encode_prompt(prompt)
        for place in range(len(response)):
            ids = torch.tensor([prompt_ids + response[:place]])
            score = value_model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
            assert ours[row, place].item() == pytest.approx(score.item(), abs=1e-5)
        assert (ours[row, len(response) :] == 0).all()
