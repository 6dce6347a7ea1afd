# SPDX-License-Identifier: Apache-2.0
"""What is told of a text at sight: words that are meant, and words that only look like them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metarm.explaining.traits import (
    FORMATS,
    has_code,
    has_list,
    has_markdown,
    is_refusal,
    script_of,
)


@pytest.mark.parametrize(
    ("has", "text", "expected"),
    [
        (has_list, "- a\n- b", True),
        (has_list, "Do this:\n 1) a\n 2) b", True),
        (has_list, "\u2022 a\n\u2022 b", True),
        (has_list, "a - b\nc - d", False),
        (has_list, "1999. was a year\nand so", False),
        (has_markdown, "## Title", True),
        (has_markdown, "see [this](http://a.b)", True),
        (has_markdown, "| a | b |", True),
        (has_markdown, "#hashtag and 2 ** 3", False),
        (has_code, "```\nx\n```", True),
        (has_code, "def f(x):", True),
        (has_code, "import this is not code", False),
        (has_code, "I import cars;", False),
        (is_refusal, "I'm sorry, that is not something I do.", True),
        (is_refusal, "As an AI, I have no body.", True),
        (is_refusal, "I can\u2019t help with that", True),
        (is_refusal, "I can't wait to tell you!", False),
        (is_refusal, "You can't do that.", False),
        (is_refusal, "x" * 300 + " I'm sorry", False),
        (script_of, "日本語の文章", "CJK"),
        (script_of, "مرحبا بالعالم", "Arabic"),
        (script_of, "Ich möchte nach Hause gehen", "Latin"),
        (script_of, "12345 !?", "none"),
    ],
)
def test_texts(has, text: str, expected) -> None:
    assert has(text) == expected


@given(st.text(max_size=200))
def test_any_text_has_an_answer(text: str) -> None:
    assert all(isinstance(has(text), bool) for has in FORMATS.values())
    assert script_of(text)


@pytest.mark.parametrize(
    "text", ["- " * 40_000, "|" * 40_000, "`" * 40_001, "**" * 20_001, "[" * 40_000, " " * 40_000]
)
def test_long_hostile_texts_take_no_time(text: str) -> None:
    # A pattern that goes back over its steps would hang here.
    assert all(isinstance(has(text), bool) for has in FORMATS.values())
