# SPDX-License-Identifier: Apache-2.0
"""A strict YAML 1.2 reader and writer: plain values, each with the place it came from.

Only what a settings file needs: one document of mappings, lists and scalars. Anchors, aliases,
merge keys, tags, directives, duplicate keys, keys that are not text, nan and inf are refused by
line and column. `1e-4` is a number; `no`, dates and `1_000` are text; `0777` is the number 777
(octal: `0o777`).
"""

import io
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    MappingStartEvent,
    NodeEvent,
    ScalarEvent,
    SequenceStartEvent,
)

from metarm.errors import ConfigError

__all__ = ["KeyPath", "Place", "YamlDocument", "format_yaml", "parse_yaml"]

MAX_BYTES: Final = 1 << 20
MAX_DEPTH: Final = 20
MAX_INTEGER: Final = 2**63 - 1

KeyPath = tuple[str | int, ...]
"""Where a value stands: keys and list positions from the top; () is the whole document."""

_NULLS: Final = frozenset({"~", "null", "Null", "NULL"})
_BOOLEANS: Final = {
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_INTEGERS: Final = (
    (re.compile(r"[-+]?[0-9]+"), 10),
    (re.compile(r"0o[0-7]+"), 8),
    (re.compile(r"0x[0-9a-fA-F]+"), 16),
)
_FLOAT: Final = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE: Final = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_DIRECTIVE: Final = re.compile(r"^%", re.MULTILINE)
_OLD_BOOLEANS: Final = frozenset({"y", "n", "yes", "no", "on", "off"})
"""Text in YAML 1.2, booleans in 1.1: quoted in what we write, for the sake of other readers."""
_PLAIN: Final = re.compile(r"[A-Za-z_./][A-Za-z0-9_./-]*")


@dataclass(frozen=True, slots=True)
class Place:
    """A line and column of a source, both from 1; the source is a file or the command line."""

    source: str
    line: int | None = None
    column: int | None = None

    def __str__(self) -> str:
        return ":".join(str(part) for part in (self.source, self.line, self.column) if part)


@dataclass(slots=True)
class YamlDocument:
    """A document's value and, for each key path in it, where it stands."""

    value: Any = None
    places: dict[KeyPath, Place] = field(default_factory=dict)

    def place(self, path: KeyPath, default: Place) -> Place:
        """The place of `path`, or of the nearest key above it."""
        for end in range(len(path), 0, -1):
            if path[:end] in self.places:
                return self.places[path[:end]]
        return default


@dataclass(slots=True)
class _Level:
    """A mapping or list that is still open, and the key that waits for its value."""

    container: dict[str, Any] | list[Any]
    path: KeyPath
    key: str | None = None


def parse_yaml(data: bytes, source: str) -> YamlDocument:
    """The one document in `data`.

    Args:
        data: UTF-8, a byte order mark allowed.
        source: What error messages call it: a file's path, usually.

    Raises:
        ConfigError: On anything but one document of plain mappings, lists and scalars.
    """
    if len(data) > MAX_BYTES:
        raise ConfigError(
            f"{source}: expected at most {MAX_BYTES} bytes of settings, got {len(data)}. "
            "Is this the right file?"
        )
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            f"{source}:{line}: expected UTF-8, got byte 0x{data[error.start]:02x}. "
            "Save the file as UTF-8."
        ) from error
    if directive := _DIRECTIVE.search(text):
        line = text.count("\n", 0, directive.start()) + 1
        raise ConfigError(f"{source}:{line}:1: expected no directive (%...). Remove the line.")
    return _build(text, source)


def _build(text: str, source: str) -> YamlDocument:
    """Fold the parser's events into one value, with a stack in place of recursion."""
    document = YamlDocument()
    root = _Level([], ())
    stack = [root]
    documents = 0
    for event in _events(text, source):
        place = _place(event, source)
        if isinstance(event, DocumentStartEvent):
            documents += 1
            if documents > 1:
                raise ConfigError(f"{place}: expected one document, got a second one after `---`")
        elif isinstance(event, NodeEvent):
            _refuse_extras(event, place)
            value = _value(event, place)
            path = _attach(stack[-1], value, event, place, document, is_root=len(stack) == 1)
            if path is not None and isinstance(value, dict | list):
                if len(stack) > MAX_DEPTH:
                    raise ConfigError(f"{place}: nested more than {MAX_DEPTH} deep. Flatten it.")
                stack.append(_Level(value, path))
        elif type(event).__name__ in ("MappingEndEvent", "SequenceEndEvent"):
            stack.pop()
    if not documents:
        raise ConfigError(f"{source}: expected settings, got an empty file")
    document.value = root.container[0]  # type: ignore[index]
    return document


def _events(text: str, source: str) -> Iterator[Any]:
    """The parser's events; its own errors become ours."""
    try:
        yield from YAML(typ="safe", pure=True).parse(io.StringIO(text))
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        if mark:
            place = Place(source, mark.line + 1, mark.column + 1)
        else:
            place = Place(source, text.count("\n", 0, getattr(error, "position", 0)) + 1)
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ConfigError(f"{place}: expected YAML, got a syntax error: {problem}") from error
    except (ValueError, IndexError, AttributeError, AssertionError, TypeError) as error:
        # The parser has a few escapes of its own, such as `int("")` on a broken \x in quotes.
        raise ConfigError(f"{source}: expected YAML, got something unreadable: {error}") from error


def _place(event: Any, source: str) -> Place:
    """Where an event begins."""
    return Place(source, event.start_mark.line + 1, event.start_mark.column + 1)


def _refuse_extras(event: Any, place: Place) -> None:
    """Anchors, aliases and tags can hide what a file says; none is needed here."""
    if isinstance(event, AliasEvent):
        raise ConfigError(
            f"{place}: expected a value, got the alias *{event.anchor}. Write it out."
        )
    if event.anchor is not None:
        raise ConfigError(f"{place}: expected no anchor, got &{event.anchor}. Remove it.")
    if event.tag is not None:
        raise ConfigError(f"{place}: expected no tag, got {event.tag}. Remove it.")


def _value(event: Any, place: Place) -> Any:
    """A scalar's value, or the still empty container that an event opens."""
    if isinstance(event, MappingStartEvent):
        return {}
    if isinstance(event, SequenceStartEvent):
        return []
    return _scalar(event.value, place) if event.style is None else event.value


def _scalar(text: str, place: Place) -> Any:
    """A plain scalar by the core schema of YAML 1.2; finite numbers only."""
    if text in _NULLS or not text:
        return None
    if text in _BOOLEANS:
        return _BOOLEANS[text]
    for pattern, base in _INTEGERS:
        if pattern.fullmatch(text):
            # The length first: Python refuses to read thousands of digits.
            number = int(text, base) if len(text) <= 64 else MAX_INTEGER + 1
            if abs(number) > MAX_INTEGER:
                raise ConfigError(
                    f"{place}: expected an integer of at most 64 bits, got {text[:40]}"
                )
            return number
    if _NOT_FINITE.fullmatch(text):
        raise ConfigError(f"{place}: expected a finite number, got {text}")
    if _FLOAT.fullmatch(text):
        real = float(text)
        if not math.isfinite(real):
            raise ConfigError(f"{place}: expected a finite number, got {text[:40]}, too large")
        return real
    return text


def _attach(
    level: _Level, value: Any, event: Any, place: Place, document: YamlDocument, *, is_root: bool
) -> KeyPath | None:
    """Put a node where it belongs; its path, or None where it was a key."""
    is_key = isinstance(level.container, dict) and level.key is None
    if not is_key and isinstance(event, ScalarEvent) and event.style is None and not event.value:
        path = level.path if level.key is None else (*level.path, level.key)
        place = place if level.key is None else document.places[path]
        name = ".".join(str(part) for part in path)
        raise ConfigError(
            f"{place}: {name or 'the document'}: expected a value, got nothing. "
            "Write `null`, or `{}` for a section of defaults, or remove the key."
        )
    if isinstance(level.container, list):
        path = () if is_root else (*level.path, len(level.container))
        level.container.append(value)
        document.places[path] = place
        return path
    if level.key is None:
        level.key = _key(level, value, event, place, document)
        return None
    path = (*level.path, level.key)
    level.container[level.key] = value
    level.key = None
    return path


def _key(level: _Level, value: Any, event: Any, place: Place, document: YamlDocument) -> str:
    """A mapping's next key: text, and not there before."""
    if not isinstance(value, str):
        shown = event.value if isinstance(event, ScalarEvent) else type(value).__name__
        raise ConfigError(f"{place}: expected a text key, got {shown!r}. Put quotes around it.")
    if value == "<<" and event.style is None:
        raise ConfigError(f"{place}: expected no merge key <<. Write the keys out.")
    path = (*level.path, value)
    if path in document.places:
        raise ConfigError(
            f"{place}: expected each key once, got {value!r} again (first in line "
            f"{document.places[path].line}). Remove one of them."
        )
    document.places[path] = place
    return value


def format_yaml(value: Mapping[str, Any]) -> str:
    """YAML text that `parse_yaml` reads back to the same value.

    Example:
        >>> print(format_yaml({"a": 1e-06, "b": {"c": ["x", "no 1"], "d": None}}), end="")
        a: 1e-06
        b:
          c: [x, "no 1"]
          d: null
    """
    return "".join(f"{line}\n" for line in _block(value, "")) or "{}\n"


def _block(mapping: Mapping[str, Any], indent: str) -> Iterator[str]:
    for key, value in mapping.items():
        if isinstance(value, Mapping) and value:
            yield f"{indent}{_inline(key)}:"
            yield from _block(value, indent + "  ")
        else:
            yield f"{indent}{_inline(key)}: {_inline(value)}"


def _inline(value: Any) -> str:
    """A value on one line: JSON, which YAML contains, with quotes left off where it is safe."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_inline(k)}: {_inline(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_inline, value)) + "]"
    if not isinstance(value, str):
        return json.dumps(value, allow_nan=False)
    if _PLAIN.fullmatch(value) and _reads_as_text(value):
        return value
    quoted = json.dumps(value, ensure_ascii=False)
    # YAML calls some characters unprintable that JSON leaves as they are.
    return "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in quoted)


def _reads_as_text(value: str) -> bool:
    """Whether a plain scalar comes back as the same text, in YAML 1.1 too."""
    if value.lower() in _OLD_BOOLEANS:
        return False
    try:
        return isinstance(_scalar(value, Place("")), str)
    except ConfigError:
        return False
