# SPDX-License-Identifier: Apache-2.0
"""What a method trains: encoders and causal models, all of them, their top, or an adapter."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from metarm.bench.features import frozen_features
from metarm.bench.fitting import build_network, train_network
from metarm.bench.methods import train_recipe
from metarm.bench.networks import TransformerScore, read_backbone
from metarm.bench.problem import Problem
from metarm.bench.recipes import METHODS, Recipe, read_recipe
from metarm.bench.settings import HeadSettings
from metarm.errors import ConfigError
from metarm.progress import SilentProgress
from tiny_models import WORDS, save_causal_lm
from unit.bench.test_features import save_bert

TEXTS = [
    (f"{a} {b}", f" {c}{' a' * (len(c) + number % 3)}")
    for number, (a, b, c) in enumerate(
        (a, b, c) for a in WORDS[:3] for b in WORDS[:4] for c in WORDS[:4]
    )
]
SETTINGS = HeadSettings(num_steps=4, measure_every=2, batch_size=4, num_groups=2)


@pytest.fixture(params=[save_bert, save_causal_lm], ids=["encoder", "causal"])
def model(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(request.param(tmp_path / "model"))


def backbone(model: str, trained: str, **changes):
    options = {"max_length": 16, "top_layers": 1, "lora_r": 2} | changes
    return read_backbone(model, TEXTS, trained=trained, **options)


def problem(model: str, trained: str) -> Problem:
    rows = torch.arange(len(TEXTS))
    return Problem(
        torch.randn(len(TEXTS), 2, generator=torch.Generator().manual_seed(0)),
        rows[:24].reshape(-1, 2),
        rows[24:32].reshape(-1, 2),
        rows[32:41].reshape(-1, 3),
        rows[41:44].reshape(-1, 3),
        rows[44:48].reshape(-1, 2),
        backbone(model, trained),
        rows[24:],
    )


@pytest.mark.parametrize("trained", ["all", "top", "lora"])
def test_only_what_is_trained_moves(model: str, trained: str) -> None:
    given = problem(model, trained)
    network = build_network(given, SETTINGS, 0)
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    loss = network(torch.arange(6)).square().sum()
    gradients = torch.autograd.grad(loss, network.trainable(), allow_unused=True)
    assert any(g is not None and g.abs().sum() > 0 for g in gradients)
    share = sum(p.numel() for p in network.trainable()) / sum(map(torch.numel, before.values()))
    assert (share == 1.0) == (trained == "all")
    assert share > 0


def test_a_batch_and_a_measurement_score_alike(model: str) -> None:
    network = build_network(problem(model, "all"), SETTINGS, 0)
    rows = torch.tensor([5, 0, 17, 3])
    alone = torch.stack([network(row.reshape(1))[0] for row in rows])
    assert torch.allclose(network(rows), alone, atol=1e-5)
    assert torch.allclose(network.measure(rows), alone, atol=1e-5)


def test_its_states_are_the_frozen_ones_of_the_last_layer(model: str, tmp_path: Path) -> None:
    network = TransformerScore(backbone(model, "all"))
    frozen = frozen_features(
        model, TEXTS, max_length=16, cache=tmp_path / "cache", progress=SilentProgress()
    )
    states = network.hidden(torch.arange(len(TEXTS)))
    assert torch.allclose(states, frozen[:, states.shape[1] :], atol=1e-5)


def test_it_starts_from_the_score_that_it_is_given(model: str) -> None:
    given = backbone(model, "all")
    width = TransformerScore(given).width
    first = torch.linspace(-1.0, 1.0, width, dtype=torch.float64)
    network = TransformerScore(replace(given, first_score=first))
    rows = torch.arange(5)
    assert torch.allclose(network(rows), network.hidden(rows) @ first.float(), atol=1e-6)


@pytest.mark.parametrize("trained", ["all", "lora"])
def test_every_method_trains_it(model: str, trained: str) -> None:
    given = problem(model, trained)
    names = METHODS if trained == "all" else ("joint-auto", "sam", "weight-average")
    for name in names:
        if "label_choice" in METHODS[name]:
            continue
        recipe = read_recipe(name)
        if recipe.needs_features or recipe.augments:
            continue
        found = train_recipe(given, replace(recipe, members=min(recipe.members, 2)), SETTINGS, 0)
        assert found.scores[:, given.measured].isfinite().all(), name
        assert found.steps == (2, 4)


@pytest.mark.parametrize("name", ["dropout", "9-labels-apart", "9-labels+mix"])
def test_what_needs_frozen_features_is_refused(model: str, name: str) -> None:
    with pytest.raises(ConfigError, match="use them with trained=head"):
        build_network(problem(model, "all"), SETTINGS, 0, read_recipe(name))


def test_only_the_score_layer_moves_along_j(model: str) -> None:
    given = problem(model, "all")
    plain, whole, head = (
        train_network(given, read_recipe(name), SETTINGS, 0)
        for name in ("plain", "joint", "joint+head-only")
    )
    rows = given.measured
    assert not torch.equal(head.scores[:, rows], plain.scores[:, rows])
    assert not torch.equal(head.scores[:, rows], whole.scores[:, rows])
    assert head.cost.forward == whole.cost.forward > plain.cost.forward
    assert head.cost.backward == plain.cost.backward < whole.cost.backward
    network = build_network(given, SETTINGS, 0)
    assert sum(p.numel() for p in network.head()) == network.width + 1


def test_no_strength_is_plain_training(model: str) -> None:
    given = problem(model, "all")
    plain = train_network(given, Recipe(), SETTINGS, 0)
    for step in ("descent", "joint"):
        found = train_network(given, Recipe(step=step, strength=0.0), SETTINGS, 0)
        assert torch.equal(found.scores[:, given.measured], plain.scores[:, given.measured]), step


def test_layers_that_cannot_be_told_are_refused(model: str) -> None:
    from metarm.bench.networks import _train_top

    given = backbone(model, "top")
    with pytest.raises(ConfigError, match="trained=top looks for one list of"):
        _train_top(_Without(), given)


class _Without(torch.nn.Linear):
    """A model without layers in a list."""

    def __init__(self) -> None:
        super().__init__(2, 2)
        self.config = self

    def get_text_config(self):
        return type("Config", (), {"num_hidden_layers": 3})
