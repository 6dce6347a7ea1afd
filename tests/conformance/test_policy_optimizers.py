# SPDX-License-Identifier: Apache-2.0
"""Every row of OPTIMIZERS keeps the laws of `protocols.PolicyOptimizer`; so does a user's own."""

import inspect
import math

import pytest

from metarm.config_optimize import OptimizeSettings
from metarm.errors import ConfigError
from metarm.models.reward_model import load_score_function
from metarm.policy.optimizers import OPTIMIZERS, build_optimizer
from metarm.policy.sampling import SampledPolicy
from metarm.progress import SilentProgress
from metarm.protocols import PolicyOptimizer
from metarm.schema import PreferencePair
from metarm.storage import read_json, read_json_lines
from tiny_models import folder_digest, save_causal_lm, save_reward_model

PROMPTS = ["a b c", "b", "c d"]
NUM_ITERATIONS = {"ppo": 3, "rloo": 3, "grpo": 3, "best_of_n": 1, "dpo": 2}
PAIRS = [
    PreferencePair("a b c", " d", " e f"),
    PreferencePair("b", " a a", " c"),
    PreferencePair("c d", " b", " f f f"),
]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    save_causal_lm(folder / "policy", seed=1)
    save_causal_lm(folder / "reference", seed=2)
    save_reward_model(folder / "reward")
    return folder


def settings(algo):
    return OptimizeSettings(
        algo=algo,
        num_iterations=3,
        batch_size=6,
        max_completion_length=4,
        learning_rate=1e-3,
        value_learning_rate=1e-3,
        value_warmup_iterations=1,
        num_candidates=3,
        num_generations=3,
        dpo_epochs=2,
        dpo_batch_size=2,
    )


def optimize(models, output, algo, *, seed=0, policy="policy", monitor=None):
    output.mkdir()
    return build_optimizer(settings(algo), pairs=PAIRS)(
        policy_dir=models / policy,
        reference_dir=models / "reference",
        reward_model_dir=models / "reward",
        score=load_score_function(models / "reward"),
        prompts=PROMPTS,
        output_dir=output,
        seed=seed,
        monitor=monitor,
        progress=SilentProgress(),
    )


def responses(folder):
    class Bar:
        def advance(self, steps=1, note=""):
            pass

    return SampledPolicy(folder).sample(
        PROMPTS,
        num_generations=4,
        temperature=1.0,
        top_p=1.0,
        max_completion_length=4,
        batch_size=8,
        seed=0,
        bar=Bar(),
    )


def without_time(rows):
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


@pytest.mark.parametrize("algo", OPTIMIZERS)
def test_its_parameters_are_those_of_the_protocol(algo):
    ours = dict(inspect.signature(OPTIMIZERS[algo]).parameters)
    assert ours.pop("settings").annotation is OptimizeSettings
    # Bound by `build_optimizer`, where they are asked for.
    for name in ("pairs", "demonstrations", "observer", "checkpoints"):
        ours.pop(name, None)
    theirs = dict(inspect.signature(PolicyOptimizer.__call__).parameters)
    theirs.pop("self")
    assert {name: p.kind for name, p in ours.items()} == {n: p.kind for n, p in theirs.items()}


@pytest.mark.parametrize("algo", OPTIMIZERS)
def test_the_folders_it_reads_stay_as_they_are(algo, models, tmp_path):
    before = folder_digest(models)
    optimize(models, tmp_path / "out", algo)
    assert folder_digest(models) == before


@pytest.mark.parametrize("algo", OPTIMIZERS)
def test_the_same_seed_gives_the_same_result(algo, models, tmp_path):
    for name, seed in (("first", 0), ("again", 0), ("other", 1)):
        optimize(models, tmp_path / name, algo, seed=seed)
    rows = {
        name: without_time(read_json_lines(tmp_path / name / "metrics.jsonl"))
        for name in ("first", "again", "other")
    }
    assert rows["first"] == rows["again"] != rows["other"]
    for name in ("first", "again", "other"):
        (tmp_path / name / "metrics.jsonl").unlink()
    assert folder_digest(tmp_path / "first") == folder_digest(tmp_path / "again")


@pytest.mark.parametrize("algo", OPTIMIZERS)
def test_each_iteration_is_a_line_of_finite_numbers(algo, models, tmp_path):
    returned = optimize(
        models, tmp_path / "out", algo, monitor=lambda prompts, responses: [1.5] * len(responses)
    )
    rows = list(read_json_lines(tmp_path / "out" / "metrics.jsonl"))
    assert [row["iteration"] for row in rows] == list(range(1, NUM_ITERATIONS[algo] + 1))
    assert rows[-1] == returned
    for row in rows:
        assert {"objective/kl", "objective/scores", "objective/gold"} <= set(row)
        assert all(math.isfinite(value) for value in row.values())
        assert row["objective/gold"] == 1.5


@pytest.mark.parametrize("algo", OPTIMIZERS)
def test_the_result_can_be_sampled(algo, models, tmp_path):
    optimize(models, tmp_path / "out", algo)
    first = responses(tmp_path / "out")
    assert [len(group) for group in first] == [4] * 3
    assert responses(tmp_path / "out") == first
    assert first != responses(models / "reference")


@pytest.mark.parametrize("algo", OPTIMIZERS)
def test_kl_is_to_the_reference_and_to_nothing_else(algo, models, tmp_path):
    """Started from the reference itself KL begins at 0, from another policy it does not."""
    optimize(models, tmp_path / "same", algo, policy="reference")
    optimize(models, tmp_path / "other", algo)
    first = next(read_json_lines(tmp_path / "same" / "metrics.jsonl"))["objective/kl"]
    other = next(read_json_lines(tmp_path / "other" / "metrics.jsonl"))["objective/kl"]
    if algo == "best_of_n":  # it always starts from the reference
        assert first == other > 0
    elif algo == "dpo":  # measured after a pass, not before
        assert abs(first) < 0.3 < other
    else:
        assert first == pytest.approx(0.0, abs=1e-5)
        assert other > 0.1


@pytest.mark.parametrize("algo", OPTIMIZERS)
def test_the_folder_holds_a_policy_and_nothing_that_runs_code(algo, models, tmp_path):
    """Trainers like to leave a pickle of their arguments, with this machine's paths."""
    optimize(models, tmp_path / "out", algo)
    suffixes = {path.suffix for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert suffixes <= {".json", ".jsonl", ".safetensors"}


@pytest.mark.parametrize("algo", [name for name in OPTIMIZERS if name != "best_of_n"])
def test_what_is_saved_ends_and_samples_as_the_start_does(algo, models, tmp_path):
    """No sampling setting of a trainer's becomes the policy's own."""
    optimize(models, tmp_path / "out", algo)
    for name in ("generation_config.json", "config.json"):
        ours, theirs = (read_json(place / name) for place in (tmp_path / "out", models / "policy"))
        assert ours == theirs, name


def test_a_users_own_function_follows_the_protocol(models, tmp_path, monkeypatch):
    """It gets what the protocol names, and the settings only if it asks for them."""
    parameters = ", ".join(
        name for name in inspect.signature(PolicyOptimizer.__call__).parameters if name != "self"
    )
    (tmp_path / "own_optimizers.py").write_text(
        f"def plain(*, {parameters}):\n    return {{'seed': seed}}\n"
        f"def bound(*, {parameters}, settings):\n    return {{'n': settings.num_candidates}}\n"
        f"def taught(*, {parameters}, pairs):\n    return {{'pairs': len(pairs)}}\n"
    )
    monkeypatch.chdir(tmp_path)
    assert optimize(models, tmp_path / "out1", "own_optimizers:plain", seed=4) == {"seed": 4}
    assert optimize(models, tmp_path / "out2", "own_optimizers:bound") == {"n": 3}
    assert optimize(models, tmp_path / "out3", "own_optimizers:taught") == {"pairs": 3}


def test_an_unknown_optimizer_is_named_with_its_neighbours():
    with pytest.raises(ConfigError, match=r"optimize\.algo: unknown name 'pppo'.*'ppo'"):
        build_optimizer(settings("pppo"))
