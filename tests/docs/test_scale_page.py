# SPDX-License-Identifier: Apache-2.0
"""The tables of docs/scale.md are what `metarm plan` prints."""

import re
from pathlib import Path

import pytest

from metarm.cli.app import run_command

PAGE = Path(__file__).parents[2] / "docs" / "scale.md"
SHOWN = re.compile(
    r"<!-- plan (?P<size>\S+) (?P<gpu>\S+) (?P<gpus>\d+): begin -->\n```text\n(?P<table>.*?)```\n",
    re.DOTALL,
)


@pytest.mark.parametrize(
    ("size", "gpu", "gpus", "table"),
    [found.groups() for found in SHOWN.finditer(PAGE.read_text(encoding="utf-8"))],
)
def test_the_page_shows_what_the_command_prints(capfd, size, gpu, gpus, table) -> None:
    assert run_command(["plan", "--parameters", size, "--gpu", gpu, "--gpus", gpus]) == 0
    assert capfd.readouterr().out.startswith(table)


def test_there_are_two_tables() -> None:
    assert len(SHOWN.findall(PAGE.read_text(encoding="utf-8"))) == 2
