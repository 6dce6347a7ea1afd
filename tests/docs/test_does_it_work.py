# SPDX-License-Identifier: Apache-2.0
"""The pages that answer what works have the figures of the kept results."""

import runpy
from pathlib import Path

import pytest

from docs.pages import REPOSITORY

SCRIPT = runpy.run_path(str(REPOSITORY / "benchmarks" / "does_it_work.py"))


@pytest.mark.parametrize("path", SCRIPT["PAGES"], ids=lambda path: path.name)
def test_the_tables_are_those_of_the_results(path: Path) -> None:
    page = path.read_text(encoding="utf-8")
    assert SCRIPT["BLOCK"].search(page), "there is no table"
    assert SCRIPT["render"](page) == page
    figure = SCRIPT["BLOCK"].search(page)[0].splitlines()[-2]
    assert SCRIPT["render"](page.replace(figure, "| changed |")) == page


def test_choices_stand_beside_the_method_that_they_are_about() -> None:
    own = SCRIPT["without_choices"]
    assert own("joint+stored-4+quarter-groups") == "joint"
    assert own("joint@0.1+every-16+30-labels") == "joint@0.1+30-labels"
    assert own("plain-again") == own("plain") == "plain"
    change = {"value": -0.01, "low": -0.02, "high": 0.001}
    names = ("plain", "joint", "descent", "joint+every-4", "plain-again")
    kept = {
        "summaries": [
            {"shift": "s", "method": m, "forward": 9.0, "backward": n, "shifted_change": change}
            for n, m in enumerate(names, start=1)
        ],
        "against_own": [
            {"shift": "s", "method": m, "shifted": change, "all_steps": change, "original": change}
            for m in names[3:]
        ],
    }
    rows = SCRIPT["choices_table"](kept, "s").splitlines()[2:]
    assert [row.split("`")[1] for row in rows] == [names[n] for n in (0, 4, 1, 3, 2)]
    assert rows[3] == "| `joint+every-4` | 1.30 |" + " -1.0 [-2.0, +0.1] |" * 4
