# SPDX-License-Identifier: Apache-2.0
"""Texts as pages show them: what cannot be seen is cut out and named, for a chip to show."""

import unicodedata
from collections.abc import Sequence
from typing import Final

from metarm.schema import Prompt

__all__ = ["duration", "parts_of", "prompt_turns", "visible"]

UNSEEN: Final = frozenset(
    "\u034f\u115f\u1160\u17b4\u17b5\u180b\u180c\u180d\u180e\u2800\u3164\uffa0"
)
"""Letters and marks without a shape of their own; the others are told by their category."""
UNSEEN_CATEGORIES: Final = frozenset({"Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp"})
SEEN: Final = frozenset("\n\t")


def parts_of(text: str) -> list[str]:
    r"""A text cut at what cannot be seen: plain, its code, plain, its code, ..., plain.

    Line ends of every kind become `\n`.

    Returns:
        Plain text at even places, which may be empty; at odd ones codes such as `U+202E`, several
        in a row joined by spaces.

    Example:
        >>> parts_of("a\u202eb"), parts_of("plain")
        (['a', 'U+202E', 'b'], ['plain'])
    """
    plain: list[str] = []
    parts: list[str] = []
    codes: list[str] = []
    for character in text.replace("\r\n", "\n"):
        if _is_seen(character):
            if codes:
                parts += [" ".join(codes)]
                codes = []
            plain.append(character)
        else:
            if not codes:
                parts.append("".join(plain))
                plain = []
            codes.append(f"U+{ord(character):04X}")
    if codes:
        parts.append(" ".join(codes))
    return [*parts, "".join(plain)]


def _is_seen(character: str) -> bool:
    if character in SEEN:
        return True
    return unicodedata.category(character) not in UNSEEN_CATEGORIES and character not in UNSEEN


def visible(text: str) -> str:
    r"""The text on one level, for places that take no chips: codes stand in brackets.

    Example:
        >>> visible("a\u202eb")
        'a[U+202E]b'
    """
    return "".join(f"[{part}]" if place % 2 else part for place, part in enumerate(parts_of(text)))


def duration(seconds: float) -> str:
    """A short time for people.

    Example:
        >>> duration(8.4), duration(100.0), duration(750.0), duration(4000.0), duration(90_000)
        ('8 s', '100 s', '12 min', '67 min', '25 h')
    """
    if seconds < 120:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 7200 else f"{round(seconds / 3600)} h"


def prompt_turns(prompt: Prompt) -> Sequence[tuple[str, str]]:
    """The turns of a prompt as role and text; plain text is one turn without a role."""
    if isinstance(prompt, str):
        return [("", prompt)]
    return [(message.role, message.content) for message in prompt]
