# SPDX-License-Identifier: Apache-2.0
"""Several tasks on one trunk: losses of several models of one trunk; alone, plain training."""

import copy
import random

import datasets
import peft
import pytest
import torch

from metarm.checkpoints import CheckpointPlace
from metarm.errors import ConfigError, DataError, ModelError
from metarm.models import shared_prompts
from metarm.models.safe_checkpoints import NEWEST
from metarm.models.task_heads import TaskHeads, alone, give_task_heads, reading, task_heads
from metarm.objectives import bradley_terry_loss
from unit.reward_problem import (
    distance,
    is_same,
    load_model,
    make_double_model,
    make_trainer,
    pair_rows,
    weights,
)
from unit.test_training_resume import ADAM, MODES, Dies, log_of

TURNS = (0, 1, 0, 2)


def task_rows(turns=TURNS, **more):
    rows = pair_rows()
    return [row | {"task": turns[i % len(turns)]} | more for i, row in enumerate(rows)]


def task_model(count=3, *, spread=True):
    """Three layers that differ, in fp64."""
    model = make_double_model()
    give_task_heads(model, count)
    if spread:
        draw = torch.Generator().manual_seed(1)
        with torch.no_grad():
            weight = task_heads(model)[0].weight
            weight += 0.3 * torch.randn(weight.shape, generator=draw, dtype=weight.dtype)
    return model


def trainer_on(folder, output, rows, model, **changes):
    given = {"train_dataset": datasets.Dataset.from_list(rows)} | changes.pop("given", {})
    changes = {"meta_mode": "off", **changes}
    return make_trainer(folder, output, model=model, given=given, **changes)


def whole_batch(trainer):
    return next(iter(trainer.get_train_dataloader()))


@pytest.mark.parametrize(
    "more", [{}, {"margin": 0.4}, {"p": 0.8}, {"p": 0.3, "margin": 0.2}], ids=str
)
def test_loss_and_gradient_are_those_of_a_model_a_task_on_one_trunk(
    reward_model_dir, tmp_path, more
):
    """The reference: ordinary reward models, one a task, whose trunk's gradients are added up."""
    model = task_model()
    parts = []
    for task in range(3):
        with alone(model, task):
            parts.append(copy.deepcopy(model))
    rows = task_rows(**more)
    trainer = trainer_on(reward_model_dir, tmp_path, rows, model, per_device_train_batch_size=24)
    batch = whole_batch(trainer)
    assert sorted(batch["task"].tolist()) == [0] * 12 + [1] * 6 + [2] * 6
    trainer.model.train()
    loss = trainer.compute_loss(trainer.model, batch)
    names = [name for name, _ in model.named_parameters()]
    found = dict(zip(names, torch.autograd.grad(loss, list(model.parameters())), strict=True))
    total, trunk, heads = 0.0, {}, []
    for task, part in enumerate(parts):
        own = batch["task"] == task
        sides = own.repeat(2)
        scores = part(
            input_ids=batch["input_ids"][sides], attention_mask=batch["attention_mask"][sides]
        ).logits.squeeze(-1)
        expected = (own.sum() / len(own)) * bradley_terry_loss(
            *scores.chunk(2),
            margin=batch["margin"][own].double() if "margin" in more else None,
            label=batch["p"][own].double() if "p" in more else None,
        )
        total += expected.item()
        gradients = torch.autograd.grad(expected, list(part.parameters()))
        for (name, _), gradient in zip(part.named_parameters(), gradients, strict=True):
            if name == "score.weight":
                heads.append(gradient)
            else:
                trunk[name] = trunk.get(name, 0.0) + gradient
    assert loss.item() == pytest.approx(total, abs=1e-7)
    assert torch.allclose(found.pop("score.weight"), torch.cat(heads), atol=1e-7)
    assert found.keys() == trunk.keys()
    for name, gradient in trunk.items():
        assert torch.allclose(found[name], gradient, atol=1e-7), name


def test_a_task_without_pairs_in_a_batch_keeps_its_layer(reward_model_dir, tmp_path):
    model = task_model()
    before = weights(model)
    trainer = trainer_on(reward_model_dir, tmp_path, task_rows((0, 2)), model)
    trainer.train()
    after = weights(model)
    moved = (after["score.weight"] - before["score.weight"]).abs().amax(dim=1)
    assert moved[1] == 0.0 < min(moved[0], moved[2])


def test_pairs_of_the_main_task_alone_train_the_model_without_tasks(reward_model_dir, tmp_path):
    """Its layer and trunk; the meta step reads that layer too."""
    options = {"meta_mode": "ascent", "meta_step_length": 0.3}
    plain = trainer_on(reward_model_dir, tmp_path, pair_rows(), make_double_model(), **options)
    model = task_model(2, spread=False)
    ours = trainer_on(reward_model_dir, tmp_path, task_rows((0,)), model, **options)
    plain.train()
    ours.train()
    with alone(model, 0):
        assert distance(weights(plain.model), weights(model)) < 1e-12
    # The other's is where all of them began.
    with alone(model, 1):
        assert torch.equal(model.score.weight, make_double_model().score.weight)


def test_without_layers_a_column_of_that_name_is_nothing(reward_model_dir, tmp_path):
    """Bit for bit: data sets of the hub have such a column, of words."""
    named = [row | {"task": "mathematics"} for row in pair_rows()]
    for options in ({}, {"meta_mode": "joint", "meta_strength": "auto", "meta_guard": False}):
        trained = []
        for rows in (pair_rows(), named):
            model = load_model(reward_model_dir)
            trainer = trainer_on(reward_model_dir, tmp_path, rows, model, **options)
            trainer.train()
            trained.append(weights(trainer.model))
        assert is_same(*trained)


@pytest.mark.parametrize("mode", ["joint", "descent"])
def test_units_and_sources_are_read_off_the_main_tasks_pairs(
    reward_model_dir, tmp_path, monkeypatch, mode
):
    seen = []
    rows = task_rows((0, 1, 1, 1))
    trainer = trainer_on(
        reward_model_dir, tmp_path, rows, task_model(2), meta_mode=mode, meta_strength="auto",
        meta_guard=False, max_steps=1, per_device_train_batch_size=24,
        given={"meta_dataset": [
            {"prompt": "a b", "responses": [" c", " d e", " f"], "source": name}
            for name in ("one", "two") * 4
        ]},
    )  # fmt: skip
    monkeypatch.setattr(
        trainer._mixture, "see_pairs", lambda chosen, rejected: seen.append(len(chosen))
    )
    trainer.train()
    assert seen == [6]


def test_the_reference_of_units_is_of_the_main_task(reward_model_dir, tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr(
        "metarm.training.trainer.read_reference_pairs",
        lambda rows, pad: read.append(set(rows["task"])) or (_ for _ in ()).throw(KeyError),
    )
    with pytest.raises(KeyError):
        trainer_on(
            reward_model_dir, tmp_path, task_rows(), task_model(), meta_mode="joint",
            meta_strength="auto",
        )  # fmt: skip
    assert read == [{0}]


@pytest.mark.parametrize("mode", ["off", "ascent"])
def test_shared_prompts_change_nothing(reward_model_dir, tmp_path, monkeypatch, mode):
    monkeypatch.setattr(shared_prompts, "LEAST_WORK", 0)
    options = {"meta_mode": mode, "meta_step_length": 0.3}

    def trained(**changes):
        model = task_model()
        model.config._attn_implementation = "sdpa"
        trainer = trainer_on(
            reward_model_dir, tmp_path, task_rows(), model, max_steps=4, **options, **changes
        )
        trainer.train()
        return trainer

    shared, apart = trained(), trained(share_prompts=False)
    assert distance(weights(shared.model), weights(apart.model)) < 1e-9
    assert any("tokens/computed_share" in entry for entry in shared.state.log_history)


def test_a_batch_taken_apart_keeps_its_tasks(reward_model_dir, tmp_path):
    trainer = trainer_on(reward_model_dir, tmp_path, task_rows(p=0.7), task_model())
    batch = whole_batch(trainer)
    losses = [
        trainer.compute_loss(trainer.model, part).item() * share
        for part, share in trainer.split_rows(batch, 3)
    ]
    assert sum(losses) == pytest.approx(trainer.compute_loss(trainer.model, batch).item())


def make_resumable(folder, place, mode, use_peft):
    model = load_model(folder)
    give_task_heads(model, 3)
    config = peft.LoraConfig(
        task_type="SEQ_CLS", r=2, target_modules="all-linear", modules_to_save=["score"]
    )
    given = {"peft_config": config} if use_peft else {}
    options = {"max_steps": 5, "seed": 3, "gradient_accumulation_steps": 2, **ADAM, **MODES[mode]}
    trainer = trainer_on(
        folder, place / "unused", task_rows(), model, given=given, num_groups=60, **options
    )
    trainer.keep_checkpoints(CheckpointPlace(place, every=1))
    return trainer


@pytest.mark.parametrize(
    ("mode", "use_peft"), [("ascent", False), ("guarded", False), ("guarded", True)]
)
def test_it_goes_on_bit_for_bit(reward_model_dir, tmp_path, mode, use_peft):
    def make(name):
        return make_resumable(reward_model_dir, tmp_path / name, mode, use_peft)

    whole = make("whole")
    whole.train(NEWEST)
    stopped = make("again")
    stopped.add_callback(Dies(3))
    with pytest.raises(SystemExit):
        stopped.train(NEWEST)
    # The process is another one: its random state is too.
    torch.manual_seed(3)
    random.seed(3)
    again = make("again")
    again.train(NEWEST)
    assert is_same(weights(again.model), weights(whole.model))
    assert log_of(again) == log_of(whole)
    layers = task_heads(whole.model)[-1].weight
    assert len({tuple(row.tolist()) for row in layers}) == 3


def test_what_does_not_go_along_is_refused_by_name(reward_model_dir, tmp_path, monkeypatch):
    def made(rows=None, **changes):
        rows = task_rows() if rows is None else rows
        return trainer_on(reward_model_dir, tmp_path, rows, task_model(), **changes)

    with pytest.raises(ConfigError, match="batch_sum_coefficient: scores of several tasks"):
        made(batch_sum_coefficient=0.1)
    with pytest.raises(DataError, match=r"whole numbers from 0 to 2, .* got 3"):
        made(task_rows((0, 3)))
    with pytest.raises(DataError, match="got 'mathematics'"):
        made(task_rows(("mathematics",)))
    monkeypatch.setattr(
        "accelerate.Accelerator.distributed_type", property(lambda self: "DistributedType.FSDP")
    )
    with pytest.raises(ConfigError, match="do not go along with FSDP, which shares"):
        made()


def test_layers_are_read_row_by_row_and_only_inside():
    draw = torch.Generator().manual_seed(0)
    heads = TaskHeads(torch.nn.Linear(4, 1, dtype=torch.float64), 2)
    with torch.no_grad():
        heads.weight.copy_(torch.randn(2, 4, generator=draw, dtype=torch.float64))
        heads.bias.copy_(torch.tensor([1.0, -1.0]))
    for shape in ((3, 4), (3, 5, 4)):
        states = torch.randn(*shape, generator=draw, dtype=torch.float64)
        plain = heads.head_of(0)(states)
        assert torch.equal(heads(states), plain)
        with reading(heads, torch.tensor([1, 0, 1])):
            found = heads(states)
            with pytest.raises(ModelError, match="expected the 3 rows"):
                heads(states[:2])
        assert found.shape == (*shape[:-1], 1)
        for row, task in enumerate((1, 0, 1)):
            assert torch.allclose(found[row], heads.head_of(task)(states[row]), atol=1e-14)
        assert torch.equal(heads(states), plain)


def test_a_model_without_one_last_layer_is_refused():
    model = make_double_model()
    model.score = torch.nn.Sequential(torch.nn.Linear(16, 1), torch.nn.Linear(1, 1))
    with pytest.raises(ModelError, match="GPT2ForSequenceClassification with 2"):
        give_task_heads(model, 2)


def test_a_model_alone_is_put_back_after_an_error():
    model = task_model()
    heads = model.score

    def fail():
        assert type(model.score) is torch.nn.Linear
        assert torch.equal(model.score.weight[0], heads.weight[2])
        raise KeyError

    with pytest.raises(KeyError), alone(model, 2):
        fail()
    assert model.score is heads
