# SPDX-License-Identifier: Apache-2.0
"""A column `p` makes the trainer's loss that of a soft label, and nothing else of it."""

import math

import datasets
import pytest
import torch

from metarm.objectives import bradley_terry_loss
from metarm.training.soft_labels import ColumnCollator
from unit.reward_problem import distance, make_double_model, make_trainer, pair_rows, weights


def soft_rows(labels, **more):
    labels = [*labels] * math.ceil(len(pair_rows()) / len(labels))
    return [row | {"p": p} | more for row, p in zip(pair_rows(), labels, strict=False)]


def trainer_on(folder, output, rows, **changes):
    given = {"train_dataset": datasets.Dataset.from_list(rows)}
    changes = {"meta_mode": "off", **changes}
    return make_trainer(folder, output, model=make_double_model(), given=given, **changes)


def trained(folder, output, rows, **changes):
    trainer = trainer_on(folder, output, rows, **changes)
    trainer.train()
    return weights(trainer.model)


@pytest.mark.parametrize("margin", [{}, {"margin": 0.4}], ids=["no margin", "margin"])
def test_the_loss_and_its_gradient_are_those_written_out(reward_model_dir, tmp_path, margin):
    rows = soft_rows([0.9, 0.5, 0.0, 1.0], **margin)
    trainer = trainer_on(reward_model_dir, tmp_path, rows, per_device_train_batch_size=24)
    batch = next(iter(trainer.get_train_dataloader()))
    assert sorted(batch["p"].tolist()) == pytest.approx(sorted([0.9, 0.5, 0.0, 1.0] * 6))
    model = trainer.model.train()
    loss = trainer.compute_loss(model, batch)
    found = torch.autograd.grad(loss, list(model.parameters()))
    scores = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    expected = bradley_terry_loss(
        *scores.squeeze(-1).chunk(2), margin=batch.get("margin"), label=batch["p"].double()
    )
    wanted = torch.autograd.grad(expected, list(model.parameters()))
    assert loss.item() == pytest.approx(expected.item(), abs=1e-7)
    for one, other in zip(found, wanted, strict=True):
        assert torch.allclose(one, other, atol=1e-7)
    plain = trainer.compute_loss(model, {k: v for k, v in batch.items() if k != "p"})
    assert abs(plain.item() - loss.item()) > 1e-3


def test_no_chance_to_be_better_is_the_other_way_round(reward_model_dir, tmp_path):
    turned = [
        row | {"chosen": row["rejected"], "rejected": row["chosen"], "p": 0.0}
        for row in pair_rows()
    ]
    straight = trained(reward_model_dir, tmp_path / "straight", pair_rows())
    assert distance(straight, trained(reward_model_dir, tmp_path / "turned", turned)) < 1e-9
    assert distance(straight, weights(make_double_model())) > 0.01


@pytest.mark.parametrize("mode", ["off", "descent"])
def test_certain_labels_are_none(reward_model_dir, tmp_path, mode):
    options = {"meta_mode": mode, "meta_step_length": 0.3}
    plain = trained(reward_model_dir, tmp_path / "plain", pair_rows(), **options)
    certain = trained(reward_model_dir, tmp_path / "certain", soft_rows([1.0]), **options)
    doubtful = trained(reward_model_dir, tmp_path / "doubtful", soft_rows([0.7]), **options)
    assert distance(plain, certain) < 1e-12 < 1e-3 < distance(plain, doubtful)


def test_a_batch_taken_apart_keeps_its_labels(reward_model_dir, tmp_path):
    trainer = trainer_on(reward_model_dir, tmp_path, soft_rows([0.9, 0.6, 0.2]))
    batch = next(iter(trainer.get_train_dataloader()))
    parts = [part for part, _ in trainer.split_rows(batch, 3)]
    assert torch.equal(torch.cat([part["p"] for part in parts]), batch["p"])
    losses = [
        trainer.compute_loss(trainer.model, part).item() * share
        for part, share in trainer.split_rows(batch, 3)
    ]
    assert sum(losses) == pytest.approx(trainer.compute_loss(trainer.model, batch).item())


def test_a_batch_without_the_column_is_left_as_it_is():
    collate = ColumnCollator(lambda examples: {"rows": len(examples)}, "p", torch.float)
    assert collate([{}, {}]) == {"rows": 2}
    assert collate([{"p": 1}, {"p": 0.25}])["p"].tolist() == [1.0, 0.25]
