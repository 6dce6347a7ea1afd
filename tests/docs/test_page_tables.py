# SPDX-License-Identifier: Apache-2.0
"""How scripts of benchmarks/ put their tables on pages."""

import pytest
from page_tables import points, with_tables


def test_a_change_is_bold_where_zero_is_left_out() -> None:
    assert points({"value": 0.01, "low": 0.002, "high": 0.018}) == "**+1.0 [+0.2, +1.8]**"
    assert points({"value": -0.01, "low": -0.03, "high": 0.01}) == "-1.0 [-3.0, +1.0]"
    assert points({"value": 0.01, "low": 0.0, "high": 0.02}) == "+1.0 [+0.0, +2.0]"
    assert (points(None), points(None, "-")) == ("", "-")


def test_a_table_changes_between_its_own_marks_alone() -> None:
    page = "a\n<!-- one: b -->\nold\nolder\n<!-- end -->\nc\n<!-- two -->\nkept\n<!-- end -->\n"
    made = with_tables(page, {"one: b": r"\1 new"})
    assert made == page.replace("old\nolder", r"\1 new")
    assert with_tables(made, {"one: b": r"\1 new"}) == made


def test_a_table_without_a_place_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"no place for \['three'\]"):
        with_tables("<!-- two -->\nkept\n<!-- end -->", {"three": "lost"})
