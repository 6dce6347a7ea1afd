# SPDX-License-Identifier: Apache-2.0
"""An adapter and its score head train with the meta step; the base stays as it was."""

import peft
import pytest
import torch

from unit.reward_problem import distance, is_same, load_model, make_trainer, weights

ADAM = {"optim": "adamw_torch", "learning_rate": 1e-2, "max_steps": 4}


def _lora(**changes):
    options = {"task_type": "SEQ_CLS", "r": 4, "lora_alpha": 8, "target_modules": "all-linear"}
    return peft.LoraConfig(**(options | {"modules_to_save": ["score"]} | changes))


def _train(folder, output_dir, **options):
    trainer = make_trainer(folder, output_dir, given={"peft_config": _lora()}, **(ADAM | options))
    trainer.train()
    return trainer


def _scores(model, trainer):
    model.eval()
    with torch.no_grad():
        batch = trainer.data_collator([trainer.train_dataset[i] for i in range(8)])
        return model(**batch, use_cache=False).logits


@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
@pytest.mark.parametrize(
    "options",
    [
        {"meta_mode": "ascent", "meta_step_length": 0.1},
        {"meta_mode": "descent", "meta_step_length": 0.1},
        {"meta_mode": "joint", "meta_weight": 0.7},
    ],
    ids=lambda options: options["meta_mode"],
)
def test_the_adapter_learns_and_the_base_stays(reward_model_dir, tmp_path, options, checkpointing):
    trainer = _train(reward_model_dir, tmp_path, gradient_checkpointing=checkpointing, **options)
    base = weights(load_model(reward_model_dir))
    trained = weights(trainer.model)
    for name, value in base.items():
        inner = f"base_model.model.{name}"
        stem, _, kind = inner.rpartition(".")
        found = next(
            n
            for n in (inner, f"{stem}.base_layer.{kind}", f"{stem}.original_module.{kind}")
            if n in trained
        )
        assert torch.equal(value, trained[found])
    head = trained["base_model.model.score.modules_to_save.default.weight"]
    assert not torch.equal(head, base["score.weight"])
    plain = _train(reward_model_dir, tmp_path, meta_mode="off")
    assert distance(trained, weights(plain.model)) > 1e-4


def test_a_step_of_nothing_is_plain_training(reward_model_dir, tmp_path):
    meta = _train(reward_model_dir, tmp_path, meta_mode="ascent", meta_learning_rate=0.0)
    plain = _train(reward_model_dir, tmp_path, meta_mode="off")
    assert is_same(weights(meta.model), weights(plain.model))


def test_a_saved_adapter_keeps_its_score_head(reward_model_dir, tmp_path):
    trainer = _train(reward_model_dir, tmp_path, meta_mode="ascent", meta_step_length=0.1)
    trainer.save_model(str(tmp_path / "adapter"))
    expected = _scores(trainer.model, trainer)
    base = load_model(reward_model_dir)
    assert not torch.allclose(_scores(base, trainer), expected, atol=1e-2)
    adapted = peft.PeftModel.from_pretrained(base, tmp_path / "adapter")
    assert torch.allclose(_scores(adapted, trainer), expected, atol=1e-6)
    adapted.merge_and_unload().save_pretrained(tmp_path / "merged")
    merged = load_model(tmp_path / "merged")
    assert torch.allclose(_scores(merged, trainer), expected, atol=1e-5)


def test_a_resumed_adapter_is_the_uninterrupted_one(reward_model_dir, tmp_path):
    options = {"meta_mode": "ascent", "meta_step_length": 0.1}
    whole = _train(reward_model_dir, tmp_path, save_strategy="steps", save_steps=2, **options)
    resumed = make_trainer(
        reward_model_dir, tmp_path / "again", given={"peft_config": _lora()}, **ADAM, **options
    )
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert is_same(weights(whole.model), weights(resumed.model))
