# SPDX-License-Identifier: Apache-2.0
"""`metarm tune` on files of one's own: the budget is kept over any end, held-out pairs unseen."""

import json
import os
import random
import shutil
import signal
import sqlite3
import time
from contextlib import closing, suppress
from pathlib import Path

import pytest

from integration.made_up_shift import TINY_TRAINING, save_shift
from metarm.data.preferences import load_preferences, save_preferences, split_by_prompt
from metarm.schema import PreferencePair
from metarm.storage import read_json
from patience import TRIES, wait_until


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    save_shift(tmp_path, num_prompts=80)
    settings = TINY_TRAINING | {
        "shift": "files",
        "source": {
            "preferences": "pairs.jsonl",
            "groups": "groups.jsonl",
            "preferences_shifted": "shifted.jsonl",
        },
        "num_trials": 4,
        "seeds": [0, 1],
        "fresh_seeds": [2, 3],
        "features_dir": "features",
        "head": TINY_TRAINING["head"] | {"num_groups": 8},
    }
    (tmp_path / "tune.yaml").write_text(json.dumps(settings), "utf-8")
    return ["tune", "--config", "tune.yaml", "--output"]


def trials(folder: Path) -> list[dict]:
    return read_json(folder / "tune.json")["trials"]


def states(folder: Path) -> list[str]:
    """Of all trials there ever were, those that were cut too; none before there is a file."""
    path = f"file:{folder / 'tune.sqlite3'}?mode=ro"
    with (
        suppress(sqlite3.OperationalError),
        closing(sqlite3.connect(path, uri=True)) as file,
    ):
        return [row[0] for row in file.execute("SELECT state FROM trials ORDER BY number")]
    return []


def test_search_page_and_figures(words, metarm, tmp_path: Path) -> None:
    done = metarm(*words, "out", "--json")
    assert done.code == 0, done.err
    document = json.loads(done.out)
    first = document["trials"][0]
    assert first["is_default"]
    assert first["settings"] == {
        "strength": 0.3,
        "learning_rate": 1e-3,
        "weight_decay": 0.01,
        "num_groups": 8,
    }
    assert [len(trial["values"]) for trial in document["trials"]] == [2, 2, 2, 2]
    best = max(trial["value"] for trial in document["trials"])
    assert document["trials"][document["best"]]["value"] == best
    assert [row["seed"] for row in document["fresh_best"]] == [2, 3]
    assert document["fresh_change"]["count"] == 2
    assert document["importances"] is None
    assert {**document, "output": None, "report": None} == {
        **read_json(tmp_path / "out/tune.json"),
        "output": None,
        "report": None,
    }
    page = (tmp_path / "out/tune.html").read_text("utf-8")
    assert page.count("data:image/svg+xml") == 2 + (document["best"] != 0)
    assert "http://" not in page
    assert "<script" not in page
    said = metarm(*words, "out")
    assert said.out.startswith("joint on files: 4 of 4 trials, 0 of them pruned, 2 seeds each\n")
    assert len(states(tmp_path / "out")) == 4


@pytest.mark.slow
def test_the_same_seed_gives_the_same_trials_and_another_one_others(
    words, metarm, tmp_path: Path
) -> None:
    for folder, more in (("one", []), ("two", []), ("other", ["seed=1"])):
        assert metarm(*words, folder, *more).code == 0
    one, two, other = (trials(tmp_path / name) for name in ("one", "two", "other"))
    assert one == two
    assert one[0] == other[0]
    assert one[1]["settings"] != other[1]["settings"]


@pytest.mark.slow
def test_a_larger_budget_adds_to_what_is_there(words, metarm, tmp_path: Path) -> None:
    assert metarm(*words, "whole", "num_trials=6").code == 0
    assert metarm(*words, "parts").code == 0
    assert metarm(*words, "parts", "num_trials=6").code == 0
    assert trials(tmp_path / "parts") == trials(tmp_path / "whole")
    assert len(states(tmp_path / "parts")) == 6


@pytest.mark.slow
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
def test_stopped_at_any_moment_it_ends_as_one_that_was_not(
    words, launch, metarm, tmp_path: Path, end: signal.Signals
) -> None:
    more = ["num_trials=13", "head.num_steps=60", "head.measure_every=20"]
    draw = random.Random(0)
    assert metarm(*words, "whole", *more).code == 0
    folder = tmp_path / "parts"

    def is_stopped_at(wanted: int) -> bool:
        """Whether the end came while trials were left, rather than too late."""
        command = launch(*words, "parts", *more)

        def is_there() -> bool:
            seen = states(folder)
            return "RUNNING" in seen and len(seen) >= wanted

        wait_until(lambda: is_there() or not command.process.is_alive())
        time.sleep(draw.uniform(0, 0.1))
        os.kill(command.process.pid, end)
        code = command.finish().code
        assert code in (0, 130 if end == signal.SIGINT else -end)
        return code != 0

    for _ in range(TRIES):
        cut = 0
        for wanted in (1, 5, 12):
            if not is_stopped_at(wanted):
                break
            cut += sum(state in ("RUNNING", "FAIL") for state in states(folder))
        else:
            if cut:
                break
        shutil.rmtree(folder)
    else:
        pytest.fail("no stop inside a trial")
    done = metarm(*words, "parts", *more)
    assert done.code == 0, done.err
    assert trials(folder) == trials(tmp_path / "whole")
    assert sum(state in ("COMPLETE", "PRUNED") for state in states(folder)) == 13


@pytest.mark.slow
def test_workers_keep_the_budget(words, metarm, tmp_path: Path) -> None:
    done = metarm(*words, "out", "workers=2", "num_trials=5")
    assert done.code == 0, done.err
    found = trials(tmp_path / "out")
    assert len(found) == 5
    assert sum(trial["is_default"] for trial in found) == 1
    assert len({trial["settings"]["learning_rate"] for trial in found}) == 5


@pytest.mark.parametrize(
    ("word", "name"),
    [("head.num_steps=6", "head"), ("seeds=[0, 4]", "seeds"), ("method=descent", "method, recipe")],
)
def test_other_settings_are_refused_in_a_folder_with_trials(words, metarm, word, name) -> None:
    assert metarm(*words, "out", "num_trials=1").code == 0
    error = metarm(*words, "out", "num_trials=1", word).error
    assert f"was begun with other settings ({name})" in error


def turn_labels(path: Path, *, held_out: bool) -> None:
    """Turn the pairs that seed 0 tests on, or the others."""
    pairs = load_preferences(path).pairs
    tested = {pair.prompt for pair in split_by_prompt(pairs, 0.3, 0)[1]}
    assert 10 < len(tested) < len(pairs) - 10
    turned = [
        PreferencePair(p.prompt, p.rejected, p.chosen) if (p.prompt in tested) == held_out else p
        for p in pairs
    ]
    save_preferences(path, turned)


@pytest.mark.slow
@pytest.mark.parametrize("judge", ["use_labels=0", "use_labels=20"])
def test_no_trial_is_judged_by_held_out_pairs(words, metarm, tmp_path: Path, judge: str) -> None:
    command = [*words, "before", "seeds=[0]", judge]
    assert metarm(*command).code == 0
    for name in ("pairs", "shifted"):
        turn_labels(tmp_path / f"{name}.jsonl", held_out=True)
    command[4] = "after"
    assert metarm(*command).code == 0
    assert trials(tmp_path / "after") == trials(tmp_path / "before")
    turn_labels(tmp_path / "shifted.jsonl", held_out=False)
    command[4] = "turned"
    assert metarm(*command).code == 0
    is_same = trials(tmp_path / "turned") == trials(tmp_path / "before")
    assert is_same == (judge == "use_labels=0")


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("method=jiont", "unknown method 'jiont': did you mean 'joint'"),
        ("method=own:function", "only methods of the table have settings to tune"),
        ("shift=alpacca", "did you mean 'alpaca'"),
        ("fresh_seeds=[1, 7]", "have none in common"),
        ("use_labels=500", "expected 500 labelled shifted pairs"),
        ("space.strenght.low=0.1 space.strenght.high=1.0", "did you mean 'strength'"),
        ("space.strength.low=2.0 space.strength.high=1.0", "low (2.0) must be below high"),
        ("space.strength.low=1.0 space.strength.high=2.0", "a range with the default 0.3 in it"),
        (
            "method=sam space.num_groups.low=4.0 space.num_groups.high=64.0",
            "this method has no such setting",
        ),
        ("max_minutes=0.0", "max_minutes"),
    ],
)
def test_nonsense_is_one_line(words, metarm, word: str, message: str) -> None:
    parts = word.split() if word.count("=") > 1 else [word]
    assert message in metarm(*words, "out", *parts).error


def test_a_file_that_is_no_search_is_left_alone(words, metarm, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/tune.sqlite3").write_text("something else" * 100, "utf-8")
    error = metarm(*words, "out").error
    assert "expected a search of metarm tune, got file is not a database" in error


def test_any_folder_name_will_do(words, metarm, tmp_path: Path) -> None:
    done = metarm(*words, "a b?c{d}#%20e", "num_trials=1")
    assert done.code == 0, done.err
    assert (tmp_path / "a b?c{d}#%20e" / "tune.sqlite3").exists()
    assert "None of 1 trials was better than the default" in done.out
