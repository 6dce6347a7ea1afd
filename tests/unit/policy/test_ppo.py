# SPDX-License-Identifier: Apache-2.0
"""PPO as a whole on tiny models: what KL, scores and penalties refer to, and how it fails."""

import math
from statistics import fmean

import pytest
import torch

from metarm.checkpoints import CheckpointPlace, StateKeeper
from metarm.config_optimize import OptimizeSettings
from metarm.errors import ConfigError, DataError, EmptySetError, ModelError
from metarm.models.loading import load_causal_lm, load_encoder
from metarm.policy import ppo
from metarm.policy.control import adapted_kl_coef
from metarm.policy.ppo import optimize_ppo
from metarm.policy.ppo_models import load_models, read_texts
from metarm.policy.prompt_order import prompt_batch
from metarm.policy.sampling import response_log_probs
from metarm.policy.sft import collate_texts, encode_demonstration
from metarm.progress import SilentProgress
from metarm.storage import read_json, read_json_lines
from metarm.streams import generator
from tiny_models import (
    EOS,
    WORDS,
    folder_digest,
    save_causal_lm,
    save_fixed_policy,
    save_reward_model,
)

PROMPTS = ["a b c", "b", "c d", "f"]
DEMONSTRATIONS = [("a b", " c d"), ("c", " e f e"), ("f", " a"), ("b b b", " c a b")]


def count_a(prompts, responses):
    return [float(response.split().count("a")) for response in responses]


def settings(**changes):
    small = {
        "num_iterations": 3,
        "batch_size": 8,
        "max_completion_length": 5,
        "learning_rate": 1e-3,
        "value_learning_rate": 1e-3,
        "value_warmup_iterations": 0,
    }
    return OptimizeSettings(**(small | changes))


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    save_causal_lm(folder / "policy", seed=1)
    save_causal_lm(folder / "reference", seed=2)
    save_reward_model(folder / "reward")
    return folder


@pytest.fixture
def optimize(models, tmp_path):
    """Runs PPO into a folder of its own; returns that folder and the rows of its log."""
    calls = iter(range(99))

    def run(
        *,
        score=count_a,
        prompts=PROMPTS,
        seed=0,
        monitor=None,
        folders=None,
        demonstrations=(),
        checkpoints=None,
        **changes,
    ):
        output = tmp_path / f"out{next(calls)}"
        output.mkdir()
        places = {name: models / name for name in ("policy", "reference", "reward")}
        places |= folders or {}
        returned = optimize_ppo(
            policy_dir=places["policy"],
            reference_dir=places["reference"],
            reward_model_dir=places["reward"],
            score=score,
            prompts=prompts,
            output_dir=output,
            seed=seed,
            monitor=monitor,
            progress=SilentProgress(),
            settings=settings(**changes),
            demonstrations=demonstrations,
            checkpoints=checkpoints,
        )
        rows = list(read_json_lines(output / "metrics.jsonl"))
        if "kl_budget" not in changes:
            assert rows[-1] == returned
        return output, rows

    return run


def set_up(models, score=count_a, *, prompts=PROMPTS, texts=(), **changes):
    """A run before its first iteration, with as many responses as prompts if not told."""
    asked = settings(**({"batch_size": len(prompts)} | changes))
    loaded = load_models(asked, models / "policy", models / "reference", models / "reward", seed=0)
    rows = read_texts(asked, texts, loaded.encoder, loaded.policy)
    return ppo._start(
        asked, loaded, prompts, rows, score, models / "reward", None, StateKeeper(None), 0
    )


def roll_out(run):
    """The next iteration's responses, as the loop would leave them in the state."""
    ppo._begin_iteration(run)
    return run.state.rollout


def weights(folder):
    return load_causal_lm(folder).state_dict()


def distance(first, second):
    return max((first[name] - second[name]).abs().max().item() for name in first)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_first_ratio_of_every_iteration_is_1(optimize, temperature):
    """One update an iteration: its ratios are those before the update."""
    _, rows = optimize(
        temperature=temperature, num_ppo_epochs=1, num_mini_batches=1, num_iterations=5
    )
    assert [row["policy/clipfrac_avg"] for row in rows] == [0.0] * 5
    # k3 is half the squared log ratio: 5e-11 bounds it by 1e-5.
    assert all(abs(row["policy/approxkl_avg"]) < 5e-11 for row in rows)
    _, rows = optimize(temperature=temperature, num_ppo_epochs=2, num_mini_batches=1)
    assert all(row["policy/approxkl_avg"] > 1e-8 for row in rows), "the second pass has moved"


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_recomputed_log_probs_are_the_old_ones(models, temperature):
    run = set_up(models, temperature=temperature, batch_size=8)
    rollout = roll_out(run)
    with torch.no_grad():
        for rows in torch.randperm(8).chunk(2):
            batch = type(rollout.batch)(*(tensor[rows] for tensor in rollout.batch))
            again = response_log_probs(run.state.policy, batch, temperature)
            assert (again - rollout.old_log_probs[rows]).abs().max() < 1e-5


FLAT = torch.tensor([-30.0, -30.0, 0.0, -30.0, 0.5, 1.0, 0.0, -0.5, -1.0, 0.2])
TILTED = torch.tensor([-30.0, -30.0, 0.5, -30.0, 2.0, -1.0, 0.0, 0.3, -0.4, 0.1])


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_kl_is_to_the_reference_and_under_the_sampling_distribution(
    optimize, tmp_path, temperature
):
    """Log ratios of these policies are known in closed form, token by token."""
    policy = save_fixed_policy(tmp_path / "tilted", TILTED)
    reference = save_fixed_policy(tmp_path / "flat", FLAT)
    seen = []

    def score(prompts, responses):
        seen.append(responses)
        return [0.0] * len(responses)

    _, rows = optimize(
        score=score,
        folders={"policy": policy, "reference": reference},
        max_completion_length=1,
        batch_size=64,
        num_iterations=1,
        value_warmup_iterations=1,
        temperature=temperature,
        kl_coef=0.2,
    )
    log_ratios = torch.log_softmax(TILTED / temperature, 0) - torch.log_softmax(
        FLAT / temperature, 0
    )
    token = {"": EOS, **{f" {word}": 4 + place for place, word in enumerate(WORDS)}}
    expected = fmean(log_ratios[token[response]].item() for response in seen[0])
    assert abs(expected) > 0.1
    assert rows[0]["objective/kl"] == pytest.approx(expected, abs=1e-5)
    # Scores are all alike: what is left of the reward is the KL and the missing EOS.
    unfinished = 1.0 - rows[0]["completions/finished_fraction"]
    assert rows[0]["objective/rlhf_reward"] == pytest.approx(
        -0.2 * expected - 1.0 * unfinished, abs=1e-5
    )


def test_the_penalty_hits_the_unfinished_responses_alone(models):
    run = set_up(
        models,
        score=lambda prompts, responses: [3.0] * len(responses),
        missing_eos_penalty=0.75,
        kl_coef=0.0,
        gamma=1.0,
        lam=1.0,
        batch_size=16,
    )
    rollout = roll_out(run)
    # Monte-Carlo returns of constant scores and no KL: each token's is the penalty of its row.
    penalties = [
        set(row[mask].round(decimals=5).tolist())
        for row, mask in zip(rollout.returns, rollout.batch.response_mask, strict=True)
    ]
    unfinished = [EOS not in row for row in rollout.batch.response_ids.tolist()]
    assert {True, False} == set(unfinished)
    assert penalties == [{-0.75} if cut else {0.0} for cut in unfinished]


def test_scores_are_normalised_by_what_has_been_seen_in_this_call(models):
    """First batch 0 and 2, then 4 and 6: mean 3 and deviation sqrt(20/3) of all four by then."""
    batches = iter([[0.0, 2.0], [4.0, 6.0]])
    run = set_up(
        models,
        score=lambda prompts, responses: next(batches),
        missing_eos_penalty=0.0,
        kl_coef=0.0,
        gamma=1.0,
        lam=1.0,
        prompts=["a", "b"],
    )
    first = roll_out(run).returns[:, 0]
    assert first.tolist() == pytest.approx([-1 / math.sqrt(2), 1 / math.sqrt(2)], abs=1e-5)
    second = roll_out(run).returns[:, 0]
    deviation = math.sqrt(20 / 3)
    assert second.tolist() == pytest.approx([1 / deviation, 3 / deviation], abs=1e-5)


def test_normalised_scores_are_clipped_before_the_penalty(models):
    run = set_up(
        models,
        score=lambda prompts, responses: [1000.0] + [0.0] * (len(responses) - 1),
        reward_clip=0.1,
        missing_eos_penalty=1.0,
        kl_coef=0.0,
        gamma=1.0,
        lam=1.0,
        batch_size=16,
    )
    rollout = roll_out(run)
    cut = torch.tensor([EOS not in row for row in rollout.batch.response_ids.tolist()]).float()
    # The others' normalised score is -0.25: clipped to -0.1 as well.
    expected = torch.full((16,), -0.1)
    expected[0] = 0.1
    torch.testing.assert_close(rollout.returns[:, 0], expected - cut, atol=1e-5, rtol=0)


def test_advantages_are_whitened_and_returns_are_not(models):
    run = set_up(models, batch_size=16)
    rollout = roll_out(run)
    mask = rollout.batch.response_mask
    inside = rollout.advantages[mask]
    assert inside.mean().item() == pytest.approx(0.0, abs=1e-5)
    assert inside.std(unbiased=False).item() == pytest.approx(1.0, abs=1e-4)
    plain = (rollout.returns - rollout.old_values)[mask]
    assert plain.std(unbiased=False).item() != pytest.approx(1.0, abs=0.05)
    white = (plain - plain.mean()) / plain.std(unbiased=False)
    torch.testing.assert_close(inside, white, atol=1e-4, rtol=0)


def test_no_call_leaves_anything_for_the_next(optimize):
    """Running moments are new in each call: another reward model has another scale."""
    first, _ = optimize()
    optimize(score=lambda prompts, responses: [1e4 + len(response) for response in responses])
    again, _ = optimize()
    assert folder_digest(first / "model.safetensors") == folder_digest(again / "model.safetensors")
    assert distance(weights(first), weights(again)) == 0


def test_unit_and_offset_of_the_scores_do_not_matter(optimize):
    plain, _ = optimize()
    scaled, _ = optimize(
        score=lambda prompts, responses: [64.0 * s - 32.0 for s in count_a(prompts, responses)]
    )
    assert distance(weights(plain), weights(scaled)) < 1e-4
    other, _ = optimize(score=lambda prompts, responses: [-s for s in count_a(prompts, responses)])
    assert distance(weights(plain), weights(other)) > 1e-3


def test_constant_scores_move_no_more_than_the_penalty_asks(optimize):
    """A reward model with one score for everything has no spread to divide by."""
    _, rows = optimize(score=lambda prompts, responses: [0.1] * len(responses))
    assert all(math.isfinite(value) for row in rows for value in row.values())
    assert rows[0]["objective/scores"] == pytest.approx(0.1)


def test_only_the_value_model_learns_while_it_warms_up(models, optimize):
    output, rows = optimize(value_warmup_iterations=2)
    assert all("loss/value_avg" in row for row in rows)
    assert ["loss/policy_avg" in row for row in rows] == [False, False, True]
    assert distance(weights(output), weights(models / "policy")) > 0


def test_no_gradient_is_taken_of_the_policy_while_values_warm_up(models):
    run = set_up(models, value_warmup_iterations=1, ptx_coef=1.0, texts=DEMONSTRATIONS)
    roll_out(run)
    ppo._learn(run)
    assert all(weight.grad is None for weight in run.state.policy.parameters())
    assert all(weight.grad is None for weight in run.reference.parameters())
    assert run.state.value_model.score.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("size", [1, 3, 64])
def test_micro_batches_give_the_same_gradient(models, size):
    """Responses differ in length: parts weighted by rows instead of tokens would be off."""
    gradients = []
    changes = {"num_mini_batches": 1, "temperature": 30.0, "batch_size": 8}  # hot: some end early
    for micro_batch_size in (None, size):
        run = set_up(
            models,
            micro_batch_size=micro_batch_size,
            ptx_coef=0.5,
            texts=DEMONSTRATIONS,
            **changes,
        )
        rollout = roll_out(run)
        metrics = ppo._step(run, torch.arange(8))
        weights_of = [*run.state.policy.parameters(), *run.state.value_model.parameters()]
        gradients.append((torch.cat([w.grad.ravel() for w in weights_of]), metrics))
    assert len(set(rollout.batch.response_mask.sum(dim=1).tolist())) > 1
    (whole, told), (parts, told_in_parts) = gradients
    assert torch.allclose(parts, whole, atol=1e-6)
    assert told_in_parts == pytest.approx(told, abs=1e-6)


def test_each_model_has_its_learning_rate_and_its_own_clip(models):
    run = set_up(
        models,
        learning_rate=3e-4,
        value_learning_rate=7e-4,
        max_grad_norm=1e-3,
        batch_size=8,
    )
    groups = [
        (group["lr"], {id(weight) for weight in group["params"]})
        for group in run.state.optimizer.param_groups
    ]
    assert groups == [
        (3e-4, {id(weight) for weight in run.state.policy.parameters()}),
        (7e-4, {id(weight) for weight in run.state.value_model.parameters()}),
    ]
    roll_out(run)
    ppo._learn(run)
    for model in (run.state.policy, run.state.value_model):
        norm = torch.stack([weight.grad.norm() for weight in model.parameters()]).norm()
        assert norm.item() == pytest.approx(1e-3, rel=0.01)


def test_the_value_model_starts_as_the_reward_model(models):
    from safetensors.torch import load_file

    run = set_up(models)
    saved = load_file(models / "reward" / "model.safetensors")
    assert distance(saved, run.state.value_model.state_dict()) == 0


def test_every_prompt_comes_once_before_any_comes_again(optimize):
    asked = []

    def score(prompts, responses):
        asked.extend(prompts)
        return count_a(prompts, responses)

    optimize(score=score, batch_size=3, num_iterations=8, value_warmup_iterations=8)
    passes = [asked[start : start + 4] for start in range(0, 24, 4)]
    assert all(sorted(one) == sorted(PROMPTS) for one in passes)
    assert len({tuple(one) for one in passes}) > 1, "each pass in another order"


def test_the_monitor_is_logged_and_changes_nothing(optimize):
    without, _ = optimize()
    with_monitor, rows = optimize(monitor=lambda prompts, responses: [7.0] * len(responses))
    assert [row["objective/gold"] for row in rows] == [7.0] * 3
    assert distance(weights(without), weights(with_monitor)) == 0


def test_metrics_are_those_of_the_responses(optimize):
    seen = []

    def score(prompts, responses):
        seen.append(responses)
        return count_a(prompts, responses)

    _, rows = optimize(score=score)
    for row, responses in zip(rows, seen, strict=True):
        assert row["objective/scores"] == pytest.approx(fmean(count_a([], responses)))
        # Words are tokens; EOS is a token of finished responses.
        words = fmean(len(response.split()) for response in responses)
        assert row["completions/mean_length"] >= words
        assert row["completions/mean_length"] <= 5
    assert [row["iteration"] for row in rows] == [1, 2, 3]


def test_entropy_is_that_of_the_sampling_distribution(optimize, tmp_path):
    policy = save_fixed_policy(tmp_path / "policy", FLAT)
    _, rows = optimize(
        folders={"policy": policy, "reference": policy},
        max_completion_length=1,
        batch_size=4000,
        num_iterations=1,
        value_warmup_iterations=1,
        temperature=0.7,
    )
    log_probs = torch.log_softmax(FLAT / 0.7, 0)
    entropy = -(log_probs.exp() * log_probs).sum().item()
    # Of 4000 draws: three standard errors of -log p, whose deviation is 0.7, are 0.03.
    assert rows[0]["objective/entropy"] == pytest.approx(entropy, abs=0.035)
    assert rows[0]["objective/kl"] == pytest.approx(0.0, abs=1e-6)


def test_a_policy_learns_what_is_rewarded(optimize, tmp_path):
    start = save_fixed_policy(tmp_path / "start", FLAT)
    output, rows = optimize(
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
    policy = load_causal_lm(output)
    logits = policy(input_ids=torch.tensor([[1, 4]])).logits[0, -1]
    assert torch.softmax(logits, 0)[4 + WORDS.index("e")] > 0.8


def test_a_prompt_that_does_not_fit_is_found_before_anything_is_scored(optimize):
    def refuse(prompts, responses):
        raise AssertionError("scored before the prompts were checked")

    with pytest.raises(DataError, match="context is 24"):
        optimize(prompts=[*PROMPTS, " ".join("a" * 19)], score=refuse, batch_size=1)


def test_no_prompts_is_an_error(optimize):
    with pytest.raises(EmptySetError, match="at least one prompt"):
        optimize(prompts=[])


@pytest.mark.parametrize("name", ["reward", "reference"])
def test_another_tokenizer_is_an_error(optimize, tmp_path, name):
    save = save_reward_model if name == "reward" else save_causal_lm
    other = save(tmp_path / "other", words=tuple("bacdef"))
    with pytest.raises(ModelError, match="has another tokenizer than"):
        optimize(folders={name: other})


@pytest.mark.parametrize("learning_rate", [1e6, 1e30])
def test_divergence_is_an_error_and_saves_nothing(optimize, tmp_path, learning_rate):
    with pytest.raises(ModelError, match=r"diverged.*learning_rate"):
        optimize(learning_rate=learning_rate)
    assert not list(tmp_path.rglob("model.safetensors"))


def test_a_score_that_is_not_finite_is_an_error(optimize, tmp_path):
    with pytest.raises(ModelError, match="not finite"):
        optimize(score=lambda prompts, responses: [math.nan] * len(responses))
    assert not list(tmp_path.rglob("model.safetensors"))


def test_a_step_that_is_not_finite_leaves_what_led_to_it(optimize, tmp_path, monkeypatch):
    """Of the batch that was not learnt from; the state before it stays the one to go on from."""
    place = CheckpointPlace(tmp_path / "kept", every=1)
    add = ppo._add_gradient

    def add_nan_in_the_third_step(run, rollout, rows):
        metrics, total = add(run, rollout, rows)
        third = (run.state.iteration, run.state.num_updates) == (0, 2)
        return metrics, math.nan if third else total

    monkeypatch.setattr(ppo, "_add_gradient", add_nan_in_the_third_step)
    with pytest.raises(ModelError, match=r"not finite.*not_finite_1_3\.json"):
        optimize(checkpoints=place, num_ppo_epochs=2, num_mini_batches=2)
    bundle = read_json(place.folder / "not_finite_1_3.json")
    assert len(bundle["input_ids"]) == len(bundle["advantages"]) == 4
    assert [float(x) for x in bundle["returns"][0]]
    assert StateKeeper(place).newest()[0] == 2


@pytest.mark.parametrize("first", [None, 4])
def test_want_of_memory_halves_what_is_computed_at_once(
    optimize, tmp_path, monkeypatch, caplog, first
):
    """In the look back at a batch, in a step and in its texts: the updates are the same."""
    changes = {"num_iterations": 2, "demonstrations": DEMONSTRATIONS, "ptx_coef": 0.5}
    changes |= {"batch_size": 8, "num_mini_batches": 1, "ptx_batch_size": 8}
    whole, log = optimize(**changes)
    most, computed = 3, []

    def within_three(compute, rows_of):
        def call(*arguments, **options):
            rows = rows_of(*arguments)
            computed.append(rows)
            if rows > most:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")
            return compute(*arguments, **options)

        return call

    for name, rows_of in (
        ("response_log_probs", lambda model, batch, temperature: len(batch.input_ids)),
        ("token_values", lambda model, batch: len(batch.input_ids)),
        ("collate_texts", lambda batch, pad: len(batch)),
    ):
        monkeypatch.setattr(ppo, name, within_three(getattr(ppo, name), rows_of))
    small, again = optimize(**changes, micro_batch_size=first)
    assert max(computed[-9:]) == 2
    assert "from here on 2 at once, with the same updates" in caplog.text
    assert distance(weights(small), weights(whole)) < 1e-6
    assert [row["objective/kl"] for row in again] == pytest.approx(
        [row["objective/kl"] for row in log], abs=1e-5
    )


def test_want_of_memory_for_one_response_is_an_error(optimize, monkeypatch, caplog):
    def too_much(*arguments):
        raise MemoryError

    monkeypatch.setattr(ppo, "token_values", too_much)
    with pytest.raises(ModelError, match=r"one response at a time.*use_peft"):
        optimize()
    assert caplog.text.count("out of memory with") == 3, "8, 4 and 2 at once"


def test_other_errors_are_not_tried_again(optimize, monkeypatch):
    def broken(*arguments):
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(ppo, "token_values", broken)
    with pytest.raises(RuntimeError, match="shapes"):
        optimize()


def test_the_saved_policy_is_whole(optimize):
    output, _ = optimize(num_iterations=1)
    assert load_encoder(output).encode("a", " b") == [1, 4, 5, EOS]


def test_prompts_of_an_iteration_depend_on_nothing_before_it():
    """A run that is taken up in the middle reads what it would have read."""
    prompts = list("abcdefg")
    batches = [prompt_batch(prompts, 3, 5, iteration) for iteration in range(14)]
    drawn = [prompt for batch in batches for prompt in batch]
    passes = [drawn[start : start + 7] for start in range(0, 42, 7)]
    assert all(sorted(one) == prompts for one in passes)
    assert len({tuple(one) for one in passes}) > 1
    assert prompt_batch(prompts, 3, 5, 9) == batches[9] != prompt_batch(prompts, 3, 6, 9)
    assert sorted(prompt_batch(prompts, 14, 0, 0)) == sorted(prompts * 2), "more than one pass"


def test_a_state_taken_up_in_the_middle_of_a_batch_ends_the_same(models):
    """Steps that were taken are not taken again: bit for bit the weights of the whole."""
    changes = {"num_mini_batches": 2, "num_ppo_epochs": 2, "batch_size": 8}
    extra = {"ptx_coef": 0.1, "texts": DEMONSTRATIONS}
    whole = set_up(models, **changes, **extra)
    roll_out(whole)
    ppo._learn(whole)
    stopped = set_up(models, **changes, **extra)
    roll_out(stopped)
    steps = ppo._mini_batches(stopped)
    for rows in steps[:3]:
        ppo._step(stopped, rows)
        stopped.state.num_updates += 1
    ppo._learn(stopped)
    assert stopped.state.num_updates == len(steps) == 4
    assert distance(whole.state.policy.state_dict(), stopped.state.policy.state_dict()) == 0


@pytest.mark.parametrize("coef", [0.3, 2.0])
def test_text_gradients_are_added_in_the_same_step(models, coef):
    """PPO's gradient + coef * that of the language-model loss, taken by transformers itself."""

    def gradients(run, rows=None):
        if rows is not None:
            ppo._step(run, rows)
        return [w.grad.clone() for w in run.state.policy.parameters()]

    free = {"max_grad_norm": 1e9, "num_mini_batches": 1, "batch_size": 8}
    plain, mixed = (
        set_up(models, **free),
        set_up(models, ptx_coef=coef, texts=DEMONSTRATIONS, ptx_batch_size=3, **free),
    )
    for run in (plain, mixed):
        roll_out(run)
    rows = torch.arange(8)
    ppo_only = gradients(plain, rows)
    both = gradients(mixed, rows)
    alone = set_up(models, **free)
    drawn = torch.randperm(4, generator=generator(0, "texts", 0, 0))[:3].tolist()
    batch = [DEMONSTRATIONS[index] for index in drawn]
    encoded = [encode_demonstration(alone.encoder, *text) for text in batch]
    tensors = collate_texts(encoded, alone.encoder.pad_token_id)
    loss = alone.state.policy(**tensors).loss
    loss.backward()
    text_only = gradients(alone)
    for whole, first, second in zip(both, ppo_only, text_only, strict=True):
        torch.testing.assert_close(whole, first + coef * second, atol=2e-6, rtol=1e-5)
    assert max(gradient.abs().max() for gradient in text_only) > 1e-3


def test_text_loss_is_logged_and_keeps_texts_likely(optimize):
    changes = {"num_iterations": 12, "learning_rate": 3e-3}
    _, rows = optimize(demonstrations=DEMONSTRATIONS, ptx_coef=1.0, **changes)
    losses = [row["loss/ptx_avg"] for row in rows]
    assert losses[-1] < 0.7 * losses[0]
    _, rows = optimize(demonstrations=DEMONSTRATIONS, **changes)
    assert all("loss/ptx_avg" not in row for row in rows)


def test_texts_come_from_a_file_too(optimize, tmp_path):
    path = tmp_path / "texts.txt"
    path.write_text("a b c d\n\nf e d\n", encoding="utf-8")
    _, rows = optimize(ptx_coef=0.5, ptx_texts=str(path))
    assert all(row["loss/ptx_avg"] > 0 for row in rows)


def test_a_text_loss_without_texts_is_an_error(optimize):
    with pytest.raises(ConfigError, match=r"ptx_coef is 0\.5, but there are no texts.*ptx_texts"):
        optimize(ptx_coef=0.5)


def test_the_adaptive_weight_follows_its_controller(optimize):
    _, rows = optimize(
        kl_controller="adaptive", kl_target=1e-3, kl_horizon=40, num_iterations=5, kl_coef=0.1
    )
    weight = 0.1
    for row in rows:
        assert row["objective/kl_coef"] == pytest.approx(weight)
        weight = adapted_kl_coef(weight, row["objective/kl"], 8, target=1e-3, horizon=40)
    assert rows[-1]["objective/kl_coef"] > rows[0]["objective/kl_coef"]
    _, rows = optimize(num_iterations=3, kl_coef=0.1)
    assert {row["objective/kl_coef"] for row in rows} == {0.1}


def test_a_kl_budget_keeps_the_last_weights_within_it(optimize, tmp_path):
    """The run without a budget goes through the same weights: what is kept is one of them."""
    start = save_fixed_policy(tmp_path / "start", FLAT)
    changes = {
        "folders": {"policy": start, "reference": start},
        "score": lambda prompts, responses: [float(r == " e") for r in responses],
        "max_completion_length": 1,
        "batch_size": 64,
        "learning_rate": 0.02,
        "kl_coef": 0.0,
        "missing_eos_penalty": 0.0,
    }
    _, free = optimize(num_iterations=12, **changes)
    output, rows = optimize(num_iterations=12, kl_budget=0.5, **changes)
    kls = [row["objective/kl"] for row in rows]
    assert len(rows) < 12
    assert kls == [row["objective/kl"] for row in free[: len(rows)]]
    assert all(kl <= 0.5 for kl in kls[:-1])
    assert kls[-1] > 0.5
    assert "loss/policy_avg" not in rows[-1], "a measurement alone"
    # What is kept wrote the last batch but one: as many iterations of learning as come before it.
    kept, _ = optimize(num_iterations=len(rows) - 2, **changes)
    assert distance(weights(output), weights(kept)) == 0


def test_a_kl_budget_is_held_against_the_last_update_too(optimize, models):
    at_home = {"folders": {"policy": models / "reference"}}
    output, rows = optimize(num_iterations=3, kl_budget=50.0, **at_home)
    assert [row["iteration"] for row in rows] == [1, 2, 3, 4]
    assert "loss/policy_avg" not in rows[-1]
    free, _ = optimize(num_iterations=3, **at_home)
    assert distance(weights(output), weights(free)) == 0
    with pytest.raises(ConfigError, match="before its first update: raise it"):
        optimize(kl_budget=1e-9)


def test_learning_rates_fall_as_the_schedule_says(optimize):
    _, rows = optimize(lr_scheduler_type="linear", num_iterations=4, learning_rate=1e-3)
    assert [row["learning_rate"] for row in rows] == pytest.approx([1e-3, 7.5e-4, 5e-4, 2.5e-4])


def test_advantages_can_be_left_as_they_are_and_clipped(models):
    plain = roll_out(set_up(models, normalize_advantages=False, batch_size=16))
    mask = plain.batch.response_mask
    torch.testing.assert_close(
        plain.advantages[mask], (plain.returns - plain.old_values)[mask], atol=1e-5, rtol=0
    )
    clipped = roll_out(set_up(models, advantage_clip=0.5, batch_size=16)).advantages
    whole = roll_out(set_up(models, batch_size=16)).advantages
    assert torch.equal(clipped, whole.clamp(-0.5, 0.5))
    assert not torch.equal(clipped, whole)


def test_an_adapter_learns_and_is_merged(models, optimize):
    """The reference stays SFT itself; every later stage reads a plain folder."""
    output, rows = optimize(use_peft=True, lora_r=2, learning_rate=1e-2, num_iterations=4)
    assert rows[-1]["loss/policy_avg"] != 0
    saved, start = weights(output), weights(models / "policy")
    assert set(saved) == set(start), "no adapter is left"
    moved = {name for name in saved if (saved[name] - start[name]).abs().max() > 1e-6}
    assert any("q_proj" in name for name in moved)
    assert not any("embed" in name or "lm_head" in name or "norm" in name for name in moved)
    assert rows[0]["objective/kl"] == pytest.approx(
        optimize(num_iterations=1)[1][0]["objective/kl"]
    )


def test_an_adapter_trains_nothing_else(models):
    run = set_up(models, use_peft=True, lora_r=2)
    for model, extra in ((run.state.policy, ()), (run.state.value_model, ("score",))):
        trained = [name for name, w in model.named_parameters() if w.requires_grad]
        assert trained
        assert all("lora_" in name or name.startswith(extra or "lora_") for name in trained)
    again = set_up(models, use_peft=True, lora_r=2)
    assert distance(run.state.policy.state_dict(), again.state.policy.state_dict()) == 0


@pytest.mark.parametrize(
    "changes",
    [{}, {"kl_budget": 50.0, "kl_controller": "adaptive", "ptx_coef": 0.5}, {"use_peft": True}],
    ids=["plain", "budget, controller and texts", "adapter"],
)
@pytest.mark.parametrize("stops", [(1,), (2, 5), (3, 4, 8)])
def test_a_run_goes_on_from_the_middle_of_a_batch(optimize, tmp_path, monkeypatch, changes, stops):
    """Stopped after these optimiser steps of eight: weights and log are an unbroken run's."""
    changes = {"num_iterations": 2, "demonstrations": DEMONSTRATIONS, "seed": 3} | changes
    whole, whole_log = optimize(**changes)
    place = CheckpointPlace(tmp_path / "checkpoints", every=1)
    at_boundary, waiting = StateKeeper.at_boundary, list(stops)

    def stop_there(self, step, state):
        at_boundary(self, step, state)
        if waiting and step == waiting[0]:
            waiting.pop(0)
            raise InterruptedError

    monkeypatch.setattr(StateKeeper, "at_boundary", stop_there)
    for _ in stops:
        with pytest.raises(InterruptedError):
            optimize(**changes, checkpoints=place)
    parts, log = optimize(**changes, checkpoints=place)
    assert not waiting
    weights = [(folder / "model.safetensors").read_bytes() for folder in (whole, parts)]
    assert weights[0] == weights[1]
    lines = [[row | {"seconds": 0} for row in rows] for rows in (whole_log, log)]
    assert lines[0] == lines[1]
