# SPDX-License-Identifier: Apache-2.0
"""A meta set of several sources in the trainer: its draws, its log, and what a resume finds."""

import pytest
import torch

from metarm.errors import ConfigError
from metarm.training import MetaRewardTrainer
from unit.reward_problem import distance, group_rows, is_same, make_trainer, weights

JOINT = {"meta_mode": "joint", "meta_weight": 0.7, "max_steps": 6, "meta_batch_size": 5}


class _Noting(MetaRewardTrainer):
    """Notes the groups of each step, and the spreads that a hand would find."""

    def _meta_pass(self, step):
        found = super()._meta_pass(step)
        ids = [batch.input_ids.tolist() for part in found.parts for batch in part.batches]
        self.batches = [*getattr(self, "batches", []), ids]
        return found


def logged(trainer, name):
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def test_one_source_is_as_none_bit_for_bit(reward_model_dir, tmp_path):
    found = [
        make_trainer(reward_model_dir, tmp_path, trainer_class=_Noting, sources=names, **JOINT)
        for names in ((), ("maths",))
    ]
    for trainer in found:
        trainer.train()
        assert not any("meta/weight_" in name for name in trainer.state.log_history[0])
        assert not any("GroupMixture" in name for name in trainer.state.stateful_callbacks)
    assert found[0].batches == found[1].batches
    assert is_same(*(weights(trainer.model) for trainer in found))
    mixed = make_trainer(
        reward_model_dir, tmp_path, trainer_class=_Noting, sources=("a", "b"), **JOINT
    )
    mixed.train()
    assert mixed.batches != found[0].batches


@pytest.mark.parametrize("mode", ["joint", "descent"])
def test_a_resumed_training_draws_the_same_batches(reward_model_dir, tmp_path, mode):
    options = JOINT | {
        "meta_mode": mode,
        "meta_step_length": 0.3,
        "meta_source_floor": 0.0,
        "gradient_accumulation_steps": 2,
        "sources": ("a", "b", "b"),
        "trainer_class": _Noting,
        "optim": "adamw_torch",
        "learning_rate": 1e-2,
    }
    whole = make_trainer(reward_model_dir, tmp_path, save_strategy="steps", save_steps=2, **options)
    whole.train()
    # Also where TRL's own callbacks are put back from the checkpoint.
    for restores in (False, True):
        resumed = make_trainer(
            reward_model_dir,
            tmp_path / "again",
            restore_callback_states_from_checkpoint=restores,
            **options,
        )
        resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
        assert resumed.batches == whole.batches[2:]
        assert is_same(weights(whole.model), weights(resumed.model))
        for name in ("meta/weight_a", "meta/spread_a", "meta/spread_b"):
            assert len(logged(whole, name)) == 6
            assert logged(resumed, name) == logged(whole, name)
    # Weights that never moved would be drawn alike without any state.
    assert len(set(logged(whole, "meta/weight_a"))) > 1


@pytest.mark.parametrize("mode", ["joint", "ascent", "descent"])
def test_the_first_spread_is_that_of_the_first_scores(reward_model_dir, tmp_path, mode):
    """Counted response by response with the model before its first step, not at theta'."""
    strength = {} if mode == "joint" else {"meta_weight": None, "meta_step_length": 0.5}
    trainer = make_trainer(
        reward_model_dir,
        tmp_path,
        sources=("a", "b"),
        **(
            JOINT
            | {"meta_mode": mode, "max_steps": 1, "meta_batch_size": 7, "meta_source_floor": 1.0}
            | strength
        ),
    )
    model, encoder = trainer.model.eval(), trainer._encoder

    def score(ids):
        with torch.no_grad():
            return model(input_ids=torch.tensor([ids])).logits.item()

    drawn = [group_rows()[index] | {"at": index} for index in trainer._mixture.draw(7, 0)]
    squares = {"a": [], "b": []}
    for row in drawn:
        scores = [score(encoder.encode(row["prompt"], text)) for text in row["responses"]]
        squares["ab"[row["at"] % 2]] += [
            (one - two) ** 2 for number, one in enumerate(scores) for two in scores[:number]
        ]
    batch = next(iter(trainer.get_train_dataloader()))
    chosen, rejected = (
        [score(ids[: int(mask.sum())].tolist()) for ids, mask in half]
        for half in (
            list(zip(batch["input_ids"][part], batch["attention_mask"][part], strict=True))
            for part in (slice(0, 4), slice(4, None))
        )
    )
    unit = sum((one - two) ** 2 for one, two in zip(chosen, rejected, strict=True)) / 4
    trainer.train()
    for name, found in squares.items():
        expected = (sum(found) / len(found) / unit) ** 0.5
        assert logged(trainer, f"meta/spread_{name}") == pytest.approx([expected], rel=1e-4)
    assert logged(trainer, "meta/weight_a") == [0.5]


def test_steps_without_a_meta_step_measure_nothing(reward_model_dir, tmp_path):
    trainer = make_trainer(
        reward_model_dir, tmp_path, sources=("a", "b"), **(JOINT | {"meta_every": 3})
    )
    trainer.train()
    assert len(logged(trainer, "meta/weight_a")) == 2


def test_an_evaluation_does_not_count_as_original_pairs(reward_model_dir, tmp_path):
    options = JOINT | {"sources": ("a", "b")}
    plain = make_trainer(reward_model_dir, tmp_path, **options)
    plain.train()
    evaluated = make_trainer(
        reward_model_dir,
        tmp_path,
        given={"eval_dataset": plain.train_dataset},
        eval_strategy="steps",
        eval_steps=1,
        **options,
    )
    evaluated.train()
    assert logged(evaluated, "meta/spread_a") == logged(plain, "meta/spread_a")
    assert distance(weights(evaluated.model), weights(plain.model)) == 0


def test_a_floor_outside_its_range_is_refused(reward_model_dir, tmp_path):
    with pytest.raises(ConfigError, match=r"meta_source_floor.*1\.5"):
        make_trainer(reward_model_dir, tmp_path, meta_mode="joint", meta_source_floor=1.5)
