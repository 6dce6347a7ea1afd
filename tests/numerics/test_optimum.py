# SPDX-License-Identifier: Apache-2.0
"""PPO and RLOO against the closed-form optimum of their objective: one token, and whole texts.

max E[r / s] - beta KL(pi || ref) is beta log sum ref exp(r / (s beta)), reached by pi proportional
to ref exp(r / (s beta)). Rewards are divided by the running deviation s of all scores so far: the
last s is the one that counts, and it hardly moves in the last iterations.
"""

import itertools

import pytest
import torch

from metarm.config_optimize import OptimizeSettings
from metarm.models.loading import load_causal_lm, load_encoder
from metarm.policy.optimizers import build_optimizer
from metarm.policy.sampling import join_rows, response_log_probs
from metarm.progress import SilentProgress
from tiny_models import EOS, WORDS, save_causal_lm, save_fixed_policy, save_reward_model

pytestmark = pytest.mark.slow

BETA = 0.5
# Only the six words are likely. "d" is worth most and rare; "b" is common and worth little.
LOGITS = torch.tensor([-12.0, -12.0, -12.0, -12.0, 0.5, 2.0, 0.0, -2.0, -0.5, 0.8])
REWARDS = dict(zip(WORDS, [0.0, -1.0, 2.0, 4.0, 1.0, 0.5], strict=True))
TABLE = torch.tensor([0.0] * 4 + list(REWARDS.values()), dtype=torch.float64)


class Objective:
    """E[r / s] - beta KL over the responses that there are, and its closed-form optimum."""

    def __init__(self, rewards, reference):
        self.rewards, self.reference = rewards, reference
        self.optimum = BETA * torch.logsumexp(reference + rewards / BETA, 0).item()
        self.gain = self.optimum - self(reference)
        best = torch.log_softmax(reference + rewards / BETA, 0)
        assert self(best) == pytest.approx(self.optimum, abs=1e-9)

    def __call__(self, log_probs):
        return (log_probs.exp() * (self.rewards - BETA * (log_probs - self.reference))).sum().item()

    def missing(self, log_probs):
        """The share of what there is to gain over the reference that is not gained."""
        return (self.optimum - self(log_probs)) / self.gain

    def of_other_weight(self, factor):
        """The optimum of another beta: what a wrong weight of KL would end at."""
        return torch.log_softmax(self.reference + self.rewards / (factor * BETA), 0)


def run(folder, start, score, words=WORDS, **changes):
    """Optimise from the reference; the deviation of all scores that were given."""
    seen = []

    def kept(prompts, responses):
        scores = [score(response) for response in responses]
        seen.extend(scores)
        return scores

    save_reward_model(folder / "reward", words=words)
    output = folder / "out"
    output.mkdir()
    settings = OptimizeSettings(
        **{"kl_coef": BETA, "missing_eos_penalty": 0.0, "batch_size": 512, **changes}
    )
    build_optimizer(settings)(
        policy_dir=start,
        reference_dir=start,
        reward_model_dir=folder / "reward",
        score=kept,
        prompts=["a"],
        output_dir=output,
        seed=0,
        monitor=None,
        progress=SilentProgress(),
    )
    spread = torch.tensor(seen, dtype=torch.float64).std().item()
    scaled = (torch.tensor(seen, dtype=torch.float64) - sum(seen) / len(seen)) / spread
    assert scaled.abs().max() < 5.0, "none is clipped"
    return output, spread


def next_token(folder, temperature):
    logits = load_causal_lm(folder)(input_ids=torch.tensor([[1, 4]])).logits[0, -1].detach()
    return torch.log_softmax(logits.double() / temperature, 0)


# Optimiser and temperature, and the share of the gain that may be missing.
BANDITS = [
    ("ppo", 1.0, 0.01, {"num_iterations": 150, "value_learning_rate": 0.003}),
    ("ppo", 0.7, 0.01, {"num_iterations": 150, "value_learning_rate": 0.003}),
    ("rloo", 1.0, 0.01, {"num_iterations": 80, "num_generations": 8}),
]


@pytest.mark.parametrize(("algo", "temperature", "tolerance", "changes"), BANDITS)
def test_one_token(tmp_path, algo, temperature, tolerance, changes):
    start = save_fixed_policy(tmp_path / "start", LOGITS)
    output, spread = run(
        tmp_path,
        start,
        lambda response: REWARDS.get(response.strip(), 0.0),
        algo=algo,
        max_completion_length=1,
        learning_rate=0.003,
        temperature=temperature,
        **changes,
    )
    objective = Objective(TABLE / spread, torch.log_softmax(LOGITS.double() / temperature, 0))
    assert objective.gain > 0.3
    assert objective.missing(next_token(output, temperature)) < tolerance
    # The optima of a smaller or larger beta are outside that tolerance.
    for factor in (0.8, 1.25):
        assert objective.missing(objective.of_other_weight(factor)) > 2 * tolerance


NUM_TOKENS = 3
VOCABULARY = ("a", "b")


def all_texts(num_ids):
    """Every row of ids there is: ended by EOS, or as long as it may be."""
    open_rows, rows = [[]], []
    for place in range(NUM_TOKENS):
        grown = [[*row, token] for row in open_rows for token in range(num_ids)]
        is_full = place == NUM_TOKENS - 1
        rows += [row for row in grown if is_full or row[-1] == EOS]
        open_rows = [row for row in grown if row[-1] != EOS]
    return rows


def worth(response):
    """What no token is worth by itself: runs, order and length."""
    words = response.split()
    changes = sum(first != second for first, second in itertools.pairwise(words))
    return 1.5 * changes + (words[:1] == ["b"]) - 0.5 * (len(words) == 1)


def log_probs_of(folder, rows):
    model, encoder = load_causal_lm(folder), load_encoder(folder)
    with torch.no_grad():
        batch = join_rows(encoder, ["a"] * len(rows), rows)
        return response_log_probs(model, batch, 1.0).double().sum(dim=1)


# The share of the gain that may be missing.
LANGUAGES = [
    (
        "ppo",
        0.01,
        {"num_iterations": 200, "learning_rate": 0.004, "value_learning_rate": 0.01, "lam": 1.0},
    ),
    ("rloo", 0.02, {"num_iterations": 200, "learning_rate": 0.01, "num_generations": 8}),
]


@pytest.mark.parametrize(("algo", "tolerance", "changes"), LANGUAGES)
def test_a_language_of_three_tokens(tmp_path, algo, tolerance, changes):
    """All 156 texts of a language of six tokens, of which the order is what is rewarded."""
    start = save_causal_lm(tmp_path / "start", seed=3, words=VOCABULARY)
    rows = all_texts(len(VOCABULARY) + 4)
    assert len(rows) == 1 + 5 + 25 * 6
    output, spread = run(
        tmp_path,
        start,
        worth,
        words=VOCABULARY,
        algo=algo,
        max_completion_length=NUM_TOKENS,
        lr_scheduler_type="linear",
        **changes,
    )
    encoder = load_encoder(start)
    texts = [encoder.decode(row[:-1] if row[-1] == EOS else row) for row in rows]
    rewards = torch.tensor([worth(text) for text in texts], dtype=torch.float64)
    reference = log_probs_of(start, rows)
    assert reference.exp().sum().item() == pytest.approx(1.0, abs=1e-5)
    objective = Objective(rewards / spread, reference)
    assert objective.gain > 0.3
    assert objective.missing(log_probs_of(output, rows)) < tolerance
    for factor in (0.8, 1.25):
        assert objective.missing(objective.of_other_weight(factor)) > 2 * tolerance
