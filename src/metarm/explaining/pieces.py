# SPDX-License-Identifier: Apache-2.0
"""A scored text in pieces: which characters each token stands for, so that figures can be shown.

Several tokens may spell one character, and one character may need the next to be seen (an accent,
an emoji of several parts), so a piece is as many tokens as it takes to end between characters.
"""

import itertools
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

from metarm.data.encoding import Encoder
from metarm.errors import ModelError
from metarm.schema import Prompt, prompt_to_json

__all__ = ["Part", "Piece", "PiecedText", "merge_pieces", "read_pieces", "split_text"]

Part = Literal["prompt", "response", "frame"]
"""`frame`: what the tokenizer adds or means by itself, such as BOS and EOS."""

JOINER: Final = "\N{ZERO WIDTH JOINER}"
VIRAMA: Final = 9
"""Combining class of the signs that join two consonants into one."""
SKIN: Final = range(0x1F3FB, 0x1F400)
FLAG: Final = range(0x1F1E6, 0x1F200)
TAG: Final = range(0xE0020, 0xE0080)
JAMO: Final = range(0x1160, 0x1200)


class Piece(NamedTuple):
    """A stretch of text and the tokens that stand for it."""

    text: str
    """Empty where the token stands for no character."""
    tokens: tuple[int, ...]
    """Places of its tokens; empty where the tokenizer left the characters out."""
    part: Part


@dataclass(frozen=True, slots=True)
class PiecedText:
    """Token ids as a reward model is given them, and their text in pieces."""

    ids: tuple[int, ...]
    pieces: tuple[Piece, ...]
    is_frame: tuple[bool, ...]
    """Of each token, whether it belongs to the frame."""


def read_pieces(encoder: Encoder, prompt: Prompt, response: str) -> PiecedText:
    """Prompt and response as `Encoder.encode` has them, with the characters of each token.

    Raises:
        ModelError: When the tokenizer does not tell which characters a token stands for.
    """
    tokenizer = encoder.tokenizer
    if not tokenizer.is_fast:
        raise ModelError(
            f"the tokenizer of {tokenizer.name_or_path!r} does not say which characters a token "
            "stands for: save it as tokenizer.json (a fast tokenizer)"
        )
    if isinstance(prompt, str):
        has_end = response.endswith(tokenizer.eos_token)
        text, start = prompt + response, len(prompt)
        text += "" if has_end else tokenizer.eos_token
        encoded = tokenizer(text=text, return_offsets_mapping=True)
    else:
        turns = prompt_to_json(prompt)
        opening = str(
            tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        )
        turns = [*turns, {"role": "assistant", "content": response}]
        text = str(tokenizer.apply_chat_template(turns, tokenize=False))
        start = next(
            (n for n, (one, other) in enumerate(zip(text, opening, strict=False)) if one != other),
            min(len(text), len(opening)),
        )
        encoded = tokenizer(text=text, return_offsets_mapping=True, add_special_tokens=False)
    ids = list(encoded["input_ids"])
    if ids != encoder.encode(prompt, response):
        raise ModelError(
            f"the tokenizer of {tokenizer.name_or_path!r} reads a text in two ways, as a chat and "
            "as its template's text: no token can be traced to its characters"
        )
    # A word that the tokenizer does not know is still a word.
    unknown = {tokenizer.unk_token_id} - {tokenizer.eos_token_id, tokenizer.bos_token_id}
    special = set(tokenizer.all_special_ids) - unknown
    is_frame = [index in special for index in ids]
    spans = [(int(low), int(high)) for low, high in encoded["offset_mapping"]]
    return PiecedText(tuple(ids), split_text(text, spans, is_frame, start), tuple(is_frame))


def split_text(
    text: str,
    spans: Sequence[tuple[int, int]],
    is_frame: Sequence[bool],
    response_start: int,
) -> tuple[Piece, ...]:
    """The text cut where tokens and whole characters end together.

    Args:
        text: Anything.
        spans: Characters of each token, [low, high); an empty one stands for no character.
        is_frame: Of each token, whether it is the tokenizer's own, such as EOS.
        response_start: Character where the response begins; a piece that reaches across belongs to
            the response.

    Returns:
        Pieces in order: their texts together are `text`, each token is in exactly one.

    Example:
        >>> spans = [(0, 1), (1, 2), (1, 2), (2, 3)]
        >>> [piece.text for piece in split_text("Hé!", spans, [False] * 4, 1)]
        ['H', 'é', '!']
    """
    is_inside = [False] * (len(text) + 1)
    cuts = {0, len(text)}
    for low, high in spans:
        if low < high:
            cuts |= {low, high}
            is_inside[low + 1 : high] = [True] * (high - low - 1)
    ends = sorted(
        cut
        for cut in cuts
        if cut in (0, len(text)) or not (is_inside[cut] or _is_joined(text[cut - 1], text[cut]))
    )
    place_of = {}
    for number, (low, high) in enumerate(itertools.pairwise(ends)):
        place_of.update(dict.fromkeys(range(low, high), number))
    members: dict[int, list[int]] = {}
    # Pieces and tokens without characters in the order of the text; the latter come first.
    found: list[tuple[tuple[int, int, int], Piece]] = []
    reached = 0
    for token, (low, high) in enumerate(spans):
        if low < high:
            members.setdefault(place_of[low], []).append(token)
            reached = max(reached, high)
        else:
            found.append(((reached, 0, token), Piece("", (token,), "frame")))
    for number, (low, high) in enumerate(itertools.pairwise(ends)):
        own = tuple(members.get(number, ()))
        part: Part = "prompt" if high <= response_start else "response"
        if own and all(is_frame[token] for token in own):
            part = "frame"
        found.append(((low, 1, 0), Piece(text[low:high], own, part)))
    return tuple(piece for _, piece in sorted(found, key=lambda one: one[0]))


def merge_pieces(
    first: Sequence[tuple[str, float]], second: Sequence[tuple[str, float]]
) -> list[tuple[str, float]]:
    """One list for two that cut the same text in different places: the values' sums.

    Args:
        first: Texts with their values.
        second: The same text in other pieces; where one list's text goes on, it stands at the end.

    Returns:
        Pieces that end where both end; the values sum to both lists' sums.

    Example:
        >>> merge_pieces([("a", 1.0), ("b", 2.0)], [("ab", -1.0)])
        [('ab', 2.0)]
    """
    merged: list[tuple[str, float]] = []
    ours, theirs = list(first), list(second)
    while ours and theirs:
        text, value = ours.pop(0)
        other, other_value = theirs.pop(0)
        while len(text) != len(other) and (ours if len(text) < len(other) else theirs):
            if len(text) < len(other):
                more, own = ours.pop(0)
                text, value = text + more, value + own
            else:
                more, own = theirs.pop(0)
                other, other_value = other + more, other_value + own
        merged.append((max(text, other, key=len), value + other_value))
    return [*merged, *ours, *theirs]


def _is_joined(before: str, after: str) -> bool:
    return any(rule(before, after) for rule in _JOINS)


_JOINS: Final[tuple[Callable[[str, str], bool], ...]] = (
    lambda _, after: unicodedata.category(after).startswith("M"),
    lambda before, _: unicodedata.combining(before) == VIRAMA,
    lambda before, after: JOINER in (before, after),
    lambda before, after: before == "\r" and after == "\n",
    lambda _, after: ord(after) in SKIN or ord(after) in TAG or ord(after) in JAMO,
    lambda before, after: ord(before) in FLAG and ord(after) in FLAG,
)
"""When two characters are seen as one: the rules of Unicode's annex 29 that matter for a cut."""
