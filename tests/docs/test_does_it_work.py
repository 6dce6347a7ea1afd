# SPDX-License-Identifier: Apache-2.0
"""The page that answers whether MetaRM works has the figures of the kept results."""

import runpy

from docs.pages import REPOSITORY

SCRIPT = runpy.run_path(str(REPOSITORY / "benchmarks" / "does_it_work.py"))
PAGE = (REPOSITORY / "docs" / "does-it-work.md").read_text(encoding="utf-8")


def test_the_tables_are_those_of_the_results() -> None:
    assert SCRIPT["BLOCK"].search(PAGE), "there is no table"
    assert SCRIPT["render"](PAGE) == PAGE
    figure = SCRIPT["BLOCK"].search(PAGE)[0].splitlines()[-2]
    assert SCRIPT["render"](PAGE.replace(figure, "| changed |")) == PAGE


def test_a_change_is_bold_where_zero_is_left_out() -> None:
    points = SCRIPT["points"]
    assert points({"value": 0.01, "low": 0.002, "high": 0.018}) == "**+1.0 [+0.2, +1.8]**"
    assert points({"value": -0.01, "low": -0.03, "high": 0.01}) == "-1.0 [-3.0, +1.0]"
    assert points(None) == "-"
