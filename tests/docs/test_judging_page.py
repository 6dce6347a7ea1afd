# SPDX-License-Identifier: Apache-2.0
"""The page on judging: its commands run one after the other, its tables name what is written."""

import json
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from docs.pages import REPOSITORY, fenced_blocks, reader_environment, reader_folder
from metarm.endpoint.client import FATAL_STATUS, TEMPLATE_TOKENS, TRY_AGAIN_STATUS
from metarm.judging.length_control import LENGTH_PRIOR_SD
from metarm.judging.templates import TEMPLATES
from metarm.judging.win_rates import WinRate
from patience import PATIENCE_SECONDS

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
    environment = reader_environment()
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    done = subprocess.run(
        ["bash", "-euc", "\n".join([run, *blocks])],
        cwd=reader_folder(tmp_path),
        env=environment,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    judged = json.loads((tmp_path / "runs/judged/judge.json").read_text(encoding="utf-8"))
    assert set(judged["judges"]) == {"gold", "first-rm"}
    assert (tmp_path / "runs/judged/judge.html").exists()
    assert (tmp_path / "runs/files/judge.html").exists()
    assert (tmp_path / "runs/anna.csv").exists()
