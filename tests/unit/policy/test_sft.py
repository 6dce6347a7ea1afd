# SPDX-License-Identifier: Apache-2.0
"""Supervised fine-tuning: what the loss covers, what is learnt, what is left out."""

from contextlib import contextmanager

import pytest
import torch

from metarm.checkpoints import CheckpointPlace
from metarm.config import SftSettings
from metarm.errors import EmptySetError
from metarm.interrupts import Stopped
from metarm.models.loading import load_causal_lm, load_encoder
from metarm.policy.sft import train_sft
from metarm.progress import SilentProgress
from metarm.schema import Message
from tiny_models import EOS, folder_digest, save_causal_lm, save_tokenizer

NEXT = {"a": "b", "b": "c", "c": "d", "d": "e", "e": "f", "f": "a"}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_causal_lm(tmp_path_factory.mktemp("model"))


def train(model, demonstrations, output, *, seed=0, checkpoints=None, progress=None, **changes):
    settings = SftSettings(**({"num_train_epochs": 1.0, "learning_rate": 1e-9} | changes))
    return train_sft(
        model=str(model),
        demonstrations=demonstrations,
        settings=settings,
        output_dir=output,
        seed=seed,
        progress=progress or SilentProgress(),
        checkpoints=checkpoints,
    )


@torch.no_grad()
def log_likelihoods(folder, prompt_ids, answer_ids):
    logits = load_causal_lm(folder)(input_ids=torch.tensor([prompt_ids + answer_ids])).logits[0]
    table = torch.log_softmax(logits, dim=-1)
    return [
        table[len(prompt_ids) - 1 + place, token].item() for place, token in enumerate(answer_ids)
    ]


def test_the_loss_is_on_the_response_and_its_eos_alone(model, tmp_path):
    """One step with no step size: the loss is that of the model before, token by token."""
    result = train(model, [("a b c d", " e f"), ("f", " a")], tmp_path)
    first = log_likelihoods(model, [1, 4, 5, 6, 7], [8, 9, EOS])
    second = log_likelihoods(model, [1, 9], [4, EOS])
    expected = -sum(first + second) / 5
    assert result["loss_nats"] == pytest.approx(expected, rel=1e-4)
    assert result["num_examples"] == 2


def test_a_mapping_is_learnt(model, tmp_path):
    rows = [(word, f" {answer}") for word, answer in NEXT.items()] * 8
    result = train(
        model,
        rows,
        tmp_path,
        num_train_epochs=8.0,
        learning_rate=0.02,
        per_device_train_batch_size=8,
    )
    assert result["loss_nats"] < 0.1
    encoder = load_encoder(tmp_path)
    for word, answer in NEXT.items():
        wanted = encoder.encode(word, f" {answer}")[2:]
        assert sum(log_likelihoods(tmp_path, encoder.encode_prompt(word), wanted)) > -0.3


def test_over_long_demonstrations_are_counted_and_left_out(model, tmp_path):
    # BOS, prompt, response and EOS: 4, 5 and 6 tokens.
    rows = [("a", " b"), ("a", " b c"), ("a", " b c d")]
    result = train(model, rows, tmp_path, max_length=5)
    assert (result["num_examples"], result["num_too_long"]) == (2, 1)


@pytest.mark.parametrize("rows", [[], [("a", " b c d")]])
def test_no_demonstration_left_is_an_error(model, tmp_path, rows):
    with pytest.raises(EmptySetError, match=f"{len(rows)} read, all longer than sft.max_length=5"):
        train(model, rows, tmp_path, max_length=5)


def test_the_same_seed_gives_the_same_weights(model, tmp_path):
    rows = [(word, f" {answer}") for word, answer in NEXT.items()]
    options = {"learning_rate": 0.01, "per_device_train_batch_size": 2, "num_train_epochs": 2.0}
    for name, seed in (("first", 0), ("again", 0), ("other", 1)):
        train(model, rows, tmp_path / name, seed=seed, **options)
    digests = {name: folder_digest(tmp_path / name) for name in ("first", "again", "other")}
    assert digests["first"] == digests["again"] != digests["other"]


def test_nothing_but_model_and_tokenizer_is_saved(model, tmp_path):
    train(model, [("a", " b")], tmp_path)
    assert {path.suffix for path in tmp_path.iterdir()} <= {".json", ".safetensors"}


# What a template may write after an answer: EOS and a newline, or nothing at all.
TEMPLATES = {
    "eos_and_more": "{% for m in messages %}{{ ' b' if m.role == 'user' else ' c' }}"
    "{{ m.content }}{{ '</s> f' if m.role == 'assistant' }}{% endfor %}"
    "{{ ' c' if add_generation_prompt }}",
    "no_eos": "{% for m in messages %}{{ ' b' if m.role == 'user' else ' c' }}{{ m.content }}"
    "{% endfor %}{{ ' c' if add_generation_prompt }}",
    "eos_after_every_turn": "{% for m in messages %}{{ ' b' if m.role == 'user' else ' c' }}"
    "{{ m.content }}</s>{% endfor %}{{ ' c' if add_generation_prompt }}",
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_policy_learns_to_end_under_any_template(tmp_path, name):
    """The answer is learnt up to its EOS, which is added where the template writes none."""
    folder = save_causal_lm(tmp_path / "model")
    save_tokenizer(folder, chat_template=TEMPLATES[name])
    prompt = (Message("user", " a"),)
    prompt_ids = load_encoder(folder).encode_prompt(prompt)
    result = train(folder, [(prompt, " d e")], tmp_path / "sft")
    expected = log_likelihoods(folder, prompt_ids, [7, 8, EOS])
    assert result["loss_nats"] == pytest.approx(-sum(expected) / 3, rel=1e-4)


def test_it_goes_on_where_it_was_stopped(model, tmp_path, monkeypatch):
    """In mid-epoch, after the last step, and with the same mean loss."""
    demonstrations = [(first, f" {NEXT[first]}") for first in NEXT] * 3
    options = {"learning_rate": 1e-2, "per_device_train_batch_size": 4, "num_train_epochs": 2.0}
    whole = train(model, demonstrations, tmp_path / "whole", **options)
    for asked_at in (1, 4, 7, 10):
        place = CheckpointPlace(tmp_path / str(asked_at), every=100)
        steps = []

        class Bar(SilentProgress):
            @contextmanager
            def stage(self, name, total, asked_at=asked_at, steps=steps):
                yield self

            def advance(self, count=1, note="", asked_at=asked_at, steps=steps):
                steps.append(count)
                if sum(steps) == asked_at:
                    monkeypatch.setattr("metarm.interrupts._request.number", 15)

        with pytest.raises(Stopped):
            train(
                model,
                demonstrations,
                tmp_path / "out",
                checkpoints=place,
                progress=Bar(),
                **options,
            )
        assert [path.name for path in place.folder.iterdir()] == [f"checkpoint-{asked_at}"]
        again = train(
            model, demonstrations, tmp_path / f"out {asked_at}", checkpoints=place, **options
        )
        assert again == whole
        assert folder_digest(tmp_path / f"out {asked_at}") == folder_digest(tmp_path / "whole")
