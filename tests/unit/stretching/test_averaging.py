# SPDX-License-Identifier: Apache-2.0
"""Averaged weights are the exact mean, and a barrier is seen where there is one."""

from pathlib import Path

import numpy as np
import pytest
import torch

from metarm.errors import DataError, ModelError
from metarm.models.loading import load_encoder, load_reward_model
from metarm.schema import PreferencePair
from metarm.stretching.averaging import average_models, average_weights, measure_barrier
from tiny_models import WORDS, save_reward_model

PAIRS = [PreferencePair(f"{a} {b}", f" {a}", f" {b}") for a in WORDS for b in WORDS if a != b]


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    encoder = load_encoder(folder)
    return load_reward_model(folder, encoder, seed=None).state_dict()


def test_the_saved_model_is_the_exact_mean(tmp_path) -> None:
    folders = [save_reward_model(tmp_path / str(seed), seed=seed) for seed in range(3)]
    barriers = average_models(folders, tmp_path / "mean", PAIRS)
    given, mean = [weights_of(folder) for folder in folders], weights_of(tmp_path / "mean")
    for name, weight in mean.items():
        exact = sum(other[name].double() for other in given) / 3
        assert torch.equal(weight, exact.float()), name
    assert {(b.first, b.second) for b in barriers} == {
        (str(folders[i]), str(folders[j])) for i, j in ((0, 1), (0, 2), (1, 2))
    }
    # Random models of other seeds lie in other valleys, if in any; ends are their own losses.
    assert all(len(b.losses) == 5 for b in barriers)
    assert barriers[0].losses[0] == pytest.approx(barriers[1].losses[0], abs=1e-6)
    assert barriers[0].losses[-1] == pytest.approx(barriers[2].losses[0], abs=1e-6)
    files = {path.name for path in (tmp_path / "mean").iterdir()}
    assert "model.safetensors" in files
    assert not any(name.endswith((".bin", ".pt")) for name in files)


def test_a_model_and_itself_have_their_mean_and_no_barrier(tmp_path) -> None:
    folder = save_reward_model(tmp_path / "one", seed=4)
    (barrier,) = average_models([folder, folder], tmp_path / "mean", PAIRS)
    assert barrier.height.value == pytest.approx(0.0, abs=1e-6)
    assert not barrier.is_one
    one, mean = weights_of(folder), weights_of(tmp_path / "mean")
    assert all(torch.equal(weight, one[name]) for name, weight in mean.items())


def test_a_convex_loss_has_no_barrier_and_a_ridge_has_its_height() -> None:
    draw = np.random.default_rng(0)
    inputs = draw.normal(size=(200, 5))
    ends = draw.normal(size=(2, 5)) * 3

    def convex(place: float) -> np.ndarray:
        weights = (1 - place) * ends[0] + place * ends[1]
        return np.logaddexp(0.0, -inputs @ weights)

    prompts = [str(n) for n in range(200)]
    found = measure_barrier(convex, prompts)
    assert found.height.value == 0.0
    assert found.place == 0.0
    assert not found.is_one
    ridge = measure_barrier(
        lambda place: 1 + place + np.full(200, 4 * place * (1 - place)), prompts
    )
    assert ridge.height.value == pytest.approx(1.0)
    assert ridge.place == 0.5
    assert ridge.is_one
    noise = draw.normal(size=200)
    unsure = measure_barrier(lambda place: 5 * noise * (place == 0.5), prompts)
    assert not unsure.is_one, "a rise that may be chance is no barrier"


def test_models_that_are_not_alike_are_refused(tmp_path) -> None:
    one = save_reward_model(tmp_path / "one")
    other = save_reward_model(tmp_path / "other", words=(*WORDS, "g"))
    renamed = save_reward_model(tmp_path / "renamed", words=tuple("uvwxyz"))
    for wrong in (other, renamed):
        with pytest.raises(ModelError, match="one vocabulary, got another in"):
            average_models([one, wrong], tmp_path / "mean")
    with pytest.raises(DataError, match="two reward models or more to average, got 1"):
        average_models([one], tmp_path / "mean")
    first = {"a": torch.zeros(2), "b": torch.zeros(3)}
    for second, words in (
        ({"a": torch.zeros(2)}, r"number 2: 'b' is \(3,\) in the first and missing in it"),
        (first | {"c": torch.zeros(1)}, r"'c' is missing in the first and \(1,\)"),
        ({"a": torch.zeros(2), "b": torch.zeros(4)}, r"'b' is \(3,\) .* \(4,\)"),
    ):
        with pytest.raises(ModelError, match=words):
            average_weights([first, second])
    assert not (tmp_path / "mean").exists()
