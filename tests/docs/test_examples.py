# SPDX-License-Identifier: Apache-2.0
"""Every example runs from a bare checkout; one that says it takes long counts as slow."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from docs.pages import REPOSITORY, reader_environment, reader_folder
from patience import PATIENCE_SECONDS

EXAMPLES = sorted((REPOSITORY / "examples").glob("*.py"))
SLOW_SECONDS = 10
_STATED = re.compile(r"\b(\d+) ?(s|seconds?|minutes?)\b")


def _is_slow(docstring: str) -> bool:
    """Whether a docstring speaks of more than ten seconds, as in `Takes about 20 seconds.`"""
    stated = _STATED.findall(docstring)
    return any(int(n) * (60 if unit.startswith("m") else 1) > SLOW_SECONDS for n, unit in stated)


def _parameter(example: Path) -> object:
    docstring = ast.get_docstring(ast.parse(example.read_text(encoding="utf-8"))) or ""
    marks = [pytest.mark.slow] if _is_slow(docstring) else []
    return pytest.param(example, id=example.name, marks=marks)


def test_the_docstring_decides_what_is_slow() -> None:
    assert _is_slow("About 20 s on two cores.")
    assert _is_slow("Takes 1 minute.")
    assert not _is_slow("Takes 5 seconds, with k = 50 responses.")
    assert not _is_slow("")


@pytest.mark.parametrize("example", [_parameter(example) for example in EXAMPLES])
def test_examples_run(example: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, f"examples/{example.name}"],
        cwd=reader_folder(tmp_path),
        env=reader_environment(),
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert done.returncode == 0, f"{example.name}:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
