# SPDX-License-Identifier: Apache-2.0
"""What can be told of a text at sight: its format, whether it refuses, its script."""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Final

__all__ = ["FORMATS", "has_code", "has_list", "has_markdown", "is_refusal", "script_of"]

# Each pattern is bounded: a text that was made to be slow takes no longer than another.
_LIST: Final = re.compile(r"^[ \t]{0,8}(?:[-*+\u2022]|\d{1,3}[.)])[ \t]{1,8}\S", re.MULTILINE)
_MARKDOWN: Final = re.compile(
    r"^#{1,6} \S|\*\*[^*\n]{1,200}\*\*|^[ \t]{0,8}\|[^|\n]{1,200}\|[^|\n]{1,200}\|"
    r"|\[[^\[\]\n]{1,200}\]\([^)\s]{1,200}\)",
    re.MULTILINE,
)
_CODE: Final = re.compile(
    r"```|`[^`\n]{1,200}`"
    r"|^[ \t]{0,40}(?:def|class|import|from|#include|function|public|SELECT|return)\b"
    r"[^\n]{0,200}[;:({\"'][ \t]{0,8}$",
    re.MULTILINE,
)
_REFUSAL: Final = re.compile(
    r"\b(?:i(?:['\u2019]m| am) (?:sorry|afraid|unable|not (?:able|comfortable))"
    r"|i (?:can(?:['\u2019]t|not| not)|won['\u2019]t|will not|could(?:n['\u2019]t| not)|"
    r"do(?:n['\u2019]t| not) (?:feel comfortable|think i (?:can|should)))"
    r"(?! wait| stress| emphasi[sz]e| agree)"
    r"|as an ai\b|i apologi[sz]e|against my (?:guidelines|policy))",
    re.IGNORECASE,
)
LIST_ITEMS: Final = 2
REFUSAL_CHARACTERS: Final = 200
"""A refusal is at the beginning; later the same words are about something else."""

_ENGLISH: Final = re.compile(
    r"\b(?:the|an?|of|to|in|is|it|you|that|and|for|on|are|with|as|i|this|be|have|do|what|how|can|my"
    r"|not|but|or|if|your|they|from|at|was|we|me|about|there|would|like)\b"
)
ENGLISH_SHARE: Final = 0.15


def has_list(text: str) -> bool:
    """Whether it has at least two list items, each on a line of its own.

    Example:
        >>> has_list("1. one" + chr(10) + "2. two"), has_list("- one")
        (True, False)
    """
    return len(_LIST.findall(text)) >= LIST_ITEMS


def has_markdown(text: str) -> bool:
    """Whether it has a heading, bold words, a table's row or a link.

    Example:
        >>> has_markdown("so **bold**"), has_markdown("2 * 3 * 4")
        (True, False)
    """
    return _MARKDOWN.search(text) is not None


def has_code(text: str) -> bool:
    """Whether it has code between backticks, or a line that only a programme has.

    Example:
        >>> has_code("use `ls`"), has_code("a class of its own")
        (True, False)
    """
    return _CODE.search(text) is not None


def is_refusal(text: str) -> bool:
    """Whether its beginning has words of refusal or excuse, in English.

    Example:
        >>> is_refusal("I'm sorry, but I can't."), is_refusal("Sure: here it is.")
        (True, False)
    """
    return _REFUSAL.search(text[:REFUSAL_CHARACTERS]) is not None


FORMATS: Final[Mapping[str, Callable[[str], bool]]] = {
    "list": has_list,
    "markdown": has_markdown,
    "code": has_code,
    "refusal": is_refusal,
}
"""What a response can have that another has not, by name."""


def script_of(text: str) -> str:
    """The script of most of its letters, in Unicode's word for it; Latin is told from English.

    Returns:
        `English` where common English words are frequent, else `Latin`, `Cyrillic`, `CJK` and so
        on; `none` where there are no letters.

    Example:
        >>> script_of("What is the best of it?"), script_of("¿Dónde está?"), script_of("что")
        ('English', 'Latin', 'Cyrillic')
    """
    counts = Counter(
        unicodedata.name(character, "unknown").split()[0]
        for character in text
        if character.isalpha()
    )
    if not counts:
        return "none"
    name = counts.most_common(1)[0][0]
    if name != "LATIN":
        return name if name == "CJK" else name.capitalize()
    words = re.findall(r"[^\W\d_]+", text.lower())
    share = len(_ENGLISH.findall(text.lower())) / len(words)
    return "English" if share >= ENGLISH_SHARE else "Latin"
