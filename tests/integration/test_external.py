# SPDX-License-Identifier: Apache-2.0
"""Runs on a model and files of one's own: with gold and without, with preferences and without."""

import math
import shutil
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from integration.commands import inodes, scorecards
from metarm.data.meta_sets import load_prompts
from metarm.data.preferences import load_preferences
from metarm.reports.read_run import read_run
from metarm.storage import read_json, write_json_lines

pytestmark = pytest.mark.slow
GOLD = """
def short(prompts, responses):
    return [-len(response.split()) for response in responses]
"""
GOLD_FIELDS = ("accuracy_before", "accuracy_shifted", "accuracy_shifted_length_balanced")
GOLD_FIELDS += ("accuracy_first", "gold_score", "win_fraction", "tie_fraction", "lose_fraction")


@pytest.fixture
def words(repository: Path, finished_run: Path, tmp_path: Path) -> list[str]:
    """A run on copies of a world's model and files, which do not know that there is a world."""
    settings = YAML(typ="safe").load((repository / "configs/smoke.yaml").read_text("utf-8"))
    for name in ("world", "sft", "custom_arms"):
        del settings[name]
    settings |= {"rounds": 1, "arms": ["frozen", "plain", "meta"], "model_name_or_path": "model"}
    with open(tmp_path / "own.yaml", "w", encoding="utf-8") as stream:
        YAML(typ="safe").dump(settings, stream)
    shutil.copytree(finished_run / "seed_0/sft", tmp_path / "model")
    for name in ("preferences", "prompts", "demonstrations"):
        shutil.copy(finished_run / f"seed_0/world/{name}.jsonl", tmp_path)
    (tmp_path / "own_gold.py").write_text(GOLD, "utf-8")
    return ["run", "--config", "own.yaml", "--output", "run"]


def test_without_gold(words: list[str], metarm, tmp_path: Path) -> None:
    words.append("data.preferences=preferences.jsonl")
    done = metarm(*words)
    assert done.code == 0, done.err
    run = tmp_path / "run"
    cards = read_run(run).cards
    assert {(cell.arm, cell.round) for cell in cards} == {
        ("sft", 0),
        ("frozen", 1),
        ("plain", 1),
        ("meta", 1),
    }
    for card in cards.values():
        assert [getattr(card, name) for name in GOLD_FIELDS] == [None] * len(GOLD_FIELDS)
        assert card.accuracy_original is not None
        assert math.isfinite(card.kl_nats.value)
    assert "gold" not in done.out.split("report ")[0].lower().replace("no gold", "")
    data = run / "seed_0/data"
    train, test = (
        load_preferences(data / f"{n}.jsonl").pairs for n in ("preferences", "preferences_test")
    )
    assert not {p.prompt for p in train} & {p.prompt for p in test}
    given = load_preferences(tmp_path / "preferences.jsonl").pairs
    assert {*train, *test} == {*given}
    assert {*load_prompts(data / "prompts.jsonl")} == {p.prompt for p in train}
    assert {*load_prompts(data / "prompts_test.jsonl")} == {p.prompt for p in test}

    # A file or model that moved is the same; one with other content is not.
    before = inodes(run)
    (tmp_path / "preferences.jsonl").rename(tmp_path / "moved.jsonl")
    (tmp_path / "model").rename(tmp_path / "moved")
    words = [*words[:-1], "data.preferences=moved.jsonl", "model_name_or_path=moved"]
    again = metarm(*words)
    assert again.code == 0, again.err
    assert inodes(run) == before
    for changed in ("moved.jsonl", "moved/config.json"):
        content = (tmp_path / changed).read_bytes()
        (tmp_path / changed).write_bytes(content + b"\n" * (changed != "moved.jsonl"))
        if changed == "moved.jsonl":
            (tmp_path / changed).write_bytes(content[: content.rindex(b"\n", 0, -1) + 1])
        assert "seed_0/data was finished with other settings" in metarm(*words).error
        (tmp_path / changed).write_bytes(content)
    assert inodes(run) == before


def test_gold_labels_instead_of_preferences(words: list[str], metarm, tmp_path: Path) -> None:
    words += ["evaluation.gold=own_gold:short", "data.prompts=prompts.jsonl", "arms=[labels]"]
    words += ["data.num_gold_pairs=30", "custom_arms.labels.num_gold_labels=20"]
    words += ["custom_arms.labels.meta_mode=off"]
    done = metarm(*words)
    assert done.code == 0, done.err
    data = tmp_path / "run/seed_0/data"
    pairs = [
        pair
        for name in ("preferences", "preferences_test")
        for pair in load_preferences(data / f"{name}.jsonl", "trl-explicit", keep_blank=True).pairs
    ]
    assert len(pairs) == 30
    labels = tmp_path / "run/seed_0/arms/labels/round_01/samples/labels.jsonl"
    bought = load_preferences(labels, "trl-explicit", keep_blank=True).pairs
    assert len(bought) == 20, "more than there are groups: some groups give two"
    for pair in [*pairs, *bought]:
        assert len(pair.chosen.split()) < len(pair.rejected.split())
    card = read_json(labels.parents[1] / "evaluation/scorecard.json")
    assert card["gold_score"]["value"] < 0
    train, test = (
        set(load_prompts(data / f"{name}.jsonl")) for name in ("prompts", "prompts_test")
    )
    assert not train & test
    assert train | test == set(load_prompts(tmp_path / "prompts.jsonl"))


def test_no_evaluation_prompt_is_in_a_training_pair(
    words: list[str], metarm, tmp_path: Path
) -> None:
    """Pairs and prompts from two files that share most of their prompts, spelled otherwise."""
    rows = list(load_prompts(tmp_path / "prompts.jsonl"))
    rows += [pair.prompt for pair in load_preferences(tmp_path / "preferences.jsonl").pairs[:40]]
    shouted = [{"prompt": f"{prompt.upper()} "} for prompt in rows]
    write_json_lines(tmp_path / "prompts.jsonl", shouted)
    words += ["data.preferences=preferences.jsonl", "data.prompts=prompts.jsonl", "arms=[sft]"]
    done = metarm(*words)
    assert done.code == 0, done.err
    data = tmp_path / "run/seed_0/data"
    train_prompts, test_prompts = (
        {p.casefold().strip() for p in load_prompts(data / f"{name}.jsonl")}
        for name in ("prompts", "prompts_test")
    )
    labelled, tested = (
        {pair.prompt.casefold() for pair in load_preferences(data / f"{name}.jsonl").pairs}
        for name in ("preferences", "preferences_test")
    )
    assert test_prompts
    assert train_prompts & labelled, "the test could not tell"
    assert not test_prompts & (train_prompts | labelled)
    assert not tested & (train_prompts | labelled)


def test_supervised_start_and_an_own_reward_backbone(
    words: list[str], metarm, tmp_path: Path, finished_run: Path
) -> None:
    shutil.copytree(finished_run / "seed_0/reward", tmp_path / "backbone")
    words += ["data.preferences=preferences.jsonl", "data.sft_texts=demonstrations.jsonl"]
    words += ["sft.max_length=64", "sft.num_train_epochs=0.2", "arms=[sft]"]
    words += ["reward_model_name_or_path=backbone"]
    done = metarm(*words)
    assert done.code == 0, done.err
    seed = tmp_path / "run/seed_0"
    assert read_json(seed / "sft/stage.json")["metrics"]["num_examples"] == 400
    (card,) = scorecards(tmp_path / "run").values()
    assert '"arm": "sft"' in card
    config = tmp_path / "model/config.json"
    config.write_text(config.read_text("utf-8") + "\n", "utf-8")
    assert "seed_0/sft was finished with other settings" in metarm(*words).error
    config.write_text(config.read_text("utf-8")[:-1], "utf-8")
    weights = tmp_path / "backbone/model.safetensors"
    weights.write_bytes(weights.read_bytes() + b"\0")
    assert "seed_0/reward was finished with other settings" in metarm(*words).error


def test_more_prompts_than_there_are_is_all_of_them(
    words: list[str], metarm, tmp_path: Path
) -> None:
    """Prompts are taken as far as they go."""
    words += ["data.preferences=preferences.jsonl", "arms=[meta]"]
    done = metarm(*words, "sampling.num_prompts=1000", "evaluation.num_prompts=1000")
    assert done.code == 0, done.err
    seed = tmp_path / "run/seed_0"
    counts = [
        len((seed / place).read_text("utf-8").splitlines())
        for place in (
            "data/prompts.jsonl",
            "arms/meta/round_01/samples/groups.jsonl",
            "data/prompts_test.jsonl",
            "arms/meta/round_01/evaluation/groups.jsonl",
        )
    ]
    assert counts[0] == counts[1]
    assert counts[2] == counts[3]
