# SPDX-License-Identifier: Apache-2.0
"""`train_reward_model` with several tasks: a reward model each, of one trunk, that loads alone."""

import random
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from metarm.config import RewardSettings
from metarm.data.encoding import EncodedPair, EncodingReport
from metarm.data.tasks import TaskPairs
from metarm.errors import DataError
from metarm.models.loading import load_encoder, load_reward_model
from metarm.models.pair_evaluation import evaluate_preferences
from metarm.models.reward_model import load_score_function
from metarm.models.task_heads import give_task_heads, reading, task_heads
from metarm.progress import SilentProgress
from metarm.schema import PreferencePair, ResponseGroup
from metarm.training import train_reward_model
from metarm.training.tasks import finish_tasks, to_rows
from tiny_models import WORDS, save_causal_lm

SETTINGS = RewardSettings(
    learning_rate=2e-2, per_device_train_batch_size=8, num_train_epochs=3, meta_mode="off"
)


def _text(draw):
    return "".join(f" {word}" for word in draw.choices("bcdef", k=4))


def _pairs(name, *, chosen, count=40):
    """Whoever says `a` is chosen, or rejected."""
    draw = random.Random(name)
    rows = []
    for number in range(count):
        sides = [" a" + _text(draw), _text(draw)]
        prompt = f"{name} {number}"
        rows.append(PreferencePair(prompt, *(sides if chosen else sides[::-1])))
    return rows


def _tasks(**changes):
    """`other` wants the opposite."""
    task = TaskPairs(
        "other", _pairs("other", chosen=False, count=30), _pairs("o-test", chosen=False, count=25)
    )
    return [replace(task, **changes)]


def _train(model, output_dir, tasks, **changes):
    draw = random.Random("groups")
    groups = [ResponseGroup("b", tuple(_text(draw) for _ in range(3))) for _ in range(60)]
    given = {
        "pairs": _pairs("train", chosen=True),
        "test_pairs": _pairs("test", chosen=True, count=30),
        "groups": groups,
        "settings": SETTINGS.model_copy(update=changes.pop("settings", {})),
    }
    return train_reward_model(
        model=str(model), output_dir=output_dir, seed=0, progress=SilentProgress(), tasks=tasks,
        **(given | changes),
    )  # fmt: skip


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return save_causal_lm(tmp_path_factory.mktemp("backbone"), words=WORDS)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_peft": True, "lora_r": 4},
        {"meta_mode": "joint", "meta_batch_size": 4, "meta_group_size": 3},
    ],
    ids=["plain", "lora", "guarded"],
)
def test_tasks_that_want_the_opposite_are_both_learnt(backbone, tmp_path, settings):
    tasks = _tasks(repeat=2)
    result = _train(backbone, tmp_path, tasks, settings=settings)
    report = result.tasks["other"]
    assert result.accuracy.value > 0.9
    assert report.accuracy.value > 0.9
    assert report.accuracy_of_main.value < 0.1, "the main layer wants the opposite"
    assert (result.guard is not None) == ("meta_mode" in settings)
    for folder, pairs, accuracy in (
        (tmp_path, _pairs("test", chosen=True, count=30), result.accuracy),
        (tmp_path / "tasks" / "other", tasks[0].test_pairs, report.accuracy),
    ):
        score = load_score_function(folder)
        assert score.model.config.num_labels == 1
        assert evaluate_preferences(score, pairs).accuracy == accuracy
        assert (folder / "metarm.json").is_file()
    main, other = (
        load_file(folder / "model.safetensors")
        for folder in (tmp_path, tmp_path / "tasks" / "other")
    )
    assert main.keys() == other.keys()
    assert [n for n in main if not torch.equal(main[n], other[n])] == ["score.weight"]
    assert main["score.weight"].shape == (1, 16)


def test_saved_models_score_as_the_trained_ones_columns(reward_model_dir, tmp_path):
    encoder = load_encoder(reward_model_dir)
    model = load_reward_model(reward_model_dir, encoder)
    give_task_heads(model, 3)
    with torch.no_grad():
        task_heads(model)[0].weight += torch.randn(
            3, 16, generator=torch.Generator().manual_seed(0)
        )
    tasks = [replace(_tasks()[0], name=name) for name in ("x", "y")]
    report = EncodingReport(1, 0, 0, None)
    finish_tasks(
        model, encoder, tasks, {"x": report, "y": report}, SETTINGS, tmp_path, SilentProgress()
    )
    text = " a b c"
    ids = torch.tensor([encoder.encode("b", text)]).expand(3, -1)
    with torch.no_grad(), reading(model, torch.arange(3)):
        columns = model(input_ids=ids).logits.flatten().tolist()
    assert len({round(value, 3) for value in columns}) == 3
    for name, value in zip("xy", columns[1:], strict=True):
        score = load_score_function(tmp_path / "tasks" / name)
        assert score(["b"], [text]) == pytest.approx([value], abs=1e-5)


def test_each_pair_stands_there_as_often_as_it_is_to():
    pair = EncodedPair([1], [2], None)
    assert "task" not in to_rows([pair]).column_names
    rows = to_rows([pair._replace(p=0.5)], [(1, pair), (1, pair), (2, pair)])
    assert rows["task"] == [0, 1, 1, 2]
    assert rows["p"] == [0.5, 1.0, 1.0, 1.0]


def test_repeats_are_trained_on(backbone, tmp_path):
    counts = []
    for repeat in (1, 3):
        result = _train(
            backbone,
            tmp_path / str(repeat),
            _tasks(repeat=repeat),
            settings={"num_train_epochs": 1},
        )
        counts.append(result.metrics["num_tokens"])
    assert counts[1] > 1.6 * counts[0]


def test_a_prompt_that_another_task_holds_out_is_refused(backbone, tmp_path):
    shared = _pairs("test", chosen=False, count=1)
    with pytest.raises(DataError, match="task 'other' trains on 'test 0'"):
        _train(backbone, tmp_path, _tasks(pairs=shared))
    assert not tmp_path.joinpath("tasks").exists()
