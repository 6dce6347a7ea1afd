# SPDX-License-Identifier: Apache-2.0
"""The meta step by hand: your own model, loop and optimiser, and nothing of metarm but the paper.

A policy that is being optimised drifts to responses its reward model was never trained on. MetaRM
looks ahead along the difference loss J (how far apart the scores of several responses to one prompt
are, no labels needed), takes the preference gradient there, and applies it to the weights it kept:

    theta' = theta + eta * grad J(theta)           look ahead: `descent` turns the sign
    theta  = theta - alpha * grad L(theta')        an ordinary optimiser step at the kept weights

Run it: `python examples/01_meta_step_by_hand.py`. Takes about 8 seconds; no files, no downloads.
"""

import torch
from torch import Tensor, nn

from metarm.meta_step import MetaMode, meta_step
from metarm.objectives import bradley_terry_loss, difference_loss

NUM_FEATURES, GROUP_SIZE, NUM_SEEDS = 8, 5, 4
ARMS: tuple[MetaMode, ...] = ("off", "ascent", "descent", "joint")
torch.set_num_threads(1)


def gold(responses: Tensor) -> Tensor:
    """What people really like: a mild curve, so that no model is right everywhere."""
    direction = torch.linspace(-1.0, 1.0, NUM_FEATURES)
    return responses @ direction + 0.5 * torch.tanh(responses[..., 0] * responses[..., 1])


def sample_pairs(num_pairs: int, shift: Tensor, spread: float) -> tuple[Tensor, Tensor]:
    """Pairs of made-up responses, the better one (with human noise) first."""
    one, other = shift + spread * torch.randn(2, num_pairs, NUM_FEATURES)
    one_wins = torch.rand(num_pairs) < torch.sigmoid(gold(one) - gold(other))
    return torch.where(one_wins[:, None], one, other), torch.where(one_wins[:, None], other, one)


def accuracy(model: nn.Module, shift: Tensor, spread: float) -> float:
    """Share of fresh pairs that the model orders as gold does."""
    one, other = shift + spread * torch.randn(2, 2000, NUM_FEATURES)
    gaps = (model(one) - model(other)).squeeze(-1)
    return (gaps.sign() == (gold(one) - gold(other)).sign()).float().mean().item()


def train_arm(mode: MetaMode, seed: int) -> tuple[float, float, float]:
    """Train one reward model; return its accuracy original and shifted, and its J."""
    torch.manual_seed(seed)
    original, shifted = torch.zeros(NUM_FEATURES), 1.5 * torch.randn(NUM_FEATURES)
    chosen, rejected = sample_pairs(300, original, spread=1.0)  # labelled, before the drift
    prompts = 0.5 * torch.randn(40, 1, NUM_FEATURES)  # k responses each, unlabelled, after it
    groups = shifted + prompts + 0.4 * torch.randn(40, GROUP_SIZE, NUM_FEATURES)
    model = nn.Sequential(nn.Linear(NUM_FEATURES, 16), nn.Tanh(), nn.Linear(16, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=1e-3)

    def difference() -> Tensor:
        return difference_loss(model(groups).squeeze(-1))

    for _ in range(400):
        optimizer.zero_grad()
        with meta_step(model.parameters(), difference, mode=mode, step_size=0.5, weight=0.2):
            loss = bradley_terry_loss(model(chosen).squeeze(-1), model(rejected).squeeze(-1))
            loss.backward()  # for ascent and descent this is the gradient at theta'
        optimizer.step()  # and here the weights are theta again

    with torch.no_grad():
        return accuracy(model, original, 1.0), accuracy(model, shifted, 0.4), difference().item()


print(f"{'seed':>4} {'mode':8} {'original':>9} {'shifted':>8} {'J':>7}")
mean_j = dict.fromkeys(ARMS, 0.0)
for seed in range(NUM_SEEDS):
    for arm in ARMS:
        on_original, on_shifted, kept_j = train_arm(arm, seed)
        mean_j[arm] += kept_j / NUM_SEEDS
        print(f"{seed:>4} {arm:8} {on_original:9.3f} {on_shifted:8.3f} {kept_j:7.4f}")
# Theory gives the order of J near a minimum of L, and promises no accuracy. Mind the sign:
# `ascent`, the algorithm as printed, LOWERS J in the weights that are kept.
assert mean_j["ascent"] < mean_j["off"] < mean_j["descent"], mean_j
assert mean_j["off"] < mean_j["joint"], mean_j
