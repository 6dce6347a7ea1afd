# SPDX-License-Identifier: Apache-2.0
"""Files as lines of text: unpack gzip, check UTF-8, tell the kind, refuse what is unsafe."""

import gzip
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Final, cast

from metarm.errors import DataError, EmptySetError, FormatError

__all__ = [
    "CSV_DELIMITERS",
    "CSV_SUFFIXES",
    "JSON_SUFFIXES",
    "WHAT_IS_READ",
    "open_file",
    "read_lines",
    "sniff_container",
]

GZIP_MAGIC = b"\x1f\x8b"
UTF8_MARK = b"\xef\xbb\xbf"
HEAD_BYTES = 65536
CSV_DELIMITERS = ",\t;"
CSV_COLUMNS = {"prompt", "chosen", "rejected", "response", "completion", "instruction"}
JSON_SUFFIXES = {".jsonl", ".json", ".ndjson"}
CSV_SUFFIXES = {".csv", ".tsv"}
WHAT_IS_READ = "JSON lines, a JSON array, CSV with a header line, or Parquet"

_REFUSED: Final[tuple[tuple[bytes, str, str], ...]] = (
    (rb"\x80[\x02-\x05]", "a Python pickle (.pkl, .pt)", "Pickles can run code and are not opened"),
    (rb"PK\x03\x04", "a ZIP archive (.zip, .xlsx, a torch .pt or .bin)", "Unpack or export it"),
    (rb"\x1f\x8b", "gzip inside gzip", "Decompress it once"),
    (rb"BZh", "a bzip2 file", "Decompress it, or use gzip"),
    (rb"\xfd7zXZ", "an xz file", "Decompress it, or use gzip"),
    (rb"\x28\xb5\x2f\xfd", "a zstd file", "Decompress it, or use gzip"),
    (rb"ARROW1", "an Arrow file", "Save it as Parquet"),
    (rb"\xff\xfe|\xfe\xff", "UTF-16 text", "Save it as UTF-8"),
    (rb"SQLite format 3", "an SQLite database", "Export the table as CSV"),
    (rb"%PDF", "a PDF", "Export its data as text"),
    (rb"\s*<", "a page of HTML or XML", "The download gave a web page: fetch the data file itself"),
)


def open_file(path: Path) -> IO[bytes]:
    """The file's bytes, unpacked where it is gzip, whatever its name says."""
    try:
        with open(path, "rb") as stream:
            is_gzip = stream.read(2) == GZIP_MAGIC
        return cast("IO[bytes]", gzip.open(path, "rb") if is_gzip else open(path, "rb"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}. Mend its rights.") from error


def _raw_lines(path: Path) -> Iterator[bytes]:
    """The lines as bytes; gzip that is damaged or cut off is an error that names the line."""
    number = 0
    with open_file(path) as stream:
        try:
            for line in stream:
                number += 1
                yield line
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise FormatError(
                f"{path}:{number + 1}: expected a whole gzip file, got one that is damaged or cut "
                f"off ({error}). Copy or download it again."
            ) from error


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Number and text of each line, with its line end; a UTF-8 mark at the start is dropped.

    Raises:
        FormatError: At the first line that is not UTF-8 or holds a NUL byte.
    """
    for number, raw in enumerate(_raw_lines(path), start=1):
        line = raw.removeprefix(UTF8_MARK) if number == 1 else raw
        try:
            text = line.decode()
        except UnicodeDecodeError as error:
            raise FormatError(
                f"{path}:{number}: expected UTF-8, got the byte 0x{line[error.start]:02x} in "
                f"column {error.start + 1}. "
                "Convert the file, for example: iconv -f latin1 -t utf-8."
            ) from error
        if "\0" in text:
            raise FormatError(
                f"{path}:{number}: expected text, got a NUL byte in column {text.index(chr(0)) + 1}"
                ". Remove it, or make the file again: it may be binary or damaged."
            )
        yield number, text


def sniff_container(path: Path) -> str:
    """The file's kind, a name of `CONTAINERS`, by its content and, in doubt, by its name.

    Raises:
        EmptySetError: When the file is empty or blank.
        FormatError: When it is of a kind that is not read.
    """
    head = b""
    for line in _raw_lines(path):
        head += line
        if len(head) >= HEAD_BYTES or (_is_text(head) and head.count(b"\n") > 1):
            break
    head = head.removeprefix(UTF8_MARK)
    if not _is_text(head):
        raise EmptySetError(f"{path}:1: the file is empty: expected {WHAT_IS_READ}. Make it again.")
    for pattern, kind, remedy in _REFUSED:
        if re.match(pattern, head):
            raise FormatError(f"{path}:1: expected {WHAT_IS_READ}, got {kind}. {remedy}.")
    if head.startswith(b"PAR1"):
        return "parquet"
    by_first_byte = {b"{": "jsonl", b"[": "json"}.get(head.lstrip()[:1])
    return by_first_byte or _container_by_name(path, head)


def _is_text(head: bytes) -> bool:
    """Whether there is more than blanks, Unicode's among them."""
    return bool(head.decode(errors="replace").strip())


def _container_by_name(path: Path, head: bytes) -> str:
    """The kind of a text file that does not begin like JSON."""
    suffixes = set(path.suffixes[-2:])
    header = head.lstrip().split(b"\n")[0].decode(errors="replace")
    columns = {name.strip(' "\r') for name in re.split(rf"[{CSV_DELIMITERS}]", header)}
    if suffixes & JSON_SUFFIXES:
        return "jsonl"
    return "csv" if suffixes & CSV_SUFFIXES or columns & CSV_COLUMNS else "text"
