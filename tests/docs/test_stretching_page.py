# SPDX-License-Identifier: Apache-2.0
"""The page on stretching: what adaptation gave is what was measured, in the words of the code."""

import re
import runpy

import adapting_rules

from docs.pages import REPOSITORY
from metarm.storage import read_json
from metarm.stretching.adapting import ADAPTATIONS
from metarm.stretching.settings import AdaptSettings

PAGE = (REPOSITORY / "docs" / "stretching.md").read_text(encoding="utf-8")
SCRIPT = runpy.run_path(str(REPOSITORY / "benchmarks" / "adapting.py"))
RESULTS = SCRIPT["RESULTS"]
BLOCK = re.compile(r"<!-- adapting: table -->\n(.*?)<!-- end -->", re.DOTALL)
CHANGE = {"value": 0.02, "low": 0.01, "high": 0.03}
ROWS = [
    {
        "labels": 30,
        "way": way,
        "seeds": [0, 1],
        "shifted": CHANGE,
        "original": CHANGE,
        "shifted_change": CHANGE,
        "original_change": {**CHANGE, "low": -0.01},
        "shifted_splits": {**CHANGE, "low": 0.0},
        "shifted_by_split": [0.05, -0.01],
        **({"passes": [True, False], "seconds": 12.4} if way in ADAPTATIONS else {}),
        **({"taken": ["full", "none"]} if way in SCRIPT["RULES"] else {}),
    }
    for way in ("none", "head", SCRIPT["BEFORE"])
]


def test_the_table_is_that_of_the_results() -> None:
    """Where nothing is kept yet there is none."""
    if RESULTS.exists():
        assert SCRIPT["render"](PAGE, read_json(RESULTS)) == PAGE
    else:
        assert [match[1] for match in BLOCK.finditer(PAGE)] == [""]


def test_a_row_has_what_a_way_changes() -> None:
    page = SCRIPT["render"](PAGE, {"rows": ROWS})
    (body,) = (match[1] for match in BLOCK.finditer(page))
    none, head, before = body.splitlines()[2:]
    assert none == "| 30 | `none` | 2 | 0.020 |  | 0.020 |  |  |  |"
    changes = "**+2.0 [+1.0, +3.0]** | +2.0 [+0.0, +3.0] | +2.0 [-1.0, +3.0] | -1.0"
    assert head == f"| 30 | `head` | 2 | {changes} | 1 of 2 | 12 |"
    name = SCRIPT["NAMES"][SCRIPT["BEFORE"]]
    assert before == f"| 30 | {name} | 2 | {changes} | 1 `none`, 1 `full` |  |"


def test_what_rules_take_where_truth_is_known_is_that_of_the_results() -> None:
    assert adapting_rules.render(PAGE, read_json(adapting_rules.RESULTS)) == PAGE


def test_splits_that_the_rule_was_made_after_do_not_judge_it() -> None:
    assert not {0, 1, 2} & {seed for row in read_json(RESULTS)["rows"] for seed in row["seeds"]}


def test_numbers_are_those_of_the_code() -> None:
    part = " ".join(PAGE.split("## A few labels, measured\n")[1].split("\n## ")[0].split())
    settings = SCRIPT["ADAPT"]
    for text in (
        f"cut to {SCRIPT['MAX_TOKENS']} tokens",
        f"fitted on {SCRIPT['NUM_FITTED']} weak pairs",
        f"{SCRIPT['NUM_TEST_SHIFTED']} strong and {SCRIPT['NUM_TEST_ORIGINAL']} weak test pairs",
        f"{settings.folds} folds instead of {AdaptSettings().folds}",
        f"{settings.reward.num_train_epochs:g} passes instead of "
        f"{AdaptSettings().reward.num_train_epochs:g}",
    ):
        assert text in part, text
    for key in ("margin", "alpha", "gain_alpha"):
        assert getattr(settings, key) == getattr(AdaptSettings(), key), key
