# SPDX-License-Identifier: Apache-2.0
"""Imports point down: the contracts hold, and each of them still catches what it is there for."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

LINT = (
    "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
)

# (contract, file, a line that breaks it)
VIOLATIONS = [
    ("Imports point down", "errors.py", "import metarm.config"),
    ("Imports point down", "objectives.py", "import metarm.meta_step"),
    ("Imports point down", "utils.py", "VALUE = 1"),
    ("The paper is plain torch", "objectives.py", "import transformers"),
    ("Only training knows trl", "storage.py", "import trl"),
    ("Only the search knows optuna", "bench/tune.py", "import optuna"),
    ("Only the servers know fastapi", "served_score.py", "import fastapi"),
    ("Only explaining knows captum", "models/loading.py", "import captum"),
    ("Only the endpoint knows openai", "judging/templates.py", "import openai"),
    ("Only ratings know evalica", "judging/win_rates.py", "import evalica"),
    ("Reading a run needs no torch", "judging/sheets.py", "import torch"),
    ("Reading a run needs no torch", "storage.py", "import torch"),
    ("No cycles inside packages", "data/files.py", "import metarm.data.meta_sets"),
]


def _lint(folder: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(folder / "src"), "COLUMNS": "100"}
    return subprocess.run(
        [sys.executable, "-c", LINT],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=False,
    )


@pytest.fixture
def copy(repository: Path, tmp_path: Path) -> Path:
    """The package and its contracts, free to be broken."""
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(repository / "src", tmp_path / "src", ignore=ignore)
    shutil.copy(repository / "pyproject.toml", tmp_path)
    return tmp_path


def test_contracts_are_kept(repository: Path) -> None:
    linted = _lint(repository)
    assert linted.returncode == 0, linted.stdout + linted.stderr
    assert "0 broken" in linted.stdout


@pytest.mark.parametrize(("contract", "file", "line"), VIOLATIONS)
def test_contracts_catch_violations(copy: Path, contract: str, file: str, line: str) -> None:
    with open(copy / "src" / "metarm" / file, "a", encoding="utf-8") as stream:
        stream.write(f"\n{line}\n")
    linted = _lint(copy)
    assert linted.returncode == 1, linted.stdout + linted.stderr
    assert f"{contract} BROKEN" in linted.stdout
