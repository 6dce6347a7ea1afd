# SPDX-License-Identifier: Apache-2.0
"""Decoding: transformers' tokens for every kind of cache, and no token computed without need."""

import logging
import random

import pytest
import torch
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    Lfm2Config,
    Lfm2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from metarm.errors import CacheError
from metarm.models.loading import load_encoder
from metarm.policy import sampling
from metarm.policy.decoding import choose_likeliest, decode
from metarm.policy.kv_cache import build_cache
from tiny_models import EOS, save_tokenizer

VOCABULARY = 10
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 48,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": EOS,
    "tie_word_embeddings": False,
}
ROPE = SIZES | {"num_key_value_heads": 1, "head_dim": 8}
# The windows are shorter than most texts; Gemma 2 has layers with a window and without.
KINDS = {
    "llama": (LlamaForCausalLM, LlamaConfig(**ROPE)),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config(**ROPE)),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config(**ROPE)),
    "gpt2": (GPT2LMHeadModel, GPT2Config(**SIZES)),
    "bloom": (BloomForCausalLM, BloomConfig(**SIZES)),
    "mistral": (MistralForCausalLM, MistralConfig(sliding_window=5, **ROPE)),
    "gemma2": (Gemma2ForCausalLM, Gemma2Config(sliding_window=5, **ROPE)),
}
# Ragged, one of one token, some that come again, not side by side.
PROMPTS = [[1, 4, 5, 6, 7, 8, 9, 4], [1, 5], [1, 4, 5, 6, 7, 8, 9, 4], [1, 9, 9, 3], [1], [1, 5]]


def build(kind, *, kinds=KINDS):
    """A model whose likeliest tokens differ from row to row."""
    name, config = kinds[kind]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = name(config)
        for parameter in model.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.3)
    model.generation_config = GenerationConfig()
    return model.eval()


def by_transformers(model, prompts, *, ends, num_new, **options):
    """What `generate` writes after the prompts, up to and with the first end."""
    length = max(len(prompt) for prompt in prompts)
    padding = [length - len(prompt) for prompt in prompts]
    rows = zip(padding, prompts, strict=True)
    output = model.generate(
        input_ids=torch.tensor([[0] * n + prompt for n, prompt in rows]),
        attention_mask=torch.tensor([[0] * n + [1] * (length - n) for n in padding]),
        max_new_tokens=num_new,
        pad_token_id=0,
        eos_token_id=list(ends),
        **options,
    )[:, length:].tolist()
    lengths = [next((n for n, t in enumerate(row, 1) if t in ends), num_new) for row in output]
    return [row[:n] for row, n in zip(output, lengths, strict=True)]


def greedily(model, prompts, *, ends=(), num_new=16):
    return decode(
        model,
        prompts,
        max_new_tokens=num_new,
        ends=ends,
        pad_token_id=0,
        choose=choose_likeliest,
    )


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_tokens_are_those_of_transformers(kind):
    model = build(kind)
    free = greedily(model, PROMPTS)
    assert free == by_transformers(model, PROMPTS, ends=[99], num_new=16, do_sample=False)
    assert len({tuple(row) for row in free}) > 2
    # The third token of one row ends rows here and there, and others never.
    for row in free:
        ends = [row[2]]
        written = greedily(model, PROMPTS, ends=ends)
        assert written == by_transformers(model, PROMPTS, ends=ends, num_new=16, do_sample=False)


@pytest.mark.parametrize("prompts", [[[1, 4, 5]], [[1, 4, 5]] * 3, [[1, 4, 5], [1, 6, 7]]])
def test_one_prompt_one_row_or_nothing_to_pad(prompts):
    model = build("llama")
    assert greedily(model, prompts) == by_transformers(
        model, prompts, ends=[99], num_new=16, do_sample=False
    )


def test_a_single_new_token_needs_no_decoding():
    model = build("llama")
    calls = count_tokens(model)
    assert [len(row) for row in greedily(model, PROMPTS, num_new=1)] == [1] * len(PROMPTS)
    assert len(calls) == 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (1.5, 0.9)])
def test_drawn_tokens_are_those_of_transformers(tmp_path, kind, temperature, top_p):
    """Row by row, though rows leave early: each row's noise is its own."""
    model, encoder = build(kind), load_encoder(save_tokenizer(tmp_path))
    texts = ["a b c d e f a b", "b", "c c", "f e d"] * 5
    random.Random(0).shuffle(texts)
    samples = sampling.generate(
        model,
        encoder,
        texts,
        temperature=temperature,
        top_p=top_p,
        max_completion_length=24,
        seed=3,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        expected = by_transformers(
            model,
            [encoder.encode_prompt(text) for text in texts],
            ends=[EOS],
            num_new=24,
            do_sample=True,
            temperature=temperature,
            top_p=top_p,
            top_k=0,
        )
    assert [sample.response_ids for sample in samples] == expected
    assert len({len(row) for row in expected}) > 3


def count_tokens(model):
    """Rows and tokens of each call of the model from now on."""
    calls = []

    def note(module, args, kwargs):
        calls.append(tuple(kwargs["input_ids"].shape))

    model.register_forward_pre_hook(note, with_kwargs=True)
    return calls


def ending_at(lengths):
    """A choice that ends row i with its token number lengths[i]."""
    step = 0

    def choose(logits, rows):
        nonlocal step
        step += 1
        return torch.tensor([EOS if lengths[row] == step else 4 for row in rows.tolist()])

    return choose


@pytest.mark.parametrize("kind", ["llama", "mistral"])
def test_a_prompt_is_computed_once_and_no_row_after_its_end(kind):
    model = build(kind)
    calls = count_tokens(model)
    lengths = [3, 1, 5, 5, 2, 7, 9, 4]
    prompts = [[1, 4, 5], [1, 6]] * 4
    written = decode(
        model, prompts, max_new_tokens=6, ends=[EOS], pad_token_id=0, choose=ending_at(lengths)
    )
    assert [len(row) for row in written] == [min(length, 6) for length in lengths]
    assert [row[-1] == EOS for row in written] == [length <= 6 for length in lengths]
    # Of eight rows one that has ended is an eighth: each leaves at once.
    still = [sum(length > step for length in lengths) for step in range(1, 6)]
    assert calls == [(2, 3)] + [(rows, 1) for rows in still]


def test_rows_leave_when_an_eighth_has_ended():
    model = build("llama")
    calls = count_tokens(model)
    lengths = [1, 2, 3, *[9] * 17]
    decode(
        model,
        [[1, 4]] * 20,
        max_new_tokens=6,
        ends=[EOS],
        pad_token_id=0,
        choose=ending_at(lengths),
    )
    assert calls == [(1, 2), (20, 1), (20, 1), (17, 1), (17, 1), (17, 1)]


def test_nothing_is_computed_after_the_last_end():
    model = build("llama")
    calls = count_tokens(model)
    decode(
        model,
        [[1, 4]] * 3,
        max_new_tokens=40,
        ends=[EOS],
        pad_token_id=0,
        choose=ending_at([2, 2, 2]),
    )
    assert calls == [(1, 2), (3, 1)]


class Forgetful(LlamaForCausalLM):
    """A model that takes a cache and leaves it."""

    def forward(self, *args, past_key_values=None, **kwargs):
        return super().forward(*args, **kwargs)


REFUSED = {
    "mamba": (MambaForCausalLM, MambaConfig(**SIZES, state_size=4), "own way"),
    "lfm2": (
        Lfm2ForCausalLM,
        Lfm2Config(**ROPE, layer_types=["conv", "full_attention"]),
        "LinearAttentionLayer",
    ),
    "phi3": (Phi3ForCausalLM, Phi3Config(**ROPE), "own way"),
    "t5": (
        T5ForConditionalGeneration,
        T5Config(vocab_size=10, d_model=16, d_ff=8, d_kv=8, num_layers=1, num_heads=2),
        "encoder",
    ),
    "forgetful": (Forgetful, LlamaConfig(**ROPE), "does not fill"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_cache_that_cannot_be_selected_by_row_is_refused(kind):
    *parts, message = REFUSED[kind]
    model = build(kind, kinds={kind: parts})
    with pytest.raises(CacheError, match=message):
        greedily(model, PROMPTS)


def test_a_model_in_training_mode_is_refused():
    with pytest.raises(CacheError, match="dropout"):
        build_cache(build("llama").train(), 10)


@pytest.mark.parametrize("kind", ["mamba", "lfm2"])
def test_other_models_are_sampled_as_transformers_does(tmp_path, kind, caplog):
    model = build(kind, kinds={kind: REFUSED[kind][:2]})
    encoder = load_encoder(save_tokenizer(tmp_path))
    texts = ["a b c", "b a c"] * 4

    def draw():
        return sampling.generate(
            model,
            encoder,
            texts,
            temperature=0.9,
            top_p=0.9,
            max_completion_length=8,
            seed=1,
        )

    sampling._report_slow_model.cache_clear()
    with caplog.at_level(logging.WARNING):
        samples = draw()
        assert draw() == samples
    (record,) = (record for record in caplog.records if record.name == sampling.__name__)
    assert record.message.startswith(f"{type(model).__name__} is sampled by transformers' own")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        expected = by_transformers(
            model,
            [encoder.encode_prompt(text) for text in texts],
            ends=[EOS],
            num_new=8,
            do_sample=True,
            temperature=0.9,
            top_p=0.9,
            top_k=0,
        )
    assert [sample.response_ids for sample in samples] == expected
