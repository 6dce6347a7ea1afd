# SPDX-License-Identifier: Apache-2.0
"""Optimisers through the command line: arms that differ in them, and the verb `optimize`."""

from pathlib import Path

import pytest

from metarm.storage import read_json, read_json_lines

pytestmark = pytest.mark.slow

ARMS = """\
  rloo:
    meta_mode: "off"
    settings: {optimize: {algo: rloo, use_peft: true, lora_r: 4, kl_budget: 50.0}}
  texts: {reward: frozen, meta_mode: "off", settings: {optimize: {ptx_coef: 0.1}}}
"""


def test_arms_that_differ_in_their_optimiser(metarm, repository: Path, tmp_path: Path) -> None:
    config = (repository / "configs" / "smoke.yaml").read_text("utf-8") + ARMS
    (tmp_path / "run.yaml").write_text(config, encoding="utf-8")
    words = ["run", "--config", "run.yaml", "--output", "run", "arms=[sft, dpo, rloo, texts]"]
    done = metarm(*words)
    assert done.code == 0, done.err
    assert "dpo (DPO on the original pairs)" in done.out
    arms = tmp_path / "run" / "seed_0" / "arms"
    assert not (arms / "dpo" / "round_01" / "reward").exists(), "no reward model is retrained"
    assert (arms / "rloo" / "round_01" / "reward" / "stage.json").exists()
    for arm in ("dpo", "rloo", "texts"):
        for number in (1, 2):
            place = arms / arm / f"round_0{number}"
            rows = list(read_json_lines(place / "policy" / "metrics.jsonl"))
            card = read_json(place / "evaluation" / "scorecard.json")
            assert card["kl_nats"]["value"] > -1.0
            assert all("objective/gold" in row for row in rows)
            names = {name for row in rows for name in row}
            assert ("loss/ptx_avg" in names) == (arm == "texts")
            assert ("rewards/accuracies" in names) == (arm == "dpo")
    # Round 2 of `rloo` starts from round 1's policy; its KL is to SFT.
    assert metarm(*words).code == 0, "a finished run goes on to its end at once"


@pytest.mark.parametrize("algo", ["rloo", "grpo", "dpo"])
def test_the_verb_optimize(metarm, finished_run: Path, tmp_path: Path, algo: str) -> None:
    seed = finished_run / "seed_0"
    words = [
        *("optimize", "--policy", str(seed / "sft"), "--reward-model", str(seed / "reward")),
        *("--prompts", str(seed / "world" / "prompts.jsonl"), "--output", "policy", "--json"),
        *(f"algo={algo}", "num_iterations=2", "batch_size=8", "max_completion_length=12"),
    ]
    if algo == "dpo":
        assert "dpo learns from labelled pairs, got none" in metarm(*words).error
        words += ["--preferences", str(seed / "world" / "preferences.jsonl")]
    done = metarm(*words)
    assert done.code == 0, done.err
    rows = list(read_json_lines(tmp_path / "policy" / "metrics.jsonl"))
    assert len(rows) == (1 if algo == "dpo" else 2)
    assert (tmp_path / "policy" / "model.safetensors").exists()
