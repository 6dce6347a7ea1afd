# SPDX-License-Identifier: Apache-2.0
"""One row of a data file: typed access to its fields, with errors that name place and field."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn, cast

from metarm.errors import FormatError
from metarm.schema import Message, Prompt

__all__ = ["Row", "shown"]

LONGEST_SHOWN = 60


def shown(value: Any) -> str:
    """The value as an error message shows it: in JSON's words, cut to 60 characters."""
    kinds = {int: "the number ", float: "the number ", list: "the list ", dict: "the object "}
    text = "null" if value is None else repr(value)
    if len(text) > LONGEST_SHOWN:
        text = text[: LONGEST_SHOWN - 3] + "..."
    return kinds.get(type(value), "") + text


def _check_text(place: str, text: str) -> None:
    """Refuse characters that no tokenizer can take.

    Raises:
        FormatError: When `text` holds a NUL character or half of a surrogate pair.
    """
    if "\0" in text:
        raise FormatError(
            f"{place}: expected text, got a NUL character at position {text.index(chr(0)) + 1}. "
            "Remove it: the text was cut from binary data or padded."
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise FormatError(
            f"{place}: expected Unicode text, got the lone surrogate "
            f"U+{ord(text[error.start]):04X} at position {error.start + 1}. "
            "Write the whole character, or remove the half."
        ) from error


def _label(path: tuple[str | int, ...]) -> str:
    """`("summaries", 0, "text")` as people write it: `summaries[0].text`."""
    steps = (f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)
    return "".join(steps).removeprefix(".")


@dataclass(frozen=True, slots=True)
class Row:
    """One row and where it stands; a field is named by its path, as in `"summaries", 0, "text"`."""

    place: str
    values: Mapping[str, Any]

    def fail(self, path: tuple[str | int, ...], expected: str, got: str, remedy: str) -> NoReturn:
        """Raise the error that names the place, the field, both sides and what to do."""
        raise FormatError(
            f"{self.place}: field `{_label(path)}`: expected {expected}, got {got}. {remedy}"
        )

    def has(self, name: str) -> bool:
        """Whether the row has a value for the column `name`; null and an empty cell are none."""
        value = self.values.get(name)
        return value is not None and not (isinstance(value, str) and value == "")

    def value(self, *path: str | int) -> Any:
        """The field's value as it is.

        Raises:
            FormatError: When the path leads nowhere.
        """
        value: Any = self.values
        for depth, step in enumerate(path):
            kind, expected = (list, "a list") if isinstance(step, int) else (Mapping, "an object")
            if not isinstance(value, kind):
                self.fail(path[:depth], expected, shown(value), "Mend the field.")
            if isinstance(step, str) and step not in value:
                columns = ", ".join(f"`{name}`" for name in value) or "nothing"
                got = f"none (there is {columns})"
                self.fail(path[: depth + 1], "a value", got, "Add the field or remove the row.")
            value = cast(Any, value)[step]
        return value

    def text(self, *path: str | int) -> str:
        """The field as text, which may be empty.

        Raises:
            FormatError: When it is missing, is not text, or holds what no tokenizer can take.
        """
        value = self.value(*path)
        if not isinstance(value, str):
            self.fail(path, "text", shown(value), "Write it as a string or remove the row.")
        _check_text(f"{self.place}: field `{_label(path)}`", value)
        return value

    def number(self, *path: str | int) -> float:
        """The field as a finite number; digits in a string count too, as in CSV.

        Raises:
            FormatError: When it is missing, is no number, or is NaN or infinite.
        """
        value = self.value(*path)
        try:
            number = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not math.isfinite(number):
            remedy = "Write a number, or leave the field out where it is optional."
            self.fail(path, "a finite number", shown(value), remedy)
        return number

    def length(self, *path: str | int) -> int:
        """The number of items of a field that must be a list.

        Raises:
            FormatError: When it is missing or is not a list.
        """
        value = self.value(*path)
        if not isinstance(value, list):
            self.fail(path, "a list", shown(value), "Write [...] or remove the row.")
        return len(value)

    def messages(self, *path: str | int) -> tuple[Message, ...]:
        """The field as a conversation: a list of `{"role", "content"}` that is not empty.

        Raises:
            FormatError: When it is anything else.
        """
        if not self.length(*path):
            self.fail(path, "at least one message", "[]", "Fill it or remove the row.")
        turns = range(self.length(*path))
        return tuple(
            Message(self.text(*path, turn, "role"), self.text(*path, turn, "content"))
            for turn in turns
        )

    def prompt(self, *path: str | int) -> Prompt:
        """The field as a prompt: text, or a list of messages.

        Raises:
            FormatError: When it is anything else.
        """
        is_list = isinstance(self.value(*path), list)
        return self.messages(*path) if is_list else self.text(*path)

    def response(self, *path: str | int) -> str:
        """The field as one response: text, or a list that holds one message of the assistant.

        Raises:
            FormatError: When it is anything else.
        """
        if not isinstance(self.value(*path), list):
            return self.text(*path)
        messages = self.messages(*path)
        if len(messages) > 1:
            remedy = "Move the earlier turns into the prompt."
            self.fail(path, "one message", f"{len(messages)} messages", remedy)
        return self.assistant(messages[0], *path, 0)

    def assistant(self, message: Message, *path: str | int) -> str:
        """The content of a message that the assistant must have written.

        Raises:
            FormatError: When another role wrote it.
        """
        if message.role != "assistant":
            remedy = "End the conversation with the response that is judged."
            self.fail((*path, "role"), "'assistant'", shown(message.role), remedy)
        return message.content
