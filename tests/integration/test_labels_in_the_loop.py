# SPDX-License-Identifier: Apache-2.0
"""Rounds that ask for labels, from the command line: gold, people, and what is kept of both."""

import json
import shutil
from pathlib import Path

import pytest

from integration.commands import inodes, scorecards
from integration.rounds_of_labels import arm
from metarm.config import RunSettings
from metarm.config_file import read_settings
from metarm.data.meta_sets import load_groups
from metarm.data.preferences import load_preferences
from metarm.labels.events import VoteEvent
from metarm.labels.reading import LabelReader
from metarm.labels.store import LabelStore
from metarm.labels.votes import LabelPair
from metarm.storage import read_json, read_json_lines
from metarm.world.language import GoldReward, build_language

pytestmark = pytest.mark.slow


@pytest.fixture
def begun(finished_run: Path, tmp_path: Path) -> Path:
    """The finished run, without the arm whose settings a test writes anew."""
    return Path(shutil.copytree(finished_run, tmp_path / "run"))


def answer(store: Path, annotator: str, *, skips: int = 0) -> int:
    """One person answers everything there is, the longer response being better.

    Returns how many pairs: nothing is shown a second time, which a store draws by its own secret.
    """
    number = 0
    with LabelReader(store) as reader:
        settings = reader.settings.model_copy(update={"repeat_fraction": 0.0})
    with LabelStore(store, settings) as opened:
        opened.add_annotator(annotator)
        while (item := opened.next_item(annotator)) is not None:
            pair = item.pair
            choice = "first" if len(pair.first) > len(pair.second) else "second"
            choice = "skip" if number < skips else choice
            opened.record(VoteEvent(f"{item.id}", annotator, choice, item=item.id, seconds=2.0))
            number += 1
    return number


def labels_of(place: Path):
    return load_preferences(place / "labels.jsonl", "trl-explicit", keep_blank=True).pairs


def test_the_short_form_and_the_long_one_are_the_same_bits(begun: Path, metarm, smoke) -> None:
    """The same pairs in the same order, and so the same reward model and the same policy."""
    done = metarm(*smoke, begun, "arms=[labels, long]", *arm("long", labels_per_round=10))
    assert done.code == 0, done.err
    arms = begun / "seed_0/arms"
    for number in ("round_01", "round_02"):
        short, long = arms / "labels" / number, arms / "long" / number
        assert labels_of(short / "samples") == labels_of(long / "labels")
        for stage in ("reward", "policy"):
            weights = [place / stage / "model.safetensors" for place in (short, long)]
            assert weights[0].read_bytes() == weights[1].read_bytes()
    told = read_json(arms / "long/round_02/labels/stage.json")["metrics"]
    assert (told["num_labels"], told["num_votes"], told["num_random"]) == (10, 10, 10)
    assert told["agreement_with_votes"]["num_votes"] == 10
    assert told["votes_by"] == {"gold": 10}


def test_half_of_a_mix_is_random_and_old_pairs_are_of_sft(begun: Path, metarm, smoke) -> None:
    words = arm("mixed", labels_per_round=8, labels_choice="mix", label_noise=0.3)
    words += arm("old", labels_per_round=8, labels_on="original")
    done = metarm(*smoke, begun, "arms=[plain, mixed, old]", *words)
    assert done.code == 0, done.err
    place = begun / "seed_0/arms/mixed/round_02"
    told = read_json(place / "labels/stage.json")["metrics"]
    assert (told["num_asked"], told["num_random"]) == (8, 4)
    rows = list(read_json_lines(place / "labels/answers.jsonl"))
    assert [row["chosen_by"] for row in rows].count("d-optimal") == 4
    settings = read_settings(begun / "config.yaml", [], RunSettings)
    gold = GoldReward(build_language(settings.world))
    assert all(gold.score(r["prompt"], r["first"]) != gold.score(r["prompt"], r["second"])
               for r in rows), "pairs that gold cannot tell apart are passed over"  # fmt: skip
    texts = {
        name: {
            (group.prompt, text)
            for group in load_groups(begun / f"seed_0/arms/{name}/groups.jsonl")
            for text in group.responses
        }
        for name in ("old/round_02/samples_original", "mixed/round_02/samples")
    }
    old = labels_of(begun / "seed_0/arms/old/round_02/labels")
    assert {(p.prompt, p.chosen) for p in old} <= texts["old/round_02/samples_original"]
    assert not {(p.prompt, p.chosen) for p in old} <= texts["mixed/round_02/samples"]
    page = (begun / "report.html").read_text("utf-8")
    assert "What the labels bought" in page
    assert "8 a round by gold, random, on SFT&#39;s pairs" in page
    # A finished arm is not done again, and another choice is refused where it first matters.
    before = inodes(begun)
    again = metarm(*smoke, begun, "arms=[plain, mixed, old]", *words)
    assert (again.code, inodes(begun)) == (0, before)
    changed = [*words, "custom_arms.mixed.label_noise=0.4"]
    error = metarm(*smoke, begun, "arms=[plain, mixed, old]", *changed).error
    assert "arms/mixed/round_01/labels was finished with other settings" in error


def test_people_are_waited_for_and_the_same_command_goes_on(begun: Path, metarm, smoke) -> None:
    """Other arms come first; nothing is held; two rounds, two waits, then the end.

    Votes a pair are raised before the second round, whose pairs alone want two.
    """
    words = [*smoke, begun, "arms=[people, plain]", "--json"]
    words += arm("people", labels_per_round=6, labels_from="people", labels_choice="mix")
    words.append("labels.votes_per_pair=1")
    shutil.rmtree(begun / "seed_0/arms/plain/round_02")
    store, place = begun / "labels.sqlite", begun / "seed_0/arms/people"
    for number in (1, 2):
        words[-1] = f"labels.votes_per_pair={number}"
        waits = metarm(*words)
        assert waits.code == 75, waits.err
        assert "waiting for 6 labels (people): metarm label serve" in waits.err
        document = json.loads(waits.out)
        asked = {"arm": "people", "seed": 0, "round": number, "num_asked": 6, "num_answered": 0}
        assert document["waiting"] == [asked]
        assert any("waiting for 6 labels" in sentence for sentence in document["missing"])
        if number == 1:
            assert "seed_0/arms/plain/round_02/evaluation/scorecard.json" in scorecards(begun)
        assert not (place / f"round_0{number}/labels").exists()
        before = inodes(begun)
        assert metarm(*words).code == 75
        assert inodes(begun) == before, "to ask again changes nothing"
        assert answer(store, "ann", skips=1) == 6
    assert json.loads(metarm(*words).out)["waiting"] == [asked]
    # Of the first round's pairs the one that was skipped, and none for a second vote.
    assert answer(store, "bob") == 7
    done = metarm(*words)
    assert done.code == 0, done.err
    assert json.loads(done.out)["waiting"] == []
    for number in (1, 2):
        stage = place / f"round_0{number}/labels"
        told = read_json(stage / "stage.json")["metrics"]
        assert (told["num_asked"], told["num_labels"], told["num_skips"]) == (6, 4 + number, 1)
        assert told["votes_by"] == ({"ann": 5} if number == 1 else {"ann": 5, "bob": 6})
        assert told["num_votes_beside"] == (0 if number == 1 else 5), "those of the first round"
        assert told["annotator_seconds"] == 12.0 * number
        for pair in labels_of(stage):
            assert len(pair.chosen) >= len(pair.rejected)
    encoded = read_json(place / "round_02/reward/stage.json")["metrics"]["encoding"]
    num_original = len(load_preferences(begun / "seed_0/world/preferences.jsonl").pairs)
    assert encoded.startswith(f"{num_original + 2 * 11} of ")
    # What people say later does not undo what was trained on.
    with LabelStore(store) as opened:
        opened.add_annotator("cid")
        opened.record(VoteEvent("late", "cid", "tie", pair=opened_pair(place)))
        known = LabelPair("known", " x", " y")
        opened.add_pairs([known], gold={known.id: "second"})
        opened.record(VoteEvent("known", "ann", "first", pair=known.id))
    before = inodes(begun)
    assert metarm(*words).code == 0
    assert inodes(begun) == before


def opened_pair(place: Path) -> str:
    """The id of a pair that was asked in round 1."""
    return next(read_json_lines(place / "round_01/labels/answers.jsonl"))["id"]


def test_a_judge_of_ones_own_labels_and_a_wrong_name_is_told(
    begun: Path, metarm, smoke, tmp_path: Path
) -> None:
    (tmp_path / "own_judge.py").write_text(
        "def longer(prompts, first, second):\n"
        "    sides = zip(first, second)\n"
        "    return ['tie' if len(a) == len(b) else 'first' if len(a) > len(b) else 'second'"
        " for a, b in sides]\n"
    )
    words = arm("judged", labels_per_round=6, labels_from="own_judge:longer")
    done = metarm(*smoke, begun, "rounds=1", "arms=[judged]", *words)
    assert done.code == 0, done.err
    told = read_json(begun / "seed_0/arms/judged/round_01/labels/stage.json")["metrics"]
    assert told["kinds"] == {"own_judge:longer": "model"}
    assert told["num_labels"] == 6


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"labels_choice": "cleverest"}, "unknown name 'cleverest'"),
        ({"labels_choice": "no_module:choose"}, "no_module"),
        ({"labels_from": "no_module:judge"}, "no_module"),
    ],
)
def test_who_and_how_to_ask_is_told_before_the_run_begins(
    metarm, smoke, tmp_path: Path, settings: dict[str, str], message: str
) -> None:
    words = arm("lost", labels_per_round=6, **settings)
    assert message in metarm(*smoke, "run", "arms=[lost]", *words).error
    assert not (tmp_path / "run").exists()
