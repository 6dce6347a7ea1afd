# SPDX-License-Identifier: Apache-2.0
"""`meta_strength="auto"`: bounded in reward units, guarded by plain training, chosen by a probe."""

import gc
import random

import datasets
import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from metarm.config import RewardSettings
from metarm.errors import ConfigError
from metarm.meta_strength import FULL_WEIGHT
from metarm.models.reward_model import load_score_function
from metarm.progress import SilentProgress
from metarm.schema import PreferencePair, ResponseGroup
from metarm.strength import StrengthGuard
from metarm.training import MetaRewardConfig, train_reward_model
from metarm.training.control import keep_watched
from metarm.training.plain_training import PLAIN_FILE, PlainTraining
from tiny_models import WORDS, save_causal_lm
from unit.reward_problem import (
    group_rows,
    is_same,
    make_double_model,
    make_trainer,
    make_trl_trainer,
    pair_rows,
    weights,
)

GROUPS = {"meta_dataset": group_rows(60)}
SETTINGS = RewardSettings(
    learning_rate=1e-2,
    per_device_train_batch_size=8,
    meta_mode="joint",
    meta_batch_size=4,
    meta_group_size=3,
)


def logged(trainer, name: str) -> list[float]:
    return [row[name] for row in trainer.state.log_history if name in row]


@pytest.mark.parametrize("mode", ["ascent", "descent", "joint"])
def test_a_guard_that_fails_turns_the_step_off_and_keeps_plain_weights(
    reward_model_dir, tmp_path, mode, monkeypatch
) -> None:
    monkeypatch.setattr("metarm.training.control.StrengthGuard", lambda: StrengthGuard(least=1.1))
    trl = make_trl_trainer(reward_model_dir, tmp_path / "trl", max_steps=8)
    trl.train()
    options = {"meta_mode": mode, "max_steps": 8, "share_prompts": False}
    trainer = make_trainer(reward_model_dir, tmp_path / "meta", given=GROUPS, **options)
    trainer.train()
    assert logged(trainer, "meta/strength") == [0.5, 0.25, 0.125, 0.0, 0.0, 0.0, 0.0, 0.0]
    assert len(logged(trainer, "meta/rank_correlation")) == 8
    assert len(logged(trainer, "meta/J")) == 4, "no gradient of J once it is off"
    assert not trainer.guard.holds
    assert is_same(weights(trl.model), weights(trainer.model)), "plain is TRL's training"


def test_a_guard_that_holds_leaves_full_strength(reward_model_dir, tmp_path) -> None:
    """And the training after the plain one is what it would have been without it."""
    slow = {"learning_rate": 1e-3, "given": GROUPS, "meta_mode": "joint"}
    trainer = make_trainer(reward_model_dir, tmp_path / "meta", **slow)
    trainer.train()
    assert logged(trainer, "meta/strength") == [1.0, 1.0, 1.0]
    assert logged(trainer, "meta/rank_correlation") == pytest.approx([1.0] * 3, abs=0.3)
    found = logged(trainer, "meta/weight")
    assert len(found) == 3
    assert all(0 < weight <= FULL_WEIGHT for weight in found)
    kept, _ = keep_watched(list(range(60)))
    slow["given"] = {"meta_dataset": [group_rows(60)[index] for index in kept]}
    alone = make_trainer(reward_model_dir, tmp_path / "alone", meta_guard=False, **slow)
    alone.train()
    assert is_same(weights(trainer.model), weights(alone.model))
    plain = trainer.plain_weights
    moved = {n: p for n, p in trainer.model.named_parameters() if p.requires_grad}
    assert plain.keys() == moved.keys()
    assert not all(torch.equal(plain[name], moved[name]) for name in moved)


@pytest.mark.parametrize(
    ("given", "changes", "reason"),
    [
        ({"meta_dataset": group_rows(49)}, {}, "fewer than 50 groups"),
        (GROUPS, {"resume": True}, "goes on from a checkpoint"),
    ],
)
def test_where_it_cannot_be_guarded_it_is_bounded_and_says_so(
    reward_model_dir, tmp_path, caplog, given, changes, reason
) -> None:
    options = {"given": given, "meta_mode": "descent"}
    checkpoint = None
    if changes:
        first = make_trainer(
            reward_model_dir, tmp_path, max_steps=2, save_strategy="steps", save_steps=2, **options
        )
        first.train()
        checkpoint = str(tmp_path / "checkpoint-2")
    trainer = make_trainer(reward_model_dir, tmp_path, max_steps=4, **options)
    caplog.clear()
    trainer.train(resume_from_checkpoint=checkpoint)
    assert f"bounded in reward units, but not guarded: {reason}"[:40] in caplog.text
    assert reason in caplog.text
    assert trainer.guard is None
    assert all(step > 0 for step in logged(trainer, "meta/step_size"))


class StopAt(TrainerCallback):
    """As Ctrl-C would, after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args, state, control, **rest) -> None:
        if state.global_step == self.step:
            raise KeyboardInterrupt


OFTEN = {"meta_mode": "joint", "max_steps": 6, "save_strategy": "steps", "save_steps": 2}


@pytest.mark.parametrize("least", [0.7, 1.1])
def test_a_guarded_training_that_was_stopped_goes_on_as_if_it_had_not_been(
    reward_model_dir, tmp_path, monkeypatch, least
) -> None:
    """Guard and plain weights too, and without training plainly again."""
    monkeypatch.setattr("metarm.training.control.StrengthGuard", lambda: StrengthGuard(least=least))
    whole = make_trainer(reward_model_dir, tmp_path / "whole", given=GROUPS, **OFTEN)
    whole.train()
    assert not (tmp_path / "whole" / PLAIN_FILE).exists(), "of use for resuming alone"
    given = GROUPS | {"callbacks": [StopAt(5)]}
    stopped = make_trainer(reward_model_dir, tmp_path / "again", given=given, **OFTEN)
    with pytest.raises(KeyboardInterrupt):
        stopped.train()
    assert (tmp_path / "again" / PLAIN_FILE).is_file()
    again = make_trainer(reward_model_dir, tmp_path / "again", given=GROUPS, **OFTEN)
    monkeypatch.setattr(again, "_train_plain", None)
    again.train(resume_from_checkpoint=True)
    assert again.guard == whole.guard
    assert logged(again, "meta/strength") == logged(whole, "meta/strength")
    assert is_same(weights(again.model), weights(whole.model))
    assert all(
        torch.equal(again.plain_weights[name], plain) for name, plain in whole.plain_weights.items()
    )
    assert not (tmp_path / "again" / PLAIN_FILE).exists()


def test_a_guard_is_taken_up_only_by_the_training_that_it_belongs_to(
    reward_model_dir, tmp_path, caplog
) -> None:
    unguarded = make_trainer(reward_model_dir, tmp_path, given=GROUPS, meta_guard=False, **OFTEN)
    unguarded.train()
    PlainTraining({}, {}, 6).save(tmp_path / PLAIN_FILE)
    again = make_trainer(reward_model_dir, tmp_path, given=GROUPS, **OFTEN)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert "the checkpoint was not guarded" in caplog.text
    assert again.guard is None
    given = GROUPS | {"callbacks": [StopAt(5)]}
    stopped = make_trainer(reward_model_dir, tmp_path / "longer", given=given, **OFTEN)
    with pytest.raises(KeyboardInterrupt):
        stopped.train()
    longer = OFTEN | {"max_steps": 20}
    again = make_trainer(reward_model_dir, tmp_path / "longer", given=GROUPS, **longer)
    again.train(resume_from_checkpoint=True)
    assert "plain training took 6 steps and this one takes 20" in caplog.text
    assert again.guard is None


def test_both_trainings_draw_the_same_dropout(reward_model_dir, tmp_path, monkeypatch) -> None:
    """With a weight of 0 the second is the first over again, though J draws masks of its own."""
    monkeypatch.setattr("metarm.training.control.FULL_WEIGHT", 0.0)
    model = make_double_model().float()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.3
    trainer = make_trainer(
        reward_model_dir,
        tmp_path,
        model=model,
        given=GROUPS,
        meta_mode="joint",
        max_steps=4,
        disable_dropout=False,
    )
    torch.rand(3)  # what comes after a seed is not what comes later
    trainer.train()
    moved = {n: p for n, p in trainer.model.named_parameters() if p.requires_grad}
    assert all(torch.equal(trainer.plain_weights[name], moved[name]) for name in moved)
    assert logged(trainer, "meta/rank_correlation") == [1.0] * 4


def test_the_plain_optimiser_is_gone_before_the_second_training(reward_model_dir, tmp_path) -> None:
    alive = []

    class Count(TrainerCallback):
        def on_train_begin(self, args, state, control, **rest) -> None:
            alive.extend(
                thing
                for thing in gc.get_objects()
                if isinstance(thing, torch.optim.AdamW) and thing.state
            )

    trainer = make_trainer(
        reward_model_dir,
        tmp_path,
        given=GROUPS | {"callbacks": [Count()]},
        meta_mode="joint",
        optim="adamw_torch",
        max_steps=2,
    )
    trainer.train()
    assert alive == []


def test_the_verdict_is_on_the_weights_that_are_kept(reward_model_dir, tmp_path) -> None:
    """The best checkpoint's, not the last step's."""
    trainer = make_trainer(
        reward_model_dir,
        tmp_path,
        given=GROUPS | {"eval_dataset": datasets.Dataset.from_list(pair_rows(8))},
        meta_mode="joint",
        learning_rate=1.0,
        max_steps=6,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        greater_is_better=True,
    )
    trainer.train()
    best = trainer.state.best_global_step
    correlations = logged(trainer, "meta/rank_correlation")
    assert best < 6
    assert len(set(correlations)) > 1
    assert trainer.guard.newest == pytest.approx(correlations[best - 1], abs=1e-6)


def test_the_plain_training_leaves_no_trace_outside(reward_model_dir, tmp_path) -> None:
    """A user's callbacks, checkpoints and evaluations see one training, the one that is kept."""
    seen = []

    class Count(TrainerCallback):
        def on_train_begin(self, args, state, control, **rest) -> None:
            seen.append(args.meta_mode)

    trainer = make_trainer(
        reward_model_dir,
        tmp_path,
        given=GROUPS | {"callbacks": [Count()]},
        meta_mode="joint",
        save_strategy="steps",
        save_steps=3,
    )
    trainer.train()
    assert seen == ["joint"]
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-3"]
    assert trainer.state.global_step == 3


def test_a_second_training_does_not_lean_on_the_first_ones_plain_one(
    reward_model_dir, tmp_path, caplog
) -> None:
    trainer = make_trainer(reward_model_dir, tmp_path, given=GROUPS, meta_mode="joint")
    trainer.train()
    assert trainer.guard is not None
    trainer.args.max_steps = 5
    trainer.train()
    assert "there is an optimiser already" in caplog.text
    assert (trainer.guard, trainer.plain_weights) == (None, None)


def test_a_number_beside_auto_is_refused(tmp_path) -> None:
    def settings(**changes):
        return MetaRewardConfig(str(tmp_path), use_cpu=True, **changes)

    with pytest.raises(ConfigError, match="meta_weight is given too"):
        settings(meta_strength="auto", meta_weight=0.2)
    with pytest.raises(ConfigError, match="did you mean 'auto'"):
        settings(meta_strength="autom")
    assert settings().meta_strength == "auto"
    fixed = settings(meta_weight=0.2)
    assert (fixed.meta_strength, fixed.meta_weight) == ("fixed", 0.2)


def _text(draw, words):
    return "".join(f" {word}" for word in draw.choices(words, k=4))


def _pairs(name, first, count=40):
    """Whoever says `first` is chosen."""
    draw = random.Random(name)
    rest = "".join(set("abcdef") - {first})
    return [
        PreferencePair(
            _text(draw, WORDS).strip(), f" {first}" + _text(draw, rest), _text(draw, rest)
        )
        for _ in range(count)
    ]


def _groups(count=60):
    draw = random.Random("groups")
    return [ResponseGroup("b", tuple(_text(draw, WORDS) for _ in range(3))) for _ in range(count)]


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return save_causal_lm(tmp_path_factory.mktemp("backbone"))


def _train(backbone, output_dir, settings=SETTINGS, **changes):
    given = {"pairs": _pairs("train", "a"), "test_pairs": _pairs("test", "a"), "groups": _groups()}
    return train_reward_model(
        model=str(backbone),
        settings=settings,
        output_dir=output_dir,
        seed=0,
        **({"progress": SilentProgress()} | given | changes),
    )


@pytest.mark.parametrize("use_peft", [False, True], ids=["all weights", "lora"])
def test_where_the_guard_fails_the_plain_model_is_saved(
    backbone, tmp_path, monkeypatch, use_peft
) -> None:
    settings = SETTINGS.model_copy(update={"use_peft": use_peft, "lora_r": 4})
    off = settings.model_copy(update={"meta_mode": "off"})
    _train(backbone, tmp_path / "plain", off)
    # Whether the usual guard holds on so few words turns on rounding; this one always does.
    monkeypatch.setattr("metarm.training.control.StrengthGuard", lambda: StrengthGuard(least=-1.0))
    held = _train(backbone, tmp_path / "held", settings)
    assert held.guard.kept == 1.0
    assert held.guard.strength > 0
    monkeypatch.setattr("metarm.training.control.StrengthGuard", lambda: StrengthGuard(least=1.1))
    failed = _train(backbone, tmp_path / "failed", settings)
    assert (failed.guard.kept, failed.guard.strength) == (0.0, 0.0)
    assert "kept the PLAIN model" in failed.guard.summary()
    plain, held, failed = (
        load_file(tmp_path / name / "model.safetensors") for name in ("plain", "held", "failed")
    )
    assert is_same(plain, failed)
    assert not is_same(plain, held)


def test_a_probe_chooses_how_far_to_go(backbone, tmp_path, monkeypatch) -> None:
    """The adapted model's own order as labels keeps it; the plain model's order keeps that."""
    monkeypatch.setattr("metarm.training.control.StrengthGuard", lambda: StrengthGuard(least=-1.0))
    off = SETTINGS.model_copy(update={"meta_mode": "off"})
    _train(backbone, tmp_path / "plain", off)
    adapted = SETTINGS.model_copy(update={"meta_mode": "descent"})
    _train(backbone, tmp_path / "adapted", adapted)
    draw = random.Random("probe")
    prompts = ["b"] * 300
    texts = [[_text(draw, WORDS) for _ in prompts] for _ in range(2)]

    def probe(name: str) -> list[PreferencePair]:
        score = load_score_function(tmp_path / name)
        scores = [score(prompts, side) for side in texts]
        return [
            PreferencePair("b", *((one, two) if first > second else (two, one)))
            for one, two, first, second in zip(*texts, *scores, strict=True)
        ]

    far = _train(backbone, tmp_path / "far", adapted, probe=probe("adapted"))
    near = _train(backbone, tmp_path / "near", adapted, probe=probe("plain"))
    assert far.guard.kept > near.guard.kept
    assert near.guard.num_probe_pairs == 300
    few = _train(backbone, tmp_path / "few", adapted, probe=probe("plain"), groups=_groups()[:9])
    assert few.guard.num_probe_pairs == 300, "also where there are too few groups to guard with"
    assert few.guard.rank_correlation is None
    assert "not guarded" in few.guard.summary() or few.guard.kept < 1.0
    with pytest.raises(ConfigError, match="a probe chooses between"):
        _train(backbone, tmp_path / "off", off, probe=probe("plain"))
