# SPDX-License-Identifier: Apache-2.0
"""Run folder: atomic writes, fingerprints, and stages that are done once.

A stage is a folder. It is built under a temporary name and renamed when it is whole, with a
`stage.json` inside; so a folder that exists is finished, and a stopped run goes on from there. What
a stage keeps while it is being built lies beside it, and goes when it is finished.
"""

import contextlib
import errno
import functools
import gzip
import hashlib
import json
import math
import os
import re
import shutil
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from metarm import __version__
from metarm.errors import (
    ConfigError,
    DataError,
    FingerprintError,
    FormatError,
    MetarmError,
    RunError,
)

__all__ = [
    "STAGE_FILE",
    "Stage",
    "append_json_line",
    "build_stage",
    "check_writable",
    "checkpoints_of",
    "content_digest",
    "file_digest",
    "fingerprint",
    "json_lines_text",
    "json_text",
    "read_json",
    "read_json_lines",
    "remove_folder",
    "sync",
    "verify_stage",
    "write_bytes",
    "write_json",
    "write_json_lines",
    "write_text",
    "write_whole",
]

STAGE_FILE = "stage.json"
BEGUN_FILE = "begun.json"
"""In the folder of a stage's checkpoints: which stage they are of."""


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all: temporary name, fsync, rename, fsync of the folder.

    Raises:
        RunError: When the place is read-only or full; what stood there before is untouched.
    """
    write_whole(path, text.encode())


def write_whole(path: Path, data: bytes) -> None:
    """The same of bytes.

    Raises:
        RunError: As `write_text`.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write_bytes(temporary, [data])
            os.replace(temporary, path)
        finally:
            # There is one only where it did not come to stand at `path`.
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
        sync(path.parent)
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror}. {_remedy(error)}") from error


def write_bytes(path: Path, parts: Iterable[bytes | memoryview]) -> str:
    """Write parts one after the other and sync them: for a file that nobody looks for yet.

    Returns:
        The SHA-256 of what was written, in hex.
    """
    digest = hashlib.sha256()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    try:
        for part in parts:
            digest.update(part)
            left = memoryview(part)
            while left:
                left = left[os.write(descriptor, left) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return digest.hexdigest()


def sync(path: Path) -> None:
    """Make a file's bytes, or a folder's list of names, survive a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


_REMEDIES: Final = {
    errno.ENOSPC: "The disk is full: free space and run the same command again; "
    "finished stages are kept.",
    errno.EDQUOT: "Your quota is used up: free space and run the same command again; "
    "finished stages are kept.",
    errno.EACCES: "No permission: change the rights or choose another output folder.",
    errno.EROFS: "The place is read-only: choose another output folder.",
}


_OS_ERROR: Final = re.compile(r"\(os error (\d+)\)")


def _remedy(error: OSError) -> str:
    """What to do about a failed write, by errno."""
    return _REMEDIES.get(error.errno or 0, "Choose another output folder or mend the place.")


def check_writable(folder: Path) -> None:
    """Fail now, with a clear message, rather than after an hour of work.

    Raises:
        RunError: When nothing can be written into `folder`.
    """
    probe = folder / f".writable.{os.getpid()}"
    write_text(probe, "")
    probe.unlink()


def write_json(path: Path, value: Any) -> None:
    """Write one JSON document, indented, whole or not at all."""
    write_text(path, json_text(value))


def json_text(value: Any) -> str:
    """A JSON document as `write_json` writes it."""
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def read_json(path: Path) -> Any:
    """Read one JSON document.

    Raises:
        DataError: When the file cannot be opened.
        FormatError: When the file is not JSON; names file, line and column.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}. Check the path.") from error
    except (ValueError, RecursionError) as error:
        raise FormatError(
            f"{path}: expected JSON, got {error}. Mend or remove the file."
        ) from error


def write_json_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object a line, whole or not at all."""
    write_text(path, json_lines_text(rows))


def json_lines_text(rows: Iterable[Mapping[str, Any]]) -> str:
    """JSON lines as `write_json_lines` writes them."""
    lines = (json.dumps(row, ensure_ascii=False, allow_nan=False) for row in rows)
    return "".join(f"{line}\n" for line in lines)


def read_json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Read one JSON object a line (.gz too); a torn last line is an error that names it.

    Raises:
        DataError: When the file cannot be opened or unpacked.
        FormatError: When a line is not one JSON object; names file and line.
    """
    opener = gzip.open if path.suffix == ".gz" else open
    number = 0
    try:
        with opener(path, "rt", encoding="utf-8") as stream:
            for number, line in enumerate(stream, start=1):
                yield _json_object(line, f"{path}:{number}")
    except UnicodeDecodeError as error:
        raise FormatError(
            f"{path}:{number + 1}: expected UTF-8, got {error.reason}. Save the file as UTF-8."
        ) from error
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"cannot read {path}: {reason}. Check the path.") from error


def _json_object(line: str, place: str) -> dict[str, Any]:
    """The object in one line."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{place}: expected one JSON object a line, got {error}") from error
    if not isinstance(row, dict):
        raise FormatError(
            f"{place}: expected one JSON object a line, got a JSON {type(row).__name__}"
        )
    return row


def append_json_line(path: Path, row: Mapping[str, Any]) -> None:
    """Append one JSON object to a log; a crash can tear at most its last line.

    A log must not stop the work that it describes: numbers that are not finite become null.
    """
    line = json.dumps(_without_nan(row), ensure_ascii=False, allow_nan=False)
    with open(path, "a", encoding="utf-8") as stream:
        stream.write(line + "\n")


def _without_nan(value: Any) -> Any:
    """The same JSON value with null in place of nan and infinity."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return value


def fingerprint(*parts: Any) -> str:
    """Sixteen hex digits of the parts' JSON: equal settings and inputs, equal fingerprint."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def content_digest(source: str | Path) -> str:
    """A hash of a file's or folder's bytes, wherever it lies; a hub id stands for itself."""
    path = Path(source)
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
        return fingerprint({f.relative_to(path).as_posix(): content_digest(f) for f in files})
    if not path.is_file():
        return str(source)
    status = path.stat()
    return _known_digest(path, status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=256)
def _known_digest(path: Path, size: int, mtime_ns: int) -> str:
    """Read once for all seeds: `size` and `mtime_ns` tell another content apart."""
    return file_digest(path)


def file_digest(path: Path) -> str:
    """The SHA-256 of a file's bytes as they are now, in hex: a second reads about a gigabyte."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@dataclass(frozen=True, slots=True)
class Stage:
    """A finished stage: its folder, the fingerprint of what made it, and what it took."""

    folder: Path
    fingerprint: str
    seconds: float
    metrics: Mapping[str, Any]


def build_stage(
    folder: Path,
    settings: Any,
    inputs: Iterable[Stage],
    build: Callable[[Path], Mapping[str, Any] | None],
    *,
    goes_on: bool = False,
) -> Stage:
    """Return the finished stage in `folder`, building it first where it is not there.

    Args:
        folder: Where the stage lives; its parent is made.
        settings: Whatever decides the result, as JSON values.
        inputs: The finished stages it reads; before anything is built their bytes are verified.
        build: Fills the empty folder it is given and returns metrics for `stage.json`, where
            numbers that are not finite become null.
        goes_on: Whether `build` keeps checkpoints in `checkpoints_of` the folder it is given, and
            goes on from those that an earlier try of the same stage has left there.

    Raises:
        FingerprintError: When the folder was finished with other settings or inputs.
        RunError: When the folder holds something else, was damaged, or cannot be written.

    Writes:
        `folder` with everything `build` wrote and `stage.json`, all at once. Where `build` refuses
        what it was given, nothing is left but what it had kept to go on from.
    """
    inputs = tuple(inputs)
    expected = fingerprint(settings, [stage.fingerprint for stage in inputs])
    partial = folder.with_name(f".{folder.name}.partial")
    if (folder / STAGE_FILE).exists():
        stage = _finished_stage(folder, expected)
        remove_folder(checkpoints_of(partial))
        return stage
    # Now, not after hours of work: a rename replaces nothing but an empty folder.
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RunError(
            f"{folder} exists but has no {STAGE_FILE}: it is not a finished stage. "
            "Move it away and run the same command again."
        )
    for stage in inputs:
        verify_stage(stage)
    try:
        remove_folder(partial)
        partial.mkdir(parents=True)
        _begin_checkpoints(checkpoints_of(partial), expected if goes_on else None)
    except OSError as error:
        raise RunError(f"cannot write {partial}: {error.strerror}. {_remedy(error)}") from error
    with _stage_errors(folder), _clean_when_refused(partial):
        started = time.monotonic()
        metrics = _without_nan(build(partial) or {})
        seconds = time.monotonic() - started
        files = _sync_tree(partial)
        record = {"fingerprint": expected, "seconds": seconds, "metrics": metrics, "files": files}
        record = json.loads(json.dumps({**record, "settings": settings}, allow_nan=False))
        write_json(partial / STAGE_FILE, {**record, "digest": fingerprint(record)})
        os.replace(partial, folder)
        sync(folder.parent)
        remove_folder(checkpoints_of(partial))
    _verified.add((folder.resolve(), expected))
    return Stage(folder, expected, seconds, metrics)


@contextlib.contextmanager
def _clean_when_refused(partial: Path) -> Iterator[None]:
    """A block that builds a stage: where it ends by an error of the input, its traces go.

    What a training that failed has written stays, to be looked into; so does what an end by force
    leaves. The next try begins `partial` anew in any case.
    """
    try:
        yield
    except MetarmError as error:
        kept = checkpoints_of(partial)
        with contextlib.suppress(OSError):
            if isinstance(error, ConfigError | DataError) or not any(partial.iterdir()):
                remove_folder(partial)
            if [path.name for path in kept.iterdir()] == [BEGUN_FILE]:
                remove_folder(kept)
        raise


def checkpoints_of(partial: Path) -> Path:
    """Where a stage that is built in `partial` keeps what it goes on from; gone with the stage."""
    return partial.with_name(f"{partial.name.removesuffix('.partial')}.checkpoints")


def _begin_checkpoints(folder: Path, expected: str | None) -> None:
    """Leave an earlier try's checkpoints of the same stage and version, and nothing else."""
    mark = {"fingerprint": expected, "version": __version__}
    try:
        is_ours = expected is not None and json.loads((folder / BEGUN_FILE).read_bytes()) == mark
    except (OSError, ValueError):
        is_ours = False
    if not is_ours:
        remove_folder(folder)
    if expected is not None and not is_ours:
        write_json(folder / BEGUN_FILE, mark)


def remove_folder(folder: Path) -> None:
    """Remove a folder where there is one."""
    if folder.exists():
        shutil.rmtree(folder)


def _finished_stage(folder: Path, expected: str) -> Stage:
    """The stage in a finished folder, checked against what is wanted and what was written."""
    record, files = _read_record(folder)
    stage = Stage(folder, record["fingerprint"], record["seconds"], record["metrics"])
    if stage.fingerprint != expected:
        raise FingerprintError(
            f"{folder} was finished with other settings or inputs (fingerprint "
            f"{stage.fingerprint}, now {expected}). Use another output folder, put the old "
            "settings back, or remove this folder and those made from it to redo them."
        )
    for name, (size, _) in files.items():
        path = folder / name
        now = path.stat().st_size if path.is_file() else None
        if now != size:
            raise RunError(
                f"{path}: expected {size} bytes as when the stage finished, got "
                f"{'no file' if now is None else now}. Remove {folder} to do the stage again."
            )
    return stage


def _read_record(folder: Path) -> tuple[dict[str, Any], dict[str, tuple[int, str | None]]]:
    """A finished stage's record, and the size and SHA-256 of each of its files.

    Records of earlier versions have sizes alone.
    """
    path = folder / STAGE_FILE
    record = read_json(path)
    try:
        digest = record.pop("digest", None)
        for key in ("fingerprint", "seconds", "metrics"):
            record[key]
        files = {
            name: (told["size"], told["sha256"]) if isinstance(told, dict) else (told, None)
            for name, told in dict(record["files"]).items()
        }
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise RunError(
            f"{path}: expected the record of a finished stage, got something else "
            f"({error!r}). Remove {folder} to do the stage again."
        ) from error
    is_of_earlier_version = digest is None and not any(sha256 for _, sha256 in files.values())
    if not is_of_earlier_version and digest != fingerprint(record):
        raise RunError(
            f"{path}: expected the record as it was written, got other values: the file was "
            f"changed or is damaged. Remove {folder} to do the stage again."
        )
    return record, files


_verified: Final[set[tuple[Path, str]]] = set()
"""Stages whose bytes this process has verified or written."""


def verify_stage(stage: Stage) -> None:
    """Refuse a stage whose files are not byte for byte what it was finished with.

    Each stage is read once a process. What no stage made, and records of earlier versions, have
    no hashes and pass.

    Raises:
        RunError: Names the first damaged file, and what to remove.
    """
    key = (stage.folder.resolve(), stage.fingerprint)
    if key in _verified or not (stage.folder / STAGE_FILE).is_file():
        return
    record, files = _read_record(stage.folder)
    if record["fingerprint"] != stage.fingerprint:
        return  # a model from elsewhere, which its owner may have changed
    for name, (_, sha256) in files.items():
        path = stage.folder / name
        try:
            is_same = sha256 is None or file_digest(path) == sha256
        except OSError as error:
            raise RunError(
                f"{path}: cannot be read: {error.strerror}. Remove {stage.folder} to do the stage "
                "again."
            ) from error
        if not is_same:
            raise RunError(
                f"{path}: expected the bytes that the stage was finished with, got others: the "
                f"file was changed or is damaged. Remove {stage.folder} to do the stage again."
            )
    _verified.add(key)


@contextlib.contextmanager
def _stage_errors(folder: Path) -> Iterator[None]:
    """A full or closed disk becomes a RunError; every other error of a build stays what it is."""
    try:
        yield
    # Packages written in Rust raise errors of their own, which have the number in their words.
    except Exception as error:
        told = _OS_ERROR.search(str(error))
        number = error.errno if isinstance(error, OSError) else told and int(told.group(1))
        if number not in _REMEDIES:
            raise
        place = getattr(error, "filename", None) or folder
        raise RunError(
            f"stage {folder.name} failed on {place}: {os.strerror(number)}. {_REMEDIES[number]}"
        ) from error


def _sync_tree(folder: Path) -> dict[str, dict[str, Any]]:
    """Sync everything below a folder; size and SHA-256 of each file by its path inside."""
    files = {}
    for parent, _, names in os.walk(folder):
        for name in names:
            path = Path(parent, name)
            if not path.is_file():
                continue
            sync(path)
            told = {"size": path.stat().st_size, "sha256": file_digest(path)}
            files[path.relative_to(folder).as_posix()] = told
        sync(Path(parent))
    return dict(sorted(files.items()))
