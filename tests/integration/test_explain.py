# SPDX-License-Identifier: Apache-2.0
"""`metarm explain` on tiny models: both files, a second model, going on, one-line errors."""

import json
import random
import time
from pathlib import Path

import pytest

from integration.commands import start
from metarm.data.preferences import save_preferences
from metarm.models.ensemble import save_ensemble
from metarm.schema import PreferencePair
from metarm.storage import read_json, read_json_lines, write_json_lines
from tiny_models import WORDS, save_causal_lm, save_reward_model

EXPLAIN = ["explain", "--reward-model", "reward", "--output", "out"]
PAIRS = ["--preferences", "pairs.jsonl"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    draw = random.Random(0)

    def words(count: int) -> str:
        return "".join(f" {word}" for word in draw.choices(WORDS, k=count))

    for name, count in (("pairs", 60), ("taught", 50)):
        save_preferences(
            tmp_path / f"{name}.jsonl",
            [
                PreferencePair(f"{name[0]} a{words(3)}", words(2 + n % 5), words(7))
                for n in range(count)
            ],
        )
    save_reward_model(tmp_path / "reward")
    save_reward_model(tmp_path / "adapted", seed=1)
    return tmp_path


def test_pairs_are_explained_and_gone_on_with(folder: Path, metarm) -> None:
    words = [*EXPLAIN, *PAIRS, "--labelled", "taught.jsonl", "--after", "adapted", "--rows", "3"]
    done = metarm(*words)
    assert done.code == 0, done.err
    document = read_json(folder / "out/explain.json")
    assert done.out.splitlines()[0] == document["headline"][0]
    assert len(document["pairs"]) == 3
    for pair in document["pairs"]:
        own = pair["attribution"]
        names = ("prompt_sum", "first_sum", "second_sum", "frame_sum", "length_alone", "gap")
        assert sum(own[name] for name in names) == pytest.approx(own["difference"], abs=1e-5)
        assert own["difference"] == pytest.approx(pair["gap"], abs=1e-4)
        assert len(pair["neighbours"]) == 5
        assert pair["helpful"][0]["influence"] == pytest.approx(
            pair["helpful"][0]["by_refit"], rel=0.3
        )
    assert document["slices"][0]["num_pairs"] == 60
    assert document["slices"][0]["change"] is not None
    page = (folder / "out/explain.html").read_text("utf-8")
    assert "data:image/svg+xml" in page
    assert "<script" not in page

    kept = (folder / "out/attributions.log").read_bytes()
    assert kept.count(b"\n") == 6
    again = metarm(*words)
    assert again.code == 0, again.err
    assert (folder / "out/attributions.log").read_bytes() == kept
    assert read_json(folder / "out/explain.json") == document


@pytest.mark.slow
def test_a_killed_explanation_goes_on(folder: Path, metarm) -> None:
    """Killed among its states and among its attributions, it ends as if never stopped."""
    words = [*PAIRS, "--labelled", "taught.jsonl", "--after", "adapted", "--rows", "3"]
    words = ["explain", "--reward-model", "reward", "--output", *words]
    whole = [*words[:4], "whole", *words[4:]]
    broken = [*words[:4], "broken", *words[4:]]
    done = metarm(*whole)
    assert done.code == 0, done.err
    logs = [folder / "broken" / name for name in ("states.log", "attributions.log")]

    def parts() -> list[bytes]:
        return [path.read_bytes() if path.exists() else b"" for path in logs]

    kills, seen = 0, parts()
    for at_least in (3, 9):
        command = start(broken, folder, folder)
        while command.process.is_alive() and sum(p.count(b"\n") for p in parts()) < at_least:
            time.sleep(0.002)
        kills += command.process.is_alive()
        command.kill()
        now = parts()
        # What was kept stays as it is, and no part is made twice.
        for before, after in zip(seen, now, strict=True):
            complete = before[: before.rfind(b"\n") + 1]
            assert after.startswith(complete)
        seen = now
    assert kills == 2
    done = metarm(*broken)
    assert done.code == 0, done.err
    for name in ("explain.json", "explain.html", "states.log", "attributions.log"):
        assert (folder / "broken" / name).read_bytes() == (folder / "whole" / name).read_bytes()
    keys = [json.loads(line.split(b" ", 1)[1])[0] for p in parts() for line in p.splitlines()]
    assert len(keys) == len(set(keys)) == 6 + 6


def test_soft_labels_are_told_and_learnt_from(folder: Path, metarm) -> None:
    words = [*EXPLAIN, *PAIRS, "--rows", "1", "--json"]
    hard = json.loads(metarm(*words, "--labelled", "taught.jsonl").out)
    rows = [{**row, "p": 0.5} for row in read_json_lines(folder / "taught.jsonl")]
    rows[0]["p"] = 0.9
    write_json_lines(folder / "soft.jsonl", rows)
    done = metarm(*words, "--labelled", "soft.jsonl")
    assert done.code == 0, done.err
    soft = json.loads(done.out)
    # One label in fifty says something: it alone may help, and ties pull back what it taught.
    (pair,), (hard_pair,) = soft["pairs"], hard["pairs"]
    assert abs(pair["head_gap"]) < 0.1 * abs(hard_pair["head_gap"])
    told = [*pair["helpful"], *pair["harmful"]]
    assert max(told, key=lambda one: abs(one["influence"]))["label"] == 0
    for one in told:
        assert one["p"] == rows[one["label"]]["p"]
        assert one["influence"] == pytest.approx(one["by_refit"], rel=0.3)
    assert {one["p"] for one in hard_pair["neighbours"]} == {1.0}
    assert soft["head"]["accuracy_left_out"] == pytest.approx(0.5, abs=0.01)
    page = (folder / "out/explain.html").read_text("utf-8")
    assert "better with probability 0.90" in page
    assert "better with probability 0.10" in page


def test_one_text_of_an_ensemble(folder: Path, metarm) -> None:
    (folder / "both").mkdir()
    pairs = [PreferencePair("a", " b", " c d"), PreferencePair("e", " f", " a b c")]
    save_ensemble(folder / "both", [folder / "reward", folder / "adapted"], pairs)
    done = metarm(
        *("explain", "--reward-model", "both", "--output", "out", "--json"),
        *("--text", "a b", " c d"),
    )
    assert done.code == 0, done.err
    own = json.loads(done.out)["text"]["attribution"]
    total = own["baseline_score"] + sum(value for _, value, _ in own["pieces"]) + own["gap"]
    assert total == pytest.approx(own["score"], abs=1e-5)
    assert "".join(text for text, _, _ in own["pieces"]) == "a b c d</s>"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--preferences FILE"),
        (["--text", "a", " b", "--after", "adapted"], "are of pairs"),
        ([*PAIRS, "--row", "99"], "expected rows from 0 to 59"),
        ([*PAIRS, "--baseline", "eoss"], "did you mean 'eos'?"),
        (["--text", "a", " b" * 40], "the reward model's context is 24"),
    ],
)
def test_errors_are_one_line(folder: Path, metarm, words: list[str], message: str) -> None:
    assert message in metarm(*EXPLAIN, *words).error


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--preferences", "none.jsonl"], "none.jsonl"),
        ([*PAIRS, "--labelled", "none.jsonl"], "none.jsonl"),
        ([*PAIRS, "--after", "nowhere"], "nowhere"),
        ([*PAIRS, "--row", "99"], "expected rows from 0 to 59"),
    ],
)
def test_wrong_files_are_told_before_anything_is_attributed(
    folder: Path, metarm, words: list[str], message: str
) -> None:
    assert message in metarm(*EXPLAIN, "--text", "a", " b", *words).error
    assert not (folder / "out" / "attributions.log").exists()
    assert (folder / "out").exists() == ("none.jsonl" not in words), "a wrong file makes none"


def test_a_language_model_is_no_reward_model(folder: Path, metarm) -> None:
    save_causal_lm(folder / "language")
    done = metarm("explain", "--reward-model", "language", "--output", "out", *PAIRS)
    assert "expected a whole reward model" in done.error
