# SPDX-License-Identifier: Apache-2.0
"""The table of tasks on docs/stretching.md is that of the kept results."""

import runpy

import pytest

from docs.pages import REPOSITORY
from metarm.storage import read_json

PAGE = REPOSITORY / "docs" / "stretching.md"
KEPT = REPOSITORY / "benchmarks" / "results" / "task_heads.json"


@pytest.fixture(scope="module")
def script() -> dict:
    return runpy.run_path(str(REPOSITORY / "benchmarks" / "task_heads.py"))


def test_the_table_is_that_of_the_results(script: dict) -> None:
    page, kept = PAGE.read_text(encoding="utf-8"), read_json(KEPT)
    assert script["render"](page, kept) == page
    figures = script["table"](kept)
    assert f"{len(kept['seeds'])} seeds" in page
    assert script["render"](page.replace(figures.splitlines()[-1], "changed"), kept) == page
    kept["accuracies"]["apart 50"]["first"][0] += 0.1
    assert script["render"](page, kept) != page


def test_readers_disagree_on_quiet_words_alone(script: dict) -> None:
    first, second = script["readers"]()
    text = "thanks . the rose stands because the pond works ."
    prompt = "describe the rose and the pond in the garden ."
    assert first.score(prompt, text) == second.score(prompt, text)
    word = next(iter(first.language.quiet_weights))
    assert first.score(prompt, f"{text} {word}") != second.score(prompt, f"{text} {word}")
    train, test = script["draw_prompts"]()
    assert not set(train) & set(test)
    assert len(train) > 700
