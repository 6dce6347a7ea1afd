# SPDX-License-Identifier: Apache-2.0
"""The page on watching: its commands can be typed; its words and numbers are the code's."""

import re
from pathlib import Path

import pytest

from docs.pages import REPOSITORY, fenced_blocks, reader_folder
from docs.typed import type_out
from metarm.evaluation.champion import PromotionRules, fewest_prompts
from metarm.storage import read_json, read_json_lines
from metarm.watching.watch import STATES, TESTS, WatchRules

PAGE = (REPOSITORY / "docs" / "watching.md").read_text(encoding="utf-8")


def test_words_and_tests_are_those_of_the_code() -> None:
    names = re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE)
    assert names == [*STATES, *TESTS]


def test_numbers_are_those_of_the_code() -> None:
    rules, promotion = WatchRules(), PromotionRules()
    assert f"`adapt` below {rules.adapt_below:g}; `stop` below {rules.stop_below:g}" in PAGE
    assert f"`adapt` above {rules.disagree_above:g}" in PAGE
    assert f"`--alpha` ({rules.budget.alpha:g})" in PAGE
    assert f"`--margin` ({100 * promotion.margin:g} points)" in PAGE
    assert (
        f"fewer than {fewest_prompts(promotion.margin, promotion.alpha)} prompts (by default)"
        in PAGE
    )


@pytest.mark.slow
def test_the_commands_can_be_typed(tmp_path: Path) -> None:
    blocks = [block.text for block in fenced_blocks(PAGE) if block.language == "sh"]
    typed = [text for text in blocks if "benchmarks/" not in text]
    type_out("\n".join(typed), reader_folder(tmp_path))
    looks = list(read_json_lines(tmp_path / "runs/watch/looks.jsonl"))
    assert [look["number"] for look in looks] == list(range(1, len(looks) + 1))
    assert len(looks) == 5
    for page in ("watch", "watched"):
        assert (tmp_path / "runs" / page / "watch.html").exists()
    first, second = sorted((tmp_path / "runs/champion/decisions").iterdir())
    assert read_json(first)["replaces"] is True
    assert read_json(second)["decision"]["test"]["num_prompts"] > 0
