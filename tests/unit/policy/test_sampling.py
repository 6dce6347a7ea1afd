# SPDX-License-Identifier: Apache-2.0
"""Sampling: seeds, distributions, ends of responses, groups in order, errors."""

import json
import math
from collections import Counter

import pytest
import torch
from scipy import stats

from metarm.chunk_log import ChunkLog
from metarm.config import SamplingSettings
from metarm.errors import DataError, ModelError
from metarm.interrupts import Stopped
from metarm.models.loading import load_causal_lm, load_encoder
from metarm.policy import sampling
from metarm.policy.sampling import BEST_OF_N_FILE, SampledPolicy, generate, sample_groups
from metarm.progress import SilentProgress
from tiny_models import CONTEXT, EOS, WORDS, save_causal_lm, save_fixed_policy

# Each statistical test fails by chance once in ten thousand changes of its seed.
ALPHA = 1e-4
PROMPTS = ["a b c d e", "b", "c c a", "f e d c b a"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_causal_lm(tmp_path_factory.mktemp("policy"))


@pytest.fixture(scope="module")
def policy(folder):
    return load_causal_lm(folder)


@pytest.fixture(scope="module")
def encoder(folder):
    return load_encoder(folder)


def draw(policy, encoder, prompts=PROMPTS, **changes):
    options = {"temperature": 1.0, "top_p": 1.0, "max_completion_length": 8, "seed": 0}
    return generate(policy, encoder, prompts, **(options | changes))


def sample(folder, prompts=PROMPTS, *, k=2, seed=0, batch_size=3):
    class Bar:
        steps = 0

        def advance(self, steps=1, note=""):
            self.steps += steps

    bar = Bar()
    policy = SampledPolicy(folder)
    groups = policy.sample(
        prompts,
        num_generations=k,
        temperature=1.0,
        top_p=1.0,
        max_completion_length=6,
        batch_size=batch_size,
        seed=seed,
        bar=bar,
    )
    assert bar.steps == policy.num_responses(len(prompts), k)
    return groups


def test_the_same_seed_gives_the_same_responses(policy, encoder):
    assert draw(policy, encoder) == draw(policy, encoder)
    assert draw(policy, encoder) != draw(policy, encoder, seed=1)


def test_the_global_random_state_is_neither_read_nor_moved(policy, encoder):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = draw(policy, encoder)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    assert draw(policy, encoder) == first


def test_a_response_ends_at_its_first_eos(policy, encoder):
    samples = [s for seed in range(20) for s in draw(policy, encoder, seed=seed)]
    for response, ids, finished in samples:
        assert finished == (ids[-1] == EOS)
        assert EOS not in ids[:-1]
        assert finished or len(ids) == 8
        assert response == encoder.decode(ids)
        assert "</s>" not in response
    assert {s.finished for s in samples} == {True, False}
    assert any(s.finished and len(s.response_ids) < 8 for s in samples)


def test_a_response_that_ends_on_the_last_token_is_finished(tmp_path):
    only_eos = torch.full((10,), -30.0)
    only_eos[EOS] = 30.0
    folder = save_fixed_policy(tmp_path, only_eos)
    samples = draw(load_causal_lm(folder), load_encoder(folder), max_completion_length=1)
    assert {(s.response, tuple(s.response_ids), s.finished) for s in samples} == {
        ("", (EOS,), True)
    }


def test_a_sampled_padding_token_does_not_end_a_response(tmp_path):
    only_padding = torch.full((10,), -30.0)
    only_padding[0] = 30.0
    folder = save_fixed_policy(tmp_path, only_padding)
    samples = draw(load_causal_lm(folder), load_encoder(folder), max_completion_length=3)
    assert {(tuple(s.response_ids), s.finished) for s in samples} == {((0, 0, 0), False)}


LOGITS = torch.tensor([-9.0, -9.0, 0.5, -9.0, 1.5, 1.0, 0.0, -0.5, -1.0, 0.2])


def counts_of_first_tokens(folder, *, draws=3000, **options):
    policy, encoder = load_causal_lm(folder), load_encoder(folder)
    samples = draw(policy, encoder, ["a"] * draws, max_completion_length=1, **options)
    return Counter(sample.response_ids[0] for sample in samples)


def p_value(counts, probabilities):
    """Chi-square over the tokens expected at least 5 times; the rest are one class."""
    total = sum(counts.values())
    often = [token for token, p in enumerate(probabilities.tolist()) if p * total >= 5]
    seen = [counts[token] for token in often]
    expected = [probabilities[token].item() * total for token in often]
    rest = total - sum(expected)
    if rest > 1:
        seen, expected = [*seen, total - sum(seen)], [*expected, rest]
    scale = sum(seen) / sum(expected)
    return stats.chisquare(seen, [value * scale for value in expected]).pvalue


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
def test_tokens_come_as_often_as_the_temperature_says(tmp_path, temperature):
    folder = save_fixed_policy(tmp_path, LOGITS)
    counts = counts_of_first_tokens(folder, temperature=temperature)
    assert p_value(counts, torch.softmax(LOGITS / temperature, dim=0)) > ALPHA
    other = 1.0 if temperature != 1.0 else 2.0
    assert p_value(counts, torch.softmax(LOGITS / other, dim=0)) < ALPHA


def test_the_nucleus_is_the_smallest_set_with_its_probability(tmp_path):
    folder = save_fixed_policy(tmp_path, LOGITS)
    counts = counts_of_first_tokens(folder, top_p=0.7)
    probabilities = torch.softmax(LOGITS, dim=0)
    order = probabilities.argsort(descending=True)
    size = int((probabilities[order].cumsum(0) < 0.7).sum()) + 1
    nucleus = order[:size]
    assert set(counts) == set(nucleus.tolist())
    kept = torch.zeros_like(probabilities)
    kept[nucleus] = probabilities[nucleus]
    assert p_value(counts, kept / kept.sum()) > ALPHA


DEFAULTS = {
    "do_sample": True,
    "temperature": 0.1,
    "top_k": 1,
    "top_p": 0.1,
    "min_p": 0.5,
    "typical_p": 0.2,
    "epsilon_cutoff": 0.3,
    "repetition_penalty": 5.0,
    "no_repeat_ngram_size": 1,
    "suppress_tokens": [4],
    "bad_words_ids": [[5]],
    "min_new_tokens": 1,
    "eos_token_id": 4,
    "num_return_sequences": 2,
}


@pytest.mark.parametrize("name", [name for name in DEFAULTS if name != "do_sample"])
def test_the_models_own_defaults_are_ignored(tmp_path, name):
    """Each would change what comes out: probabilities, the end, or the number of responses."""
    folder = save_fixed_policy(tmp_path, LOGITS, do_sample=True, **{name: DEFAULTS[name]})
    counts = counts_of_first_tokens(folder)
    assert sum(counts.values()) == 3000
    assert p_value(counts, torch.softmax(LOGITS, dim=0)) > ALPHA


def test_the_models_own_defaults_stay_with_the_model(tmp_path):
    folder = save_fixed_policy(tmp_path, LOGITS, **DEFAULTS)
    policy = load_causal_lm(folder)
    kept = policy.generation_config
    draw(policy, load_encoder(folder))
    assert policy.generation_config is kept
    assert policy.generation_config.top_k == 1


def test_a_prompt_that_leaves_no_room_is_named(policy, encoder):
    # BOS, the prompt, 8 tokens and the EOS that scoring adds: 24 fit, 25 do not.
    fits = " ".join("a" for _ in range(CONTEXT - 10))
    assert len(draw(policy, encoder, [fits])) == 1
    with pytest.raises(DataError, match=r"'a a a.* has 16 tokens.*needs 25.*context is 24"):
        draw(policy, encoder, ["b", f"{fits} a"])


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_broken_weights_are_an_error(tmp_path, value):
    folder = save_causal_lm(tmp_path)
    broken = load_causal_lm(folder)
    with torch.no_grad():
        broken.lm_head.weight[4, 0] = value
    with pytest.raises(ModelError, match="not finite"):
        draw(broken, load_encoder(folder))


def test_groups_come_in_the_order_of_the_prompts(tmp_path):
    """Batches are sorted by length; each response must come back to its own prompt."""
    # One layer that copies: the policy answers with the prompt's last word, for ever.
    folder = save_fixed_policy(tmp_path, torch.zeros(10))
    policy = load_causal_lm(folder)
    with torch.no_grad():
        policy.model.embed_tokens.weight.copy_(4.0 * torch.eye(10, 16))
        policy.lm_head.weight.copy_(20.0 * torch.eye(10, 16))
    policy.save_pretrained(folder)
    prompts = ["a b c d e", "b", "c c a", "e d c b a f", "d"]
    groups = sample(folder, prompts, k=2, batch_size=3)
    words = [[s.response.split()[0] for s in group] for group in groups]
    assert words == [["e", "e"], ["b", "b"], ["a", "a"], ["f", "f"], ["d", "d"]]


def test_responses_to_one_prompt_differ(folder):
    groups = sample(folder, k=6)
    assert all(len({s.response for s in group}) > 1 for group in groups)
    assert sample(folder, k=6) == groups
    assert sample(folder, k=6, seed=1) != groups


def test_every_batch_has_random_numbers_of_its_own(folder):
    (group,) = sample(folder, ["a"], k=8, batch_size=1)
    assert len({s.response for s in group}) > 4


def test_sample_groups_makes_a_meta_set(folder):
    settings = SamplingSettings(num_generations=3, max_completion_length=4, num_prompts=2)
    groups = sample_groups(folder, PROMPTS, settings, seed=0, progress=SilentProgress())
    assert [group.prompt for group in groups] == PROMPTS[:2]
    assert all(len(group.responses) == len(group.finished) == 3 for group in groups)
    assert {flag for group in groups for flag in group.finished} == {True, False}
    whole = sample_groups(
        folder,
        PROMPTS,
        settings.model_copy(update={"num_prompts": None}),
        seed=0,
        progress=SilentProgress(),
    )
    assert [group.prompt for group in whole] == PROMPTS


def test_a_missing_policy_is_named(tmp_path):
    with pytest.raises(ModelError, match="there is no such folder"):
        SampledPolicy(tmp_path / "lost")


def test_best_of_n_over_best_of_n_is_refused(tmp_path, folder):
    inner, outer = tmp_path / "inner", tmp_path / "outer"
    for place, base in ((inner, folder), (outer, inner)):
        place.mkdir()
        row = {"base": str(base), "reward_model": "x", "num_candidates": 2}
        (place / BEST_OF_N_FILE).write_text(json.dumps(row))
    with pytest.raises(ModelError, match="itself a best-of-n policy"):
        SampledPolicy(outer)


def test_the_vocabulary_of_these_tests_is_as_they_say(encoder):
    assert encoder.encode_prompt("a f") == [1, 4, 3 + len(WORDS)]
    assert encoder.decode([4, 9]) == " a f"


def test_sampling_goes_on_with_the_batch_where_it_was_stopped(folder, tmp_path, monkeypatch):
    settings = SamplingSettings(num_generations=3, max_completion_length=4, batch_size=4)
    options = {"seed": 5, "progress": SilentProgress()}
    whole = sample_groups(folder, PROMPTS, settings, **options)
    calls = []
    real = sampling.generate

    def drawn(*arguments, **named):
        calls.append(named["seed"])
        if len(calls) == 2:
            monkeypatch.setattr("metarm.interrupts._request.number", 2)
        return real(*arguments, **named)

    monkeypatch.setattr(sampling, "generate", drawn)
    with pytest.raises(Stopped):
        sample_groups(folder, PROMPTS, settings, log=ChunkLog(tmp_path / "log"), **options)
    assert len(calls) == 2
    log = ChunkLog(tmp_path / "log")
    assert sample_groups(folder, PROMPTS, settings, log=log, **options) == whole
    assert len(calls) == len(set(calls)) == -(-3 * len(PROMPTS) // 4)
    assert sample_groups(folder, PROMPTS, settings, log=log, **(options | {"seed": 6})) != whole
