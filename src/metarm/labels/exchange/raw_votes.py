# SPDX-License-Identifier: Apache-2.0
"""Raw votes in long format: one vote a row, with all that is known of it; JSON lines and CSV."""

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from metarm.data.fields import Row
from metarm.data.files import sniff_container
from metarm.data.rows import read_rows
from metarm.errors import FormatError
from metarm.labels.events import LabelContent, VoteEvent
from metarm.labels.exchange.fields import (
    read_flag,
    read_name,
    read_number,
    read_optional_text,
    read_pair,
    read_strength,
    read_time,
    read_vote,
    read_word,
    tell_time,
)
from metarm.labels.votes import ANNOTATOR_KINDS, CHOICES, AnnotatorKind, Choice, LabelPair
from metarm.schema import prompt_to_json
from metarm.storage import fingerprint, json_lines_text

__all__ = ["COLUMNS", "read_raw_votes", "write_votes_csv", "write_votes_jsonl"]

COLUMNS: Final = (
    "task",
    "annotator",
    "kind",
    "label",
    "strength",
    "is_turned",
    "seconds",
    "is_repeat",
    "note",
    "flag",
    "at",
    "key",
    "known_answer",
    "source",
    "chosen_by",
    "prompt_is",
    "prompt",
    "first",
    "second",
)
ANSWERS: Final = ("first", "second", "tie")
PROMPT_KINDS: Final = ("text", "messages")
FORMULA_STARTS: Final = tuple("=+-@\t\r\n\uff1d\uff0b\uff0d\uff20")
GUARD: Final = "'"


def _rows(content: LabelContent) -> Iterator[dict[str, Any]]:
    pairs = {pair.id: pair for pair in content.pairs}
    for vote in content.votes:
        pair = pairs[vote.pair]
        values = {
            "task": vote.pair,
            "annotator": vote.annotator,
            "kind": content.annotators[vote.annotator],
            "label": vote.choice,
            "strength": vote.strength,
            "is_turned": vote.is_turned,
            "seconds": vote.seconds,
            "is_repeat": vote.is_repeat,
            "note": vote.note,
            "flag": vote.flag,
            "at": tell_time(vote.at),
            "key": vote.key,
            "known_answer": content.gold.get(vote.pair),
            "source": pair.source,
            "chosen_by": pair.chosen_by,
            "prompt_is": PROMPT_KINDS[not isinstance(pair.prompt, str)],
            "prompt": prompt_to_json(pair.prompt),
            "first": pair.first,
            "second": pair.second,
        }
        yield {name: values[name] for name in COLUMNS}


def write_votes_jsonl(content: LabelContent) -> dict[str, bytes]:
    """The votes as JSON lines."""
    return {"": json_lines_text(_rows(content)).encode()}


def write_votes_csv(content: LabelContent) -> dict[str, bytes]:
    """The votes as CSV that spreadsheets open: a mark of UTF-8 before it, formulas defused."""
    stream = io.StringIO()
    writer = csv.writer(stream, quoting=csv.QUOTE_ALL, lineterminator="\r\n")
    writer.writerow(COLUMNS)
    for row in _rows(content):
        writer.writerow(_cell(value) for value in row.values())
    return {"": ("\ufeff" + stream.getvalue()).encode()}


def _cell(value: Any) -> str:
    """A value as text; guarded so that no spreadsheet runs it, and so that it comes back."""
    if value is None:
        return ""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return GUARD + text if text.startswith((*FORMULA_STARTS, GUARD)) else text


def _unguarded(row: Row) -> Row:
    """A row of CSV without its guards, and with its conversation read."""
    values = {name: str(value).removeprefix(GUARD) for name, value in row.values.items()}
    plain = Row(row.place, values)
    if values.get("prompt_is") != PROMPT_KINDS[1]:
        return plain
    try:
        return Row(row.place, {**values, "prompt": json.loads(values["prompt"])})
    except (KeyError, ValueError, RecursionError):
        plain.fail(("prompt",), "messages as JSON", "something else", "Mend the cell.")


def read_raw_votes(path: Path) -> LabelContent:
    """The votes of a file of raw votes, JSON or CSV; only task texts, annotator and label must be.

    Raises:
        FormatError: At the first row that is no vote.
        EmptySetError: When there is no row.
        DataError: When there is no such file.
    """
    pairs: dict[str, LabelPair] = {}
    gold: dict[str, Choice] = {}
    kinds: dict[str, AnnotatorKind] = {}
    votes: list[VoteEvent] = []
    is_csv = path.is_file() and sniff_container(path) == "csv"
    for row in read_rows(path):
        plain = _unguarded(row) if is_csv else row
        pair = read_pair(plain)
        pairs.setdefault(pair.id, pair)
        _read_known_answer(plain, pair, gold)
        name = read_name(plain, "annotator")
        kind: AnnotatorKind = "person"
        if plain.has("kind"):
            kind = read_word(plain, ANNOTATOR_KINDS, "kind")
        if kinds.setdefault(name, kind) != kind:
            plain.fail(("kind",), f"{kinds[name]!r} as before", repr(kind), "Name them apart.")
        votes.append(_read_vote(plain, pair, name))
    return LabelContent(tuple(pairs.values()), gold, kinds, tuple(votes))


def _read_known_answer(row: Row, pair: LabelPair, gold: dict[str, Choice]) -> None:
    if not row.has("known_answer"):
        return
    answer = read_word(row, ANSWERS, "known_answer")
    if gold.setdefault(pair.id, answer) != answer:
        raise FormatError(
            f"{row.place}: field `known_answer`: expected {gold[pair.id]!r} as before, got "
            f"{answer!r}. Leave one."
        )


def _read_vote(row: Row, pair: LabelPair, name: str) -> VoteEvent:
    choice: Choice = read_word(row, CHOICES, "label")
    is_repeat = bool(read_flag(row, "is_repeat"))
    facts = (pair.id, name, is_repeat, choice)
    return read_vote(
        row,
        row.text("key") if row.has("key") else f"import {fingerprint(*facts)}",
        name,
        choice,
        pair,
        strength=read_strength(row, "strength") if row.has("strength") else 1,
        is_turned=read_flag(row, "is_turned"),
        seconds=read_number(row, "seconds"),
        note=read_optional_text(row, "note"),
        flag=bool(read_flag(row, "flag")),
        is_repeat=is_repeat,
        at=read_time(row, "at") if row.has("at") else None,
    )
