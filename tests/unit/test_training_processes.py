# SPDX-License-Identifier: Apache-2.0
"""Two processes with half a batch each train what one process with the whole batch does."""

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from unit.reward_problem import distance, is_same, load_tokenizer, make_trainer, weights
from unit.two_processes import in_two_processes, train_folder

pytestmark = pytest.mark.slow

# Five groups do not split evenly: the mean over processes must weigh their shares.
FIXED = {
    "ascent": {"meta_mode": "ascent", "meta_learning_rate": 0.05},
    "descent": {
        "meta_mode": "descent",
        "meta_step_length": 0.05,
        "gradient_accumulation_steps": 2,
    },
    "joint": {"meta_mode": "joint", "meta_weight": 0.7, "gradient_accumulation_steps": 2},
    "few_groups": {"meta_mode": "ascent", "meta_step_length": 0.05, "meta_batch_size": 1},
    "sources": {"meta_mode": "joint", "meta_weight": 0.7, "sources": ["a", "b"]},
    "few_of_sources": {
        "meta_mode": "joint",
        "meta_weight": 9.0,
        "sources": ["a", "b"],
        "meta_batch_size": 1,
    },
    "pieces": {"meta_mode": "descent", "meta_step_length": 0.05, "meta_micro_batch_size": 2},
    "second_order": {
        "meta_mode": "descent",
        "meta_step_length": 0.05,
        "meta_order": "finite-difference",
        "disable_dropout": True,
    },
}
AUTO = {
    mode: {"meta_mode": mode, "meta_batch_size": 4, "num_groups": 60, "max_steps": 4}
    for mode in ("joint", "descent")
}
# torch cannot load the state of an optimiser that has none.
ADAM = {"optim": "adamw_torch", "learning_rate": 1e-3}
FOLDERS = {
    "whole": {"per_device_train_batch_size": 2},
    "adapter": {"per_device_train_batch_size": 2, "use_peft": True, "lora_r": 2},
}
FIXED_CASES = {
    f"{way}-{name}": {"meta_batch_size": 5, "sharded": way == "fsdp2"} | case
    for way in ("ddp", "fsdp2")
    for name, case in FIXED.items()
}
CASES = {
    **FIXED_CASES,
    **{f"ddp-auto-{mode}": case for mode, case in AUTO.items()},
    **{f"fsdp2-auto-{mode}": case | {"sharded": True} for mode, case in AUTO.items()},
    "fsdp2-checkpointed": {
        "meta_mode": "descent",
        "meta_step_length": 0.05,
        "gradient_checkpointing": True,
        "sharded": True,
        "max_grad_norm": 0.5,
    },
    **{f"folder-{name}": {"settings": case} for name, case in FOLDERS.items()},
    "fsdp2-resumed": AUTO["joint"] | {"sharded": True, "resume": 2} | ADAM,
    "fsdp2-unbroken": AUTO["joint"] | {"sharded": True} | ADAM,
}


def _settings(name: str) -> dict:
    return {key: value for key, value in CASES[name].items() if key not in ("sharded", "resume")}


@pytest.fixture(scope="module")
def found(repository, reward_model_dir, tmp_path_factory):
    """Every case, of one start of two processes."""
    folder = tmp_path_factory.mktemp("two_processes") / "cases"
    return in_two_processes(repository, reward_model_dir, folder, CASES), folder


@pytest.mark.parametrize("name", [*FIXED_CASES, "fsdp2-checkpointed"])
def test_two_processes_are_one(found, reward_model_dir, tmp_path, name):
    (first, record), (second, _) = found[0][name]
    one = make_trainer(reward_model_dir, tmp_path / "one", **_settings(name))
    one.train()
    assert record["kind"].endswith("FSDP" if name.startswith("fsdp2") else "MULTI_CPU")
    assert second == {} if name.startswith("fsdp2") else is_same(first, second)
    assert distance(weights(one.model), first) < 1e-5
    plain = make_trainer(reward_model_dir, tmp_path, **(_settings(name) | {"meta_mode": "off"}))
    plain.train()
    assert distance(weights(plain.model), first) > 1e-4
    for mine, its in zip(one.state.log_history[:3], record["log"][:3], strict=True):
        names = {name for name in mine if name.startswith("meta/")}
        assert names == {name for name in its if name.startswith("meta/")}
        for metric in names:
            assert mine[metric] == pytest.approx(its[metric], abs=1e-4), metric


@pytest.mark.parametrize("name", [name for name in CASES if "auto" in name])
def test_two_processes_set_the_strength_as_one(found, reward_model_dir, tmp_path, name):
    """Guarded by sixty groups, of which they watch the same ones and decide together."""
    one = make_trainer(reward_model_dir, tmp_path / "one", **_settings(name))
    one.train()
    (first, record), (second, its_record) = found[0][name]
    assert second == {} if name.startswith("fsdp2") else is_same(first, second)
    assert record["factor"] == its_record["factor"] == one.guard.factor
    assert distance(weights(one.model), first) < 1e-4
    for mine, its in zip(one.state.log_history[:4], record["log"][:4], strict=True):
        assert mine["meta/strength"] == its["meta/strength"]
        assert mine["meta/rank_correlation"] == pytest.approx(its["meta/rank_correlation"], abs=0.1)


def test_shards_are_saved_as_a_whole_model(found, reward_model_dir):
    cases, folder = found
    saved = folder / "fsdp2-joint" / "saved"
    model = AutoModelForSequenceClassification.from_pretrained(saved, dtype=torch.float32)
    assert type(model).__name__ == "LlamaForSequenceClassification"
    assert is_same(weights(model), cases["fsdp2-joint"][0][0])
    ids = load_tokenizer(reward_model_dir)(" a b c", return_tensors="pt").input_ids
    assert torch.isfinite(model(input_ids=ids).logits).all()


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_made_of_shards_is_that_of_one_process(found, reward_model_dir, tmp_path, name):
    """Guarded, a probe chooses, an adapter is merged: what `metarm reward` does."""
    cases, folder = found
    (_, mine), (_, its) = cases[f"folder-{name}"]
    settings = FOLDERS[name] | {"per_device_train_batch_size": 4}
    record = train_folder(reward_model_dir, tmp_path / "one", settings)
    assert mine == its == record
    made = load_file(folder / f"folder-{name}" / "saved" / "model.safetensors")
    one = load_file(tmp_path / "one" / "model.safetensors")
    first = load_file(reward_model_dir / "model.safetensors")
    assert distance(one, made) < 1e-4 < distance(first, made)


def test_a_sharded_guarded_training_goes_on_bit_for_bit(found):
    cases, folder = found
    assert is_same(cases["fsdp2-resumed"][0][0], cases["fsdp2-unbroken"][0][0])
    assert not list((folder / "fsdp2-resumed").glob("plain_training*"))
