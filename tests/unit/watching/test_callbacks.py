# SPDX-License-Identifier: Apache-2.0
"""A watch that goes along: it changes nothing, stops where it should, adapts where it may."""

import logging
from types import SimpleNamespace

import datasets
import pytest
import torch

from metarm.checkpoints import CheckpointPlace
from metarm.config import OptimizeSettings
from metarm.errors import ConfigError
from metarm.models.loading import load_causal_lm, load_encoder
from metarm.models.reward_model import load_score_function
from metarm.policy.optimizers import build_optimizer
from metarm.progress import SilentProgress
from metarm.storage import read_json_lines
from metarm.watching.callbacks import PolicyWatcher, WatchCallback
from metarm.watching.measuring import measure
from metarm.watching.probes import load_reference_model
from metarm.watching.thresholds import AlarmBudget
from metarm.watching.watch import Watch, WatchRules
from unit.watching.conftest import PROMPTS

# Any KL at all: a policy that has taken a step has some.
STOPS = WatchRules(budget=AlarmBudget(0.05, 4), kl_budget=1e-9)


def watcher(probes, watched, rules=None, **options) -> PolicyWatcher:
    score = load_score_function(watched / "reward")
    watch = Watch(measure(score, probes.groups), rules or WatchRules())
    return PolicyWatcher(
        probes, watch, score, reference=load_reference_model(probes), **{"every": 1, **options}
    )


def count_words(prompts, responses):
    return [float(len(response.split())) for response in responses]


def optimise(watched, output, observer=None, checkpoints=None, **changes):
    output.mkdir()
    settings = OptimizeSettings(
        num_iterations=4,
        batch_size=8,
        max_completion_length=5,
        learning_rate=1e-3,
        value_learning_rate=1e-3,
        value_warmup_iterations=1,
        **changes,
    )
    build_optimizer(settings, observer=observer, checkpoints=checkpoints)(
        policy_dir=watched / "policy",
        reference_dir=watched / "policy",
        reward_model_dir=watched / "reward",
        score=load_score_function(watched / "reward"),
        prompts=PROMPTS,
        output_dir=output,
        seed=0,
        monitor=None,
        progress=SilentProgress(),
    )
    return list(read_json_lines(output / "metrics.jsonl"))


def test_a_watched_ppo_is_the_same_bit_for_bit(probes, watched, tmp_path) -> None:
    observer = watcher(probes, watched, every=2)
    optimise(watched, tmp_path / "seen", observer)
    optimise(watched, tmp_path / "unseen")
    assert [look.step for look in observer.watch.looks] == [2, 4]
    weights = [tmp_path / name / "model.safetensors" for name in ("seen", "unseen")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_a_training_that_goes_on_looks_once_at_each_place(probes, watched, tmp_path) -> None:
    """Killed after a look whose iteration its checkpoint does not hold yet."""

    def watching(place, since=None):
        score = load_score_function(watched / "reward")
        watch = Watch(measure(score, probes.groups), WatchRules(), place)
        reference = load_reference_model(probes)
        return PolicyWatcher(probes, watch, score, reference=reference, every=2, since=since)

    watching(tmp_path / "whole").watch.look(measure(count_words, probes.groups), step=2)
    watching(tmp_path / "parts").watch.look(measure(count_words, probes.groups), step=2)
    whole = watching(tmp_path / "whole")
    optimise(watched, tmp_path / "out", whole)
    assert [look.step for look in whole.watch.looks] == [2, 2, 4]
    kept = {"checkpoints": CheckpointPlace(tmp_path / "kept", every=1)}

    def killed(**told):
        ends = first(**told)
        if told["iteration"] == 2:
            raise InterruptedError
        return ends

    first = watching(tmp_path / "parts")
    with pytest.raises(InterruptedError):
        optimise(watched, tmp_path / "killed", killed, **kept)
    again = watching(tmp_path / "parts", since=1)
    assert len(again.watch.looks) == 2
    optimise(watched, tmp_path / "again", again, **kept)
    assert again.watch.looks == whole.watch.looks


def test_an_earlier_stop_still_ends_it(probes, watched) -> None:
    policy = load_causal_lm(watched / "policy"), load_encoder(watched / "policy")
    first = watcher(probes, watched, STOPS)
    # Another policy than the reference: some KL.
    other = load_causal_lm(watched / "other")
    assert first(iteration=1, policy=other, encoder=policy[1]) is True
    again = PolicyWatcher(probes, first.watch, first.score, every=1, since=0)
    assert again(iteration=1, policy=policy[0], encoder=policy[1]) is True
    assert len(first.watch.looks) == 1


def test_stop_ends_ppo_there_and_saves_the_policy(probes, watched, tmp_path, caplog) -> None:
    observer = watcher(probes, watched, STOPS, every=2)
    with caplog.at_level(logging.WARNING):
        rows = optimise(watched, tmp_path / "out", observer)
    assert len(rows) == 2
    assert (tmp_path / "out" / "model.safetensors").exists()
    assert observer.watch.state == "stop"
    assert "above the budget" in caplog.text
    only_said = watcher(probes, watched, STOPS, every=2, stop=False)
    assert len(optimise(watched, tmp_path / "on", only_said)) == 4


def test_what_has_no_iterations_cannot_be_watched(probes, watched, tmp_path) -> None:
    with pytest.raises(ConfigError, match="best_of_n takes no observer"):
        optimise(watched, tmp_path / "out", watcher(probes, watched), algo="best_of_n")
    with pytest.raises(ConfigError, match="from 1 on"):
        watcher(probes, watched, every=0)


def test_an_adaptation_is_started_and_watched_from_there(probes, watched) -> None:
    calls = []
    policy = load_causal_lm(watched / "other"), load_encoder(watched / "other")

    def flat(prompts, responses):
        return [0.001 * len(response) for response in responses]

    def adapt(look, fresh):
        calls.append((look.state, len(fresh.groups)))
        return flat

    rules = WatchRules(budget=AlarmBudget(0.9, 1))
    own = watcher(probes, watched, rules, adapt=adapt)
    # A reward that tells the fresh responses apart a thousandth as well, and not the reference's.
    seen = {text for group in probes.groups for text in group.responses}
    own.score = lambda prompts, responses: [
        float(hash(r) % 97) if r in seen else 0.3 * (len(r) % 2) for r in responses
    ]
    own.watch.compare_with(measure(own.score, probes.groups))
    own.watch.rules = WatchRules(budget=AlarmBudget(0.9, 1), stop_below=1e-9)
    assert own(iteration=1, policy=policy[0], encoder=policy[1]) is False
    assert calls == [("adapt", 6)]
    assert own.score is flat
    assert own.watch.reference.scores.max() < 1.0


@pytest.fixture
def rloo(watched, tmp_path):
    """A run of TRL's RLOO trainer with a callback; returns its log."""
    from trl import RLOOConfig, RLOOTrainer

    def run(callback, steps=4):
        config = RLOOConfig(
            output_dir=str(tmp_path / "rloo"),
            max_steps=steps,
            per_device_train_batch_size=4,
            num_generations=2,
            max_completion_length=4,
            learning_rate=1e-2,
            use_cpu=True,
            bf16=False,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            gradient_checkpointing=False,
        )
        encoder = load_encoder(watched / "policy")
        trainer = RLOOTrainer(
            model=load_causal_lm(watched / "policy"),
            reward_funcs=lambda prompts, completions, **_: [float(len(c)) for c in completions],
            args=config,
            train_dataset=datasets.Dataset.from_dict({"prompt": PROMPTS * 4}),
            processing_class=encoder.tokenizer,
            callbacks=[callback],
        )
        trainer.train()
        return trainer

    return run


@pytest.mark.filterwarnings("ignore")
def test_trls_rloo_is_looked_at_and_stopped(probes, watched, rloo) -> None:
    looking = watcher(probes, watched, every=2)
    trainer = rloo(WatchCallback(looking))
    assert trainer.state.global_step == 4
    assert [look.step for look in looking.watch.looks] == [2, 4]
    assert all(look.kl_nats is not None for look in looking.watch.looks)
    stopping = watcher(probes, watched, STOPS, every=2)
    assert rloo(WatchCallback(stopping)).state.global_step == 2


def test_a_model_in_pieces_is_refused(probes, watched) -> None:
    callback = WatchCallback(watcher(probes, watched))
    for args in (
        SimpleNamespace(deepspeed="zero3.json", fsdp=[]),
        SimpleNamespace(deepspeed=None, fsdp=["full_shard"]),
    ):
        with pytest.raises(ConfigError, match="in pieces"):
            callback.on_train_begin(args, None, None)
    callback.on_train_begin(SimpleNamespace(deepspeed=None, fsdp=[]), None, None)


def test_other_processes_do_not_look(probes, watched) -> None:
    own = watcher(probes, watched)
    control = SimpleNamespace(should_training_stop=False)
    state = SimpleNamespace(global_step=1, is_world_process_zero=False)
    callback = WatchCallback(own)
    callback.on_step_end(SimpleNamespace(device=torch.device("cpu")), state, control)
    assert own.watch.looks == []
    assert control.should_training_stop is False
