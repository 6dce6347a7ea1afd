# SPDX-License-Identifier: Apache-2.0
"""Meta sets, prompts and demonstrations: unlabelled texts, in and out of files."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from metarm.data.fields import Row
from metarm.data.files import read_lines, sniff_container
from metarm.data.rows import read_rows
from metarm.errors import EmptySetError
from metarm.schema import Prompt, ResponseGroup
from metarm.storage import write_json_lines

__all__ = [
    "load_demonstrations",
    "load_groups",
    "load_prompts",
    "load_texts",
    "read_group",
    "save_groups",
]

RESPONSES = ("responses", "completions")
RESPONSE = ("response", "completion")


def load_groups(source: str | Path) -> list[ResponseGroup]:
    """The groups of a meta set: one row each, `prompt` and `responses` (or `completions`).

    Prompts and responses are text or lists of messages. `finished`, one a response, and `source`,
    the name of where the group comes from, are optional.

    Raises:
        FormatError: At the first row that is not a group of two responses or more.
        EmptySetError: When there are no rows.
        DataError: When there is no such file or data set.
    """
    return [read_group(row) for row in read_rows(source)]


def read_group(row: Row) -> ResponseGroup:
    """The group that a row holds: `prompt`, `responses`, perhaps `finished` and `source`.

    Raises:
        FormatError: When it is not a group of two responses or more.
    """
    prompt = _filled_prompt(row)
    name = _first_name(row, RESPONSES)
    count = row.length(name)
    if count < 2:
        row.fail(
            (name,),
            "at least 2 responses to the prompt",
            f"k = {count}",
            "Their difference is what the meta step learns from: sample 2 or more per prompt "
            "(num_generations), or remove the row.",
        )
    responses = tuple(row.response(name, at) for at in range(count))
    source = row.text("source") if row.has("source") else ""
    if not row.has("finished"):
        return ResponseGroup(prompt, responses, source=source)
    finished = tuple(row.value("finished", at) for at in range(row.length("finished")))
    if len(finished) not in (0, count) or not all(isinstance(flag, bool) for flag in finished):
        remedy = "Write one for each response, or leave the field out."
        row.fail(("finished",), f"{count} times true or false", str(list(finished)), remedy)
    return ResponseGroup(prompt, responses, finished, source)


def _first_name(row: Row, names: Sequence[str]) -> str:
    """The first of the names that the row has; the first of all, to complain about, if none."""
    return next((name for name in names if name in row.values), names[0])


def _filled_prompt(row: Row) -> Prompt:
    """The row's prompt, which must not be blank."""
    prompt = row.prompt("prompt")
    if isinstance(prompt, str) and not prompt.strip():
        row.fail(("prompt",), "a prompt", "blank text", "Fill it or remove the row.")
    return prompt


def save_groups(path: Path, groups: Sequence[ResponseGroup]) -> None:
    """Write the groups as JSON lines that `load_groups` reads back the same.

    Writes:
        `path`, whole or not at all.
    """
    write_json_lines(path, (group.to_json() for group in groups))


def load_prompts(source: str | Path) -> list[Prompt]:
    """The prompts of a file, each once, in the order of their first time.

    Rows have a `prompt`, text or messages, and other columns do not matter. A text file that is
    neither JSON nor CSV has one prompt a line; blank lines are skipped.

    Raises:
        FormatError: At the first row that has no prompt.
        EmptySetError: When there is none at all.
        DataError: When there is no such file or data set.
    """
    path = Path(source)
    is_text = path.is_file() and (".txt" in path.suffixes[-2:] or sniff_container(path) == "text")
    prompts = _prompt_lines(path) if is_text else map(_filled_prompt, read_rows(source))
    unique = list(dict.fromkeys(prompts))
    if not unique:
        raise EmptySetError(f"{source}:1: expected prompts, got blank lines only. Fill the file.")
    return unique


def _prompt_lines(path: Path) -> Iterator[Prompt]:
    """The lines that are not blank, without their line ends."""
    return (line.rstrip("\r\n") for _, line in read_lines(path) if line.strip())


def load_demonstrations(source: str | Path) -> list[tuple[Prompt, str]]:
    """Prompts with the response to imitate: `prompt` and `response` (or `completion`).

    A row may have `messages` instead: the last must be the assistant's and is the response.

    Raises:
        FormatError: At the first row that has no prompt or no response.
        EmptySetError: When there are no rows.
        DataError: When there is no such file or data set.
    """
    return [_demonstration(row) for row in read_rows(source)]


def load_texts(source: str | Path) -> list[str | tuple[Prompt, str]]:
    """Texts for a language-model loss: plain lines, rows with a `text`, or demonstrations.

    Returns:
        A text by itself, or prompt and response, of which the response alone is learnt.

    Raises:
        FormatError: At the first row that holds neither.
        EmptySetError: When there is no text at all.
        DataError: When there is no such file or data set.
    """
    path = Path(source)
    if path.is_file() and (".txt" in path.suffixes[-2:] or sniff_container(path) == "text"):
        lines = [line.rstrip("\r\n") for _, line in read_lines(path) if line.strip()]
        if not lines:
            raise EmptySetError(f"{source}:1: expected texts, got blank lines only. Fill the file.")
        return list(lines)
    return [_text(row) for row in read_rows(source)]


def _text(row: Row) -> str | tuple[Prompt, str]:
    """The text, or the demonstration, that a row holds."""
    if not row.has("text"):
        return _demonstration(row)
    text = row.text("text")
    if not text.strip():
        row.fail(("text",), "a text", "blank text", "Fill it or remove the row.")
    return text


def _demonstration(row: Row) -> tuple[Prompt, str]:
    """The demonstration that a row holds."""
    prompt: Prompt
    if "messages" in row.values:
        messages = row.messages("messages")
        if len(messages) < 2:
            row.fail(("messages",), "a prompt and a response", "one message", "Mend the row.")
        name = "messages"
        prompt, response = messages[:-1], row.assistant(messages[-1], name, len(messages) - 1)
    else:
        name = _first_name(row, RESPONSE)
        prompt, response = _filled_prompt(row), row.response(name)
    if not response.strip():
        row.fail((name,), "a response", "blank text", "Fill it or remove the row.")
    return prompt, response
