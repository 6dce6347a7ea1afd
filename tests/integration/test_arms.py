# SPDX-License-Identifier: Apache-2.0
"""What the rounds of each arm do: starts, labels, distances, draws."""

import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from integration.commands import inodes, scorecards
from metarm.config import RunSettings
from metarm.config_file import read_settings
from metarm.data.meta_sets import load_groups, load_prompts
from metarm.data.preferences import load_preferences
from metarm.models.ensemble import load_reward
from metarm.models.loading import load_causal_lm
from metarm.models.reward_model import load_score_function
from metarm.policy.sampling import SampledPolicy, sample_groups
from metarm.progress import SilentProgress
from metarm.reports.read_run import read_run
from metarm.storage import read_json, read_json_lines
from metarm.world.language import GoldReward, build_language

pytestmark = pytest.mark.slow


def log_likelihood(model, ids: list[int], num_prompt: int) -> float:
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0].double()
    log_probs = torch.log_softmax(logits, dim=-1)
    return sum(log_probs[place - 1, ids[place]].item() for place in range(num_prompt, len(ids)))


class Bar:
    def advance(self, steps=1, note=""):
        pass


@pytest.mark.parametrize("arm", ["frozen", "plain", "meta", "labels"])
def test_divergence_is_to_sft_in_the_last_round(finished_run: Path, arm: str) -> None:
    """The mean log ratio of the responses that were judged, one by one, without padding."""
    place = finished_run / f"seed_0/arms/{arm}/round_02"
    policy, sft = load_causal_lm(place / "policy"), load_causal_lm(finished_run / "seed_0/sft")
    before = load_causal_lm(place.with_name("round_01") / "policy")
    settings = read_settings(finished_run / "config.yaml", [], RunSettings)
    groups = load_groups(place / "evaluation/groups.jsonl")
    prompts = [group.prompt for group in groups]
    sampled = SampledPolicy(place / "policy")
    # The texts alone would not do: some tokens have none.
    drawn = sampled.sample(
        prompts,
        num_generations=settings.evaluation.num_generations,
        temperature=1.0,
        top_p=1.0,
        max_completion_length=settings.optimize.max_completion_length,
        batch_size=settings.sampling.batch_size,
        seed=0,
        bar=Bar(),
    )
    assert [g.responses for g in groups] == [tuple(s.response for s in row) for row in drawn]
    ratios, to_before = [], []
    for prompt, row in zip(prompts, drawn, strict=True):
        start = sampled.encoder.encode_prompt(prompt)
        for sample in row:
            ids = start + sample.response_ids
            ours, theirs, past = (log_likelihood(m, ids, len(start)) for m in (policy, sft, before))
            ratios.append(ours - theirs)
            to_before.append(ours - past)
    card = read_json(place / "evaluation/scorecard.json")
    assert card["kl_nats"]["value"] == pytest.approx(np.mean(ratios), abs=1e-4)
    assert abs(np.mean(ratios) - np.mean(to_before)) > 1e-3, "the test could not tell them apart"


def test_labels_are_of_the_policy_that_began_the_round_and_accumulate(finished_run: Path) -> None:
    seed = finished_run / "seed_0"
    settings = read_settings(finished_run / "config.yaml", [], RunSettings)
    gold = GoldReward(build_language(settings.world))
    num_original = len(load_preferences(seed / "world/preferences.jsonl").pairs)
    all_labels = []
    for number in (1, 2):
        place = seed / f"arms/labels/round_{number:02d}"
        groups = {g.prompt: g for g in load_groups(place / "samples/groups.jsonl")}
        labels = load_preferences(
            place / "samples/labels.jsonl", "trl-explicit", keep_blank=True
        ).pairs
        assert len(labels) == 10
        for pair in labels:
            assert {pair.chosen, pair.rejected} <= set(groups[pair.prompt].responses)
            assert gold.score(pair.prompt, pair.chosen) > gold.score(pair.prompt, pair.rejected)
        all_labels += labels
        encoded = read_json(place / "reward/stage.json")["metrics"]["encoding"]
        expected = num_original + 2 * len(all_labels)
        assert encoded.startswith(f"{expected} of {expected} ")
    # Round 2 samples from the policy that round 1 ended with: a new policy, other responses.
    first_groups, second_groups = (
        (seed / f"arms/labels/round_0{n}/samples/groups.jsonl").read_text("utf-8") for n in (1, 2)
    )
    assert first_groups != second_groups
    first, second = (
        read_json(seed / f"arms/labels/round_0{n}/samples/stage.json")["metrics"] for n in (1, 2)
    )
    assert first == second == {"num_groups": 16, "num_labels": 10}


def test_groups_are_of_the_policy_that_began_the_round(finished_run: Path) -> None:
    """Drawn again from it, by the seed that is written down, they are the same."""
    seed = finished_run / "seed_0"
    sampling = read_settings(finished_run / "config.yaml", [], RunSettings).sampling
    prompts = load_prompts(seed / "world/prompts.jsonl")
    for number, start in ((1, seed / "sft"), (2, seed / "arms/meta/round_01/policy")):
        stage = seed / f"arms/meta/round_0{number}/samples"
        options = {
            "seed": read_json(stage / "stage.json")["settings"]["seed"],
            "progress": SilentProgress(),
        }
        found = load_groups(stage / "groups.jsonl")
        assert sample_groups(start, prompts, sampling, **options) == found
        other = seed / "arms/meta/round_02/policy"
        assert sample_groups(other, prompts, sampling, **options) != found


def test_arms_alike_in_settings_are_alike_in_results(
    finished_run: Path, metarm, tmp_path: Path, smoke: list[str]
) -> None:
    words = ["rounds=1", "arms=[twin, base]", "custom_arms.twin.meta_mode=descent"]
    done = metarm(*smoke, "run", *words, "custom_arms.base.optimize=false")
    assert done.code == 0, done.err
    cards = scorecards(tmp_path / "run")
    arms = {place.split("/")[2]: text for place, text in cards.items()}
    assert set(arms) == {"sft", "base", "twin"}, "SFT is what all are compared with"
    assert arms["twin"].replace('"twin"', '"meta"') in scorecards(finished_run).values()
    assert arms["base"].replace('"base"', '"sft"') == arms["sft"]
    assert read_run(tmp_path / "run").missing == ()


def test_a_reservoir_keeps_groups_of_earlier_rounds(
    finished_run: Path, metarm, tmp_path: Path, smoke: list[str]
) -> None:
    words = ["arms=[kept]", "rounds=3", "custom_arms.kept.meta_reservoir=6"]
    done = metarm(*smoke, "run", *words)
    assert done.code == 0, done.err
    arm = tmp_path / "run/seed_0/arms/kept"
    # Round 1 has no past: it is that of an arm without a reservoir, and its record the same.
    first = "seed_0/arms/meta/round_01/reward"
    assert (arm / "round_01/reward/model.safetensors").read_bytes() == (
        finished_run / first / "model.safetensors"
    ).read_bytes()
    records = [read_json(p / "stage.json") for p in (arm / "round_01/reward", finished_run / first)]
    assert records[0]["fingerprint"] == records[1]["fingerprint"]
    for number, sources in ((2, {"1", "2"}), (3, {"1", "2", "3"})):
        place = arm / f"round_0{number}/reward"
        record = read_json(place / "stage.json")
        assert record["settings"]["meta_reservoir"] == 6
        assert record["metrics"]["meta_encoding"] == "22 of 22 encoded", "16 own and 6 kept"
        last = list(read_json_lines(place / "train_log.jsonl"))[-1]
        found = {key[-1] for key in last if key.startswith("meta/weight_round_")}
        # Of six groups of two rounds, all can be of one: then it is the only other source.
        assert {str(number)} < found <= sources
    # The same command finds everything finished.
    before = inodes(tmp_path / "run")
    done = metarm(*smoke, "run", *words)
    assert done.code == 0, done.err
    assert inodes(tmp_path / "run") == before


def test_best_of_n_and_other_starts(metarm, tmp_path: Path, smoke: list[str]) -> None:
    words = ["optimize.algo=best_of_n", "optimize.num_candidates=3", "arms=[meta, frozen]"]
    done = metarm(*smoke, "run", *words, "policy_start=sft", "reward_start=previous")
    assert done.code == 0, done.err
    seed = tmp_path / "run/seed_0"
    for number in (1, 2):
        place = seed / f"arms/meta/round_0{number}"
        assert sorted(path.name for path in (place / "policy").iterdir()) == [
            "best_of_n.json",
            "metrics.jsonl",
            "stage.json",
        ]
        says = read_json(place / "policy/best_of_n.json")
        assert (says["base"], says["reward_model"]) == (str(seed / "sft"), str(place / "reward"))
        card = read_json(place / "evaluation/scorecard.json")
        assert card["kl_nats"]["value"] == pytest.approx(np.log(3) - 2 / 3)
    # A run that was moved, then continued: the policies find their models where they are now.
    (tmp_path / "run").rename(tmp_path / "moved")
    done = metarm(*smoke, "moved", *words, "policy_start=sft", "reward_start=previous", "rounds=3")
    assert done.code == 0, done.err
    assert len(scorecards(tmp_path / "moved")) == 7


def test_an_arm_of_several_reward_models(
    finished_run: Path, metarm, tmp_path: Path, smoke: list[str]
) -> None:
    words = ["rounds=1", "arms=[several, oracle]", "custom_arms.several.meta_mode=off"]
    words += ["custom_arms.several.members=2", "custom_arms.several.pessimism=0.5"]
    words += ["custom_arms.oracle.meta_mode=off", "custom_arms.oracle.num_gold_labels=10"]
    words += ["custom_arms.oracle.relabel_original=true", "custom_arms.oracle.label_repeat=1"]
    words += ["custom_arms.oracle.settings.sampling.num_generations=4"]
    done = metarm(*smoke, "run", *words)
    assert done.code == 0, done.err
    place = tmp_path / "run/seed_0/arms/several/round_01"
    made = ["evaluation", "member_0", "member_1", "policy", "reward"]
    assert sorted(path.name for path in place.iterdir()) == made
    first, second = ((place / f"member_{n}/model.safetensors").read_bytes() for n in (0, 1))
    alone = finished_run / "seed_0/arms/plain/round_01/reward/model.safetensors"
    assert first == alone.read_bytes(), "the first is that of an arm that trains one"
    assert first != second
    # What was judged is what the ensemble says.
    rows = list(read_json_lines(place / "evaluation/samples.jsonl"))
    score = load_reward(place / "reward")
    found = score([row["prompt"] for row in rows], [row["response"] for row in rows])
    assert [row["score"] for row in rows] == pytest.approx(found, abs=1e-5)
    assert score.pessimism == 0.5
    plain = read_json(finished_run / "seed_0/arms/plain/round_01/policy/stage.json")["metrics"]
    assert read_json(place / "policy/stage.json")["metrics"] != plain
    # The next command finds every stage finished, also after one of the members was lost.
    shutil.rmtree(place / "member_1")
    done = metarm(*smoke, "run", *words)
    assert done.code == 0, done.err
    assert (place / "member_1/model.safetensors").read_bytes() == second
    groups = load_groups(tmp_path / "run/seed_0/arms/oracle/round_01/samples/groups.jsonl")
    assert {len(group.responses) for group in groups} == {4}, "an arm may have its own settings"
    assert "2 reward models" in done.out


def test_starts_lead_where_they_say(
    finished_run: Path, metarm, tmp_path: Path, smoke: list[str]
) -> None:
    """After a step of length next to nothing, a model is the one that it began from."""
    still = ["optimize.learning_rate=1e-30", "optimize.value_learning_rate=1e-30"]
    still += ["reward.learning_rate=1e-30", "reward.meta_step_length=0", "arms=[plain]"]
    done = metarm(*smoke, "run", *still, "reward_start=previous")
    assert done.code == 0, done.err
    seed = tmp_path / "run/seed_0"

    def weights(place: str) -> dict[str, torch.Tensor]:
        from safetensors.torch import load_file

        return load_file(seed / place / "model.safetensors")

    def is_close(first: str, second: str) -> bool:
        one, two = weights(first), weights(second)
        return all(torch.allclose(one[name], two[name], atol=1e-7) for name in one)

    assert is_close("arms/plain/round_02/reward", "arms/plain/round_01/reward")
    assert is_close("arms/plain/round_01/reward", "reward")
    assert is_close("arms/plain/round_02/policy", "sft")
    # Made with other settings, moving: else the above would say nothing.
    moved = finished_run / "seed_0/arms/plain/round_02/policy/model.safetensors"
    assert moved.read_bytes() != (finished_run / "seed_0/sft/model.safetensors").read_bytes()


def test_no_prompt_is_both_optimised_and_evaluated_on(finished_run: Path) -> None:
    world = finished_run / "seed_0/world"
    train, test = (set(load_prompts(world / f"{n}.jsonl")) for n in ("prompts", "prompts_test"))
    assert not train & test
    for path in finished_run.glob("seed_0/arms/*/*/*/groups.jsonl"):
        prompts = {group.prompt for group in load_groups(path)}
        assert prompts <= (test if path.parent.name == "evaluation" else train), path


def test_only_what_an_arm_needs_is_made(finished_run: Path) -> None:
    made = {
        arm: sorted(p.name for p in (finished_run / f"seed_0/arms/{arm}/round_01").iterdir())
        for arm in ("frozen", "plain", "meta", "labels")
    }
    assert made["frozen"] == ["evaluation", "policy"]
    assert made["plain"] == ["evaluation", "policy", "reward"], "no groups, so none are sampled"
    assert made["meta"] == made["labels"] == ["evaluation", "policy", "reward", "samples"]


def test_seconds_are_those_of_all_stages_of_the_round(finished_run: Path) -> None:
    for place in finished_run.glob("seed_0/arms/*/round_0[12]"):
        seconds = {p.parent.name: read_json(p)["seconds"] for p in place.glob("*/stage.json")}
        others = sum(took for stage, took in seconds.items() if stage != "evaluation")
        shown = read_json(place / "evaluation/scorecard.json")["seconds"]
        assert others < shown <= others + seconds["evaluation"]


def test_the_log_of_the_optimisation_watches_gold(finished_run: Path) -> None:
    rows = list(read_json_lines(finished_run / "seed_0/arms/meta/round_01/policy/metrics.jsonl"))
    assert [row["iteration"] for row in rows] == [1, 2]
    assert all(np.isfinite(row["objective/gold"]) for row in rows)
    assert json.dumps(rows)


@pytest.mark.parametrize("arm", ["frozen", "meta"])
def test_the_penalty_is_to_sft_in_the_last_round(finished_run: Path, arm: str) -> None:
    """The first batch of a round is written by the policy that begins it."""
    firsts = [
        next(
            iter(
                read_json_lines(finished_run / f"seed_0/arms/{arm}/round_0{n}/policy/metrics.jsonl")
            )
        )
        for n in (1, 2)
    ]
    assert firsts[0]["objective/kl"] == pytest.approx(0.0, abs=1e-4)
    assert firsts[1]["objective/kl"] > 0.01


def test_accuracies_are_of_the_right_model_on_the_right_pairs(finished_run: Path) -> None:
    """Counted pair by pair from the files of the last round."""
    arm = finished_run / "seed_0/arms/meta"
    settings = read_settings(finished_run / "config.yaml", [], RunSettings)
    gold = GoldReward(build_language(settings.world))
    card = read_json(arm / "round_02/evaluation/scorecard.json")
    reward = load_score_function(arm / "round_02/reward")
    first = load_score_function(finished_run / "seed_0/reward")

    def accuracy(score, number: int) -> float:
        right = []
        for group in load_groups(arm / f"round_0{number}/evaluation/groups.jsonl"):
            prompts = [group.prompt] * len(group.responses)
            scores, truths = score(prompts, group.responses), gold(prompts, group.responses)
            for i, j in itertools.combinations(range(len(scores)), 2):
                if truths[i] != truths[j]:
                    right.append((scores[i] > scores[j]) == (truths[i] > truths[j]))
        return float(np.mean(right))

    assert card["accuracy_before"]["value"] == pytest.approx(accuracy(reward, 1))
    assert card["accuracy_shifted"]["value"] == pytest.approx(accuracy(reward, 2))
    assert card["accuracy_first"]["value"] == pytest.approx(accuracy(first, 2))
    test = load_preferences(finished_run / "seed_0/world/preferences_test.jsonl").pairs
    prompts = [pair.prompt for pair in test]
    better = reward(prompts, [pair.chosen for pair in test])
    worse = reward(prompts, [pair.rejected for pair in test])
    expected = float(np.mean([one > two for one, two in zip(better, worse, strict=True)]))
    assert card["accuracy_original"]["value"] == pytest.approx(expected)


def test_the_largest_seed_is_a_seed(metarm, tmp_path: Path, smoke: list[str]) -> None:
    done = metarm(*smoke, "run", "seeds=[4294967295]", "rounds=1", "arms=[meta]")
    assert done.code == 0, done.err
    assert len(scorecards(tmp_path / "run")) == 2
