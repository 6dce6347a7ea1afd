# SPDX-License-Identifier: Apache-2.0
"""What an optimiser step costs, in counts that no machine changes: the gate on speed."""

import gc

import datasets
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForSequenceClassification

from metarm.models import agreement, shared_prompts
from metarm.training import trainer as trainer_module
from unit.live_bytes import LiveBytes
from unit.reward_problem import make_trainer

# Of one length all, so that every count is exact: prompts of 12 tokens, responses of 4 with EOS.
PROMPT, RESPONSE, NUM_PAIRS, NUM_GROUPS, K = 12, 4, 4, 4, 3
LAYERS, WIDTH, INNER, VOCABULARY = 3, 32, 64, 10
PAIR_TOKENS = NUM_PAIRS * (PROMPT + 2 * RESPONSE)
GROUP_TOKENS = NUM_GROUPS * (PROMPT + K * RESPONSE)
PARTS = [GROUP_TOKENS * 3 // 4, GROUP_TOKENS // 4]
META = {"meta_mode": "descent", "meta_step_length": 0.1, "logging_steps": 100}


@pytest.fixture(autouse=True)
def _any_size(monkeypatch):
    monkeypatch.setattr(shared_prompts, "LEAST_WORK", 0)
    # As of a large model, of which the check compares few gradients.
    monkeypatch.setattr(agreement, "MAX_CHECKED_NUMBERS", 64)


def make_rows(count, k):
    """Prompts of 11 words behind the opening token, responses of 3 words before EOS."""
    words = "abcdef"
    rows = []
    for row in range(count):
        prompt = " ".join(words[(row + place) % 6] for place in range(PROMPT - 1))
        tails = ["".join(f" {words[(row + n + p) % 6]}" for p in range(3)) for n in range(k)]
        rows.append((prompt, tails))
    return rows


def make_model(attention="sdpa", *, width=WIDTH, inner=INNER):
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        max_position_embeddings=64,
        num_labels=1,
        pad_token_id=0,
        attn_implementation=attention,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LlamaForSequenceClassification(config)


def prepare(folder, output, *, model=None, max_steps=1, **options):
    pairs = [
        {"prompt": prompt, "chosen": tails[0], "rejected": tails[1]}
        for prompt, tails in make_rows(8, 2)
    ]
    groups = [{"prompt": prompt, "responses": tails} for prompt, tails in make_rows(NUM_GROUPS, K)]
    return make_trainer(
        folder,
        output,
        model=model or make_model(),
        given={
            "train_dataset": datasets.Dataset.from_list(pairs),
            "meta_dataset": datasets.Dataset.from_list(groups),
        },
        max_steps=max_steps,
        per_device_train_batch_size=NUM_PAIRS,
        meta_group_size=K,
        **options,
    )


class Counts:
    """Calls and tokens of a training, and how often the weights were moved."""

    def __init__(self, trainer, monkeypatch):
        self.tokens = []
        self.passes = self.backward = self.looks = 0
        trainer.model.model.embed_tokens.register_forward_hook(self._embedded)
        backward, place_ahead = torch.autograd.backward, trainer_module.place_ahead

        def counted_backward(*arguments, **options):
            self.backward += 1
            return backward(*arguments, **options)

        def counted_place(*arguments, **options):
            self.looks += 1
            return place_ahead(*arguments, **options)

        monkeypatch.setattr(torch.autograd, "backward", counted_backward)
        monkeypatch.setattr(trainer_module, "place_ahead", counted_place)

    def _embedded(self, _module, inputs, _output):
        self.tokens.append(inputs[0].numel())


def count(folder, output, monkeypatch, **options):
    """Of the second step: before the first, sharing is held against the plain pass."""
    trainer = prepare(folder, output, max_steps=2, **options)
    counts = Counts(trainer, monkeypatch)
    begin = {}

    class Second(trainer_module.TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 1:
                begin.update(
                    tokens=len(counts.tokens), backward=counts.backward, looks=counts.looks
                )

    trainer.add_callback(Second())
    trainer.train()
    counts.tokens = counts.tokens[begin["tokens"] :]
    counts.backward -= begin["backward"]
    counts.looks -= begin["looks"]
    return counts


def test_a_plain_step_computes_each_prompt_once(reward_model_dir, tmp_path, monkeypatch):
    counts = count(reward_model_dir, tmp_path, monkeypatch, meta_mode="off")
    assert counts.tokens == [PAIR_TOKENS]
    assert (counts.backward, counts.looks) == (1, 0)


def test_trl_computes_it_twice(reward_model_dir, tmp_path, monkeypatch):
    options = {"meta_mode": "off", "share_prompts": False}
    counts = count(reward_model_dir, tmp_path, monkeypatch, **options)
    assert counts.tokens == [NUM_PAIRS * 2 * (PROMPT + RESPONSE)]


@pytest.mark.parametrize("mode", ["ascent", "descent", "joint"])
def test_a_meta_step_adds_one_pass_of_the_groups(reward_model_dir, tmp_path, monkeypatch, mode):
    numbers = {"meta_weight": 0.1} if mode == "joint" else {"meta_step_length": 0.1}
    options = {"meta_mode": mode, "logging_steps": 100, **numbers}
    counts = count(reward_model_dir, tmp_path, monkeypatch, **options)
    # Three groups of three have as many responses as four pairs have sides.
    assert counts.tokens == [*PARTS, PAIR_TOKENS]
    assert counts.backward == 3
    assert counts.looks == (mode != "joint")


def test_the_naive_step_is_three_times_as_much(reward_model_dir, tmp_path, monkeypatch):
    counts = count(reward_model_dir, tmp_path, monkeypatch, share_prompts=False, **META)
    naive = (NUM_GROUPS * K + NUM_PAIRS * 2) * (PROMPT + RESPONSE)
    assert sum(counts.tokens) == naive
    assert (GROUP_TOKENS + PAIR_TOKENS) / naive == pytest.approx(0.55, abs=0.001)


def test_a_step_between_is_a_plain_one(reward_model_dir, tmp_path, monkeypatch):
    for between, looks in (("plain", 0), ("stored", 1)):
        options = {"meta_every": 2, "meta_between": between, **META}
        counts = count(reward_model_dir, tmp_path, monkeypatch, **options)
        assert counts.tokens == [PAIR_TOKENS]
        assert counts.looks == looks


def test_micro_batches_look_ahead_once(reward_model_dir, tmp_path, monkeypatch):
    options = {"gradient_accumulation_steps": 2, **META}
    counts = count(reward_model_dir, tmp_path, monkeypatch, **options)
    assert counts.tokens == [*PARTS, PAIR_TOKENS, PAIR_TOKENS]
    assert (counts.backward, counts.looks) == (4, 1)


def test_a_group_too_large_is_read_twice_forth_and_once_back(
    reward_model_dir, tmp_path, monkeypatch
):
    options = {"meta_micro_batch_size": 2, "share_prompts": False, **META}
    counts = count(reward_model_dir, tmp_path, monkeypatch, **options)
    text = PROMPT + RESPONSE
    assert counts.tokens == [*[2 * text, text, 2 * text, text] * NUM_GROUPS, 2 * NUM_PAIRS * text]
    assert counts.backward == 2 * NUM_GROUPS + 1


def operations(trainer):
    """Of a whole training; in eager attention torch counts all."""
    with FlopCounterMode(display=False) as flops:
        trainer.train()
    return flops.get_total_flops()


def test_the_head_alone_needs_no_way_back(reward_model_dir, tmp_path):
    def of(**options):
        model = make_model("eager")
        options = META | {"share_prompts": False, **options}
        return operations(prepare(reward_model_dir, tmp_path, model=model, **options))

    plain = of(meta_mode="off")
    assert of(meta_parameters="head") - plain == pytest.approx((of() - plain) / 3, rel=0.02)


def test_the_last_layer_is_trimmed(reward_model_dir, tmp_path, monkeypatch):
    """Its output projection and MLP see the texts' last tokens alone."""
    found = {}
    for ways in ("trimmed", "whole"):
        kept = tuple(way for way in shared_prompts.MASK if way.trimmed == (ways == "trimmed"))
        monkeypatch.setattr(shared_prompts, "WAYS", {"eager": kept})
        # Before the first step, sharing is held against the plain pass.
        first, second = (
            operations(
                prepare(
                    reward_model_dir,
                    tmp_path,
                    model=make_model("eager"),
                    meta_mode="off",
                    max_steps=steps,
                )
            )
            for steps in (1, 2)
        )
        found[ways] = second - first
    saved = 2 * 3 * (WIDTH**2 + 3 * WIDTH * INNER) * (PAIR_TOKENS - 2 * NUM_PAIRS)
    assert found["whole"] - found["trimmed"] == saved


@pytest.mark.parametrize(
    ("options", "copies"),
    [
        ({}, 1.0),
        ({"gradient_accumulation_steps": 2}, 1.0),
        ({"meta_mode": "joint", "meta_step_length": None, "meta_weight": 0.1}, 1.0),
        ({"meta_every": 2, "meta_between": "stored"}, 2.0),
        ({"meta_order": "finite-difference"}, 3.0),
    ],
    ids=["first order", "accumulation", "joint", "stored", "finite difference"],
)
def test_the_peak_above_plain_is_one_copy_of_the_weights(
    reward_model_dir, tmp_path, options, copies
):
    accumulation = options.get("gradient_accumulation_steps", 1)
    plain, size = peak(
        reward_model_dir, tmp_path, meta_mode="off", gradient_accumulation_steps=accumulation
    )
    meta, _ = peak(reward_model_dir, tmp_path, **(META | options))
    assert (meta - plain) / size == pytest.approx(copies, abs=0.5 if copies > 2 else 0.03)


def peak(folder, output, **options):
    """Most bytes alive in three steps of AdamW, and those of the weights."""
    model = make_model(width=128, inner=512)
    trainer = prepare(
        folder, output, model=model, max_steps=3, optim="adamw_torch", learning_rate=1e-3, **options
    )
    gc.collect()
    counter = LiveBytes()
    for parameter in model.parameters():
        counter.see(parameter.data)
    size = counter.now
    with counter:
        trainer.train()
    return counter.peak, size
