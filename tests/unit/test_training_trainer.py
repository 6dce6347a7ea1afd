# SPDX-License-Identifier: Apache-2.0
"""Where the weights are while the trainer runs; what outlives a stop, an error, a checkpoint."""

import datasets
import pytest
import torch
from transformers import AutoModelForSequenceClassification, TrainerCallback

from metarm.errors import ConfigError
from metarm.training import MetaRewardTrainer
from unit.reward_problem import (
    distance,
    is_same,
    load_model,
    make_trainer,
    make_trl_trainer,
    pair_rows,
    weights,
)

ADAM = {"optim": "adamw_torch", "learning_rate": 1e-2, "max_grad_norm": 1.0}
MOVED = {"meta_mode": "ascent", "meta_step_length": 0.5}


class _Watch(TrainerCallback):
    """Notes each hook with the weights it finds."""

    def __init__(self):
        self.events = []

    def _note(self, name, model):
        self.events.append((name, weights(model)))

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        self._note("step begins", model)

    def on_substep_end(self, args, state, control, model=None, **kwargs):
        self._note("substep ends", model)

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self._note("before the optimiser", model)

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self._note("step ends", model)


class _Noting(MetaRewardTrainer):
    """Notes the weights that the preference loss is taken at."""

    watch = None

    def compute_loss(self, model, inputs, *arguments, **options):
        if self.watch is not None:
            self.watch.events.append(("preference loss", weights(self.model)))
        return super().compute_loss(model, inputs, *arguments, **options)


def test_only_the_preference_loss_sees_the_moved_weights(reward_model_dir, tmp_path):
    trainer = make_trainer(
        reward_model_dir,
        tmp_path,
        trainer_class=_Noting,
        gradient_accumulation_steps=2,
        max_steps=2,
        share_prompts=False,
        **MOVED,
    )
    sizes = []
    trainer.model.register_forward_hook(lambda _, __, out: sizes.append(len(out.logits)))
    trainer.watch = _Watch()
    trainer.add_callback(trainer.watch)
    trainer.train()
    window = [
        "step begins",
        "preference loss",
        "substep ends",
        "preference loss",
        "before the optimiser",
        "step ends",
    ]
    assert [name for name, _ in trainer.watch.events] == 2 * window
    for start in (0, 6):
        theta, first, between, second, before, after = (
            found for _, found in trainer.watch.events[start : start + 6]
        )
        assert is_same(theta, between)
        assert is_same(theta, before)
        assert is_same(first, second)
        assert not is_same(theta, first)
        assert not is_same(theta, after)
        moved = sum((first[name] - theta[name]).square().sum() for name in theta).sqrt().item()
        assert moved == pytest.approx(0.5, rel=1e-5)
    # J in parts of three groups and one, J again for the log, the pairs of both micro-batches.
    assert sizes == 2 * [9, 3, 9, 3, 8, 8]


class _Failing(MetaRewardTrainer):
    def compute_loss(self, *arguments, **options):
        if not self.model.training:
            return super().compute_loss(*arguments, **options)
        assert not is_same(weights(self.model), self.kept)
        raise ArithmeticError("from inside the loss")


@pytest.mark.parametrize("order", ["first", "exact"])
def test_an_error_in_the_loss_leaves_the_kept_weights(reward_model_dir, tmp_path, order):
    model = load_model(reward_model_dir, attn_implementation="eager")
    trainer = make_trainer(
        reward_model_dir, tmp_path, model=model, trainer_class=_Failing, meta_order=order, **MOVED
    )
    trainer.kept = weights(model)
    with pytest.raises(ArithmeticError):
        trainer.train()
    assert is_same(weights(model), trainer.kept)
    trainer.evaluate(datasets.Dataset.from_list(pair_rows(4)))


class _StopInMidWindow(TrainerCallback):
    def on_substep_end(self, args, state, control, **kwargs):
        control.should_training_stop = True


def test_training_inside_autocast_is_refused(reward_model_dir, tmp_path):
    """Its cache keeps casts of weights from one step to the next."""
    trainer = make_trainer(reward_model_dir, tmp_path, **MOVED)
    before = weights(trainer.model)
    with (
        torch.autocast("cpu", dtype=torch.bfloat16),
        pytest.raises(ConfigError, match=r"inside a torch\.autocast block"),
    ):
        trainer.train()
    assert is_same(weights(trainer.model), before)


def test_a_stop_in_mid_window_leaves_the_kept_weights(reward_model_dir, tmp_path):
    options = {"gradient_accumulation_steps": 2, "max_steps": 2, **MOVED}
    trainer = make_trainer(reward_model_dir, tmp_path, **options)
    before = weights(trainer.model)
    trainer.add_callback(_StopInMidWindow())
    trainer.train()
    assert trainer.state.global_step == 0
    assert any(p.grad is not None for p in trainer.model.parameters())
    assert is_same(weights(trainer.model), before)


def test_saving_and_evaluation_are_at_the_kept_weights(reward_model_dir, tmp_path):
    held_out = datasets.Dataset.from_list(pair_rows(12))
    options = {"max_steps": 4, **MOVED, **ADAM}
    trainer = make_trainer(
        reward_model_dir,
        tmp_path / "whole",
        given={"eval_dataset": held_out},
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="steps",
        save_steps=2,
        save_only_model=True,
        **options,
    )
    modes = set()
    trainer.model.register_forward_hook(
        lambda model, _, __: modes.add((model.training, torch.is_grad_enabled()))
    )
    trainer.train()
    # Never a gradient in evaluation mode: after an evaluation J is in training mode again.
    assert modes == {(True, True), (True, False), (False, False)}
    shorter = make_trainer(reward_model_dir, tmp_path / "half", **(options | {"max_steps": 2}))
    shorter.train()
    checkpoint = tmp_path / "whole" / "checkpoint-2"
    assert is_same(weights(load_model(checkpoint)), weights(shorter.model))
    logged = next(entry for entry in trainer.state.log_history if "eval_loss" in entry)
    plain = make_trl_trainer(checkpoint, tmp_path, model=load_model(checkpoint))
    assert logged["eval_loss"] == pytest.approx(plain.evaluate(held_out)["eval_loss"], rel=1e-6)
    assert not any(name.startswith("eval_meta") for name in logged)


def test_evaluation_at_moved_weights_is_a_bug_that_shows(reward_model_dir, tmp_path):
    class Evaluating(MetaRewardTrainer):
        def compute_loss(self, model, inputs, *arguments, **options):
            if self.model.training:
                self.evaluate(datasets.Dataset.from_list(pair_rows(4)))
            return super().compute_loss(model, inputs, *arguments, **options)

    trainer = make_trainer(reward_model_dir, tmp_path, trainer_class=Evaluating, **MOVED)
    with pytest.raises(AssertionError, match="look-ahead"):
        trainer.train()


@pytest.mark.parametrize("mode", ["ascent", "joint"])
def test_a_resumed_training_is_the_uninterrupted_one(reward_model_dir, tmp_path, mode):
    options = {
        "meta_mode": mode,
        "meta_step_length": 0.5,
        "meta_weight": 0.7,
        "meta_group_size": 2,
        "gradient_accumulation_steps": 2,
        "max_steps": 6,
        "lr_scheduler_type": "linear",
        **ADAM,
    }
    whole = make_trainer(reward_model_dir, tmp_path, save_strategy="steps", save_steps=2, **options)
    whole.train()
    resumed = make_trainer(reward_model_dir, tmp_path / "again", **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert is_same(weights(whole.model), weights(resumed.model))
    for name in ("meta/J", "meta/cosine", "loss"):
        first, second = (
            [entry[name] for entry in trainer.state.log_history if name in entry]
            for trainer in (whole, resumed)
        )
        assert len(first) == 6
        assert first == second
    plain = make_trainer(reward_model_dir, tmp_path, **(options | {"meta_mode": "off"}))
    plain.train()
    assert distance(weights(plain.model), weights(resumed.model)) > 1e-3


def test_the_optimiser_keeps_nothing_of_the_step(reward_model_dir, tmp_path):
    states = []
    for mode in ("ascent", "off"):
        trainer = make_trainer(
            reward_model_dir, tmp_path, **(MOVED | ADAM | {"meta_mode": mode, "max_steps": 1})
        )
        trainer.train()
        state = trainer.optimizer.state_dict()["state"]
        states.append({key: sorted(value) for key, value in state.items()})
    assert states[0] == states[1]


def test_the_best_model_is_loaded_at_the_end(reward_model_dir, tmp_path):
    trainer = make_trainer(
        reward_model_dir,
        tmp_path,
        given={"eval_dataset": datasets.Dataset.from_list(pair_rows(12))},
        metric_for_best_model="eval_accuracy",
        load_best_model_at_end=True,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        **(MOVED | {"max_steps": 4, "learning_rate": 1.0}),
    )
    trainer.train()
    found = {
        entry["step"]: entry["eval_accuracy"]
        for entry in trainer.state.log_history
        if "eval_accuracy" in entry
    }
    assert len(set(found.values())) > 1
    best = max(found, key=lambda step: found[step])
    assert trainer.state.best_metric == found[best]
    kept = load_model(tmp_path / f"checkpoint-{best}")
    assert is_same(weights(trainer.model), weights(kept))


def test_a_saved_model_scores_the_same(reward_model_dir, tmp_path):
    trainer = make_trainer(reward_model_dir, tmp_path, **MOVED)
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    loaded = AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "saved", dtype=torch.float32
    )
    assert loaded.config.pad_token_id == trainer.processing_class.pad_token_id
    inputs = trainer.data_collator([trainer.train_dataset[i] for i in range(8)])
    trainer.model.eval()
    with torch.no_grad():
        ours, theirs = (m(**inputs, use_cache=False).logits for m in (trainer.model, loaded))
    assert torch.equal(ours, theirs)
