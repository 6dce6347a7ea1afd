# SPDX-License-Identifier: Apache-2.0
"""docs/run-folder.md names every file of a run, and no others."""

import re
from pathlib import Path

import pytest

from docs.pages import REPOSITORY

pytestmark = pytest.mark.slow
PAGE = REPOSITORY / "docs" / "run-folder.md"
# Rows about runs of another kind: each has a test of its own.
ELSEWHERE = {
    "data": "test_external",
    "best_of_n": "test_arms",
    "member_": "test_arms",
    "ensemble": "test_arms",
    "prompts_new_task": "test_new_task",
    "evaluation_new_task": "test_new_task",
    "champion": "test_watch",
    "samples_original": "test_labels_in_the_loop",
    "asked": "test_labels_in_the_loop",
    "labels/": "test_labels_in_the_loop",
    "label_calls": "test_model_labels",
    "sqlite": "test_labels_in_the_loop",
}
WORDS = {r"{N}": r"\d+", r"{ARM}": r"[^/]+", "**": ".*", "*": "[^/]*", ".": r"\.", r"\|": "|"}


def patterns(text: str) -> list[str]:
    """The first column of the table, as regular expressions."""
    cells = re.findall(r"^\| `(\S+)` \|", text, re.MULTILINE)
    word = "|".join(map(re.escape, WORDS))
    return [re.sub(word, lambda found: WORDS[found.group()], cell) for cell in cells]


def test_the_table_is_what_a_run_leaves(finished_run: Path) -> None:
    files = {
        path.relative_to(finished_run).as_posix()
        for path in finished_run.rglob("*")
        if path.is_file()
    }
    rows = patterns(PAGE.read_text("utf-8"))
    assert len(rows) > 20
    exact = [row for row in rows if not row.endswith("/")]
    unnamed = {file for file in files if not any(re.fullmatch(row, file) for row in exact)}
    assert not unnamed
    idle = {
        row
        for row in rows
        if not any(re.match(row if row.endswith("/") else f"{row}$", file) for file in files)
    }
    assert len(idle) == len(ELSEWHERE)
    assert all(any(word in row for word in ELSEWHERE) for row in idle)
