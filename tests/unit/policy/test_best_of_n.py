# SPDX-License-Identifier: Apache-2.0
"""Best-of-n: the distribution of the best, its divergence, and what its folder says."""

import math
import os
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch
from scipy import stats

from metarm.config_optimize import OptimizeSettings
from metarm.errors import EmptySetError
from metarm.models.reward_model import load_score_function
from metarm.policy.best_of_n import optimize_best_of_n
from metarm.policy.sampling import SampledPolicy
from metarm.progress import SilentProgress
from metarm.storage import read_json, read_json_lines
from tiny_models import WORDS, save_causal_lm, save_fixed_policy, save_reward_model

ALPHA = 1e-4
# Only the six words are drawn, with these logits.
LOGITS = torch.tensor([-40.0, -40.0, -40.0, -40.0, 0.5, 1.0, 0.0, -0.5, -1.0, 0.2])


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    save_fixed_policy(folder / "reference", LOGITS)
    save_causal_lm(folder / "policy")
    save_reward_model(folder / "reward", seed=3)
    return folder


def optimize(models, output: Path, *, n=4, prompts=("a",), monitor=None, **changes):
    small = {"num_candidates": n, "max_completion_length": 1, "batch_size": 64}
    output.mkdir()
    return optimize_best_of_n(
        policy_dir=models / "policy",
        reference_dir=models / "reference",
        reward_model_dir=models / "reward",
        score=load_score_function(models / "reward"),
        prompts=prompts,
        output_dir=output,
        seed=0,
        monitor=monitor,
        progress=SilentProgress(),
        settings=OptimizeSettings(**(small | changes)),
    )


class Bar:
    def advance(self, steps=1, note=""):
        pass


def draw(folder, *, draws, prompt="a", seed=0):
    groups = SampledPolicy(folder).sample(
        [prompt],
        num_generations=draws,
        temperature=1.0,
        top_p=1.0,
        max_completion_length=1,
        batch_size=2000,
        seed=seed,
        bar=Bar(),
    )
    return [sample.response for sample in groups[0]]


@pytest.mark.parametrize("n", [2, 3])
def test_the_best_is_distributed_as_the_maximum_of_n(models, tmp_path, n):
    """P(rank of the best <= r) = F(r)^n, with F the reference's distribution over ranks."""
    optimize(models, tmp_path / "out", n=n)
    responses = [f" {word}" for word in WORDS]
    scores = load_score_function(models / "reward")(["a"] * 6, responses)
    assert len(set(scores)) == 6
    order = sorted(range(6), key=lambda place: scores[place])
    below = torch.softmax(LOGITS, 0)[4:][order].double().cumsum(0)
    probabilities = torch.diff(below**n, prepend=torch.zeros(1, dtype=torch.float64))
    counts = Counter(draw(tmp_path / "out", draws=2000))
    assert set(counts) <= set(responses)
    seen = [counts[responses[place]] for place in order]
    expected = (probabilities / probabilities.sum() * 2000).tolist()
    assert min(expected) > 5
    assert stats.chisquare(seen, expected).pvalue > ALPHA
    worse = torch.diff(below, prepend=torch.zeros(1, dtype=torch.float64)) * 2000
    assert stats.chisquare(seen, (worse / worse.sum() * 2000).tolist()).pvalue < ALPHA


@pytest.mark.parametrize("n", [2, 16, 100])
def test_the_divergence_is_log_n_less_n_minus_1_over_n(models, tmp_path, n):
    """KL of the maximum of n uniform draws: the integral of n u^(n-1) log(n u^(n-1))."""
    metrics = optimize(models, tmp_path / "out", n=n)
    ours = SampledPolicy(tmp_path / "out").kl_of_best_of_n()
    assert ours == pytest.approx(math.log(n) - (n - 1) / n, abs=1e-12)
    u = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    log_density = math.log(n) + (n - 1) * u.log()
    assert ours == pytest.approx((log_density.exp() * log_density).mean().item(), abs=1e-4)
    assert metrics["objective/kl"] == ours
    assert SampledPolicy(models / "reference").kl_of_best_of_n() is None


def test_each_prompt_keeps_the_best_of_its_own(models, tmp_path):
    """Against all candidates, drawn from the reference by the same seed."""
    optimize(models, tmp_path / "out", n=3)
    prompts, options = (
        ["a", "b c", "d"],
        {"temperature": 1.0, "top_p": 1.0, "seed": 7, "bar": Bar()},
    )
    options |= {"max_completion_length": 4, "batch_size": 5}
    base, best = SampledPolicy(models / "reference"), SampledPolicy(tmp_path / "out")
    candidates = base.sample(prompts, num_generations=6, **options)
    kept = best.sample(prompts, num_generations=2, **options)
    score = load_score_function(models / "reward")
    for prompt, six, two in zip(prompts, candidates, kept, strict=True):
        for start, sample in zip((0, 3), two, strict=True):
            three = [s.response for s in six[start : start + 3]]
            scores = score([prompt] * 3, three)
            assert sample.response == three[scores.index(max(scores))]
    assert best.num_responses(3, 2) == 18


def test_the_folder_says_how_to_sample(models, tmp_path, monkeypatch):
    """Relative folders are found from anywhere; a hub id stays one."""
    monkeypatch.chdir(models)
    optimize(Path(), tmp_path / "out", monitor=lambda prompts, responses: [2.0] * len(responses))
    assert read_json(tmp_path / "out" / "best_of_n.json") == {
        "base": str(models / "reference"),
        "reward_model": str(models / "reward"),
        "num_candidates": 4,
        "base_from_here": os.path.relpath(models / "reference", tmp_path / "out"),
        "reward_model_from_here": os.path.relpath(models / "reward", tmp_path / "out"),
    }
    (row,) = read_json_lines(tmp_path / "out" / "metrics.jsonl")
    assert (row["iteration"], row["objective/gold"]) == (1, 2.0)


def test_a_run_that_was_moved_is_found_beside_the_policy(models, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(models, run)
    optimize(run, run / "out")
    before = draw(run / "out", draws=5)
    run.rename(tmp_path / "moved")
    assert draw(tmp_path / "moved" / "out", draws=5) == before


def test_a_policy_that_was_moved_alone_finds_its_models_where_they_stood(models, tmp_path):
    optimize(models, tmp_path / "out")
    before = draw(tmp_path / "out", draws=5)
    (tmp_path / "deeper").mkdir()
    (tmp_path / "out").rename(tmp_path / "deeper" / "out")
    assert draw(tmp_path / "deeper" / "out", draws=5) == before


def test_a_hub_id_is_not_taken_for_a_folder():
    from metarm.policy import best_of_n

    assert best_of_n._place(Path("some-one/some-model")) == "some-one/some-model"


def test_no_prompts_is_an_error(models, tmp_path):
    with pytest.raises(EmptySetError, match="at least one prompt"):
        optimize(models, tmp_path / "out", prompts=[])
