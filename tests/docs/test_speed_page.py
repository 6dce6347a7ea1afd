# SPDX-License-Identifier: Apache-2.0
"""The page on speed has the figures of the kept results, every method, and a file a machine."""

import json
import re
import runpy

from docs.pages import REPOSITORY
from metarm.speed.law import packed_cost, padded_cost
from metarm.speed.shapes import SHAPES
from metarm.speed.summary import LABELS
from metarm.speed.workload import Bundle
from unit.reports.test_speed_page import DOCUMENT

SCRIPT = runpy.run_path(str(REPOSITORY / "benchmarks" / "speed.py"))
PAGE = (REPOSITORY / "docs" / "speed.md").read_text(encoding="utf-8")


def test_the_tables_are_those_of_the_results() -> None:
    assert SCRIPT["BLOCK"].search(PAGE), "there is no table"
    assert SCRIPT["render"](PAGE) == PAGE
    figure = SCRIPT["BLOCK"].search(PAGE)[0].splitlines()[-2]
    assert figure
    assert SCRIPT["render"](PAGE.replace(figure, "| changed |")) == PAGE


def test_every_method_is_explained() -> None:
    body = PAGE.split("\n## Methods\n")[1].split("\n## ")[0]
    assert re.findall(r"^\| `([^`]+)` \|", body, re.MULTILINE) == list(LABELS)


def test_the_tokens_that_the_law_is_told_with() -> None:
    bundle = [Bundle(256, (64,) * 5)]
    assert "are 1600 tokens, or 576" in PAGE
    assert padded_cost(SHAPES["30m"], bundle).tokens == 1600
    assert packed_cost(SHAPES["30m"], bundle).tokens == 576


def test_results_are_kept_short_and_without_places(tmp_path, monkeypatch) -> None:
    found = {"settings": {"output_dir": "/somewhere", "seed": 0}, "x": [1.23456789, 2], "y": 1e-7}
    (tmp_path / "speed.json").write_text(json.dumps(found), "utf-8")
    monkeypatch.setitem(SCRIPT["keep"].__globals__, "RESULTS", tmp_path)
    SCRIPT["keep"](tmp_path / "speed.json", "here")
    text = (tmp_path / "speed-here.json").read_text("utf-8")
    assert json.loads(text) == {"settings": {"seed": 0}, "x": [1.2346, 2], "y": 1e-7}
    assert '"x": [ 1.2346, 2 ]' in text


def test_tables_of_made_up_results(tmp_path, monkeypatch) -> None:
    (tmp_path / "speed-one.json").write_text(json.dumps(DOCUMENT), "utf-8")
    monkeypatch.setitem(SCRIPT["read"].__globals__, "RESULTS", tmp_path)

    def render(name: str, title: str) -> list[str]:
        block = f"<!-- table: {name} {title} -->\n<!-- end -->"
        return SCRIPT["render"](block).splitlines()[1:-1]

    whole = render("one", "30m 256/64/5")
    assert whole[0].startswith("| method | step |")
    assert len(whole) == 2 + len(DOCUMENT["cases"][0]["methods"])
    assert "| processor | A <fast> one |" in render("one", "machine")
    assert "gradient 2.0e-06" in render("one", "equivalence")[2]
    assert render("one", "figure 30m 256/64/5")[0].endswith("(images/speed-one.png)")
    assert render("another", "machine") == [SCRIPT["NOT_YET"]]
    assert render("one", "nothing") == [SCRIPT["NOT_YET"]]
