# SPDX-License-Identifier: Apache-2.0
"""The parameters after training: equal to TRL's own, or to the update worked out by hand."""

import pytest
import torch
from torch.func import functional_call
from trl import RewardConfig, RewardTrainer, TrlParser

from metarm.data.encoding import Encoder, pad_batch
from metarm.data.meta_batches import draw_group_indices
from metarm.objectives import bradley_terry_loss, difference_loss
from metarm.training import MetaRewardConfig, MetaRewardTrainer
from metarm.training.control import read_reference_pairs
from unit.reward_problem import (
    GROUP_SIZE,
    NUM_GROUPS,
    distance,
    group_rows,
    is_same,
    load_model,
    load_tokenizer,
    make_double_model,
    make_trainer,
    make_trl_trainer,
    weights,
)

RATE = 0.1
STEP = {"ascent": 0.05, "descent": -0.05}
ADAM = {"optim": "adamw_torch", "learning_rate": 1e-2, "weight_decay": 0.01, "max_grad_norm": 1.0}


class _Recorder(MetaRewardTrainer):
    """Keeps every preference batch that it was given."""

    def compute_loss(self, model, inputs, *arguments, **options):
        self.__dict__.setdefault("seen", []).append({k: v.clone() for k, v in inputs.items()})
        return super().compute_loss(model, inputs, *arguments, **options)


def _train(folder, output_dir, **options):
    trainer = make_trainer(folder, output_dir, **options)
    trainer.train()
    return trainer


class _Reference:
    """The updates by `functional_call` on a copy of the parameters: nothing is moved in place."""

    def __init__(self, folder):
        self.model = make_double_model()
        self.encoder = Encoder(load_tokenizer(folder))
        self.theta = {name: p.detach().clone() for name, p in self.model.named_parameters()}

    def scores(self, theta, input_ids, attention_mask):
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "use_cache": False}
        return functional_call(self.model, theta, (), inputs).logits.squeeze(-1)

    def difference(self, theta, step):
        rows = group_rows()
        drawn = [rows[i] for i in draw_group_indices(NUM_GROUPS, 4, step=step, seed=42)]
        ids = [self.encoder.encode(g["prompt"], r) for g in drawn for r in g["responses"]]
        batch = pad_batch(ids, self.encoder.pad_token_id, side="right")
        return difference_loss(self.scores(theta, *batch).reshape(4, GROUP_SIZE))

    def preference(self, theta, batches):
        losses = []
        for batch in batches:
            scores = self.scores(theta, batch["input_ids"], batch["attention_mask"])
            losses.append(bradley_terry_loss(*scores.chunk(2)))
        return torch.stack(losses).mean()

    def gradient(self, loss, theta, **options):
        values = torch.autograd.grad(loss, list(theta.values()), **options)
        return dict(zip(theta, values, strict=True))

    def update(self, mode, batches, step, *, size=None, weight=0.0, order="first"):
        theta = {name: value.requires_grad_() for name, value in self.theta.items()}
        if mode == "joint":
            loss = self.preference(theta, batches) - weight * self.difference(theta, step)
            taken = self.gradient(loss, theta)
        elif mode == "off":
            taken = self.gradient(self.preference(theta, batches), theta)
        else:
            along = self.gradient(
                self.difference(theta, step), theta, create_graph=order == "exact"
            )
            ahead = {name: theta[name] + size * along[name] for name in theta}
            if order == "exact":
                taken = self.gradient(self.preference(ahead, batches), theta)
            else:
                ahead = {n: value.detach().requires_grad_() for n, value in ahead.items()}
                taken = self.gradient(self.preference(ahead, batches), ahead)
        self.theta = {n: (theta[n] - RATE * taken[n]).detach() for n in theta}


@pytest.mark.parametrize("accumulation", [1, 2])
def test_off_is_trl_bit_for_bit(reward_model_dir, tmp_path, accumulation):
    options = {"max_steps": 20, "gradient_accumulation_steps": accumulation, **ADAM}
    ours = _train(reward_model_dir, tmp_path, meta_mode="off", share_prompts=False, **options)
    theirs = make_trl_trainer(reward_model_dir, tmp_path, **options)
    theirs.train()
    assert is_same(weights(ours.model), weights(theirs.model))
    assert distance(weights(ours.model), weights(load_model(reward_model_dir))) > 0.05
    times = ("train_runtime", "train_samples_per_second", "train_steps_per_second")
    for mine, its in zip(ours.state.log_history, theirs.state.log_history, strict=True):
        assert {k: v for k, v in mine.items() if k not in times} == {
            k: v for k, v in its.items() if k not in times
        }


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize(
    "nothing",
    [
        {"meta_mode": "ascent", "meta_learning_rate": 0.0},
        {"meta_mode": "descent", "meta_learning_rate": 0.0},
        {"meta_mode": "ascent", "meta_step_length": 0.0},
        {"meta_mode": "descent", "meta_step_length": 0.0},
        {"meta_mode": "joint", "meta_weight": 0.0},
    ],
    ids=lambda options: " ".join(map(str, options.values())),
)
def test_a_step_of_nothing_is_plain_training(reward_model_dir, tmp_path, nothing, accumulation):
    options = {"max_steps": 6, "gradient_accumulation_steps": accumulation, **ADAM}
    meta = _train(reward_model_dir, tmp_path, **nothing, **options)
    plain = _train(reward_model_dir, tmp_path, meta_mode="off", **options)
    assert is_same(weights(meta.model), weights(plain.model))


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize(
    ("mode", "order"),
    [
        ("ascent", "first"),
        ("descent", "first"),
        ("joint", "first"),
        ("ascent", "exact"),
        ("descent", "exact"),
    ],
)
def test_updates_are_those_by_hand(reward_model_dir, tmp_path, mode, order, accumulation):
    trainer = _train(
        reward_model_dir,
        tmp_path,
        model=make_double_model(),
        trainer_class=_Recorder,
        meta_mode=mode,
        meta_order=order,
        meta_learning_rate=abs(STEP.get(mode, 0.0)),
        meta_weight=0.7,
        gradient_accumulation_steps=accumulation,
    )
    reference = _Reference(reward_model_dir)
    plain = _Reference(reward_model_dir)
    options = {"size": STEP.get(mode), "weight": 0.7}
    other = _Reference(reward_model_dir)
    for step in range(3):
        batches = trainer.seen[step * accumulation : (step + 1) * accumulation]
        reference.update(mode, batches, step, order=order, **options)
        plain.update("off", batches, step)
        other.update(mode, batches, step, order="first", **options)
    final = weights(trainer.model)
    assert distance(final, reference.theta) < 1e-12
    assert distance(final, plain.theta) > 1e-3
    if order == "exact":
        assert distance(final, other.theta) > 1e-4


def test_meta_every_leaves_the_steps_between_plain(reward_model_dir, tmp_path):
    options = {"meta_mode": "ascent", "meta_learning_rate": 0.05}
    trainer = _train(
        reward_model_dir,
        tmp_path,
        model=make_double_model(),
        trainer_class=_Recorder,
        meta_every=2,
        **options,
    )
    reference = _Reference(reward_model_dir)
    for step, mode in enumerate(["ascent", "off", "ascent"]):
        reference.update(mode, [trainer.seen[step]], step, size=0.05)
    assert distance(weights(trainer.model), reference.theta) < 1e-12
    logged = ["meta/J" in entry for entry in trainer.state.log_history[:3]]
    assert logged == [True, False, True]


@pytest.mark.parametrize("mode", ["ascent", "joint"])
def test_gradient_checkpointing_changes_nothing(reward_model_dir, tmp_path, mode):
    options = {"meta_mode": mode, "meta_learning_rate": 0.05, "meta_weight": 0.7}
    kept = _train(reward_model_dir, tmp_path, **options)
    again = _train(reward_model_dir, tmp_path, gradient_checkpointing=True, **options)
    plain = _train(reward_model_dir, tmp_path, meta_mode="off")
    assert again.model.is_gradient_checkpointing
    assert distance(weights(kept.model), weights(again.model)) < 1e-6
    assert distance(weights(kept.model), weights(plain.model)) > 1e-3


def test_autocast_sees_the_moved_weights(reward_model_dir, tmp_path):
    """The look-ahead is not lost in autocast's cache of bf16 weights."""
    length = 1.0
    options = {"meta_mode": "ascent", "bf16": True, "max_steps": 1}
    trainer = _train(reward_model_dir, tmp_path, meta_step_length=length, **options)
    plain = _train(reward_model_dir, tmp_path, meta_mode="off", bf16=True, max_steps=1)
    assert {p.dtype for p in trainer.model.parameters()} == {torch.float32}
    logged = trainer.state.log_history[0]
    assert logged["meta/move_length"] == pytest.approx(length, rel=1e-5)
    assert logged["meta/move_realised_fraction"] == pytest.approx(1.0, abs=1e-5)
    assert logged["meta/score_change_mean"] > 0.05
    assert distance(weights(trainer.model), weights(plain.model)) > 1e-3


def test_seed_and_data_decide_everything(reward_model_dir, tmp_path):
    options = {"meta_mode": "ascent", "meta_step_length": 0.1}
    first, again = (_train(reward_model_dir, tmp_path, **options) for _ in range(2))
    other = _train(reward_model_dir, tmp_path, seed=1, **options)
    assert is_same(weights(first.model), weights(again.model))
    assert not is_same(weights(first.model), weights(other.model))


def test_two_names_and_one_data_set():
    """TRL's classes are the parents, and its command line reads the settings."""
    assert issubclass(MetaRewardTrainer, RewardTrainer)
    assert issubclass(MetaRewardConfig, RewardConfig)
    words = [
        "--meta_mode",
        "descent",
        "--meta_step_length",
        "0.5",
        "--use_cpu",
        "--output_dir",
        "x",
    ]
    (config,) = TrlParser((MetaRewardConfig,)).parse_args_and_config(words)
    assert (config.meta_mode, config.meta_step_length) == ("descent", 0.5)
    assert (config.meta_learning_rate, config.meta_weight) == (5e-6, 0.1)


class _Watch(MetaRewardTrainer):
    """Measures how far the reference pairs' scores move at each look-ahead."""

    def reference_scores(self):
        return self._measure_scores(
            read_reference_pairs(self.train_dataset, self._encoder.pad_token_id)
        ).double()

    def compute_loss(self, model, inputs, *arguments, **options):
        if self._is_ahead:
            change = (self.reference_scores() - self.before).std() / self.before.std()
            self.__dict__.setdefault("shares", []).append(change.item())
        return super().compute_loss(model, inputs, *arguments, **options)

    def _measure_direction(self, step):
        self.before = self.reference_scores()
        super()._measure_direction(step)


@pytest.mark.parametrize("mode", ["ascent", "descent"])
@pytest.mark.parametrize("scale", [1.0, 8.0])
def test_a_look_ahead_in_reward_units_moves_rewards_by_their_share(
    reward_model_dir, tmp_path, mode, scale
):
    """Whatever the scale of the rewards: a head eight times as large changes nothing."""
    model = make_double_model()
    with torch.no_grad():
        model.score.weight.mul_(scale)
    trainer = make_trainer(
        reward_model_dir,
        tmp_path,
        trainer_class=_Watch,
        model=model,
        meta_mode=mode,
        meta_reward_fraction=0.02,
    )
    trainer.train()
    assert trainer.shares == pytest.approx([0.02] * len(trainer.shares), rel=0.1)
    steps = [row["meta/step_size"] for row in trainer.state.log_history if "meta/step_size" in row]
    assert steps
    assert all(step > 0 for step in steps)
