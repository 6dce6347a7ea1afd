# SPDX-License-Identifier: Apache-2.0
"""`metarm watch` and `metarm promote`: looks, adaptations, decisions, one-line errors."""

import json
from pathlib import Path

import pytest
import torch

from integration.made_up_shift import save_shift
from metarm.storage import read_json
from tiny_models import save_fixed_policy, save_reward_model

BEGIN = [
    *("watch", "--output", "w", "--reference", "model", "--reward-model", "reward"),
    *("--prompts", "pairs.jsonl", "--num-prompts", "40", "--max-completion-length", "5"),
    *("--looks", "4"),
]
LOOK = ["watch", "--output", "w", "--policy"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_shift(tmp_path)
    lines = (tmp_path / "pairs.jsonl").read_text("utf-8").splitlines(keepends=True)
    (tmp_path / "held.jsonl").write_text("".join(lines[:10]), "utf-8")
    save_reward_model(tmp_path / "reward")
    # Never an end, and one word more and more often.
    for name, preference in (("narrow", 2.0), ("collapsed", 40.0)):
        logits = torch.full((10,), -40.0)
        logits[4:] = 0.0
        logits[4] = preference
        save_fixed_policy(tmp_path / name, logits)
    return tmp_path


def test_a_watch_is_begun_looked_with_and_gone_on_with(folder: Path, metarm) -> None:
    begun = metarm(*BEGIN, "--policy", "model")
    assert begun.code == 0, begun.err
    assert begun.out.splitlines()[0] == "fine"
    moved = metarm(*LOOK, "collapsed", "--step", "50", "--json")
    assert moved.code == 0, moved.err
    document = json.loads(moved.out)
    assert document["look"]["number"] == 2
    assert document["look"]["step"] == 50
    assert document["look"]["kl_nats"] > 0.1
    assert document["state"] == "stop"
    assert set(document["look"]["tests"]) == {"spread", "reward", "shift", "length"}
    lines = (folder / "w/looks.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 50]
    page = (folder / "w/watch.html").read_text("utf-8")
    assert "data:image/svg+xml" in page
    assert "<script" not in page
    assert (folder / "w/fresh_0002.jsonl").exists()


def test_a_collapse_is_seen_and_an_adaptation_is_decided(folder: Path, metarm) -> None:
    assert metarm(*BEGIN).code == 0
    words = ["--adapt", "--preferences", "pairs.jsonl", "--preferences-test", "held.jsonl"]
    words += ["max_steps=2", "meta_batch_size=4"]
    found = metarm(*LOOK, "narrow", *words, "--json")
    assert found.code == 0, found.err
    document = json.loads(found.out)
    assert document["state"] == "adapt", document
    assert 0.25 < document["look"]["tests"]["spread"]["effect"] < 0.9
    adapted = document["adapted"]
    assert (folder / "w/reward_0001/model.safetensors").exists()
    # Ten prompts are held out: nobody can tell with so few.
    assert adapted["replaces"] is False
    assert "too few pairs" in adapted["reason"]
    assert read_json(folder / "w/decision_0001.json")["replaces"] is False
    assert document["reward_model"].endswith("/reward")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["watch"], "give --output DIR"),
        ([*LOOK, "model"], "no watch in"),
        (["watch", "--output", "w"], "give --policy"),
        (["watch", "--output", "w", "--reference", "model"], "needs --reward-model, --prompts too"),
        ([*LOOK, "model", "--adapt"], "give --preferences"),
        ([*BEGIN, "--alpha", "2"], "between 0 and 1"),
        ([*BEGIN, "--kl-budget", "-1"], "above 0 nats"),
        ([*BEGIN, "--num-prompts", "4000"], "expected 4000 probe prompts"),
        ([*BEGIN, "--reward-model", "model"], "reward model"),
        (["watch", "--run", "absent"], "found none"),
        (["promote", "absent", "--champion", "c"], "expected the folder of a reward model"),
        (["promote", "model", "--champion", "c"], "reward model"),
        (["promote", "reward", "--champion", "c", "--margin", "0"], "above 0 and below 0.5"),
    ],
)
def test_nonsense_is_one_line(folder: Path, metarm, words: list[str], message: str) -> None:
    assert message in metarm(*words).error


def test_other_rules_are_another_watch(folder: Path, metarm) -> None:
    assert metarm(*BEGIN).code == 0
    assert metarm(*BEGIN).code == 0
    assert "other rules" in metarm(*BEGIN, "--alpha", "0.2").error


def test_a_challenger_meets_the_champion(folder: Path, metarm) -> None:
    save_reward_model(folder / "worse", seed=9)
    crowned = metarm("promote", "reward", "--champion", "throne")
    assert crowned.code == 0, crowned.err
    assert crowned.out.splitlines()[0] == "replaced"
    assert read_json(folder / "throne/champion.json")["model"] == "../reward"
    assert "give --pairs" in metarm("promote", "worse", "--champion", "throne").error
    words = ["promote", "worse", "--champion", "throne", "--pairs", "pairs.jsonl"]
    kept = metarm(*words, "--groups", "groups.jsonl", "--json")
    assert kept.code == 0, kept.err
    document = json.loads(kept.out)
    assert document["replaces"] is False
    assert "fewest" in document["reason"]
    assert len(document["decision"]["guards"]) == 3
    # With a wide margin the same pairs are enough for a model that is the same.
    save_reward_model(folder / "twin")
    equal = metarm(
        *("promote", "twin", "--champion", "throne", "--pairs", "pairs.jsonl"),
        *("--groups", "groups.jsonl", "--margin", "0.2"),
    )
    assert equal.code == 0, equal.err
    assert equal.out.splitlines()[0] == "replaced", equal.out
    assert read_json(folder / "throne/champion.json")["decision"] == 3
    (folder / "twin/config.json").write_text("{}", "utf-8")
    assert "not what it was" in metarm(*words).error


@pytest.mark.slow
def test_a_run_is_looked_at_round_by_round(finished_run: Path, metarm, tmp_path: Path) -> None:
    found = metarm("watch", "--run", finished_run, "--output", "seen", "--json")
    assert found.code == 0, found.err
    runs = json.loads(found.out)["runs"]
    assert set(runs) == {f"seed 0, {arm}" for arm in ("frozen", "plain", "meta", "labels")}
    assert all([look["step"] for look in looks] == [1, 2] for looks in runs.values())
    assert (tmp_path / "seen/watch.html").exists()


@pytest.mark.slow
def test_ppo_is_watched_by_the_command(folder: Path, metarm) -> None:
    assert metarm(*BEGIN, "--kl-budget", "0.000001").code == 0
    small = ["num_iterations=6", "value_warmup_iterations=0", "batch_size=8", "learning_rate=0.001"]
    words = ["optimize", "--policy", "model", "--prompts", "pairs.jsonl", *small]
    words += ["max_completion_length=5", "--watch", "w", "--watch-every", "3", "--output", "out"]
    done = metarm(*words, "--reward-model", "reward", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["metrics"]["iteration"] == 3
    assert len((folder / "w/looks.jsonl").read_text("utf-8").splitlines()) == 1
    save_reward_model(folder / "second", seed=3)
    words[-1] = "out2"
    assert "the watch in w is of" in metarm(*words, "--reward-model", "second").error


@pytest.mark.slow
def test_an_arm_keeps_the_better_reward_model(
    smoke: list[str], metarm, finished_run: Path, tmp_path: Path
) -> None:
    words = [*smoke, "run", "arms=[sft, careful]"]
    words += ["custom_arms.careful.meta_mode=joint", "custom_arms.careful.keep_champion=true"]
    done = metarm(*words)
    assert done.code == 0, done.err
    arm = tmp_path / "run/seed_0/arms/careful"
    for place, before in (("round_01", tmp_path / "run/seed_0/reward"), ("round_02", None)):
        decision = read_json(arm / place / "champion/decision.json")
        pointer = read_json(arm / place / "champion/champion.json")
        model = (arm / place / "champion" / pointer["model"]).resolve()
        assert decision["replaces"] == (model == (arm / place / "reward").resolve())
        if before is not None and not decision["replaces"]:
            assert model == before.resolve()
        assert decision["test"]["num_pairs"] > 0
        assert len(decision["guards"]) == 3
    again = metarm(*words)
    assert again.code == 0, again.err
    frozen = ["custom_arms.x.reward=frozen", "custom_arms.x.keep_champion=true"]
    assert "keep_champion change nothing" in metarm(*smoke, "other", *frozen).error
