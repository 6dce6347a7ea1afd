# SPDX-License-Identifier: Apache-2.0
"""Exports on disk: files written whole, with a manifest of format, schema version and SHA-256."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from metarm.errors import ConfigError, DataError, FormatError
from metarm.storage import check_writable, file_digest, read_json, write_json, write_whole

__all__ = ["SCHEMA_VERSION", "check_sealed", "manifest_path", "write_sealed"]

SCHEMA_VERSION: Final = 1
"""Of all formats of labels together: raised when any of them changes."""


def manifest_path(path: Path) -> Path:
    """Where the manifest of an export is: in its folder, or beside its file."""
    return path / "manifest.json" if path.is_dir() else path.with_name(f"{path.name}.manifest.json")


def write_sealed(
    path: Path, files: Mapping[str, bytes], data_format: str, facts: Mapping[str, Any]
) -> None:
    """Write an export behind its manifest, which says whose the files are whatever comes between.

    Args:
        path: The export: a folder where there are several files, else its file.
        files: Name in the folder -> content; the one file's name is "".
        data_format: Name of the format.
        facts: Whatever else the manifest says.

    Raises:
        ConfigError: When a file of that name is there, and no export wrote it.
        RunError: When a file cannot be written.

    Writes:
        The manifest, and the files, each whole or not at all; an earlier export is replaced.
    """
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    document = {"schema_version": SCHEMA_VERSION, "format": data_format, **facts}
    if "" in files and path.is_dir():
        raise ConfigError(f"{path} is a folder, and {data_format} is one file: name a file")
    if "" not in files:
        # It makes the folder, too: without one the manifest would be beside it.
        check_writable(path)
    _refuse_foreign(path, files)
    write_json(manifest_path(path), {**document, "sha256": digests})
    for name, data in files.items():
        write_whole(path / name if name else path, data)


def _refuse_foreign(path: Path, files: Mapping[str, bytes]) -> None:
    """Leave alone what no export has written."""
    place = manifest_path(path)
    targets = {place: None} | {path / name if name else path: name for name in files}
    own = _exported(place)
    for target, name in targets.items():
        if target.exists() and (own is None or (name is not None and name not in own)):
            raise ConfigError(
                f"{target} exists, and no export of labels wrote it: name another place, or "
                "remove it"
            )


def _exported(place: Path) -> frozenset[str] | None:
    """Names of the files that a manifest is of; None where no export wrote it."""
    try:
        document = json.loads(place.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(document, dict) or not {"schema_version", "format"} <= set(document):
        return None
    digests = document.get("sha256")
    return frozenset(digests) if isinstance(digests, dict) else None


def check_sealed(path: Path) -> None:
    """Refuse an export that is not as its manifest says; one without a manifest passes.

    Raises:
        DataError: When there is no such file or folder.
        FormatError: When a file differs, or a newer metarm wrote the export.
    """
    if not path.exists():
        raise DataError(f"{path}: no such file or folder. Mend the path.")
    place = manifest_path(path)
    if not place.exists():
        return
    document = read_json(place)
    try:
        version, digests = int(document["schema_version"]), dict(document["sha256"])
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError(f"{place}: expected a manifest ({error}). Remove the file.") from error
    if version > SCHEMA_VERSION:
        raise FormatError(
            f"{place}: expected schema version {SCHEMA_VERSION} or older, got {version}: a newer "
            "metarm wrote it. Use that one."
        )
    for name, digest in digests.items():
        target = path / str(name) if name else path
        if not target.is_file() or file_digest(target) != digest:
            raise FormatError(
                f"{target}: expected the bytes that {place.name} was written for, got others. Copy "
                "it again; if you changed it on purpose, remove the manifest."
            )
