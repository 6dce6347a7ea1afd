# SPDX-License-Identifier: Apache-2.0
"""`meta_strength="auto"`: bounded in reward units, guarded by plain training, chosen by a probe."""

import random

import pytest
from safetensors.torch import load_file

from metarm.config import FULL_WEIGHT, RewardSettings
from metarm.errors import ConfigError
from metarm.models.reward_model import load_score_function
from metarm.progress import SilentProgress
from metarm.schema import PreferencePair, ResponseGroup
from metarm.strength import StrengthGuard
from metarm.training import MetaRewardConfig, train_reward_model
from tiny_models import WORDS, save_causal_lm
from unit.reward_problem import (
    group_rows,
    is_same,
    make_trainer,
    make_trl_trainer,
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


def train_plain(folder, output_dir, **changes):
    plain = make_trainer(folder, output_dir, given=GROUPS, meta_mode="off", **changes)
    plain.train()
    return plain


def test_recording_a_trace_leaves_training_as_trl_does_it(reward_model_dir, tmp_path) -> None:
    trl = make_trl_trainer(reward_model_dir, tmp_path / "trl")
    trl.train()
    plain = train_plain(reward_model_dir, tmp_path / "plain")
    assert is_same(weights(trl.model), weights(plain.model))
    assert sorted(plain.reward_trace.scores) == [1, 2, 3]
    assert plain.reward_trace.at(3).shape == (6, 3)
    with pytest.raises(ConfigError, match=r"no scores at step 7, only at \[1, 2, 3\]"):
        plain.reward_trace.at(7)


@pytest.mark.parametrize("mode", ["ascent", "descent", "joint"])
def test_a_guard_that_fails_turns_the_step_off(
    reward_model_dir, tmp_path, mode, monkeypatch
) -> None:
    monkeypatch.setattr("metarm.training.control.StrengthGuard", lambda: StrengthGuard(least=1.1))
    plain = train_plain(reward_model_dir, tmp_path / "plain", max_steps=8)
    given = GROUPS | {"plain_trace": plain.reward_trace}
    trainer = make_trainer(
        reward_model_dir, tmp_path / "meta", given=given, meta_mode=mode, max_steps=8
    )
    trainer.train()
    assert logged(trainer, "meta/strength") == [0.5, 0.25, 0.125, 0.0, 0.0, 0.0, 0.0, 0.0]
    assert len(logged(trainer, "meta/rank_correlation")) == 8
    assert len(logged(trainer, "meta/J")) == 4, "no gradient of J once it is off"
    assert not trainer.guard.holds


def test_a_guard_that_holds_leaves_full_strength(reward_model_dir, tmp_path) -> None:
    slow = {"learning_rate": 1e-3}
    plain = train_plain(reward_model_dir, tmp_path / "plain", **slow)
    given = GROUPS | {"plain_trace": plain.reward_trace}
    trainer = make_trainer(
        reward_model_dir, tmp_path / "meta", given=given, meta_mode="joint", **slow
    )
    trainer.train()
    assert logged(trainer, "meta/strength") == [1.0, 1.0, 1.0]
    assert logged(trainer, "meta/rank_correlation") == pytest.approx([1.0] * 3, abs=0.3)
    found = logged(trainer, "meta/weight")
    assert len(found) == 3
    assert all(0 < weight <= FULL_WEIGHT for weight in found)
    assert not is_same(weights(trainer.model), weights(plain.model))


def test_without_a_trace_it_is_bounded_and_says_so(reward_model_dir, tmp_path, caplog) -> None:
    trainer = make_trainer(reward_model_dir, tmp_path, meta_mode="descent")
    assert "without a plain_trace" in caplog.text
    trainer.train()
    assert trainer.guard is None
    assert all(step > 0 for step in logged(trainer, "meta/step_size"))


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
    with pytest.raises(ConfigError, match="a probe chooses between"):
        _train(backbone, tmp_path / "off", off, probe=probe("plain"))
