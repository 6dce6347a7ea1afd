# SPDX-License-Identifier: Apache-2.0
"""The page on judging: its commands run one after the other, its tables name what is written."""

import json
import re
from dataclasses import fields
from pathlib import Path

import pytest

from docs.pages import REPOSITORY, fenced_blocks, reader_folder
from docs.typed import type_out
from metarm.endpoint.client import FATAL_STATUS, TEMPLATE_TOKENS, TRY_AGAIN_STATUS
from metarm.judging.length_control import LENGTH_PRIOR_SD
from metarm.judging.templates import TEMPLATES
from metarm.judging.win_rates import WinRate

PAGE = (REPOSITORY / "docs" / "judging.md").read_text(encoding="utf-8")


def test_every_figure_in_its_order() -> None:
    body = PAGE.split("\n## Figures\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `([^`]+)` \|", body, re.MULTILINE)
    assert rows == [field.name for field in fields(WinRate)]


def test_the_page_has_the_constants_of_the_code() -> None:
    assert all(f"`{name}`" in PAGE or f"={name}`" in PAGE for name in TEMPLATES)
    assert f"(sd {LENGTH_PRIOR_SD:g})" in PAGE
    assert f"{TEMPLATE_TOKENS} for the server's template" in PAGE
    for status in (*TRY_AGAIN_STATUS, *FATAL_STATUS):
        assert str(status) in PAGE


@pytest.mark.slow
def test_the_page_can_be_typed(tmp_path: Path) -> None:
    """After the run that the tutorial begins with."""
    blocks = [
        block.text
        for block in fenced_blocks(PAGE)
        if block.language == "sh" and "no-run" not in block.info
    ]
    run = "metarm run --config configs/smoke.yaml --output runs/smoke\n"
    type_out("\n".join([run, *blocks]), reader_folder(tmp_path))
    judged = json.loads((tmp_path / "runs/judged/judge.json").read_text(encoding="utf-8"))
    assert set(judged["judges"]) == {"gold", "first-rm"}
    assert (tmp_path / "runs/judged/judge.html").exists()
    assert (tmp_path / "runs/files/judge.html").exists()
    assert (tmp_path / "runs/anna.csv").exists()
