# SPDX-License-Identifier: Apache-2.0
"""A linear score fitted on frozen states, against scipy and what it was drawn from."""

import numpy as np
import torch
from scipy.optimize import minimize

from metarm.bench.linear_score import PENALTIES, fit_linear_score


def drawn(num_texts: int, size: int, seed: int = 0):
    draw = torch.Generator().manual_seed(seed)
    states = torch.randn(num_texts, size, generator=draw, dtype=torch.float64)
    states = states * torch.linspace(0.01, 3.0, size, dtype=torch.float64) + 5.0
    truth = torch.randn(size, generator=draw, dtype=torch.float64) / states.std(0)
    gaps = (states[0::2] - states[1::2]) @ truth
    wins = torch.rand(num_texts // 2, generator=draw, dtype=torch.float64) < gaps.sigmoid()
    first = torch.arange(0, num_texts, 2)
    better = torch.where(wins, first, first + 1)
    pairs = torch.stack([better, 2 * first + 1 - better], dim=1)
    return states, pairs, truth


def test_it_is_the_penalised_maximum_that_scipy_finds() -> None:
    states, pairs, _ = drawn(400, 5)
    found = fit_linear_score(states, pairs[:150], pairs[150:])
    spread = states[pairs[:150].unique()].std(0)
    gaps = ((states[pairs[:150, 0]] - states[pairs[:150, 1]]) / spread).numpy()

    def loss(weights: np.ndarray, penalty: float) -> float:
        return np.logaddexp(0, -gaps @ weights).mean() + penalty / 2 * (weights**2).sum()

    answers = [
        minimize(loss, np.zeros(5), args=(penalty,), options={"gtol": 1e-10}).x
        for penalty in PENALTIES
    ]
    errors = [np.abs(answer - (found * spread).numpy()).max() for answer in answers]
    assert min(errors) < 1e-5
    held = ((states[pairs[150:, 0]] - states[pairs[150:, 1]]) / spread).numpy()
    losses = [np.logaddexp(0, -held @ answer).mean() for answer in answers]
    assert int(np.argmin(losses)) == int(np.argmin(errors)), "the validation pairs chose it"


def test_it_finds_the_truth_whatever_the_scale_of_a_state() -> None:
    states, pairs, truth = drawn(20_000, 6)
    found = fit_linear_score(states, pairs[:9_000], pairs[9_000:])
    spread = states.std(0)
    cosine = torch.nn.functional.cosine_similarity(found * spread, truth * spread, dim=0)
    assert cosine > 0.999


def test_states_that_never_change_get_no_say() -> None:
    states, pairs, _ = drawn(200, 4)
    states[:, 2] = 7.0
    found = fit_linear_score(states, pairs[:80], pairs[80:])
    assert found.isfinite().all()
    assert found[2] == 0.0
