# SPDX-License-Identifier: Apache-2.0
"""The page on advice names every mode with its settings, and every figure, that there is."""

import re
from dataclasses import fields

from docs.pages import REPOSITORY
from metarm.bench.advice_rule import CANDIDATES
from metarm.bench.advise import trainer_settings
from metarm.bench.foretell import Figures
from metarm.config import RewardSettings

PAGE = (REPOSITORY / "docs" / "advise.md").read_text(encoding="utf-8")


def rows(section: str) -> list[tuple[str, str]]:
    body = PAGE.split(f"\n## {section}\n")[1].split("\n## ")[0]
    return re.findall(r"^\| `([^`]+)` \| (.*) \|$", body, re.MULTILINE)


def test_every_mode_and_its_settings() -> None:
    assert rows("Modes") == [(name, f"`{trainer_settings(name)}`") for name in CANDIDATES]
    names = {word.split("=")[0] for name in CANDIDATES for word in trainer_settings(name).split()}
    assert names <= set(RewardSettings.model_fields)


def test_every_figure() -> None:
    assert [name for name, _ in rows("Figures")] == [field.name for field in fields(Figures)]
