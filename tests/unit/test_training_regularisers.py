# SPDX-License-Identifier: Apache-2.0
"""What is added to the preference loss is what its formula says, and nothing where it is 0."""

import pytest
import torch
from torch import nn

from metarm.config import RewardSettings
from metarm.errors import ConfigError, ModelError
from metarm.models.loading import load_encoder, load_language_head, load_reward_model
from metarm.progress import SilentProgress
from metarm.schema import PreferencePair
from metarm.streams import generator
from metarm.training import train_reward_model
from metarm.training.plain_training import copy_weights
from metarm.training.regularised_trainer import StartDecay
from tiny_models import WORDS, save_causal_lm, save_reward_model
from unit.reward_problem import (
    distance,
    is_same,
    make_double_model,
    make_trainer,
    pair_rows,
    weights,
)


def trainer_of(folder, output, *, head=None, **changes):
    changes = {"meta_mode": "off", "per_device_train_batch_size": 6} | changes
    given = {"language_head": head} if head is not None else {}
    return make_trainer(folder, output, model=make_double_model(), given=given, **changes)


def gradients_of(trainer, loss):
    return torch.autograd.grad(loss, [*trainer.model.parameters()], allow_unused=True)


def reference(model, batch, head, *, sum_weight, text_weight):
    """The loss written out, by loops."""
    scores = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    chosen, rejected = scores.squeeze(-1).chunk(2)
    loss = torch.nn.functional.softplus(rejected - chosen).mean()
    loss = loss + sum_weight * scores.sum() ** 2 / scores.numel()
    terms = []
    for ids, mask in zip(
        batch["input_ids"][: len(chosen)], batch["attention_mask"][: len(chosen)], strict=True
    ):
        count = int(mask.sum())
        states = model.transformer(input_ids=ids[None, :count]).last_hidden_state[0]
        chances = torch.log_softmax(head(states), dim=-1)
        terms += [-chances[place - 1, ids[place]] for place in range(1, count)]
    return loss + text_weight * torch.stack(terms).mean()


@pytest.mark.parametrize(("sum_weight", "text_weight"), [(0.3, 0.0), (0.0, 0.2), (0.3, 0.2)])
def test_the_loss_and_its_gradient_are_those_written_out(
    reward_model_dir, tmp_path, sum_weight, text_weight
):
    head = nn.Linear(16, 10, bias=False, dtype=torch.float64).requires_grad_(False)
    changes = {"batch_sum_coefficient": sum_weight, "text_loss_coefficient": text_weight}
    trainer = trainer_of(reward_model_dir, tmp_path, head=head, **changes)
    batch = next(iter(trainer.get_train_dataloader()))
    model = trainer.model.train()
    loss = trainer.compute_loss(model, dict(batch))
    expected = reference(model, batch, head, sum_weight=sum_weight, text_weight=text_weight)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-9)
    for one, other in zip(
        gradients_of(trainer, loss), gradients_of(trainer, expected), strict=True
    ):
        assert (one is None) == (other is None)
        assert one is None or torch.allclose(one, other, atol=1e-8)
    model.eval()
    evaluated = trainer.compute_loss(model, dict(batch)).item()
    plain = reference(model, batch, head, sum_weight=0.0, text_weight=0.0).item()
    assert evaluated == pytest.approx(plain, abs=1e-9), "added in training alone"


def test_dropout_is_drawn_by_seed_and_step_and_the_same_for_both_sides(reward_model_dir, tmp_path):
    trainer = trainer_of(reward_model_dir, tmp_path, score_dropout=0.5)
    batch = next(iter(trainer.get_train_dataloader()))
    model = trainer.model.train()

    def scores(step, number):
        trainer.state.global_step = step
        trainer._drawn = (step, number - 1)
        return (
            trainer.compute_loss(model, dict(batch), return_outputs=True)[1]
            .logits.detach()
            .squeeze(-1)
        )

    assert torch.equal(scores(3, 0), scores(3, 0))
    assert not torch.equal(scores(3, 0), scores(3, 1))
    assert not torch.equal(scores(3, 0), scores(4, 0))
    states = model.transformer(batch["input_ids"], attention_mask=batch["attention_mask"])
    last = batch["attention_mask"].sum(1) - 1
    hidden = states.last_hidden_state[torch.arange(len(last)), last]
    draw = generator(trainer.args.seed, "score-dropout", 3, 1)
    kept = 2.0 * (torch.rand(16, generator=draw) >= 0.5)
    assert 0 < kept.count_nonzero() < 16
    assert torch.allclose(scores(3, 1), (hidden * kept) @ model.score.weight[0], atol=1e-9)
    plain = hidden @ model.score.weight[0]
    model.eval()
    assert torch.allclose(scores(3, 1), plain, atol=1e-9), "none where it is measured"


def test_nothing_asked_for_is_nothing_changed(reward_model_dir, tmp_path):
    found = []
    for changes in ({}, {"batch_sum_coefficient": 0.0, "score_dropout": 0.0},
                    {"batch_sum_coefficient": 0.1}, {"score_dropout": 0.3}):  # fmt: skip
        trainer = trainer_of(reward_model_dir, tmp_path, **changes)
        trainer.train()
        found.append(weights(trainer.model))
    assert is_same(found[0], found[1])
    assert min(distance(found[0], other) for other in found[2:]) > 1e-4


def test_decay_to_the_start_is_the_closed_form(reward_model_dir, tmp_path):
    """Of one step: theta = start + (1 - lr s) (plain - start)."""
    plain = trainer_of(reward_model_dir, tmp_path / "plain", max_steps=1)
    start = weights(plain.model)
    plain.train()
    held = trainer_of(reward_model_dir, tmp_path / "held", max_steps=1)
    held.add_start_decay(StartDecay(copy_weights(held.model), 3.0))
    held.train()
    after, drawn = weights(plain.model), weights(held.model)
    for name, weight in drawn.items():
        expected = start[name] + (1 - 0.1 * 3.0) * (after[name] - start[name])
        assert torch.allclose(weight, expected, atol=1e-12), name
    assert distance(after, start) > 1e-3


def test_the_head_alone_moves_and_text_needs_a_language_model(tmp_path):
    model = save_causal_lm(tmp_path / "lm")
    pairs = [PreferencePair(row["prompt"], row["chosen"], row["rejected"]) for row in pair_rows(24)]

    def train(name, source, **changes):
        settings = RewardSettings(
            meta_mode="off", max_steps=2, learning_rate=0.05, max_length=16, **changes
        )
        train_reward_model(
            model=str(source), pairs=pairs[:20], test_pairs=pairs[20:], groups=(),
            settings=settings, output_dir=tmp_path / name, seed=0, progress=SilentProgress(),
        )  # fmt: skip
        return load_reward_model(tmp_path / name, load_encoder(model), seed=None).state_dict()

    before = load_reward_model(model, load_encoder(model), seed=0).state_dict()
    head, text = (
        train(name, model, **changes)
        for name, changes in (
            ("head", {"train_head_only": True}),
            ("text", {"text_loss_coefficient": 0.5}),
        )
    )
    for name, weight in before.items():
        assert torch.equal(head[name], weight) == (name != "score.weight"), name
    assert distance(before, text) > 1e-3
    reward = save_reward_model(tmp_path / "rm")
    with pytest.raises(ModelError, match=r"expected a .*causal language model"):
        train("wrong", reward, text_loss_coefficient=0.5)
    language_head = load_language_head(model, load_reward_model(model, load_encoder(model)))
    assert language_head.weight.shape == (len(WORDS) + 4, 16)
    assert not language_head.weight.requires_grad


def test_what_does_not_go_together_is_refused(reward_model_dir, tmp_path):
    for changes in ({"use_peft": True}, {"text_loss_coefficient": 0.1}):
        with pytest.raises(ValueError, match="train_head_only leaves the model's states"):
            RewardSettings(train_head_only=True, **changes)
    for name, value in (("batch_sum_coefficient", -1.0), ("text_loss_coefficient", float("inf")),
                        ("score_dropout", 1.0)):  # fmt: skip
        with pytest.raises(ConfigError, match=name):
            trainer_of(reward_model_dir, tmp_path, **{name: value})
    trainer = trainer_of(reward_model_dir, tmp_path, text_loss_coefficient=0.1)
    with pytest.raises(ConfigError, match="needs the model's own language head"):
        trainer.train()
