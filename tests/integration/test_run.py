# SPDX-License-Identifier: Apache-2.0
"""A whole run from the command line: what it leaves, and what running it again does."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from integration.commands import inodes, scorecards
from metarm.config import RunSettings
from metarm.config_file import read_settings
from metarm.reports.read_run import read_run
from metarm.storage import read_json
from patience import PATIENCE_SECONDS

pytestmark = pytest.mark.slow
ROUNDS = {"sft": [0], **{arm: [1, 2] for arm in ("frozen", "plain", "meta", "labels")}}


@pytest.mark.slow
def test_a_run_from_a_shell_and_again(smoke: list[str], finished_run: Path, tmp_path: Path) -> None:
    def run(hash_seed: str, *more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "metarm", *smoke, "run", *more],
            cwd=tmp_path,
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE_SECONDS,
        )

    done = run("1", "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["missing"] == []
    found = {(card["arm"], card["round"]) for card in document["scorecards"]}
    assert found == {(arm, number) for arm, rounds in ROUNDS.items() for number in rounds}
    assert Path(tmp_path, document["report"]).read_text("utf-8").startswith("<!DOCTYPE html>")
    assert len(scorecards(tmp_path / "run")) == 9
    # Another process, another order of every set: the same bits.
    assert scorecards(tmp_path / "run") == scorecards(finished_run)

    before = inodes(tmp_path / "run")
    again = run("2")
    assert again.returncode == 0, again.stderr
    assert inodes(tmp_path / "run") == before
    assert "PPO" not in again.stderr
    assert "report.html" in again.stdout
    facts = read_json(tmp_path / "run" / "run.json")
    assert facts["command"].endswith("--json")
    (resumed,) = facts["resumed"]
    assert resumed["command"] == facts["command"].removesuffix(" --json")
    assert set(resumed) <= {"command", "started_at"}, "what did not change is not said again"


def test_the_settings_of_a_run_make_the_same_run(
    finished_run: Path, metarm, tmp_path: Path, smoke: list[str]
) -> None:
    shutil.copytree(finished_run, tmp_path / "run")
    before = inodes(tmp_path / "run")
    config = str(tmp_path / "run" / "config.yaml")
    assert read_settings(config, [], RunSettings) == read_settings(
        smoke[2], [f"output_dir={finished_run}"], RunSettings
    )
    done = metarm("run", "--config", config, "--output", "run")
    assert done.code == 0, done.err
    assert inodes(tmp_path / "run") == before


def test_a_run_that_was_moved_grows_by_rounds_arms_and_seeds(
    finished_run: Path, metarm, tmp_path: Path, smoke: list[str]
) -> None:
    """A short run, moved and then continued, ends as one that was long from the start."""
    short = metarm(*smoke, "short", "rounds=1", "arms=[plain]")
    assert short.code == 0, short.err
    assert set(scorecards(tmp_path / "short")) == {
        f"seed_0/arms/{place}/evaluation/scorecard.json"
        for place in ("sft/round_00", "plain/round_01")
    }
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "short").rename(tmp_path / "elsewhere" / "long")
    run = tmp_path / "elsewhere" / "long"
    before = inodes(run)
    grown = metarm(*smoke, run, "seeds=[0, 1]", "workers=2", "arms=[sft, plain, meta]")
    assert grown.code == 0, grown.err
    assert inodes(run).items() >= before.items()
    assert len(before) == 7
    seed_0 = scorecards(run, lambda place: place.startswith("seed_0/"))
    long = scorecards(finished_run, lambda place: place.split("/")[2] in ("sft", "plain", "meta"))
    assert seed_0 == long, "also: in two workers as in one"
    seed_1 = scorecards(run, lambda place: place.startswith("seed_1/"))
    assert len(seed_0) == len(seed_1) == 5
    assert not set(seed_0.values()) & set(seed_1.values())
    assert read_run(run).missing == ()


@pytest.mark.parametrize(
    ("change", "stage"),
    [
        ("world.num_pairs=121", "seed_0/world"),
        ("sft.learning_rate=0.002", "seed_0/sft"),
        ("reward.learning_rate=0.002", "seed_0/reward"),
        ("reward.meta_step_length=0.2", "arms/meta/round_01/reward"),
        ("sampling.temperature=0.9", "arms/meta/round_01/samples"),
        ("optimize.temperature=0.9", "arms/sft/round_00/evaluation"),
        ("optimize.kl_coef=0.2", "arms/frozen/round_01/policy"),
        ("custom_arms.labels.num_gold_labels=9", "arms/labels/round_01/samples"),
        ("custom_arms.labels.label_repeat=3", "arms/labels/round_01/reward"),
        ("evaluation.num_prompts=15", "arms/sft/round_00/evaluation"),
        ("policy_start=sft", "arms/frozen/round_02/policy"),
        ("reward_start=previous", "arms/plain/round_01/reward"),
    ],
)
def test_a_changed_setting_is_refused_where_it_first_matters(
    finished_run: Path, metarm, tmp_path: Path, smoke: list[str], change: str, stage: str
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    config, before = (run / "config.yaml").read_text("utf-8"), inodes(run)
    error = metarm(*smoke, run, change).error
    assert f"{stage} was finished with other settings" in error
    assert "Use another output folder, put the old settings back, or remove this folder" in error
    assert (run / "config.yaml").read_text("utf-8") == config, "the report shows what was run"
    assert inodes(run) == before


def test_a_damaged_stage_is_named_and_can_be_done_again(
    finished_run: Path, metarm, tmp_path: Path, smoke: list[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    samples = run / "seed_0/arms/meta/round_02/samples"
    groups = samples / "groups.jsonl"
    groups.write_text(groups.read_text("utf-8")[:-40], "utf-8")
    error = metarm(*smoke, run).error
    assert str(groups) in error
    assert f"Remove {samples} to do the stage again" in error
    shutil.rmtree(samples)
    done = metarm(*smoke, run)
    assert done.code == 0, done.err
    assert groups.read_bytes() == (finished_run / groups.relative_to(run)).read_bytes()
    assert scorecards(run) == scorecards(finished_run)


def test_gold_is_the_same_to_the_bit_in_every_process() -> None:
    """Python orders sets of words in another way in each process."""
    code = (
        "import random; from metarm.config import WorldSettings;"
        "from metarm.world.language import *; language = build_language(WorldSettings());"
        "draw, gold = random.Random(0), GoldReward(language);"
        "rows = [(p, draw_response(language, p, draw) + draw_response(language, p, draw))"
        " for p in (draw_prompt(language, draw) for _ in range(300))];"
        "print([gold.score(*row).hex() for row in rows])"
    )
    printed = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": str(seed)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in range(3)
    }
    assert len(printed) == 1
