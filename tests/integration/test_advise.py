# SPDX-License-Identifier: Apache-2.0
"""`metarm advise` on files of one's own: with a probe and without, kept splits, one-line errors."""

import json
from pathlib import Path

import pytest

from integration.made_up_shift import TINY_TRAINING, save_shift
from metarm.bench.advice_rule import CANDIDATES


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    save_shift(tmp_path)
    settings = TINY_TRAINING | {
        "source": {"preferences": "pairs.jsonl", "groups": "groups.jsonl"},
        "seeds": [0, 1],
    }
    (tmp_path / "advise.yaml").write_text(json.dumps(settings), "utf-8")
    return ["advise", "--config", "advise.yaml", "--output", "out"]


def test_without_a_probe_it_says_so_and_names_every_mode(words, metarm, tmp_path: Path) -> None:
    done = metarm(*words)
    assert done.code == 0, done.err
    assert "No pair of the shifted policy is labelled." in done.out
    assert "real shifts the rule's forecasts and what was measured agree" in done.out
    lines = [line.split()[0] for line in done.out.splitlines() if line]
    assert [name for name in lines if name in CANDIDATES] == list(CANDIDATES)
    assert "on the probe" not in done.out
    stages = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("stage.json")}
    assert len(stages) == 2
    again = metarm(*words)
    assert again.out == done.out
    assert all(path.stat().st_mtime_ns == before for path, before in stages.items())


def test_a_probe_is_shown_and_decides(words, metarm, tmp_path: Path) -> None:
    words += ["source.preferences_shifted=shifted.jsonl", "methods=[descent-half, joint-0.3]"]
    done = metarm(*words, "--json")
    assert done.code == 0, done.err
    advice = json.loads(done.out)
    assert json.loads((tmp_path / "out/advice.json").read_text("utf-8")) == {
        key: value for key, value in advice.items() if key != "output"
    }
    assert [own["method"] for own in advice["methods"]] == ["descent-half", "joint-0.3"]
    assert 0 < advice["num_probe"] <= 60
    assert all(own["probe_change"] is not None for own in advice["methods"])
    assert advice["choice"] in ("off", "descent-half", "joint-0.3")
    assert 0 <= advice["confidence"] <= 1
    assert "labelled shifted pairs" in advice["reasons"][0]
    shown = metarm(*words)
    assert "shifted, on the probe" in shown.out
    assert f"Use: {advice['choice']}" in shown.out


def test_other_data_is_not_taken_for_what_is_finished(words, metarm) -> None:
    words.append("methods=[descent-half]")
    assert metarm(*words).code == 0
    error = metarm(*words, "source.preferences_shifted=shifted.jsonl").error
    assert "was finished with other settings" in error


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("methods=[descent-hlf]", "unknown method 'descent-hlf': did you mean 'descent-half'"),
        ("methods=[joint-1, joint-1]", "methods may each be named once only"),
        ("seeds=[0, 0]", "seeds may each be named once only"),
        ("shift=alpacca", "did you mean 'alpaca'"),
        ("shift=alpaca", "is read from a file"),
        ("source.groups=null", "needs `preferences`"),
        ("source.groupes=x", "did you mean 'groups'"),
        ("backbone=absent", "there is no such folder"),
        ("confidence=1", "confidence"),
    ],
)
def test_nonsense_is_one_line(words, metarm, word: str, message: str) -> None:
    assert message in metarm(*words, word).error
