# SPDX-License-Identifier: Apache-2.0
"""Shared beginnings give the plain pass's scores and gradients, or are refused by name."""

import logging
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import transformers
from torch import nn

from metarm.errors import ModelError
from metarm.models import shared_prompts
from metarm.models.shared_prompts import SharedPrompts, Way

COMMON = {
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "num_labels": 1,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED_HEADS = COMMON | {"num_key_value_heads": 2}
GPT2 = {"n_positions": 64, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
MODELS = {
    "Llama": GROUPED_HEADS,
    "Qwen2": GROUPED_HEADS,
    "Qwen3": GROUPED_HEADS | {"head_dim": 8},
    "Mistral": GROUPED_HEADS | {"sliding_window": 64},
    "Gemma": GROUPED_HEADS | {"head_dim": 8},
    "Gemma2": GROUPED_HEADS | {"head_dim": 8, "sliding_window": 64},
    "GPTNeoX": COMMON,
    "GPT2": COMMON | GPT2,
}
TRIMMED = {"Llama", "Qwen2", "Qwen3", "Mistral", "Gemma"}
HAS_NO_SDPA = {"Gemma2"}


@pytest.fixture(autouse=True)
def _any_size(monkeypatch):
    """Tiny models would be left alone: laying out costs them more than it saves."""
    monkeypatch.setattr(shared_prompts, "LEAST_WORK", 0)


def make_model(name, attention="sdpa", *, seed=0, dtype=torch.float32, **changes):
    config = getattr(transformers, f"{name}Config")(**(MODELS.get(name, COMMON) | changes))
    config._attn_implementation = attention
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = getattr(transformers, f"{name}ForSequenceClassification")(config)
    return model.to(dtype)


def make_batch(groups=5, k=3, *, seed=0, most_prompt=24, most_response=8):
    """Rows of ragged prompts and responses; one group has a single row, one begins unlike."""
    draw = torch.Generator().manual_seed(seed)

    def text(most):
        length = int(torch.randint(1, most + 1, (1,), generator=draw))
        return torch.randint(3, 100, (length,), generator=draw).tolist()

    rows, group_of_row = [], []
    for group in range(groups):
        prompt = text(most_prompt) if group != 1 else []
        for _ in range(k if group != 2 else 1):
            rows.append(prompt + text(most_response))
            group_of_row.append(group)
    return pad(rows), group_of_row


def pad(rows, token=0):
    width = max(map(len, rows))
    ids = torch.tensor([row + [token] * (width - len(row)) for row in rows])
    lengths = torch.tensor([[len(row)] for row in rows])
    return {"input_ids": ids, "attention_mask": (torch.arange(width) < lengths).long()}


def weigh(scores):
    weights = torch.randn(scores.shape, generator=torch.Generator().manual_seed(1))
    return (weights.to(scores.dtype) * scores).sum()


def score(model, batch, group_of_row=None, prompts=None):
    """Scores, the gradients of their weighted sum, and how much was computed."""
    model.zero_grad()
    if group_of_row is None:
        scores, work = model(**batch, use_cache=False).logits, None
        weigh(scores).backward()
    else:
        prompts = prompts or SharedPrompts(model)
        with prompts.sharing(**batch, group_of_row=group_of_row) as work:
            scores = model(**batch, use_cache=False).logits
            weigh(scores).backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return scores.detach(), gradients, work


def largest_difference(one, other):
    """Of two results of `score`, in shares of the plain one's length."""
    assert one[1].keys() == other[1].keys()
    pairs = [(one[0], other[0]), *((one[1][name], other[1][name]) for name in one[1])]
    return max(((a - b).norm() / b.norm().clamp(min=1e-12)).item() for a, b in pairs)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", MODELS)
def test_scores_and_gradients_are_those_of_the_plain_pass(name, attention):
    if name in HAS_NO_SDPA and attention == "sdpa":
        pytest.skip("transformers has no SDPA for this model")
    model = make_model(name, attention).train()
    batch, group_of_row = make_batch()
    prompts = SharedPrompts(model)
    plain = score(model, batch)
    shared = score(model, batch, group_of_row, prompts)
    assert largest_difference(shared, plain) < 1e-5
    kind = "tiles" if attention == "sdpa" else "mask"
    assert prompts.ways == {True: Way(kind, trimmed=name in TRIMMED)}
    assert shared[2].computed < 0.7 * shared[2].plain
    assert (shared[2].padding == 0) == (kind == "tiles")
    # Nothing is left behind.
    assert largest_difference(score(model, batch), plain) == 0.0
    assert model.config._attn_implementation == attention
    assert "forward" not in model.base_model.__dict__


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("seed", range(3))
def test_in_float64_it_is_exact(attention, seed):
    """GPT-2: a Llama's norms compute in fp32 whatever its weights are."""
    model = make_model("GPT2", attention, seed=seed, dtype=torch.float64).train()
    batch, group_of_row = make_batch(seed=seed)
    shared = score(model, batch, group_of_row)
    assert largest_difference(shared, score(model, batch)) < 1e-12


@pytest.mark.parametrize(
    "way", [Way(kind, trim) for kind in ("tiles", "blocks", "mask") for trim in (False, True)]
)
def test_every_way_is_exact(way, monkeypatch):
    monkeypatch.setattr(shared_prompts, "WAYS", {"sdpa": (way,)})
    model = make_model("Llama").train()
    batch, group_of_row = make_batch(seed=3)
    prompts = SharedPrompts(model)
    shared = score(model, batch, group_of_row, prompts)
    assert prompts.ways == {True: way}
    assert largest_difference(shared, score(model, batch)) < 1e-5


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_gradient_checkpointing_recomputes_the_shared_pass(attention):
    model = make_model("Llama", attention).train()
    batch, group_of_row = make_batch()
    plain = score(model, batch)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    prompts = SharedPrompts(model)
    shared = score(model, batch, group_of_row, prompts)
    assert largest_difference(shared, plain) < 1e-5
    assert prompts.ways[True] is not None


def test_both_sides_of_a_conversation_share_what_they_begin_with():
    model = make_model("Llama").train()
    chosen, rejected = [5] * 20 + [6, 7, 8], [5] * 20 + [6, 9]
    other = ([3, 4, 5, 6] * 4 + [7], [3, 4, 5, 6] * 4 + [8, 9])
    batch = pad([chosen, other[0], rejected, other[1]])
    shared = score(model, batch, [0, 1, 0, 1])
    # 21 together, 2 and 1 own; 16 together, 1 and 2 own.
    assert shared[2].computed == 24 + 19
    assert largest_difference(shared, score(model, batch)) < 1e-5


def test_the_token_that_the_head_reads_is_the_last_that_is_no_padding():
    """A row that ends with the padding token itself is read before it, as transformers does."""
    model = make_model("Llama", pad_token_id=2).train()
    rows = [[7] * 9 + [8, 2], [7] * 9 + [9, 10, 2], [7] * 9 + [2]]
    batch = pad(rows, token=2)
    shared = score(model, batch, [0, 0, 0])
    assert shared[2].computed < shared[2].plain
    assert largest_difference(shared, score(model, batch)) < 1e-5


def test_another_batch_inside_the_block_is_as_ever():
    model = make_model("Llama").eval()
    batch, group_of_row = make_batch()
    other, _ = make_batch(seed=9)
    with torch.no_grad():
        expected = model(**other).logits
        with SharedPrompts(model).sharing(**batch, group_of_row=group_of_row):
            assert torch.equal(model(**other).logits, expected)


def test_the_model_is_itself_again_after_an_error():
    model = make_model("Llama").train()
    batch, group_of_row = make_batch()
    with (
        pytest.raises(ArithmeticError),
        SharedPrompts(model).sharing(**batch, group_of_row=group_of_row),
    ):
        raise ArithmeticError
    assert model.config._attn_implementation == "sdpa"
    assert "forward" not in model.base_model.__dict__


def test_threads_wait_for_each_other_or_are_told():
    model = make_model("Llama").eval()
    batches = [make_batch(seed=seed) for seed in range(6)]
    with torch.no_grad():
        expected = [model(**batch).logits for batch, _ in batches]

    def of(number):
        batch, group_of_row = batches[number]
        with (
            torch.no_grad(),
            SharedPrompts(model).sharing(**batch, group_of_row=group_of_row),
        ):
            return model(**batch).logits

    with ThreadPoolExecutor(4) as pool:
        for found, plain in zip(pool.map(of, range(6)), expected, strict=True):
            torch.testing.assert_close(found, plain, rtol=1e-5, atol=1e-6)
        batch, group_of_row = batches[0]
        with SharedPrompts(model).sharing(**batch, group_of_row=group_of_row):
            told = pool.submit(lambda: model(**batch)).exception()
    assert isinstance(told, ModelError)


def test_little_to_save_is_left_alone(monkeypatch):
    model = make_model("Llama").train()
    batch = pad([[3, 4, 5, 6, token] for token in range(7, 11)])
    work = score(model, batch, range(4))[2]
    assert work.computed == work.plain == 20
    monkeypatch.setattr(shared_prompts, "LEAST_WORK", 20 * 32 * 3 + 1)
    batch, group_of_row = pad([[3] * 4 + [token] for token in range(7, 11)]), [0] * 4
    assert score(model, batch, group_of_row)[2].computed == 20


class _Mixing(nn.Module):
    """A last norm that depends on how many rows there are: no text of its own should."""

    def forward(self, states):
        return states / len(states)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_model_that_differs_is_left_alone_with_a_warning(attention, caplog):
    model = make_model("Llama", attention).train()
    model.model.norm = _Mixing()
    batch, group_of_row = make_batch()
    shared = score(model, batch, group_of_row)
    assert largest_difference(shared, score(model, batch)) == 0.0
    assert "no way gives the plain pass's scores and gradients" in caplog.text


class _Forgetful(nn.Module):
    """Right scores and wrong gradients, wherever the beginning is computed once."""

    def forward(self, states):
        return states if states.shape[0] != 1 else states.detach() + 0 * states


def test_wrong_gradients_are_noticed_too(caplog):
    model = make_model("GPT2").train()
    model.transformer.h[1].ln_1 = _Forgetful()
    batch, group_of_row = make_batch()
    prompts = SharedPrompts(model)
    score(model, batch, group_of_row, prompts)
    assert prompts.ways[True] not in (*shared_prompts.TILES, *shared_prompts.BLOCKS)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: make_model("Bert", hidden_dropout_prob=0.0), "no decoder"),
        (lambda: make_model("Bloom", "eager"), "does not take another attention function"),
        (lambda: make_model("GPT2", attn_pdrop=0.1), "dropout"),
        (lambda: make_model("Llama", attention_dropout=0.1), "dropout"),
        (lambda: make_model("Mistral", sliding_window=8), "window of 8 tokens"),
        (
            lambda: make_model("Qwen3", layer_types=["linear_attention"] * 3),
            "full or sliding attention",
        ),
    ],
    ids=["encoder", "alibi", "dropout", "attention dropout", "window", "linear attention"],
)
def test_what_cannot_be_shared_is_refused_by_name(make, reason, caplog):
    model = make().train()
    batch, group_of_row = make_batch()
    caplog.set_level(logging.WARNING)
    prompts = SharedPrompts(model)
    for _ in range(2):
        with prompts.sharing(**batch, group_of_row=group_of_row) as work:
            assert work.computed == work.plain
    (told,) = (r.message for r in caplog.records if "not shared" in r.message)
    assert reason in told


def test_dropout_that_is_off_does_no_harm():
    model = make_model("GPT2", attn_pdrop=0.1, resid_pdrop=0.1).eval()
    batch, group_of_row = make_batch()
    shared = score(model, batch, group_of_row)
    assert shared[2].computed < shared[2].plain
    assert largest_difference(shared, score(model, batch)) < 1e-5


def test_rows_padded_on_the_left_are_left_alone(caplog):
    model = make_model("Llama").train()
    batch, group_of_row = make_batch()
    flipped = {name: value.flip(1) for name, value in batch.items()}
    with SharedPrompts(model).sharing(**flipped, group_of_row=group_of_row) as work:
        assert work.computed == work.plain
    assert "padded on the right" in caplog.text


def test_what_pads_without_being_the_padding_token_is_left_alone(caplog):
    model = make_model("Llama").train()
    batch, group_of_row = make_batch()
    batch["input_ids"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, 7)
    with SharedPrompts(model).sharing(**batch, group_of_row=group_of_row) as work:
        assert work.computed == work.plain
    assert "the padding token" in caplog.text


class _CountsItsOwn(nn.Module):
    """Positions by place in the row, whatever is asked: right for a plain batch alone."""

    def __init__(self, rotary):
        super().__init__()
        self.rotary = rotary

    def forward(self, states, position_ids):
        own = torch.arange(states.shape[1]).expand(len(states), -1)
        return self.rotary(states, own)


def test_nothing_is_decided_by_a_batch_in_which_nothing_is_shared():
    """Padding alone would be saved, and a wrong way would pass."""
    model = make_model("Llama").train()
    model.model.rotary_emb = _CountsItsOwn(model.model.rotary_emb)
    prompts = SharedPrompts(model)
    ragged = pad([[3] * 20, [4], [5, 6]])
    assert score(model, ragged, [0, 1, 2], prompts)[2].computed == 60
    assert prompts.ways == {}
    batch, group_of_row = make_batch()
    shared = score(model, batch, group_of_row, prompts)
    assert prompts.ways == {True: None}
    assert largest_difference(shared, score(model, batch)) == 0.0


@pytest.mark.parametrize("seed", range(3))
def test_bfloat16_does_not_hide_a_misplaced_text(seed):
    """Right to rounding passes; positions that are off do not, where positions matter."""
    batch, group_of_row = make_batch(groups=6, most_prompt=40, seed=seed)
    for wrong in (False, True):
        model = make_model("Llama", num_hidden_layers=6, seed=seed).bfloat16().eval()
        if wrong:
            model.model.rotary_emb = _CountsItsOwn(model.model.rotary_emb)
        prompts = SharedPrompts(model)
        with torch.no_grad(), prompts.sharing(**batch, group_of_row=group_of_row):
            pass
        assert (prompts.ways[False] is None) == wrong
