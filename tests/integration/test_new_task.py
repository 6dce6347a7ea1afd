# SPDX-License-Identifier: Apache-2.0
"""A run on a new task: its prompts are sampled and optimised on, both tasks are evaluated."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from integration.commands import Finished, start
from metarm.config import RunSettings
from metarm.config_file import read_settings
from metarm.data.meta_sets import load_groups, load_prompts
from metarm.data.preferences import load_preferences
from metarm.reports.read_run import Cell, read_run
from metarm.schema import prompt_text
from tiny_models import save_causal_lm

SMALL = ["world.num_topics=2", "world.num_new_topics=1", "rounds=1", "arms=[sft, plain, meta]"]


@pytest.fixture(scope="module")
def run(smoke: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ood")
    done = start([*smoke, str(folder / "run"), *SMALL], folder, folder).finish()
    assert done.code == 0, done.err
    return folder / "run"


def card(place: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((place / "scorecard.json").read_text(encoding="utf-8"))
    return document


@pytest.mark.slow
def test_both_tasks_are_evaluated_and_pairs_know_one(run: Path) -> None:
    world = run / "seed_0/world"
    new = {*load_prompts(world / "prompts_new_task.jsonl")}
    held_out = {*load_prompts(world / "prompts_new_task_test.jsonl")}
    assert new
    assert held_out
    assert not new & held_out
    assert all("harbour" in prompt_text(prompt) for prompt in new | held_out)
    pairs = load_preferences(world / "preferences.jsonl", "trl-explicit").pairs
    texts = {
        word for p in pairs for text in (p.prompt, p.chosen, p.rejected) for word in text.split()
    }
    assert not texts & {"harbour", "boat", "anchor", "sailor", "gull"}

    arm = run / "seed_0/arms/meta/round_01"
    assert {group.prompt for group in load_groups(arm / "samples/groups.jsonl")} <= new
    original, other = (
        {group.prompt for group in load_groups(arm / f"{name}/groups.jsonl")}
        for name in ("evaluation", "evaluation_new_task")
    )
    assert other <= held_out
    assert not original & (new | held_out)
    assert card(arm / "evaluation")["accuracy_original"] is not None
    assert card(arm / "evaluation_new_task")["accuracy_original"] is None
    for name in ("evaluation", "evaluation_new_task"):
        shares = [card(arm / name)[f"{word}_fraction"]["value"] for word in ("win", "tie", "lose")]
        assert sum(shares) == pytest.approx(1.0)


@pytest.mark.slow
def test_the_report_shows_the_tasks_side_by_side(run: Path) -> None:
    found = read_run(run)
    assert found.new_task is not None
    assert (
        set(found.new_task.cards)
        == set(found.cards)
        == {
            Cell("sft", 0, 0),
            Cell("plain", 0, 1),
            Cell("meta", 0, 1),
        }
    )
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "The original task and the new one" in page
    assert "The same arms on the new task" in page


@pytest.mark.slow
def test_the_same_command_goes_on_and_a_judge_sees_the_new_task(
    run: Path, smoke: list[str], metarm: Callable[..., Finished]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in run.rglob("stage.json")}
    assert metarm(*smoke, str(run), *SMALL).code == 0
    assert before == {path: path.stat().st_mtime_ns for path in run.rglob("stage.json")}
    done = metarm(
        *["judge", "--output", "judged", "--run", str(run), "--new-task", "--gold", "world"],
        *["against=sft", "num_resamples=10", "--json"],
    )
    rates = {rate["first_arm"]: rate for rate in json.loads(done.out)["win_rates"]}
    for arm in ("plain", "meta"):
        new = card(run / f"seed_0/arms/{arm}/round_01/evaluation_new_task")
        assert rates[arm]["win_fraction"] == new["win_fraction"]


def test_a_world_without_a_new_task_is_as_it_was(repository: Path) -> None:
    """Its record names nothing new: runs that were begun before go on."""
    from metarm.sources import _world_record

    settings = read_settings(repository / "configs/smoke.yaml", [], RunSettings)
    assert settings.world is not None
    assert "num_new_topics" not in _world_record(settings.world)
    ood = read_settings(repository / "configs/ood.yaml", [], RunSettings)
    assert ood.world is not None
    assert _world_record(ood.world)["num_new_topics"] == 2


@pytest.mark.slow
def test_prompts_of_ones_own_new_task(tmp_path: Path, metarm: Callable[..., Finished]) -> None:
    save_causal_lm(tmp_path / "model")
    (tmp_path / "gold_length.py").write_text(
        "def length(prompts, responses):\n    return [float(len(r)) for r in responses]\n"
    )
    words = "abcdef"
    pairs = [
        {"prompt": f"a {x} {y}", "chosen": " b c", "rejected": " d"} for x in words for y in words
    ]
    prompts = [{"prompt": f"f {x} {y}"} for x in words for y in words] + [{"prompt": "a b c"}]
    for name, rows in (("pairs", pairs), ("new", prompts)):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    done = metarm(
        *["run", "--output", "run", "model_name_or_path=model", "data.preferences=pairs.jsonl"],
        *["data.new_task_prompts=new.jsonl", "evaluation.gold=gold_length:length", "threads=1"],
        *["rounds=1", "arms=[sft, meta]", "sampling.num_generations=2", "sampling.num_prompts=4"],
        *["sampling.max_completion_length=4", "reward.meta_group_size=2", "reward.max_length=24"],
        *["reward.max_steps=1", "reward.learning_rate=0.001", "optimize.num_iterations=1"],
        *["optimize.value_warmup_iterations=0", "optimize.batch_size=4"],
        *["optimize.max_completion_length=4", "evaluation.num_prompts=2"],
        *["evaluation.num_generations=2"],
    )
    assert done.code == 0, done.err
    data = tmp_path / "run/seed_0/data"
    new, held_out = (load_prompts(data / f"prompts_new_task{end}.jsonl") for end in ("", "_test"))
    assert len(new) + len(held_out) == 36, "not the prompt that a pair has"
    assert len(held_out) == 4
    assert all(str(prompt).startswith("f ") for prompt in (*new, *held_out))
    groups = load_groups(tmp_path / "run/seed_0/arms/meta/round_01/samples/groups.jsonl")
    assert {group.prompt for group in groups} <= set(new)
    assert "The original task and the new one" in (tmp_path / "run/report.html").read_text("utf-8")
