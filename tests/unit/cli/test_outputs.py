# SPDX-License-Identifier: Apache-2.0
"""Outputs of the single verbs: made once, whole, and tied to the bytes they came from."""

from pathlib import Path
from typing import Any

import pytest

from metarm.cli.options import build_output
from metarm.config import SftSettings
from metarm.errors import FingerprintError


def make(folder: Path, calls: list[Path], **changes: Any) -> dict[str, Any]:
    def build(target: Path) -> dict[str, Any]:
        calls.append(target)
        (target / "model").write_text("weights", encoding="utf-8")
        return {"loss": 0.5}

    stage = build_output(
        "sft",
        folder / "out",
        changes.get("settings", SftSettings()),
        {"data": folder / "data.jsonl", "model": folder / "model", "hub": "owner/name"},
        {"seed": changes.get("seed", 0)},
        build,
    )
    return dict(stage.metrics)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "data.jsonl").write_text("{}", encoding="utf-8")
    (tmp_path / "model" / "deep").mkdir(parents=True)
    (tmp_path / "model" / "deep" / "weights").write_text("1", encoding="utf-8")
    return tmp_path


def test_a_finished_output_is_not_made_again(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[Path] = []
    assert make(folder, calls) == {"loss": 0.5}
    assert capsys.readouterr().err == ""
    assert make(folder, calls) == {"loss": 0.5}
    assert len(calls) == 1
    assert "is finished; nothing is done again" in capsys.readouterr().err


def test_other_settings_or_other_bytes_are_refused(folder: Path) -> None:
    calls: list[Path] = []
    make(folder, calls)
    with pytest.raises(FingerprintError):
        make(folder, calls, settings=SftSettings(max_length=7))
    with pytest.raises(FingerprintError):
        make(folder, calls, seed=1)
    for name in ("data.jsonl", "model/deep/weights"):
        before = (folder / name).read_text(encoding="utf-8")
        (folder / name).write_text("changed", encoding="utf-8")
        with pytest.raises(FingerprintError):
            make(folder, calls)
        (folder / name).write_text(before, encoding="utf-8")
    (folder / "model" / "deep" / "weights").rename(folder / "model" / "weights")
    with pytest.raises(FingerprintError):
        make(folder, calls)
    assert len(calls) == 1
