# SPDX-License-Identifier: Apache-2.0
"""The page on labels in the loop: its settings are the code's, its commands can be typed."""

import re
from pathlib import Path

import pytest

from docs.pages import REPOSITORY, fenced_blocks, reader_folder
from docs.typed import type_out
from metarm.config import ArmSettings
from metarm.round_labels.waiting import read_waiting, waiting_text
from metarm.storage import read_json

PAGE = (REPOSITORY / "docs" / "labels-in-the-loop.md").read_text(encoding="utf-8")


def test_settings_and_defaults_are_those_of_an_arm() -> None:
    rows = re.findall(r"^\| `(label\w+)` \|.*\| `?([^|`]+)`? \|$", PAGE, re.MULTILINE)
    usual = ArmSettings()
    assert {name: float(text) if text.isdigit() else text for name, text in rows} == {
        name: getattr(usual, name) for name in ArmSettings.model_fields if name.startswith("label")
    }


@pytest.mark.slow
def test_the_commands_can_be_typed(tmp_path: Path) -> None:
    blocks = [block.text for block in fenced_blocks(PAGE) if block.language == "sh"]
    typed = [text for text in blocks if "benchmarks/" not in text]
    folder = reader_folder(tmp_path)
    _, err = type_out("\n".join(typed), folder)
    mixed = tmp_path / "runs/asked/seed_0/arms/mixed/round_01/labels/stage.json"
    assert read_json(mixed)["metrics"]["num_random"] == 5
    waiting = read_waiting(tmp_path / "runs/people")
    text = waiting_text(Path("runs/people"), waiting)
    assert f"```text\n{text}\n```" in PAGE
    assert text in err
