# SPDX-License-Identifier: Apache-2.0
"""Which files a served model is made of: their hash, and whether they have changed."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from metarm.errors import DataError, ModelError
from metarm.models.ensemble import ENSEMBLE_FILE, member_folders
from metarm.storage import read_json

__all__ = ["Signature", "file_signature", "find_model", "model_sha256"]

POINTER_KEY: Final = "model"

Signature = tuple[tuple[str, int, int, int], ...]
"""Name, size, time and number of each file: equal where nothing was written."""


def find_model(place: Path) -> Path:
    """The model's folder: `place` itself, or what a JSON file there points to.

    A pointer is `{"model": "folder"}`, relative to the file; written anew, it names a new model.

    Raises:
        ModelError: When there is no folder, or the file is no pointer.
    """
    if place.is_dir():
        return place.resolve()
    if place.suffix != ".json" or not place.is_file():
        raise ModelError(
            f"expected a folder with a reward model at {str(place)!r}, or a JSON file "
            f'{{"{POINTER_KEY}": "folder"}}; there is none. A model of the hub is fetched first: '
            "hf download ID --local-dir FOLDER"
        )
    document = read_json(place)
    target = document.get(POINTER_KEY) if isinstance(document, dict) else None
    if not isinstance(target, str) or not (folder := place.parent / target).is_dir():
        raise ModelError(
            f'{place}: expected {{"{POINTER_KEY}": "folder"}} with a folder that is there, '
            f"relative to the file, got {str(document)[:80]!r}"
        )
    return folder.resolve()


def model_sha256(folder: Path) -> str:
    """SHA-256 of all files, as `sha256sum` lists them: one line a file, sorted by name.

    Of an ensemble: of its `ensemble.json` and its members' files.

    Raises:
        DataError: When a file cannot be read.
    """
    lines = []
    try:
        for name, path in _files(folder):
            with path.open("rb") as stream:
                lines.append(f"{hashlib.file_digest(stream, 'sha256').hexdigest()}  {name}\n")
    except OSError as error:
        raise DataError(f"cannot read {error.filename}: {error.strerror}") from error
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def file_signature(folder: Path) -> Signature:
    """What tells, without reading them, whether files were written.

    Raises:
        DataError: When a file vanishes meanwhile.
    """
    try:
        rows = [(name, path.stat()) for name, path in _files(folder)]
    except OSError as error:
        raise DataError(f"cannot read {error.filename}: {error.strerror}") from error
    return tuple((name, stat.st_size, stat.st_mtime_ns, stat.st_ino) for name, stat in rows)


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    """Each file of the model, by its path from the folder, in the order of names."""
    ensemble = folder / ENSEMBLE_FILE
    if not ensemble.is_file():
        yield from _below(folder, "")
        return
    yield ENSEMBLE_FILE, ensemble
    for number, member in enumerate(member_folders(folder)):
        yield from _below(Path(member), f"member {number}/")


def _below(folder: Path, prefix: str) -> Iterator[tuple[str, Path]]:
    paths = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*")}
    for name in sorted(paths):
        if paths[name].is_file():
            yield prefix + name, paths[name]
