# SPDX-License-Identifier: Apache-2.0
"""Cheaper trainings are the same trainings: shared prompts, parts, orders, stored directions."""

import pytest
import torch

from metarm.data.encoding import EncodedGroup
from metarm.meta_step import inner_product
from metarm.models import shared_prompts
from metarm.strength import StrengthGuard
from metarm.training import MetaRewardTrainer
from metarm.training.meta_pass import split_groups
from tiny_models import CONTEXT
from unit.reward_problem import (
    distance,
    group_rows,
    load_model,
    make_double_model,
    make_trainer,
    make_trl_trainer,
    weights,
)

MODES = {
    "off": {"meta_mode": "off"},
    "descent": {"meta_mode": "descent", "meta_step_length": 0.3},
    "ascent": {"meta_mode": "ascent", "meta_learning_rate": 2.0},
    "joint": {"meta_mode": "joint", "meta_weight": 0.5},
}


@pytest.fixture(autouse=True)
def _any_size(monkeypatch):
    """Tiny models would be left alone: laying out costs them more than it saves."""
    monkeypatch.setattr(shared_prompts, "LEAST_WORK", 0)


def logged(trainer, name):
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def train(folder, output, **options):
    trainer = make_trainer(folder, output, **{"max_steps": 4, **options})
    trainer.train()
    return trainer


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("mode", MODES)
def test_shared_prompts_train_the_same_weights(
    reward_model_dir, tmp_path, mode, accumulation, attention
):
    def trained(**options):
        model = make_double_model()
        model.config._attn_implementation = attention
        options |= {"gradient_accumulation_steps": accumulation, **MODES[mode]}
        return train(reward_model_dir, tmp_path, model=model, **options)

    shared, apart = trained(), trained(share_prompts=False)
    assert distance(weights(shared.model), weights(apart.model)) < 1e-9
    assert distance(weights(shared.model), weights(make_double_model())) > 0.01
    assert max(logged(shared, "tokens/computed_share")) < 0.9
    if attention == "sdpa":
        assert set(logged(shared, "tokens/padding_share")) == {0.0}
    assert logged(apart, "tokens/computed_share") == []


def test_off_is_trl_to_rounding(reward_model_dir, tmp_path):
    ours = train(reward_model_dir, tmp_path, meta_mode="off")
    theirs = make_trl_trainer(reward_model_dir, tmp_path, max_steps=4)
    theirs.train()
    assert distance(weights(ours.model), weights(theirs.model)) < 1e-5


@pytest.mark.parametrize("mode", ["off", "descent"])
def test_gradient_checkpointing_changes_nothing(reward_model_dir, tmp_path, mode):
    plain = train(reward_model_dir, tmp_path, **MODES[mode])
    recomputed = train(reward_model_dir, tmp_path, gradient_checkpointing=True, **MODES[mode])
    assert distance(weights(plain.model), weights(recomputed.model)) < 1e-5
    assert max(logged(recomputed, "tokens/computed_share")) < 0.9


def test_evaluation_shares_prompts_too(reward_model_dir, tmp_path):
    trainer = make_trainer(reward_model_dir, tmp_path, meta_mode="off")
    found = trainer.evaluate(trainer.train_dataset)["eval_loss"]
    apart = make_trainer(reward_model_dir, tmp_path, meta_mode="off", share_prompts=False)
    assert found == pytest.approx(apart.evaluate(apart.train_dataset)["eval_loss"], rel=1e-5)
    assert trainer._prompts.ways == {False: shared_prompts.TILES[0]}


@pytest.mark.parametrize("most", [1, 2, 4, 100])
@pytest.mark.parametrize("mode", ["descent", "joint"])
def test_the_meta_batch_may_be_taken_in_any_parts(reward_model_dir, tmp_path, mode, most):
    """Also a group in pieces: its scores first, its gradients after."""
    found = [
        train(
            reward_model_dir,
            tmp_path,
            model=make_double_model(),
            meta_micro_batch_size=size,
            **MODES[mode],
        )
        for size in (None, most)
    ]
    assert distance(*(weights(trainer.model) for trainer in found)) < 1e-9
    assert logged(found[0], "meta/J") == pytest.approx(logged(found[1], "meta/J"), abs=1e-12)


def test_no_more_responses_than_asked_are_in_memory(reward_model_dir, tmp_path):
    trainer = make_trainer(
        reward_model_dir, tmp_path, meta_micro_batch_size=2, share_prompts=False, max_steps=1,
        **MODES["descent"],
    )  # fmt: skip
    sizes = []
    trainer.model.register_forward_hook(
        lambda _, __, out: sizes.append(len(out.logits)) if torch.is_grad_enabled() else None
    )
    trainer.train()
    # Four groups of three: a pass for two, and a pass for the third; then eight sides of pairs.
    assert sizes == [2, 1] * 4 + [8]


def test_groups_of_like_length_go_together():
    groups = [EncodedGroup(([1] * n,) * 3, "meta set") for n in (9, 2, 8, 3)]
    assert split_groups(groups, 6) == [[1, 3], [2, 0]]
    assert split_groups(groups, 1) == [[1], [3], [2], [0]]


def test_a_finite_difference_is_near_the_exact_order(reward_model_dir, tmp_path):
    found = {
        order: train(
            reward_model_dir,
            tmp_path,
            model=make_double_model(),
            meta_order=order,
            gradient_accumulation_steps=2,
            max_steps=1,
            **MODES["descent"] | {"meta_step_length": 1.0},
        )
        for order in ("first", "exact", "finite-difference")
    }
    at = {order: weights(trainer.model) for order, trainer in found.items()}
    correction = distance(at["first"], at["exact"])
    assert correction > 1e-6
    assert distance(at["finite-difference"], at["exact"]) < 0.05 * correction


class _Noting(MetaRewardTrainer):
    """Notes J's direction, as the weights move along it, at each step."""

    def training_step(self, *arguments, **options):
        home = [p.detach().clone() for p in self._moved()]
        self.home = home
        return super().training_step(*arguments, **options)

    def compute_loss(self, *arguments, **options):
        moves = [p.detach() - h for p, h in zip(self._moved(), self.home, strict=True)]
        self.__dict__.setdefault("moves", []).append(torch.cat([m.flatten() for m in moves]))
        return super().compute_loss(*arguments, **options)


@pytest.mark.parametrize("between", ["plain", "stored"])
def test_steps_between_are_plain_or_use_the_stored_direction(reward_model_dir, tmp_path, between):
    trainer = train(
        reward_model_dir,
        tmp_path,
        trainer_class=_Noting,
        meta_every=3,
        meta_between=between,
        max_steps=6,
        **MODES["descent"],
    )
    lengths = [move.norm().item() for move in trainer.moves]
    cosines = [
        inner_product(trainer.moves[step], trainer.moves[step - step % 3]).item() / lengths[0] ** 2
        for step in range(6)
    ]
    stands = 1.0 if between == "stored" else 0.0
    expected = [1.0, stands, stands, 1.0, stands, stands]
    assert lengths == pytest.approx([0.3 * part for part in expected], rel=1e-4)
    assert cosines == pytest.approx(expected, abs=1e-3)
    assert len(logged(trainer, "meta/J")) == 2
    assert abs(torch.cosine_similarity(trainer.moves[0], trainer.moves[3], dim=0).item()) < 0.999


def test_stored_directions_serve_joint_too(reward_model_dir, tmp_path):
    options = {"meta_every": 2, "max_steps": 4, **MODES["joint"]}
    stored = train(reward_model_dir, tmp_path, meta_between="stored", **options)
    plain = train(reward_model_dir, tmp_path, **options)
    assert len(logged(stored, "meta/weight")) == 4
    assert len(logged(plain, "meta/weight")) == 2
    assert distance(weights(stored.model), weights(plain.model)) > 1e-4


@pytest.mark.parametrize("mode", ["descent", "joint"])
def test_the_head_alone_may_be_moved(reward_model_dir, tmp_path, mode):
    trainer = train(
        reward_model_dir,
        tmp_path,
        trainer_class=_Noting,
        meta_parameters="head",
        max_steps=2,
        **MODES[mode],
    )
    assert [p is trainer.model.score.weight for p in trainer._moved()] == [True]
    if mode == "descent":
        assert [m.norm().item() for m in trainer.moves] == pytest.approx([0.3, 0.3], rel=1e-4)
    # Everything is trained all the same.
    first, last = weights(load_model(reward_model_dir)), weights(trainer.model)
    assert all(not torch.equal(first[n], last[n]) for n in first if "layers" in n)


@pytest.mark.parametrize(
    ("wrong", "nearest"),
    [
        ({"meta_between": "store"}, "'stored'"),
        ({"meta_parameters": "haed"}, "'head'"),
        ({"meta_order": "frist"}, "'first'"),
        ({"meta_micro_batch_size": 0}, "at least 1"),
        ({"meta_order": "exact", "meta_parameters": "head"}, "needs meta_parameters='all'"),
        ({"meta_order": "finite-difference", "meta_between": "stored"}, "needs meta_between"),
        ({"meta_order": "finite-difference", "disable_dropout": False}, "disable_dropout=True"),
    ],
)
def test_unknown_choices_are_refused(reward_model_dir, tmp_path, wrong, nearest):
    with pytest.raises(ValueError, match=nearest):
        make_trainer(reward_model_dir, tmp_path, **wrong)


def test_long_groups_fit_the_model(reward_model_dir, tmp_path):
    """Ragged groups and pairs, near the model's context."""
    rows = [
        {"prompt": " a" * (CONTEXT - 8), "responses": [" b" * n for n in (1, 3, 5)]},
        *group_rows(3),
    ]
    options = {"given": {"meta_dataset": rows}, **MODES["descent"]}
    shared = train(reward_model_dir, tmp_path, **options)
    apart = train(reward_model_dir, tmp_path, share_prompts=False, **options)
    assert distance(weights(shared.model), weights(apart.model)) < 1e-4


def test_bfloat16_shares_prompts(reward_model_dir, tmp_path):
    """Under autocast, TRL's default; it rounds, and that is no reason to refuse."""
    options = {"bf16": True, **MODES["descent"]}
    shared = train(reward_model_dir, tmp_path, **options)
    apart = train(reward_model_dir, tmp_path, share_prompts=False, **options)
    assert max(logged(shared, "tokens/computed_share")) < 0.9
    assert distance(weights(shared.model), weights(apart.model)) < 0.15


def test_adapters_share_prompts(reward_model_dir, tmp_path):
    peft = pytest.importorskip("peft")
    lora = peft.LoraConfig(
        task_type="SEQ_CLS", target_modules="all-linear", r=4, modules_to_save=["score"]
    )
    found = {
        share: train(
            reward_model_dir,
            tmp_path,
            given={"peft_config": lora},
            share_prompts=share,
            seed=1,
            **MODES["joint"],
        )
        for share in (True, False)
    }
    assert max(logged(found[True], "tokens/computed_share")) < 0.9
    at = {share: weights(trainer.model) for share, trainer in found.items()}
    assert distance(at[True], at[False]) < 1e-4


def test_reentrant_checkpointing_trains_without_sharing(reward_model_dir, tmp_path):
    trainer = train(
        reward_model_dir,
        tmp_path,
        meta_mode="off",
        gradient_checkpointing=True,
        gradient_checkpointing_kwargs={"use_reentrant": True},
    )
    assert set(logged(trainer, "tokens/computed_share")) == {1.0}


def test_a_guard_weakens_stored_directions_too(reward_model_dir, tmp_path):
    class Weakened(_Noting):
        def training_step(self, *arguments, **options):
            loss = super().training_step(*arguments, **options)
            self._strength.guard = StrengthGuard(factor=0.25)
            return loss

    lengths = [
        train(
            reward_model_dir,
            tmp_path,
            trainer_class=kind,
            meta_every=2,
            meta_between="stored",
            max_steps=2,
            meta_mode="descent",
            meta_reward_fraction=0.1,
        )
        .moves[1]
        .norm()
        .item()
        for kind in (_Noting, Weakened)
    ]
    assert lengths[1] == pytest.approx(0.25 * lengths[0], rel=0.01)
