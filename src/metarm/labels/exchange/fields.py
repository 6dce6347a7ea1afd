# SPDX-License-Identifier: Apache-2.0
"""Fields that formats of labels share: choices, names, times, votes; errors name the row."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Literal, TypeVar

from metarm.data.fields import Row, shown
from metarm.errors import ConfigError, FormatError
from metarm.labels.adding import check_name
from metarm.labels.events import VoteEvent
from metarm.labels.votes import Choice, LabelPair

__all__ = [
    "read_flag",
    "read_name",
    "read_number",
    "read_optional_text",
    "read_pair",
    "read_strength",
    "read_time",
    "read_vote",
    "read_word",
    "tell_time",
]

Made = TypeVar("Made")


def tell_time(at: float | None) -> str | None:
    """Seconds since 1970 as ISO 8601 in UTC, to the microsecond.

    Example:
        >>> tell_time(0.25)
        '1970-01-01T00:00:00.250000+00:00'
    """
    if at is None:
        return None
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="microseconds")


def read_time(row: Row, *path: str | int) -> float:
    """The inverse of `tell_time`; a time without a zone is UTC.

    Raises:
        FormatError: When the field is no time.
    """
    text = row.text(*path)
    try:
        at = datetime.fromisoformat(text)
        at = at if at.tzinfo else at.replace(tzinfo=UTC)
        return at.timestamp()
    except (ValueError, OverflowError):
        remedy = "Write 2026-01-31T12:00:00+00:00, or leave it out."
        row.fail(path, "a time", shown(text), remedy)


def read_flag(row: Row, name: str) -> bool | None:
    """A field that is true, false or missing; `true` and `false` in words count too, as in CSV.

    Raises:
        FormatError: When it is anything else.
    """
    if not row.has(name):
        return None
    value = row.values[name]
    known = {True: True, False: False, "true": True, "false": False}
    if isinstance(value, bool | str) and value in known:
        return known[value]
    return row.fail((name,), "true or false", shown(value), "Mend the field.")


def read_optional_text(row: Row, name: str) -> str:
    """A field's text; empty where it is missing."""
    return row.text(name) if row.has(name) else ""


def read_number(row: Row, name: str) -> float | None:
    """A field's number; None where it is missing."""
    return row.number(name) if row.has(name) else None


def read_word(row: Row, known: tuple[str, ...], *path: str | int) -> Any:
    """A field that is one of some words.

    Raises:
        FormatError: When it is not.
    """
    word = row.text(*path)
    if word not in known:
        row.fail(path, " or ".join(known), shown(word), "Mend the field or remove the row.")
    return word


def read_strength(row: Row, *path: str | int) -> Literal[1, 2]:
    """A field that is 1 or 2.

    Raises:
        FormatError: When it is not.
    """
    number = row.number(*path)
    if number not in (1, 2):
        row.fail(path, "1 or 2", shown(row.value(*path)), "Mend the field.")
    return 1 if number == 1 else 2


def read_name(row: Row, *path: str | int) -> str:
    """A field that can be the name of an annotator.

    Raises:
        FormatError: When it cannot.
    """
    return _at(row, lambda: check_name(row.text(*path)))


def read_pair(row: Row, *names: str) -> LabelPair:
    """The pair in the fields called prompt, first and second, or as `names` call them."""
    prompt, first, second = names or ("prompt", "first", "second")
    return LabelPair(
        row.prompt(prompt),
        row.text(first),
        row.text(second),
        read_optional_text(row, "source"),
        read_optional_text(row, "chosen_by"),
    )


def read_vote(
    row: Row, key: str, annotator: str, choice: Choice, pair: LabelPair, **others: Any
) -> VoteEvent:
    """A vote on a pair, whose errors name the row.

    Raises:
        FormatError: When it cannot be a vote.
    """
    return _at(row, lambda: VoteEvent(key, annotator, choice, pair=pair.id, **others))


def _at(row: Row, make: Callable[[], Made]) -> Made:
    """What `make` returns; its errors gain the row's place."""
    try:
        return make()
    except (FormatError, ConfigError) as error:
        if str(error).startswith(row.place):
            raise
        raise FormatError(f"{row.place}: {error}. Mend the row or remove it.") from error
