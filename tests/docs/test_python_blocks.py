# SPDX-License-Identifier: Apache-2.0
"""The ```python blocks of every page run, in order, as a reader would paste them."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from docs.pages import (
    Block,
    fenced_blocks,
    markdown_pages,
    page_id,
    reader_environment,
    reader_folder,
)
from patience import PATIENCE_SECONDS


def _python(page: Path, *, run: bool) -> list[Block]:
    blocks = fenced_blocks(page.read_text(encoding="utf-8"))
    return [b for b in blocks if b.language == "python" and ("no-run" not in b.info) == run]


def _script(blocks: list[Block]) -> str:
    """One script whose line numbers are the page's, so that a traceback points into the page."""
    lines: list[str] = []
    for block in blocks:
        lines += [""] * (block.line - 1 - len(lines))
        lines += block.text.splitlines()
    return "".join(f"{line}\n" for line in lines)


RUNNABLE = [page for page in markdown_pages() if _python(page, run=True)]


@pytest.mark.parametrize("page", RUNNABLE, ids=page_id)
def test_blocks_run(page: Path, tmp_path: Path) -> None:
    script = tmp_path / f"{page.stem}_blocks.py"
    script.write_text(_script(_python(page, run=True)), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, script.name],
        cwd=reader_folder(tmp_path),
        env=reader_environment(),
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert done.returncode == 0, f"{page_id(page)}:\n{done.stdout}\n{done.stderr}"


def _missing_names(block: Block) -> list[str]:
    """What a block imports from metarm that is not there; a block that does not parse raises."""
    return [
        f"{node.module}.{alias.name}"
        for node in ast.walk(ast.parse(block.text))
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "metarm"
        for alias in node.names
        if not hasattr(importlib.import_module(node.module or ""), alias.name)
    ]


def test_blocks_left_out_still_make_sense() -> None:
    left_out = [block for page in markdown_pages() for block in _python(page, run=False)]
    assert not [name for block in left_out for name in _missing_names(block)]
    block = Block("python", ("no-run",), 1, "from metarm.errors import MetarmError, NoSuchError\n")
    assert _missing_names(block) == ["metarm.errors.NoSuchError"]


def test_a_script_keeps_the_lines_of_its_page() -> None:
    page = (
        "# Title\n\n```python\nx = 1\n```\n\n"
        "```python no-run\nfail\n```\n\n```python\nx += 1\n```\n"
    )
    blocks = [b for b in fenced_blocks(page) if "no-run" not in b.info]
    script = _script(blocks)
    assert script.splitlines()[3] == "x = 1"
    assert script.splitlines()[11] == "x += 1"
    assert "fail" not in script
