# SPDX-License-Identifier: Apache-2.0
"""The page on labels: its commands run in their order, its tables name what there is."""

import re
from pathlib import Path

import pytest

from docs.pages import REPOSITORY, fenced_blocks
from docs.typed import type_out
from metarm.cli.settings_help import settings_of
from metarm.labels.asking import CHUNK
from metarm.labels.exchange.formats import FORMATS, read_labels
from metarm.labels.exchange.raw_votes import COLUMNS
from metarm.labels.queue import BETWEEN
from metarm.labels.reading import LabelReader
from metarm.labels.verifying import verify_store

PAGE = (REPOSITORY / "docs" / "labels.md").read_text(encoding="utf-8")


def _rows(after: str) -> list[list[str]]:
    body = PAGE.split(after)[1].split("\n\n")[0]
    return [line.strip("| ").split(" | ") for line in body.splitlines() if line.startswith("| `")]


def test_every_setting_with_its_default() -> None:
    told = [row[:2] for row in _rows("| setting | default |")]
    settings = settings_of("LabelSettings")
    assert told == [[f"`{setting.name}`", setting.default] for setting in settings]
    assert f"with {BETWEEN} others between" in PAGE
    assert f"{CHUNK} at a time" in PAGE


def test_every_format_and_column() -> None:
    assert [row[0] for row in _rows("| format | what it keeps |")] == [f"`{n}`" for n in FORMATS]
    assert re.findall(r"^### (.+)$", PAGE, re.MULTILINE) == list(FORMATS)
    sample = PAGE.split("### votes-jsonl")[1].split("```")[1]
    assert re.findall(r'"(\w+)":', sample) == list(COLUMNS)


@pytest.mark.slow
def test_the_page_can_be_typed(tmp_path: Path) -> None:
    blocks = list(fenced_blocks(PAGE))
    typed = [one.text for one in blocks if one.language == "sh" and "no-run" not in one.info]
    (tmp_path / "pairs.jsonl").write_text(next(b.text for b in blocks if b.language == "json"))
    (tmp_path / "rules.py").write_text(next(b.text for b in blocks if b.language == "python"))
    type_out("".join(typed), tmp_path)
    assert verify_store(tmp_path / "labels.db").is_whole
    with LabelReader(tmp_path / "labels.db") as one, LabelReader(tmp_path / "again.db") as other:
        assert one.content() == other.content()
        assert len(one.votes()) == 6
    for name in ("argilla", "label-studio"):
        assert read_labels(tmp_path / f"for-{name}", name).pairs
