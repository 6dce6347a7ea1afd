# SPDX-License-Identifier: Apache-2.0
"""`train_reward_model`: it learns, saves what loads and scores the same, and counts everything."""

import json
import random
from contextlib import contextmanager

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from metarm.config import RewardSettings
from metarm.errors import DataError, ModelError
from metarm.models.loading import default_learning_rate
from metarm.models.pair_evaluation import evaluate_preferences
from metarm.models.reward_model import RewardModelScore, load_score_function
from metarm.progress import SilentProgress
from metarm.schema import PreferencePair, ResponseGroup
from metarm.storage import read_json, read_json_lines
from metarm.training import train_reward_model
from tiny_models import CONTEXT, WORDS, save_causal_lm

SETTINGS = RewardSettings(
    learning_rate=2e-2,
    per_device_train_batch_size=8,
    num_train_epochs=3,
    meta_mode="ascent",
    meta_step_length=0.05,
    meta_batch_size=4,
    meta_group_size=3,
)


def _text(draw, words):
    return "".join(f" {word}" for word in draw.choices(words, k=4))


def _pairs(name, count=40):
    """Whoever says `a` is chosen."""
    draw = random.Random(name)
    return [
        PreferencePair(
            _text(draw, WORDS).strip(), " a" + _text(draw, "bcdef"), _text(draw, "bcdef")
        )
        for _ in range(count)
    ]


def _groups(count=6):
    draw = random.Random("groups")
    return [ResponseGroup("b", tuple(_text(draw, WORDS) for _ in range(3))) for _ in range(count)]


def _train(backbone, output_dir, *, settings=SETTINGS, seed=0, **changes):
    given = {"pairs": _pairs("train"), "test_pairs": _pairs("test", 30), "groups": _groups()}
    return train_reward_model(
        model=str(backbone),
        settings=settings,
        output_dir=output_dir,
        seed=seed,
        **({"progress": SilentProgress()} | given | changes),
    )


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return save_causal_lm(tmp_path_factory.mktemp("backbone"))


@pytest.mark.parametrize("use_peft", [False, True], ids=["all weights", "lora"])
@pytest.mark.parametrize("mode", ["off", "ascent", "joint"])
def test_what_is_saved_has_learnt_and_scores_the_same(backbone, tmp_path, mode, use_peft):
    settings = SETTINGS.model_copy(update={"meta_mode": mode, "use_peft": use_peft, "lora_r": 4})
    result = _train(backbone, tmp_path, settings=settings)
    assert result.accuracy.value > 0.9
    assert result.accuracy.low <= result.accuracy.value <= result.accuracy.high
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert model.config.num_labels == 1
    assert model.config.pad_token_id == tokenizer.pad_token_id
    score = load_score_function(tmp_path)
    assert evaluate_preferences(score, _pairs("test", 30)).accuracy == result.accuracy
    plain = RewardModelScore(model.eval(), score.encoder)
    assert plain(["b"], [" a c"]) == score(["b"], [" a c"])
    names = {path.name for path in tmp_path.iterdir()}
    assert "adapter_config.json" not in names
    assert not {name for name in names if name.endswith((".bin", ".pt", ".pkl"))}
    base, saved = (load_file(f / "model.safetensors") for f in (backbone, tmp_path))
    moved = {name for name in saved if name in base and not torch.equal(base[name], saved[name])}
    assert "model.layers.1.mlp.up_proj.weight" in moved
    assert ("model.embed_tokens.weight" in moved) == (not use_peft)


@pytest.mark.parametrize("use_peft", [False, True], ids=["all weights", "lora"])
def test_the_accuracy_is_the_saved_models_after_autocast_too(backbone, tmp_path, use_peft):
    """Many pairs of nearly equal scores: rounding to bf16 would order some of them otherwise."""
    settings = SETTINGS.model_copy(update={"bf16": True, "max_steps": 1, "use_peft": use_peft})
    tests = _pairs("near", 600)
    tests = [PreferencePair(p.prompt, p.rejected, p.rejected[:-1] + "f") for p in tests]
    result = _train(backbone, tmp_path, settings=settings, test_pairs=tests)
    assert evaluate_preferences(load_score_function(tmp_path), tests).accuracy == result.accuracy


def test_settings_seed_and_data_decide_the_weights(reward_model_dir, tmp_path):
    """The seed orders the pairs too: this backbone has a head, which is not drawn."""
    for name, seed in (("first", 3), ("again", 3), ("other", 4)):
        _train(reward_model_dir, tmp_path / name, seed=seed)
    first, again, other = (
        (tmp_path / name / "model.safetensors").read_bytes() for name in ("first", "again", "other")
    )
    assert first == again
    assert first != other


def test_everything_is_counted_and_written_down(backbone, tmp_path):
    pairs = [*_pairs("train"), PreferencePair("a", " b" * 20, " c")]
    tests = [*_pairs("test", 30), PreferencePair("a", " b" * 30, " c")]
    groups = [*_groups(), ResponseGroup("a", (" b" * 20, " c"))]
    settings = SETTINGS.model_copy(update={"max_length": 15, "num_train_epochs": 1.0})
    result = _train(
        backbone, tmp_path, pairs=pairs, test_pairs=tests, groups=groups, settings=settings
    )
    assert (result.encoding.num_read, result.encoding.num_too_long) == (41, 1)
    assert (result.meta_encoding.num_read, result.meta_encoding.num_too_small) == (7, 1)
    assert result.num_test_too_long == 1
    assert result.accuracy.count <= 30
    record = json.loads((tmp_path / "metarm.json").read_text(encoding="utf-8"))
    assert record["settings"] == settings.model_dump()
    assert record["pad_token_id"] == 0
    assert record["eos_token_id"] == 2
    lines = (tmp_path / "train_log.jsonl").read_text(encoding="utf-8").splitlines()
    log = [json.loads(line) for line in lines]
    assert log[0]["step"] == 5
    assert result.metrics["meta/J"] == log[0]["meta/J"]
    assert (
        _train(
            backbone,
            tmp_path / "off",
            settings=settings.model_copy(update={"meta_mode": "off"}),
            groups=[],
        ).meta_encoding
        is None
    )


def test_nothing_longer_than_the_models_context_is_trained_on(backbone, tmp_path):
    long = " b" * (CONTEXT + 1)
    pairs = [*_pairs("train", 8), PreferencePair("a", long, " c")]
    groups = [*_groups(), ResponseGroup("a", (long, long, " c"))]
    settings = SETTINGS.model_copy(update={"max_steps": 1})
    assert settings.max_length > CONTEXT
    result = _train(backbone, tmp_path, pairs=pairs, groups=groups, settings=settings)
    assert (result.encoding.num_too_long, result.meta_encoding.num_too_small) == (1, 1)


def test_margins_are_learnt_from(backbone, tmp_path):
    """With a margin the chosen response must win by it, so the gap grows."""
    settings = SETTINGS.model_copy(update={"meta_mode": "off", "num_train_epochs": 6.0})
    gaps = []
    for name, margin in (("without", None), ("with", 20.0)):
        pairs = [PreferencePair(p.prompt, p.chosen, p.rejected, margin) for p in _pairs("train")]
        _train(backbone, tmp_path / name, pairs=pairs, settings=settings)
        score = load_score_function(tmp_path / name)
        chosen, rejected = (
            score([p.prompt for p in pairs], texts)
            for texts in ([p.chosen for p in pairs], [p.rejected for p in pairs])
        )
        gaps.append(sum(chosen) - sum(rejected))
    assert gaps[1] > 1.3 * gaps[0] > 0


def test_soft_labels_are_learnt_from(backbone, tmp_path):
    """A pair that is as likely wrong as right pulls its sides together."""
    settings = SETTINGS.model_copy(update={"meta_mode": "off", "num_train_epochs": 6.0})
    gaps = []
    for name, p in (("certain", None), ("likely", 0.75), ("wrong", 0.1)):
        pairs = [PreferencePair(r.prompt, r.chosen, r.rejected, p=p) for r in _pairs("train")]
        # One pair says nothing of how likely it is: it is certain.
        pairs[0] = _pairs("train")[0]
        _train(backbone, tmp_path / name, pairs=pairs, settings=settings)
        gaps.append(
            evaluate_preferences(load_score_function(tmp_path / name), _pairs("train")).gap_mean
        )
    assert gaps[0] > 2.0 * gaps[1] > 0.5 > 0.0 > gaps[2]


class _Bars:
    def __init__(self):
        self.stages = {}

    @contextmanager
    def stage(self, name, total):
        self.name = name
        self.stages[name] = [total, 0]
        yield self

    def advance(self, steps=1, note=""):
        self.stages[self.name][1] += steps


@pytest.mark.parametrize(
    ("changes", "steps"),
    [
        ({"num_train_epochs": 1.0}, 5),
        ({"num_train_epochs": 1.5, "gradient_accumulation_steps": 2}, 5),
        ({"max_steps": 3}, 3),
    ],
)
def test_the_bar_ends_where_it_says(backbone, tmp_path, changes, steps):
    bars = _Bars()
    _train(backbone, tmp_path, settings=SETTINGS.model_copy(update=changes), progress=bars)
    assert bars.stages["train the reward model (ascent)"] == [steps, steps]
    assert list(bars.stages) == [
        "encode the pairs",
        "train the reward model (ascent)",
        "score held-out pairs",
    ]
    assert all(total == done > 0 for total, done in bars.stages.values())


def test_it_is_quiet(backbone, tmp_path, capfd):
    _train(backbone, tmp_path)
    assert capfd.readouterr() == ("", "")


def test_wrong_input_is_refused(backbone, tmp_path):
    with pytest.raises(DataError, match="no held-out pairs"):
        _train(backbone, tmp_path, test_pairs=[])
    with pytest.raises(DataError, match="no group of at least 2 responses"):
        _train(backbone, tmp_path, groups=[])
    with pytest.raises(ModelError, match="no such folder"):
        _train(tmp_path / "nowhere", tmp_path)


def test_exact_order_trains_a_transformer(backbone, tmp_path):
    """The fused attention cannot be differentiated twice: `exact` must load the eager one."""
    settings = SETTINGS.model_copy(update={"meta_order": "exact", "max_steps": 2})
    result = _train(backbone, tmp_path / "exact", settings=settings)
    assert result.metrics["meta/move_length"] == pytest.approx(0.05, rel=1e-3)


def test_the_learning_rate_is_set_by_size_where_none_is_given(backbone, tmp_path):
    """5e-6 at 7e9 weights, four times as much at a sixteenth of them, never above 1e-3."""
    for shape, expected in (((70_000, 100_000), 5e-6), ((70_000, 6_250), 2e-5), ((2, 2), 1e-3)):
        model = torch.nn.Linear(*shape, bias=False, device="meta")
        assert default_learning_rate(model) == pytest.approx(expected)
    settings = SETTINGS.model_copy(update={"learning_rate": None, "max_steps": 5})
    _train(backbone, tmp_path, settings=settings)
    assert read_json(tmp_path / "metarm.json")["settings"]["learning_rate"] == 1e-3
    first = next(read_json_lines(tmp_path / "train_log.jsonl"))
    assert 0 < first["learning_rate"] <= 1e-3
