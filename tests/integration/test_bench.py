# SPDX-License-Identifier: Apache-2.0
"""`metarm bench` from the command line, on models and texts that take seconds."""

import json
import os
import signal
from pathlib import Path

import pytest

from patience import wait_until

WORDS = [
    "bench",
    "--output",
    "out",
    "sizes=[tiny]",
    "lengths=[12/6/3]",
    "num_pairs=2",
    "num_groups=2",
    "repeats=1",
    "steps=1",
]


def test_figures_table_and_page(metarm, tmp_path: Path) -> None:
    done = metarm(*WORDS, "methods=[trl, plain, meta]", "--json")
    assert done.code == 0, done.err
    document = json.loads(done.out)
    rows = {row["method"]: row for row in document["summaries"]["tiny 12/6/3"]}
    assert list(rows) == ["trl", "plain", "meta"]
    assert all(row["seconds"]["value"] > 0 and row["tokens"] > 0 for row in rows.values())
    assert rows["trl"]["to_trl"]["value"] == 1
    kept = json.loads((tmp_path / "out/speed.json").read_text("utf-8"))
    assert kept["cases"] == document["cases"]
    assert kept["machine"]["trl"]
    assert set(kept["cases"][0]) >= {"rates", "equivalence", "scoring", "sampling", "move"}
    assert kept["cases"][0]["equivalence"]["gradient_error"] < 1e-4
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out/measured").rglob("*.json")}
    said = metarm(*WORDS, "methods=[trl, plain, meta]")
    assert said.out.startswith("tiny 12/6/3")
    assert "metarm, MetaRM" in said.out
    assert "Five responses to a prompt sampled" in said.out
    assert all(path.stat().st_mtime_ns == moment for path, moment in before.items())
    page = (tmp_path / "out/speed.html").read_text("utf-8")
    assert "TRL RewardTrainer, no checkpointing" in page
    assert "<script" not in page


def test_bad_settings_are_one_line(metarm) -> None:
    assert "P/R/k" in metarm(*WORDS, "lengths=[12x6]").error
    assert "did you mean '30m'" in metarm(*WORDS, "sizes=[30mm]").error
    assert "plain" in metarm(*WORDS, "methods=[plan]").error


@pytest.mark.slow
def test_stopped_by_ctrl_c_it_goes_on(launch, metarm, tmp_path: Path) -> None:
    words = [*WORDS[:-2], "repeats=40", "steps=1", "methods=[trl, plain]", "inference=false"]
    command = launch(*words)

    def blocks() -> int:
        files = (tmp_path / "out/measured").glob("*/method_trl.json")
        return sum(len(json.loads(path.read_text("utf-8"))["blocks"]) for path in files)

    wait_until(lambda: blocks() >= 2 or not command.process.is_alive())
    os.kill(command.process.pid, signal.SIGINT)
    stopped = command.finish()
    assert stopped.code == 130
    assert "finished measurements are kept" in stopped.err
    before = blocks()
    assert metarm(*words, "repeats=3").code == 0
    assert blocks() == max(before, 3)
