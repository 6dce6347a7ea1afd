# SPDX-License-Identifier: Apache-2.0
"""File formats of preference pairs: how each is told by its columns and read; the FORMATS table.

To add one: write `detect` and `parse`, add a row to `FORMATS`, a sample to `tests/data`, a row to
`tests/conformance/test_formats.py` and a heading to `docs/data-formats.md`.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Final

from metarm.data.fields import Row
from metarm.errors import FormatError
from metarm.resolve import resolve_name
from metarm.schema import Message, PreferencePair, Prompt

__all__ = [
    "FORMATS",
    "LeftOut",
    "PairFormat",
    "Parsed",
    "detect_format",
    "parse_row",
    "resolve_format",
]

HUMAN = "\n\nHuman:"
ASSISTANT = "\n\nAssistant:"
SIDES = ("chosen", "rejected")


class LeftOut(StrEnum):
    """Why a row is well formed and still makes no pair."""

    TIE = "ties"
    """The ratings prefer neither side."""
    DIVERGED = "conversations that differ before the last message"
    """No single message is what the label compares."""


Parsed = PreferencePair | LeftOut


@dataclass(frozen=True, slots=True)
class PairFormat:
    """One file format: `detect` looks at the first row, `parse` reads every row."""

    columns: str
    detect: Callable[[Row], bool]
    parse: Callable[[Row], Parsed | Sequence[Parsed]]


def parse_row(pair_format: PairFormat, row: Row) -> list[Parsed]:
    """All that a row gives: one pair, several, or the reason why there is none."""
    parsed = pair_format.parse(row)
    return [parsed] if isinstance(parsed, PreferencePair | LeftOut) else list(parsed)


def detect_format(row: Row) -> str:
    """The name of the first format whose columns the row has.

    Raises:
        FormatError: When there is none; names the columns of the row and of every format.
    """
    for name, pair_format in FORMATS.items():
        if pair_format.detect(row):
            return name
    known = "; ".join(f"{name}: {pair_format.columns}" for name, pair_format in FORMATS.items())
    raise FormatError(
        f"{row.place}: expected the columns of one of the formats ({known}), got "
        f"{', '.join(row.values) or 'no column'}. Rename the columns, or set `data_format` to a "
        "function of your own as 'module:function'."
    )


def resolve_format(name: str) -> PairFormat:
    """The format called `name`, or one that reads rows with the user's `module:function`.

    The function takes a row as a dict and returns a `PreferencePair`, a `LeftOut` or a list of
    them; a KeyError, TypeError or ValueError becomes an error that names the row.

    Raises:
        ConfigError: When there is no such format, module or function.
    """
    if name in FORMATS:
        return FORMATS[name]
    parsers = {known: pair_format.parse for known, pair_format in FORMATS.items()}
    function = resolve_name(name, parsers, what="data_format")
    return PairFormat("those that it asks for", lambda row: False, _user_parser(name, function))


def _user_parser(name: str, function: Callable[[dict[str, Any]], Any]) -> Callable[[Row], Any]:
    """The user's function as a parser: its complaints gain the place, its results are checked."""

    def parse(row: Row) -> list[Parsed]:
        try:
            result = function(dict(row.values))
        except (KeyError, TypeError, ValueError) as error:
            raise FormatError(
                f"{row.place}: expected {name} to read the row, got "
                f"{type(error).__name__}: {error}. Mend the row or the function."
            ) from error
        results = result if isinstance(result, list | tuple) else [result]
        if not all(isinstance(item, PreferencePair | LeftOut) for item in results):
            raise FormatError(
                f"{row.place}: expected {name} to return a PreferencePair, a LeftOut or a list of "
                f"them, got {type(result).__name__}. Mend the function."
            )
        return list(results)

    return parse


def _pair(row: Row, prompt: Prompt, chosen: str, rejected: str) -> PreferencePair:
    """The pair, with the row's margin, soft label, descent and choice where it has them."""
    margin = row.number("margin") if row.has("margin") else None
    p = row.number("p") if row.has("p") else None
    if p is not None and not 0.0 <= p <= 1.0:
        remedy = "It is how likely `chosen` is better; rename the column if it is something else."
        row.fail(("p",), "a probability between 0 and 1", f"{p:g}", remedy)
    parent = row.text("parent_id") if row.has("parent_id") else ""
    # By itself a `source` is what many data sets call the place that a prompt is from.
    source = row.text("source") if parent and row.has("source") else ""
    # Who counts rows by a number of this name means something else.
    chosen_by = row.values.get("chosen_by")
    return PreferencePair(
        prompt=prompt,
        chosen=chosen,
        rejected=rejected,
        margin=margin,
        p=p,
        source=source,
        parent_id=parent,
        chosen_by=chosen_by if isinstance(chosen_by, str) else "",
    )


def _shared_text(first: str, second: str) -> str:
    """The longest text that both begin with (by bisection: transcripts are long)."""
    low, high = 0, min(len(first), len(second))
    while low < high:
        middle = (low + high + 1) // 2
        if first[low:middle] == second[low:middle]:
            low = middle
        else:
            high = middle - 1
    return first[:low]


def _has_side(row: Row) -> bool:
    return any(side in row.values for side in SIDES)


def _side_kind(row: Row) -> type | None:
    """The type of the first side that is there: str or list, as a rule."""
    return next((type(row.values[side]) for side in SIDES if row.has(side)), None)


def _is_transcript(value: Any) -> bool:
    return isinstance(value, str) and value.startswith(HUMAN)


def _detect_transcripts(row: Row) -> bool:
    start = row.values.get("prompt") if row.has("prompt") else None
    texts = [row.values.get(side) for side in SIDES] if start is None else [start]
    return _has_side(row) and any(_is_transcript(text) for text in texts)


def _parse_transcripts(row: Row) -> Parsed:
    """HH-RLHF: the prompt ends with the last "Assistant:" up to which both sides are the same."""
    if row.has("prompt") and not all(_is_transcript(row.values.get(side)) for side in SIDES):
        return _parse_explicit(row)
    chosen, rejected = row.text("chosen"), row.text("rejected")
    shared = _shared_text(chosen, rejected)
    if row.has("prompt"):
        prompt = row.text("prompt")
        shared = prompt if shared.startswith(prompt) else ""
    else:
        shared = shared[: shared.rfind(ASSISTANT) + len(ASSISTANT)] if ASSISTANT in shared else ""
    if not shared:
        row.fail(
            ("rejected",),
            f"the same beginning as `chosen`: the prompt, up to a turn {ASSISTANT!r}",
            "a transcript that differs earlier",
            "A pair compares two responses to one prompt: mend or remove the row.",
        )
    return _pair(row, shared, chosen[len(shared) :], rejected[len(shared) :])


def _parse_explicit(row: Row) -> Parsed:
    """A prompt of its own; prompt and sides may be text or lists of messages."""
    prompt = row.prompt("prompt")
    if _side_kind(row) is list:
        return _parse_messages(row, prompt)
    return _pair(row, prompt, row.text("chosen"), row.text("rejected"))


def _parse_implicit_text(row: Row) -> Parsed:
    """No prompt: it is what both sides share, cut back to the last line end or else word end.

    Both sides keep at least their last word, and prompt + response is the text of the file.
    """
    if row.has("prompt"):
        return _parse_explicit(row)
    chosen, rejected = row.text("chosen"), row.text("rejected")
    shared = _shared_text(chosen, rejected)
    shared = shared[: min(len(chosen.rstrip()), len(rejected.rstrip()))]
    # A line end belongs to the prompt; a space to the response, as in TRL's extract_prompt.
    cut = shared.rfind("\n") + 1 or max(0, shared.rfind(" "))
    if not shared[:cut].strip() and chosen.strip() and rejected.strip():
        row.fail(
            SIDES[1:],
            "the same first words as in `chosen`, which are the prompt",
            "a text that shares none with it",
            "Add a `prompt` column.",
        )
    return _pair(row, chosen[:cut], chosen[cut:], rejected[cut:])


def _parse_implicit_messages(row: Row) -> Parsed:
    return _parse_messages(row, row.prompt("prompt") if row.has("prompt") else "")


def _parse_messages(row: Row, prompt: Prompt) -> Parsed:
    """Sides that are lists of messages: those they share join the prompt, one remains on each."""
    chosen, rejected = row.messages("chosen"), row.messages("rejected")
    shortest = min(len(chosen), len(rejected)) - 1
    shared = next((at for at in range(shortest) if chosen[at] != rejected[at]), shortest)
    given: tuple[Message, ...] = (Message("user", prompt),) if isinstance(prompt, str) else prompt
    # Sides that hold whole conversations repeat the prompt column.
    if shared and (isinstance(prompt, str) or chosen[: min(shared, len(given))] == given):
        given = ()
    context = given + chosen[:shared]
    if not context or context == (Message("user", ""),):
        row.fail(
            ("rejected", 0),
            "the same first message as in `chosen`, or a `prompt`",
            "another one",
            "A pair compares two responses to one prompt: mend or remove the row.",
        )
    if len(chosen) != shared + 1 or len(rejected) != shared + 1:
        return LeftOut.DIVERGED
    sides = [
        row.assistant(messages[-1], side, shared)
        for side, messages in zip(SIDES, (chosen, rejected), strict=True)
    ]
    return _pair(row, context, *sides)


def _parse_summaries(row: Row) -> Parsed:
    """OpenAI's comparisons of summaries of Reddit posts, under the prompt of their paper.

    Rows on news have a null `post` and an `article`, which is then the prompt.
    """
    if row.length("summaries") != 2:
        count = f"{row.length('summaries')} of them"
        row.fail(("summaries",), "two summaries", count, "Mend or remove the row.")
    choice = row.number("choice")
    if choice not in (0, 1):
        row.fail(("choice",), "0 or 1", f"{choice:g}", "Mend or remove the row.")
    info = row.values["info"]
    if isinstance(info, Mapping) and info.get("post") is None and "article" in info:
        prompt = f"{row.text('info', 'article')}\n\nTL;DR:"
    else:
        subreddit, title, post = (row.text("info", key) for key in ("subreddit", "title", "post"))
        prompt = f"SUBREDDIT: r/{subreddit}\n\nTITLE: {title}\n\nPOST: {post}\n\nTL;DR:"
    better = int(choice)
    texts = [row.text("summaries", at, "text") for at in (better, 1 - better)]
    return _pair(row, prompt, *texts)


def _detect_ratings(row: Row) -> bool:
    is_rated = "instruction" in row.values and "completions" in row.values
    return is_rated or ("score_chosen" in row.values and _has_side(row))


def _parse_ratings(row: Row) -> Parsed:
    """UltraFeedback: binarized sides with their scores, or all rated responses of a prompt.

    Of several, the best is paired with one of those rated lower, drawn by the prompt's hash: any
    of them, as in Zephyr's recipe, but the same on every load. Ratings do not become margins.
    """
    if "completions" not in row.values:
        chosen_score, rejected_score = row.number("score_chosen"), row.number("score_rejected")
        if chosen_score < rejected_score:
            remedy = "Swap the sides, or remove the row."
            got = f"{rejected_score:g} > {chosen_score:g}"
            row.fail(("score_rejected",), "at most `score_chosen`", got, remedy)
        parsed = _parse_explicit(row) if row.has("prompt") else _parse_implicit_messages(row)
        return LeftOut.TIE if chosen_score == rejected_score else parsed
    prompt = row.text("instruction")
    count = row.length("completions")
    if count < 2:
        row.fail(("completions",), "two or more", str(count), "Remove the row.")
    texts = [row.text("completions", at, "response") for at in range(count)]
    scores = [row.number("completions", at, "overall_score") for at in range(count)]
    lower = [at for at in range(count) if scores[at] < max(scores)]
    if not lower:
        return LeftOut.TIE
    drawn = int.from_bytes(hashlib.sha256(prompt.encode()).digest()) % len(lower)
    return _pair(row, prompt, texts[scores.index(max(scores))], texts[lower[drawn]])


FORMATS: Final[Mapping[str, PairFormat]] = MappingProxyType(
    {
        "summarize-from-feedback": PairFormat(
            "info, summaries, choice",
            lambda row: "summaries" in row.values,
            _parse_summaries,
        ),
        "ultrafeedback": PairFormat(
            "instruction, completions; or chosen, rejected, score_chosen, score_rejected",
            _detect_ratings,
            _parse_ratings,
        ),
        "hh-rlhf": PairFormat(
            "chosen, rejected (transcripts that begin with Human:), perhaps prompt",
            _detect_transcripts,
            _parse_transcripts,
        ),
        "conversational-explicit": PairFormat(
            "prompt, chosen, rejected (lists of messages)",
            lambda row: (
                _has_side(row)
                and "prompt" in row.values
                and list in (_side_kind(row), type(row.values["prompt"]))
            ),
            _parse_explicit,
        ),
        "conversational-implicit": PairFormat(
            "chosen, rejected (lists of messages)",
            lambda row: _side_kind(row) is list,
            _parse_implicit_messages,
        ),
        "trl-explicit": PairFormat(
            "prompt, chosen, rejected (text)",
            lambda row: _has_side(row) and "prompt" in row.values,
            _parse_explicit,
        ),
        "trl-implicit": PairFormat(
            "chosen, rejected (text)",
            _has_side,
            _parse_implicit_text,
        ),
    }
)
"""Name -> format, in the order in which they are tried."""
