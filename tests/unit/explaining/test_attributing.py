# SPDX-License-Identifier: Apache-2.0
"""Attributions: closed forms, captum's own layer method, completeness, and sums that are exact."""

import builtins
import itertools
from types import SimpleNamespace

import pytest
import torch
from captum.attr import LayerIntegratedGradients
from torch import nn

from metarm.errors import ConfigError
from metarm.explaining.attributing import (
    BASELINES,
    Attribution,
    PathSettings,
    attribute,
    attribute_pair,
)
from metarm.models.reward_model import RewardModelScore
from tiny_models import WORDS

KINDS = ("llama", "encoder", "ensemble")
TEXTS = [
    (prompt, "".join(f" {word}" for word in response))
    for prompt, response in itertools.product(
        ("a b", "f"), ("c", "d e f a", ("b", "b", "zebra"), ("c", "</s>"), "fedcba" * 2)
    )
]
EXACT = PathSettings(tolerance=1e-6, max_steps=2048)


class LinearReward(nn.Module):
    """weights[place] . embedding, summed over places."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.embed = nn.Embedding(20, 5).double()
        self.embed.weight = nn.Parameter(
            torch.randn(20, 5, dtype=torch.float64, generator=generator), requires_grad=False
        )
        self.weights = torch.randn(30, 5, dtype=torch.float64, generator=generator)
        self.device = torch.device("cpu")

    def get_input_embeddings(self) -> nn.Module:
        return self.embed

    def forward(self, input_ids, attention_mask, use_cache):
        embedded = self.embed(input_ids)
        of_place = (embedded * self.weights[: embedded.shape[1]]).sum(-1)
        return SimpleNamespace(logits=of_place.sum(1, keepdim=True))


@pytest.mark.parametrize("baseline", BASELINES)
def test_a_linear_reward_has_its_closed_form(scores, baseline: str) -> None:
    model = LinearReward()
    encoder = scores["llama"].encoder
    score = RewardModelScore(model, encoder)
    found = attribute(score, "a b", " c d", PathSettings(baseline, max_steps=1))
    ids = encoder.encode("a b", " c d")
    stand_in = {
        "eos": model.embed.weight[encoder.eos_token_id],
        "pad": model.embed.weight[encoder.pad_token_id],
        "zero": torch.zeros(5, dtype=torch.float64),
    }[baseline]
    # <s> a b c d </s>: the frame stays.
    expected = [
        float(model.weights[place] @ (model.embed.weight[ids[place]] - stand_in))
        for place in range(1, 5)
    ]
    assert found.texts == ("", "a", " b", " c", " d", "</s>")
    assert found.values[1:5] == pytest.approx(expected, abs=1e-12)
    assert found.values[0] == found.values[5] == 0.0
    assert found.gap == pytest.approx(0.0, abs=1e-12)
    assert found.num_steps == 1


@pytest.mark.parametrize("kind", KINDS)
def test_the_gap_is_within_the_tolerance_on_every_text(scores, kind: str) -> None:
    for prompt, response in TEXTS:
        found = attribute(scores[kind], prompt, response, EXACT)
        size = sum(map(abs, found.values))
        assert found.is_complete
        assert abs(found.gap) <= EXACT.tolerance * size + 1e-12
        total = found.baseline_score + sum(found.values) + found.gap
        assert total == pytest.approx(found.score, abs=1e-12)
        assert "".join(found.texts) == prompt + response + (
            "" if response.endswith("</s>") else "</s>"
        )


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_explained_is_the_score(scores, kind: str) -> None:
    for prompt, response in TEXTS[:3]:
        found = attribute(scores[kind], prompt, response)
        if kind == "ensemble":
            raw = [member([prompt], [response])[0] for member in scores[kind].members]
            expected = ((raw[0] - 0.3) / 2.0 + (raw[1] + 0.2) / 0.5) / 2
        else:
            expected = scores[kind]([prompt], [response])[0]
        assert found.score == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_pair_sums_to_the_difference(scores, kind: str) -> None:
    found = attribute_pair(scores[kind], "a b", " c d", " e f a", EXACT)
    row = found.to_json()
    names = ("prompt_sum", "first_sum", "second_sum", "frame_sum", "length_alone", "gap")
    assert sum(row[name] for name in names) == pytest.approx(found.difference, abs=1e-12)
    assert row["frame_sum"] == 0.0
    assert row["prompt_sum"] == pytest.approx(sum(value for _, value in row["prompt"]), abs=1e-12)
    turned = attribute_pair(scores[kind], "a b", " e f a", " c d", EXACT)
    assert turned.difference == pytest.approx(-found.difference, abs=1e-12)
    for (text, one), (other_text, other) in zip(found.prompt(), turned.prompt(), strict=True):
        assert text == other_text
        assert one == pytest.approx(-other, abs=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_a_pairs_gap_is_small_beside_its_difference(scores, kind: str) -> None:
    """Though each text's is small beside its own attributions, which are far larger."""
    settings = PathSettings(tolerance=0.05, first_steps=1, max_steps=4096)
    num_refined = 0
    for first, second in itertools.combinations([response for _, response in TEXTS], 2):
        found = attribute_pair(scores[kind], "a b", first, second, settings)
        assert found.is_complete
        size = sum(abs(value) for side in (found.first, found.second) for value in side.values)
        assert abs(found.gap) <= 0.05 * max(abs(found.difference), 0.05 * size) + 1e-12
        alone = [attribute(scores[kind], "a b", one, settings) for one in (first, second)]
        num_refined += found.first.num_steps > max(one.num_steps for one in alone)
    assert num_refined, "no pair needed more than its sides"


def test_a_pair_whose_gap_stays_is_not_complete(scores) -> None:
    cut = PathSettings("zero", tolerance=1e-9, max_steps=20)
    assert not attribute_pair(scores["llama"], "a b", " c d", " e f a", cut).is_complete


@pytest.mark.parametrize("kind", ["llama", "encoder"])
def test_it_is_what_captums_layer_method_finds(scores, kind: str) -> None:
    score = scores[kind]
    found = attribute(score, "a b", " c d e", PathSettings(tolerance=1e9))
    ids = torch.tensor([score.encoder.encode("a b", " c d e")])
    start = ids.clone()
    start[0, 1:-1] = score.encoder.eos_token_id

    def forward(rows: torch.Tensor) -> torch.Tensor:
        return score.model(input_ids=rows, attention_mask=torch.ones_like(rows)).logits[:, 0]

    layer = LayerIntegratedGradients(forward, score.model.get_input_embeddings())
    theirs = layer.attribute(ids, start, n_steps=found.num_steps)[0].sum(-1)
    assert list(found.values) == pytest.approx(theirs.tolist(), abs=1e-10)


def test_steps_are_doubled_until_the_gap_is_small_enough(scores) -> None:
    loose = attribute(scores["llama"], "a b", " c d", PathSettings(tolerance=10.0))
    tight = attribute(scores["llama"], "a b", " c d", EXACT)
    assert loose.num_steps == 16
    assert tight.num_steps > 16
    assert abs(tight.gap) < abs(loose.gap)


def test_a_gap_that_stays_is_said(scores, caplog) -> None:
    found = attribute(
        scores["llama"], "a b", " c d", PathSettings("zero", tolerance=1e-9, max_steps=20)
    )
    assert found.num_steps == 16
    assert not found.is_complete
    assert "leave" in caplog.text


def test_batches_change_nothing(scores) -> None:
    whole = scores["llama"]
    narrow = RewardModelScore(whole.model, whole.encoder, batch_size=3)
    one, other = (attribute(score, "a b", " c d") for score in (whole, narrow))
    assert one.values == pytest.approx(other.values, abs=1e-12)


def test_a_kept_prompt_gets_nothing(scores) -> None:
    found = attribute(scores["llama"], "a b", " c d", PathSettings(keeps_prompt=True))
    assert found.part_sum("prompt") == 0.0
    assert found.part_sum("response") != 0.0
    other = attribute(scores["llama"], "a b", " c d")
    assert other.part_sum("prompt") != 0.0
    assert other.baseline_score != found.baseline_score


def test_weights_are_left_alone(scores) -> None:
    model = scores["llama"].model
    before = {name: p.clone() for name, p in model.named_parameters()}
    attribute(scores["llama"], "a b", " c d")
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())
    assert all(p.grad is None for p in model.parameters())
    assert not model.get_input_embeddings()._forward_hooks


def test_json_comes_back(scores) -> None:
    found = attribute(scores["llama"], "a b", f" {WORDS[0]}")
    assert Attribution.from_json(found.to_json()) == found


def test_without_captum_the_remedy_is_named(scores, monkeypatch) -> None:
    real = builtins.__import__

    def refuse(name, *rest, **more):
        if name.startswith("captum"):
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ConfigError, match=r"pip install 'metarm\[explain\]'"):
        attribute(scores["llama"], "a b", " c")


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="did you mean 'eos'"):
        PathSettings("eso")
    with pytest.raises(ConfigError, match="above 0"):
        PathSettings(tolerance=0.0)
