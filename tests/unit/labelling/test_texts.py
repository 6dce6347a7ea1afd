# SPDX-License-Identifier: Apache-2.0
"""Texts for pages: what cannot be seen is named, everything else stays as it is."""

import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostile_texts import HOSTILE
from metarm.labelling.texts import parts_of, prompt_turns, visible
from metarm.schema import Message

TEXTS = st.text(st.characters(codec=None, exclude_categories=()))


@given(TEXTS)
def test_nothing_that_cannot_be_seen_is_left(text: str) -> None:
    parts = parts_of(text)
    assert len(parts) % 2 == 1
    for plain in parts[::2]:
        for character in plain:
            assert character in "\n\t" or unicodedata.category(character) not in {
                *("Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp")
            }
    # It can be sent, whatever it was.
    assert json.loads(json.dumps(parts).encode()) == parts
    "".join(parts).encode()


@given(TEXTS)
def test_the_text_comes_back_from_its_parts(text: str) -> None:
    parts = parts_of(text)
    again = "".join(
        "".join(chr(int(code[2:], 16)) for code in part.split()) if place % 2 else part
        for place, part in enumerate(parts)
    )
    assert again == text.replace("\r\n", "\n")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", [""]),
        ("a\r\nb\tc", ["a\nb\tc"]),
        ("a\rb", ["a", "U+000D", "b"]),
        ("\u200b\u202ex", ["", "U+200B U+202E", "x"]),
        ("\u3164", ["", "U+3164", ""]),
        ("\ud800", ["", "U+D800", ""]),
        ("é 日本 \u0627 👍", ["é 日本 \u0627 👍"]),
    ],
)
def test_parts(text: str, parts: list[str]) -> None:
    assert parts_of(text) == parts


def test_hidden_ones_are_named_on_one_level_too() -> None:
    assert visible("a\u202eb\x07") == "a[U+202E]b[U+0007]"
    assert all("\u202e" not in visible(text) for text in HOSTILE)


def test_turns_of_a_prompt() -> None:
    assert prompt_turns("plain") == [("", "plain")]
    assert prompt_turns((Message("user", "one"), Message("assistant", "two"))) == [
        ("user", "one"),
        ("assistant", "two"),
    ]
