# SPDX-License-Identifier: Apache-2.0
"""The page on explaining: its figures are the kept results; its commands can be typed."""

import re
from pathlib import Path

import pytest

from docs.pages import REPOSITORY, fenced_blocks, reader_folder
from docs.typed import type_out
from metarm.explaining.attributing import PathSettings
from metarm.explaining.slices import LEAST_PROMPTS, NUM_PERMUTATIONS
from metarm.storage import read_json

PAGE = (REPOSITORY / "docs" / "explaining.md").read_text(encoding="utf-8")
RESULTS = read_json(REPOSITORY / "benchmarks" / "results" / "explaining.json")


def test_the_tables_are_those_of_the_results() -> None:
    assert RESULTS["accuracy"] in PAGE
    for name, one in RESULTS["completeness"].items():
        gaps = (100 * one[f"gap_share_{which}"] for which in ("median", "largest"))
        shown = " | ".join(f"{gap:.1f} %" for gap in gaps)
        counts = f"{one['texts']} | {one['complete']}"
        assert f"| `{name}` | {counts} | {shown} | {one['steps_median']:.0f} |" in PAGE
    for states, own in RESULTS["influence"].items():
        for name, shown in (("newton", "Newton"), ("first_order", "first order")):
            one = own[name]
            assert (
                f"| {states}, {shown} | {one['correlation']:.3f} | "
                f"{100 * one['largest_error_share']:.0f} % | "
                f"{100 * one['most_helpful_is_the_same']:.0f} % |"
            ) in PAGE
    for states, own in RESULTS["mistakes"].items():
        areas = own["area_under_curve"]
        row = f"| {states} | {areas['margin without the label']} | {areas['self-influence']} |"
        assert row in PAGE
    assert RESULTS["false_alarms"]["any_finding"] in PAGE


def test_numbers_are_those_of_the_code() -> None:
    settings = PathSettings()
    share = f"{100 * settings.tolerance:g} %"
    assert f"doubled from {settings.first_steps} until\nthe gap is within {share}" in PAGE
    assert f"{NUM_PERMUTATIONS:,} times" in PAGE
    assert f"({LEAST_PROMPTS} prompts in it" in PAGE


@pytest.mark.slow
def test_the_commands_can_be_typed(tmp_path: Path) -> None:
    (typed,) = (block.text for block in fenced_blocks(PAGE) if block.language == "sh")
    type_out(typed, reader_folder(tmp_path))
    document = read_json(tmp_path / "runs/explanation/explain.json")
    assert len(document["pairs"]) == 2
    assert document["slices"][0]["change"] is not None
    for name in ("explanation", "explanation-of-one"):
        page = (tmp_path / "runs" / name / "explain.html").read_text("utf-8")
        assert not re.search("<script", page)
