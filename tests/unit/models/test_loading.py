# SPDX-License-Identifier: Apache-2.0
"""What is loaded is whole, in fp32 and of the right kind; what is not says so."""

import json
import logging
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

from metarm.errors import ModelError
from metarm.models.loading import (
    context_length,
    load_causal_lm,
    load_encoder,
    load_reward_model,
    pick_device,
)
from metarm.models.reward_model import load_score_function
from tiny_models import CONTEXT, save_causal_lm, save_reward_model


@pytest.fixture(scope="module")
def language_model(tmp_path_factory):
    return save_causal_lm(tmp_path_factory.mktemp("language_model"))


def _weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def _without(folder, target, words):
    """A copy of a model's folder that lacks the weights whose names hold `words`."""
    shutil.copytree(folder, target)
    kept = load_file(target / "model.safetensors")
    kept = {name: value for name, value in kept.items() if words not in name}
    save_file(kept, target / "model.safetensors", metadata={"format": "pt"})
    return target


def test_a_new_head_is_drawn_from_the_seed(language_model):
    encoder = load_encoder(language_model)
    first, again, other = (
        _weights(load_reward_model(language_model, encoder, seed=seed)) for seed in (1, 1, 2)
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    differing = [name for name in first if not torch.equal(first[name], other[name])]
    assert differing == ["score.weight"]
    trunk = _weights(load_causal_lm(language_model))
    assert all(torch.equal(first[name], trunk[name]) for name in first if name != "score.weight")


def test_loading_leaves_the_callers_random_numbers(language_model):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    load_reward_model(language_model, load_encoder(language_model), seed=9)
    assert torch.equal(torch.rand(3), expected)


def test_a_reward_model_keeps_its_head(reward_model_dir):
    encoder = load_encoder(reward_model_dir)
    stored = load_file(reward_model_dir / "model.safetensors")
    for seed in (3, None):
        model = load_reward_model(reward_model_dir, encoder, seed=seed)
        assert torch.equal(model.score.weight.cpu(), stored["score.weight"])


def test_what_is_loaded_is_in_fp32_and_ready(reward_model_dir, language_model, tmp_path):
    for folder, name in ((reward_model_dir, "reward"), (language_model, "language")):
        shutil.copytree(folder, tmp_path / name)
        tensors = load_file(tmp_path / name / "model.safetensors")
        half = {key: value.bfloat16() for key, value in tensors.items()}
        save_file(half, tmp_path / name / "model.safetensors", metadata={"format": "pt"})
    encoder = load_encoder(tmp_path / "reward")
    for model in (
        load_reward_model(tmp_path / "reward", encoder),
        load_causal_lm(tmp_path / "language"),
    ):
        assert {p.dtype for p in model.parameters()} == {torch.float32}
        assert not model.training
        assert model.device.type == pick_device().type
        assert context_length(model) == CONTEXT


def test_the_model_reads_the_encoders_padding(reward_model_dir, tmp_path):
    shutil.copytree(reward_model_dir, tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"pad_token_id": 3}))
    encoder = load_encoder(tmp_path)
    model = load_reward_model(tmp_path, encoder)
    assert model.config.pad_token_id == encoder.pad_token_id == 0


def test_a_policy_does_not_judge_and_a_judge_does_not_write(
    language_model, reward_model_dir, tmp_path
):
    with pytest.raises(ModelError, match=r"whole reward model.*without score\.weight"):
        load_score_function(language_model)
    with pytest.raises(ModelError, match=r"whole causal language model.*without lm_head\.weight"):
        load_causal_lm(reward_model_dir)
    shutil.copytree(reward_model_dir, tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    with pytest.raises(ModelError, match="got a reward model"):
        load_causal_lm(tmp_path)


def _load_judge(folder):
    return load_reward_model(folder, load_encoder(folder), seed=0)


@pytest.mark.parametrize(
    ("kind", "load"),
    [("reward model", _load_judge), ("causal language model", load_causal_lm)],
)
def test_a_checkpoint_with_a_hole_is_refused(
    reward_model_dir, language_model, tmp_path, kind, load
):
    whole = reward_model_dir if kind == "reward model" else language_model
    folder = _without(whole, tmp_path / "model", "layers.1.mlp.up_proj")
    with pytest.raises(ModelError, match=rf"whole {kind}.*layers\.1\.mlp\.up_proj\.weight"):
        load(folder)


def test_a_classifier_is_no_reward_model(language_model, tmp_path):
    made = AutoModelForSequenceClassification.from_pretrained(language_model, num_labels=3)
    made.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"one score.*num_labels=3"):
        load_reward_model(tmp_path, load_encoder(language_model))


def _cut(folder):
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])


def _unknown_kind(folder):
    (folder / "config.json").write_text('{"model_type": "no-such-model"}')


@pytest.mark.parametrize(
    "damage",
    [
        _cut,
        _unknown_kind,
        lambda folder: (folder / "model.safetensors").unlink(),
        lambda folder: (folder / "config.json").write_text("{"),
    ],
    ids=["cut weights", "unknown kind", "no weights", "broken config"],
)
def test_a_damaged_folder_is_named(reward_model_dir, language_model, tmp_path, damage):
    encoder = load_encoder(reward_model_dir)
    for whole, load in (
        (reward_model_dir, lambda folder: load_reward_model(folder, encoder)),
        (language_model, load_causal_lm),
    ):
        folder = tmp_path / whole.name
        shutil.copytree(whole, folder)
        damage(folder)
        with pytest.raises(ModelError, match=r"the folder exists.*model\.safetensors") as raised:
            load(folder)
        assert str(folder) in str(raised.value)
        assert len(str(raised.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("config.json", None, []),
        ("config.json", None, "x"),
        ("config.json", "attention_bias", 1),
        ("config.json", "architectures", 5),
        ("config.json", "dtype", "x"),
        ("config.json", "dtype", []),
        ("config.json", "id2label", 1),
        ("config.json", "hidden_size", -1),
        ("config.json", "num_attention_heads", 0),
        ("config.json", "num_key_value_heads", 0),
        ("tokenizer_config.json", None, None),
        ("tokenizer_config.json", "bos_token", 1),
        ("tokenizer.json", None, []),
        ("tokenizer.json", "added_tokens", 0),
        ("tokenizer.json", "model", {}),
        ("tokenizer.json", "version", "x"),
    ],
)
def test_a_wrong_field_is_an_error_that_names_the_folder(
    reward_model_dir, tmp_path, name, field, value
):
    """Whatever kind of error transformers makes of it."""
    folder = tmp_path / "wrong"
    shutil.copytree(reward_model_dir, folder)
    document = json.loads((folder / name).read_text("utf-8"))
    document = value if field is None else {**document, field: value}
    (folder / name).write_text(json.dumps(document), "utf-8")
    with pytest.raises(ModelError, match=r"in Hugging Face format at .*wrong"):
        load_score_function(folder)


def test_a_missing_folder_is_named(tmp_path):
    for load in (load_encoder, load_causal_lm, load_score_function):
        with pytest.raises(ModelError, match=r"nowhere.*there is no such folder"):
            load(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["./nowhere", "../nowhere", "/no/where", "runs/no/where"])
def test_what_can_only_be_a_folder_is_not_looked_for_elsewhere(name):
    with pytest.raises(ModelError) as told:
        load_encoder(name)
    assert str(told.value) == (
        f"expected a tokenizer at '{name}': there is no such folder. Check the path."
    )


class _Records(logging.Handler):
    def __init__(self):
        super().__init__()
        self.messages = []

    def emit(self, record):
        self.messages.append(record.getMessage())


def test_loading_is_quiet(reward_model_dir, language_model, capfd):
    records, logger = _Records(), logging.getLogger("transformers")
    level = logger.level
    logger.addHandler(records)
    encoder = load_encoder(language_model)
    load_reward_model(language_model, encoder)
    load_causal_lm(language_model)
    load_score_function(reward_model_dir)
    save_reward_model(reward_model_dir.parent / "again")
    logger.removeHandler(records)
    assert records.messages == []
    assert capfd.readouterr() == ("", "")
    assert logger.level == level
