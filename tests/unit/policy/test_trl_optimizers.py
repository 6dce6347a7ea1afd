# SPDX-License-Identifier: Apache-2.0
"""RLOO, GRPO and DPO through TRL: what the reference is, what is scored, and how they fail."""

import contextlib
import math
from statistics import fmean

import pytest
import torch

from metarm.checkpoints import CheckpointPlace
from metarm.config_optimize import OptimizeSettings
from metarm.errors import ConfigError, DataError, EmptySetError, ModelError
from metarm.models.loading import load_causal_lm, load_encoder
from metarm.models.reward_model import load_score_function
from metarm.models.safe_checkpoints import SafeCheckpoints
from metarm.policy import trl_optimizers
from metarm.policy.optimizers import build_optimizer
from metarm.policy.sampling import join_rows, response_log_probs
from metarm.progress import SilentProgress
from metarm.schema import Message, PreferencePair
from metarm.storage import read_json_lines
from tiny_models import (
    EOS,
    WORDS,
    folder_digest,
    save_causal_lm,
    save_fixed_policy,
    save_reward_model,
)

PROMPTS = ["a b c", "b", "c d", "f"]
GROUPED = ("rloo", "grpo")
PAIRS = [PreferencePair("a", " e", " b"), PreferencePair("b c", " e e", " f a")] * 4
FLAT = torch.tensor([-30.0, -30.0, 0.0, -30.0, 0.5, 1.0, 0.0, -0.5, -1.0, 0.2])
TILTED = torch.tensor([-30.0, -30.0, 0.5, -30.0, 2.0, -1.0, 0.0, 0.3, -0.4, 0.1])


def count_a(prompts, responses):
    return [float(response.split().count("a")) for response in responses]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    save_causal_lm(folder / "policy", seed=1)
    save_causal_lm(folder / "reference", seed=2)
    save_reward_model(folder / "reward")
    return folder


@pytest.fixture
def optimize(models, tmp_path):
    """Runs an optimiser into a folder of its own; returns that folder, its rows, its answer."""
    calls = iter(range(99))

    def run(
        algo,
        *,
        score=count_a,
        prompts=PROMPTS,
        seed=0,
        monitor=None,
        folders=None,
        pairs=PAIRS,
        checkpoints=None,
        **changes,
    ):
        output = tmp_path / f"out{next(calls)}"
        output.mkdir()
        places = {name: models / name for name in ("policy", "reference", "reward")}
        places |= folders or {}
        small = {
            "num_iterations": 3,
            "batch_size": 8,
            "max_completion_length": 5,
            "learning_rate": 1e-3,
            "num_generations": 4,
            "dpo_batch_size": 4,
        }
        settings = OptimizeSettings(algo=algo, **(small | changes))
        returned = build_optimizer(settings, pairs=pairs, checkpoints=checkpoints)(
            policy_dir=places["policy"],
            reference_dir=places["reference"],
            reward_model_dir=places["reward"],
            score=score,
            prompts=prompts,
            output_dir=output,
            seed=seed,
            monitor=monitor,
            progress=SilentProgress(),
        )
        return output, list(read_json_lines(output / "metrics.jsonl")), returned

    return run


def weights(folder):
    return load_causal_lm(folder).state_dict()


def distance(first, second):
    return max((first[name] - second[name]).abs().max().item() for name in first)


@pytest.mark.parametrize("algo", GROUPED)
@pytest.mark.parametrize("use_peft", [False, True])
def test_kl_is_to_sft_and_not_to_the_start_of_the_round(algo, use_peft, optimize, tmp_path):
    """As in round 2: policies of known logits, so that KL is known in closed form."""
    policy = save_fixed_policy(tmp_path / "tilted", TILTED)
    reference = save_fixed_policy(tmp_path / "flat", FLAT)
    seen = []

    def score(prompts, responses):
        seen.append(responses)
        return [0.0] * len(responses)

    _, rows, _ = optimize(
        algo,
        score=score,
        folders={"policy": policy, "reference": reference},
        max_completion_length=1,
        batch_size=64,
        num_iterations=1,
        num_mini_batches=1,
        num_ppo_epochs=1,
        temperature=0.7,
        kl_coef=0.2,
        use_peft=use_peft,
        lora_r=2,
    )
    log_ratios = torch.log_softmax(TILTED / 0.7, 0) - torch.log_softmax(FLAT / 0.7, 0)
    token = {"": EOS, **{f" {word}": 4 + place for place, word in enumerate(WORDS)}}
    expected = fmean(log_ratios[token[response]].item() for response in seen[0])
    assert abs(expected) > 0.1
    assert rows[0]["objective/kl"] == pytest.approx(expected, abs=1e-5)
    unfinished = 1.0 - rows[0]["completions/finished_fraction"]
    assert rows[0]["objective/rlhf_reward"] == pytest.approx(-0.2 * expected - unfinished, abs=1e-5)


@pytest.mark.parametrize("algo", GROUPED)
@pytest.mark.parametrize("use_peft", [False, True])
def test_trl_itself_measures_kl_to_sft(algo, use_peft, optimize, tmp_path, monkeypatch):
    """What TRL optimises, not what is logged here: its own `kl`, of a policy that has not moved.

    RLOO logs the mean of log(pi / ref) per token, GRPO that of ref / pi - 1 - log(ref / pi).
    """
    logged = []

    class Listener(trl_optimizers.IterationKeeper):
        def on_log(self, args, state, control, logs, **others):
            logged.append(dict(logs))
            super().on_log(args, state, control, logs, **others)

    monkeypatch.setattr(trl_optimizers, "IterationKeeper", Listener)
    policy = save_fixed_policy(tmp_path / "tilted", TILTED)
    reference = save_fixed_policy(tmp_path / "flat", FLAT)
    seen = []

    def score(prompts, responses):
        seen.extend(responses)
        return count_a(prompts, responses)

    optimize(
        algo,
        score=score,
        folders={"policy": policy, "reference": reference},
        max_completion_length=1,
        batch_size=64,
        num_iterations=1,
        num_mini_batches=1,
        num_ppo_epochs=1,
        use_peft=use_peft,
        lora_r=2,
    )
    log_ratios = torch.log_softmax(TILTED, 0) - torch.log_softmax(FLAT, 0)
    token = {"": EOS, **{f" {word}": 4 + place for place, word in enumerate(WORDS)}}
    ours = [log_ratios[token[response]].item() for response in seen]
    terms = {"rloo": ours, "grpo": [math.exp(-x) - 1 + x for x in ours]}
    assert logged[0]["kl"] == pytest.approx(fmean(terms[algo]), abs=1e-5)
    assert abs(logged[0]["kl"]) > 0.05, "to the round's own start it would be 0"


@pytest.mark.parametrize("algo", GROUPED)
def test_without_a_weight_kl_is_still_measured_and_moves_nothing(algo, optimize):
    _, rows, _ = optimize(algo, kl_coef=0.0)
    assert rows[0]["objective/kl"] > 0.1
    assert rows[0]["objective/kl_coef"] == 0.0


@pytest.mark.parametrize("algo", GROUPED)
def test_what_is_scored_is_the_text_that_was_written(algo, models, optimize):
    """With its leading space, without special tokens, to its own prompt, and cut ones marked."""
    encoder, seen = load_encoder(models / "policy"), []

    def score(prompts, responses):
        seen.append((list(prompts), list(responses)))
        return count_a(prompts, responses)

    _, rows, _ = optimize(algo, score=score, num_iterations=6, temperature=3.0)
    assert len(seen) == 6
    for row, (prompts, responses) in zip(rows, seen, strict=True):
        assert len(prompts) == 8
        assert set(prompts) <= set(PROMPTS)
        groups = [prompts[start : start + 4] for start in range(0, 8, 4)]
        assert all(len(set(group)) == 1 for group in groups), "a group has one prompt"
        assert row["objective/scores"] == pytest.approx(fmean(count_a([], responses)))
        assert all(r == "" or r.startswith(" ") for r in responses)
        ids = [encoder.encode(p, r) for p, r in zip(prompts, responses, strict=True)]
        assert all(row_ids[-1] == EOS for row_ids in ids), "and EOS, as the reward model reads it"
    # Every prompt once before any comes again: two an iteration, of four.
    drawn = [prompts[place] for prompts, _ in seen for place in (0, 4)]
    assert sorted(drawn[:4]) == sorted(drawn[4:8]) == sorted(PROMPTS)


@pytest.mark.parametrize("algo", GROUPED)
def test_a_score_is_that_of_the_projects_own_scorer(algo, models, optimize):
    scorer, seen = load_score_function(models / "reward"), []

    def score(prompts, responses):
        seen.append((list(prompts), list(responses)))
        return scorer(prompts, responses)

    _, rows, _ = optimize(algo, score=score, num_iterations=2)
    for row, (prompts, responses) in zip(rows, seen, strict=True):
        one_by_one = [scorer([p], [r])[0] for p, r in zip(prompts, responses, strict=True)]
        assert row["objective/scores"] == pytest.approx(fmean(one_by_one), abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("algo", GROUPED)
def test_a_policy_learns_what_is_rewarded(algo, optimize, tmp_path):
    start = save_fixed_policy(tmp_path / "start", FLAT)
    _, rows, _ = optimize(
        algo,
        folders={"policy": start, "reference": start},
        score=lambda prompts, responses: [float(r == " e") for r in responses],
        max_completion_length=1,
        batch_size=64,
        num_iterations=20,
        learning_rate=0.02,
        kl_coef=0.01,
        missing_eos_penalty=0.0,
    )
    assert rows[0]["objective/scores"] < 0.2
    assert rows[-1]["objective/scores"] > 0.8


@pytest.mark.slow
@pytest.mark.parametrize("algo", GROUPED)
def test_micro_batches_give_the_same_policy(algo, optimize):
    whole, _, _ = optimize(algo, num_iterations=2)
    parts, _, _ = optimize(algo, num_iterations=2, micro_batch_size=2)
    assert distance(weights(whole), weights(parts)) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("algo", GROUPED)
def test_the_monitor_is_logged_and_changes_nothing(algo, optimize):
    without, _, _ = optimize(algo)
    seen, rows, _ = optimize(algo, monitor=lambda prompts, responses: [7.0] * len(responses))
    assert [row["objective/gold"] for row in rows] == [7.0] * 3
    assert distance(weights(without), weights(seen)) == 0


@pytest.mark.parametrize("algo", [*GROUPED, "dpo"])
def test_an_adapter_is_merged_and_reads_as_a_plain_folder(algo, models, optimize):
    output, _, _ = optimize(algo, use_peft=True, lora_r=2, learning_rate=1e-2)
    saved, start = weights(output), weights(models / "policy")
    assert set(saved) == set(start)
    moved = {name for name in saved if (saved[name] - start[name]).abs().max() > 1e-6}
    assert moved
    assert not any("embed" in name or "lm_head" in name or "norm" in name for name in moved)


@pytest.mark.parametrize("algo", [*GROUPED, "dpo"])
def test_a_kl_budget_keeps_the_last_weights_within_it(algo, models, optimize):
    home = {"policy": models / "reference"}
    score = {"score": lambda prompts, responses: [float(" e" in r) for r in responses]}
    changes = {"folders": home, "learning_rate": 0.05, "kl_coef": 0.0, **score}
    changes |= {"num_iterations": 8, "dpo_epochs": 8, "batch_size": 16}
    output, rows, returned = optimize(algo, kl_budget=0.3, **changes)
    assert len(rows) < 8
    assert all(row["objective/kl"] <= 0.3 for row in rows[:-1])
    assert rows[-1]["objective/kl"] > 0.3
    assert returned["objective/kl"] <= 0.3
    assert distance(weights(output), weights(models / "reference")) < 0.5
    with pytest.raises(ConfigError, match="before its first update"):
        optimize(algo, kl_budget=1e-9)


@pytest.mark.parametrize(
    "changes",
    [{}, {"kl_budget": 0.02, "learning_rate": 1e-2}, {"use_peft": True, "lora_r": 2}],
    ids=["plain", "budget", "adapter"],
)
@pytest.mark.parametrize("stops", [(1,), (2, 5), (3, 4, 6)])
@pytest.mark.parametrize("algo", [*GROUPED, "dpo"])
def test_it_goes_on_where_it_was_killed(
    algo, stops, changes, models, optimize, tmp_path, monkeypatch
):
    """After these steps of six, in mid-batch or between two: weights and log of an unbroken run."""
    changes = {
        "num_iterations": 3,
        "num_mini_batches": 1,
        "num_ppo_epochs": 2,
        "micro_batch_size": 4,
        "dpo_epochs": 3,
        "seed": 3,
    } | changes
    if "kl_budget" in changes:
        changes["folders"] = {"reference": models / "policy"}
    whole, whole_log, whole_answer = optimize(algo, **changes)
    place = CheckpointPlace(tmp_path / "checkpoints", every=1)
    save, waiting = SafeCheckpoints._save_checkpoint, list(stops)

    def die_there(self, *arguments):
        save(self, *arguments)
        if waiting and self.state.global_step == waiting[0]:
            waiting.pop(0)
            raise InterruptedError

    monkeypatch.setattr(SafeCheckpoints, "_save_checkpoint", die_there)
    for _ in stops:
        # One that a budget has ended before that has nothing to be killed in.
        with contextlib.suppress(InterruptedError):
            optimize(algo, **changes, checkpoints=place)
    assert list(place.folder.rglob("*.bin")) == list(place.folder.rglob("*.pt")) == []
    again, log, answer = optimize(algo, **changes, checkpoints=place)
    for folder in (whole, again):
        # It holds times; its lines are compared below.
        (folder / "metrics.jsonl").unlink()
    assert folder_digest(again) == folder_digest(whole)
    lines = [[row | {"seconds": 0} for row in rows] for rows in (whole_log, log)]
    assert lines[0] == lines[1]
    assert answer | {"seconds": 0} == whole_answer | {"seconds": 0}


def test_dpo_moves_to_the_chosen_side(models, optimize):
    """Its loss and margins, and in the end the log-probabilities themselves."""
    home = {"policy": models / "reference"}
    output, rows, _ = optimize("dpo", folders=home, dpo_epochs=6, learning_rate=3e-3)
    assert [row["iteration"] for row in rows] == list(range(1, 7))
    assert rows[0]["loss/policy_avg"] > rows[-1]["loss/policy_avg"]
    assert rows[-1]["rewards/accuracies"] == 1.0
    after, before = load_causal_lm(output), load_causal_lm(models / "reference")
    encoder = load_encoder(models / "policy")
    for pair in PAIRS[:2]:
        ids = [[*encoder.encode_continuation(side), EOS] for side in (pair.chosen, pair.rejected)]
        batch = join_rows(encoder, [pair.prompt] * 2, ids)
        with torch.no_grad():
            gaps = [
                response_log_probs(model, batch, 1.0).sum(dim=1).diff().neg().item()
                for model in (after, before)
            ]
        assert gaps[0] > gaps[1] + 1.0


def test_the_loss_of_dpo_is_the_papers(models, optimize):
    """Before the first step: -log sigmoid(beta (log ratio of chosen - log ratio of rejected))."""
    pairs = PAIRS[:2]
    _, rows, _ = optimize("dpo", pairs=pairs, dpo_batch_size=2, dpo_beta=0.3, learning_rate=1e-12)
    encoder = load_encoder(models / "policy")
    policy, reference = (load_causal_lm(models / name) for name in ("policy", "reference"))
    losses = []
    for pair in pairs:
        ratios = []
        for side in (pair.chosen, pair.rejected):
            batch = join_rows(encoder, [pair.prompt], [[*encoder.encode_continuation(side), EOS]])
            with torch.no_grad():
                own, theirs = (
                    response_log_probs(m, batch, 1.0).sum().item() for m in (policy, reference)
                )
            ratios.append(own - theirs)
        losses.append(math.log1p(math.exp(-0.3 * (ratios[0] - ratios[1]))))
    assert rows[0]["loss/policy_avg"] == pytest.approx(fmean(losses), abs=1e-4)


def test_dpo_without_pairs_is_an_error(optimize):
    with pytest.raises(EmptySetError, match="dpo learns from labelled pairs, got none"):
        optimize("dpo", pairs=[])


def test_dpo_says_what_it_leaves_out(optimize, caplog):
    long = PreferencePair("a", " " + " ".join("b" * 30), " c")
    optimize("dpo", pairs=[*PAIRS[:2], long])
    assert "1 of 3 pairs left out" in caplog.text
    with pytest.raises(EmptySetError, match="none of the 1 pairs fits"):
        optimize("dpo", pairs=[long])


@pytest.mark.parametrize("algo", [*GROUPED, "dpo"])
def test_no_prompts_is_an_error(algo, optimize):
    with pytest.raises(EmptySetError, match="at least one prompt"):
        optimize(algo, prompts=[])


@pytest.mark.parametrize("algo", GROUPED)
def test_prompts_of_two_kinds_are_an_error(algo, models, optimize, tmp_path):
    templated = {}
    for name in ("policy", "reference"):
        folder = tmp_path / name
        encoder, model = load_encoder(models / name), load_causal_lm(models / name)
        encoder.tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
        model.save_pretrained(folder)
        encoder.tokenizer.save_pretrained(folder)
        templated[name] = folder
    conversation = (Message("user", "a b"),)
    with pytest.raises(DataError, match="prompts of one kind"):
        optimize(algo, prompts=["a", conversation], folders=templated)
    _, rows, _ = optimize(algo, prompts=[conversation], folders=templated, num_iterations=1)
    assert len(rows) == 1


@pytest.mark.parametrize("algo", [*GROUPED, "dpo"])
def test_divergence_is_an_error_and_saves_nothing(algo, optimize, tmp_path):
    with pytest.raises(ModelError, match=r"diverged.*learning_rate"):
        optimize(algo, learning_rate=1e6)
    assert not list(tmp_path.rglob("out*/model.safetensors"))


def test_absolute_positions_are_refused(optimize, models, tmp_path):
    """GPT-2 counts padding: its log-probabilities would be those of other positions."""
    from transformers import GPT2Config, GPT2LMHeadModel

    folder = tmp_path / "gpt2"
    config = GPT2Config(
        vocab_size=10,
        n_positions=24,
        n_embd=16,
        n_layer=1,
        n_head=2,
        eos_token_id=EOS,
        bos_token_id=1,
        initializer_range=0.5,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        GPT2LMHeadModel(config).save_pretrained(folder)
    load_encoder(models / "policy").tokenizer.save_pretrained(folder)
    places = {"policy": folder, "reference": folder}
    with pytest.raises(ModelError, match="absolute positions"):
        optimize("rloo", folders=places)


REFUSED = [
    ({"batch_size": 10}, r"multiple of num_generations \(4\)"),
    ({"batch_size": 12, "num_mini_batches": 5}, "multiple of num_mini_batches"),
    ({"micro_batch_size": 3}, "must divide the mini-batch of 4"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED)
def test_batches_that_cannot_be_cut_into_groups_are_refused(changes, message):
    sizes = {"batch_size": 8, "num_generations": 4} | changes
    with pytest.raises(ValueError, match=message):
        OptimizeSettings(algo="rloo", **sizes)
    OptimizeSettings(algo="ppo", **sizes)
