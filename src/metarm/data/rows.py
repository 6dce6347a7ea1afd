# SPDX-License-Identifier: Apache-2.0
"""Sources as rows: JSON lines, a JSON array, CSV, Parquet, a hub data set; CONTAINERS table."""

import csv
import difflib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from metarm.data.fields import Row, shown
from metarm.data.files import (
    CSV_DELIMITERS,
    CSV_SUFFIXES,
    JSON_SUFFIXES,
    WHAT_IS_READ,
    open_file,
    read_lines,
    sniff_container,
)
from metarm.errors import DataError, EmptySetError, FormatError

__all__ = ["CONTAINERS", "read_rows"]

DATA_SUFFIXES = JSON_SUFFIXES | CSV_SUFFIXES | {".parquet", ".txt", ".gz"}
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def read_rows(source: str | Path, split: str = "train") -> Iterator[Row]:
    """The rows of a file, a folder that `datasets` can load, or a hub data set, in order.

    Args:
        source: A path; or `owner/name` or `owner/name:split`, where no such file exists and a
            network is there.
        split: The split of a hub data set; files have none.

    Raises:
        DataError: When there is no such file or data set.
        FormatError: At the first place that cannot be read.
        EmptySetError: When there is no row at all.
    """
    path = Path(source)
    name, colon, own_split = str(source).partition(":")
    if path.is_file():
        rows = CONTAINERS[sniff_container(path)](path)
    elif path.is_dir() or (HUB_ID.fullmatch(str(source)) and path.suffix not in DATA_SUFFIXES):
        rows = _hub_rows(str(source), split)
    elif colon and HUB_ID.fullmatch(name):
        rows = _hub_rows(name, own_split)
    else:
        raise DataError(_missing_file(path))
    count = 0
    for row in rows:
        count += 1
        yield row
    if not count:
        raise EmptySetError(f"{source} has no rows: expected {WHAT_IS_READ}. Is it the right file?")


def _missing_file(path: Path) -> str:
    """What to say where no file is: the nearest names in the deepest folder that exists."""
    folder = next((parent for parent in path.parents if parent.is_dir()), Path())
    names = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
    close = difflib.get_close_matches(path.relative_to(folder).parts[0], names, n=3)
    there = ", ".join(close or names[:5]) or "nothing"
    relation = "near names there" if close else "there is"
    return f"{path}: no such file. In {folder.resolve()}, {relation}: {there}. Mend the path."


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose keys stand once each: Python would keep the last one silently."""
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key `{twice}` twice in one object")
    return values


_DECODER = json.JSONDecoder(object_pairs_hook=_object)


def _row(place: str, value: Any) -> Row:
    """A row out of any JSON value; only an object will do."""
    if not isinstance(value, Mapping):
        raise FormatError(
            f"{place}: expected one JSON object with named fields, got {shown(value)}. "
            'Write {"prompt": ..., ...}.'
        )
    return Row(place, value)


def _text_rows(path: Path) -> Iterator[Row]:
    """No rows: text without columns is none of the containers."""
    number, line = next((number, line) for number, line in read_lines(path) if line.strip())
    raise FormatError(
        f"{path}:{number}: expected {WHAT_IS_READ}, got {shown(line.strip())}. "
        "Export the data in one of these."
    )


def _jsonl_rows(path: Path) -> Iterator[Row]:
    """One JSON object a line; blank lines are skipped."""
    for number, line in read_lines(path):
        if not line.strip():
            continue
        place = f"{path}:{number}"
        try:
            value = _DECODER.decode(line)
        except (ValueError, RecursionError) as error:
            remedy = "Put one whole object on each line, or all of them into one [...]"
            if not line.endswith("\n"):
                remedy = "The last line may be cut off: copy the file again, or remove the line"
            if not isinstance(error, json.JSONDecodeError):
                remedy = "Mend the object or remove the line"
            raise FormatError(
                f"{place}: expected one JSON object a line, got {_reason(error)} in "
                f"{shown(line.rstrip())}. {remedy}."
            ) from error
        yield _row(place, value)


def _reason(error: ValueError | RecursionError) -> str:
    """What the JSON reader complains about, with its column."""
    if isinstance(error, json.JSONDecodeError):
        return f"'{error.msg.removesuffix(' at')}' at column {error.colno}"
    return "objects nested too deeply" if isinstance(error, RecursionError) else str(error)


_SPACE = re.compile(r"\s*")


def _next_token(text: str, position: int) -> int:
    """The position of the next character that is not blank, or the end."""
    match = _SPACE.match(text, position)
    return match.end() if match else position


def _json_rows(path: Path) -> Iterator[Row]:
    """The objects of one JSON array, each with the line it begins on."""
    text = "".join(line for _, line in read_lines(path))
    line, counted = 1, 0
    position = _next_token(text, text.index("[") + 1)
    is_over = text.startswith("]", position)
    while not is_over:
        line, counted = line + text.count("\n", counted, position), position
        try:
            value, end = _DECODER.raw_decode(text, position)
            position = _next_token(text, end)
            if not text.startswith((",", "]"), position):
                raise json.JSONDecodeError("Expecting ',' or ']'", text, position)
        except (ValueError, RecursionError) as error:
            at = error.lineno if isinstance(error, json.JSONDecodeError) else line
            raise FormatError(
                f"{path}:{at}: expected a JSON array of objects, got {_reason(error)}. "
                "Mend it there; if that is the end of the file, it was cut off: copy it again."
            ) from error
        yield _row(f"{path}:{line}", value)
        is_over = text.startswith("]", position)
        position = position if is_over else _next_token(text, position + 1)
    rest = _next_token(text, position + 1)
    if rest < len(text):
        raise FormatError(
            f"{path}:{text.count(chr(10), 0, rest) + 1}: expected nothing after the JSON array, "
            f"got {shown(text[rest:])}. Remove it."
        )


def _csv_rows(path: Path) -> Iterator[Row]:
    """The records of a CSV file under the names of its header line."""
    records = _csv_records(path)
    header = [name.strip() for name in records[0][1]]
    if len(set(header)) < len(header) or not all(header):
        raise FormatError(
            f"{path}:{records[0][0]}: expected a header of different names, got {shown(header)}. "
            "Name each column once."
        )
    for number, cells in records[1:]:
        if len(cells) != len(header):
            raise FormatError(
                f"{path}:{number}: expected {len(header)} fields ({', '.join(header)}), got "
                f"{len(cells)}: {shown(cells)}. Quote text that holds the delimiter or a line end."
            )
        yield Row(f"{path}:{number}", dict(zip(header, cells, strict=True)))


def _csv_records(path: Path) -> list[tuple[int, list[str]]]:
    """Each record with the number of its first line; blank lines are skipped."""
    lines = [text for _, text in read_lines(path)]
    first = next(line for line in lines if line.strip())
    delimiter = max(CSV_DELIMITERS, key=first.count)
    reader = csv.reader(iter(lines), delimiter=delimiter, strict=True)
    records = []
    number = 1
    # The limit is the process's own: it is put back for whoever else reads CSV.
    limit = csv.field_size_limit(2**31 - 1)
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                records.append((number, cells))
            number = reader.line_num + 1
    except csv.Error as error:
        raise FormatError(
            f"{path}:{number}: expected a CSV record, got '{error}'. Close the quotes, and double "
            "those inside quoted text; a file that was cut off has to be copied again."
        ) from error
    finally:
        csv.field_size_limit(limit)
    return records


def _parquet_rows(path: Path) -> Iterator[Row]:
    """The rows of a Parquet file, counted from 1: it has no lines."""
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with open_file(path) as stream, pyarrow.parquet.ParquetFile(stream) as file:
            for batch in file.iter_batches():
                for values in batch.to_pylist():
                    number += 1
                    yield Row(f"{path}, row {number}", values)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise FormatError(
            f"{path}, row {number + 1}: expected Parquet, got '{error}'. Copy or make it again."
        ) from error


def _hub_rows(name: str, split: str) -> Iterator[Row]:
    """The rows of a data set on the hub, or of a folder laid out like one."""
    import datasets

    try:
        rows = datasets.load_dataset(name, split=split)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        reason = " ".join(str(error).split()).removesuffix(".")
        raise DataError(
            f"{name}: no such file here, and as a hub data set its split {split!r} could not be "
            f"loaded: {type(error).__name__}: {reason}. Check the name, name another "
            f"split as {name}:SPLIT, go online, or download the file and give its path."
        ) from error
    for number, values in enumerate(rows, start=1):
        yield Row(f"{name}[{split}], row {number}", values)


CONTAINERS: Final[Mapping[str, Callable[[Path], Iterator[Row]]]] = MappingProxyType(
    {
        "jsonl": _jsonl_rows,
        "json": _json_rows,
        "csv": _csv_rows,
        "parquet": _parquet_rows,
        "text": _text_rows,
    }
)
"""Kind of file, as `sniff_container` tells it -> its reader."""
