# SPDX-License-Identifier: Apache-2.0
"""Exports on disk: files written whole, with a manifest of format, schema version and SHA-256."""

import hashlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Final

from metarm.errors import ConfigError, DataError, FormatError
from metarm.storage import check_writable, file_digest, read_json, write_json, write_whole

__all__ = [
    "EXPORT",
    "SCHEMA_VERSION",
    "check_replaceable",
    "check_sealed",
    "manifest_path",
    "write_sealed",
]

EXPORT: Final = "label export"
"""The verb that most exports are of."""
SCHEMA_VERSION: Final = 1
"""Of all formats of labels together: raised when any of them changes."""


def manifest_path(path: Path) -> Path:
    """Where the manifest of an export is: in its folder, or beside its file."""
    return path / "manifest.json" if path.is_dir() else path.with_name(f"{path.name}.manifest.json")


def write_sealed(
    path: Path,
    files: Mapping[str, bytes],
    data_format: str,
    facts: Mapping[str, Any],
    *,
    verb: str = EXPORT,
) -> None:
    """Write an export behind its manifest, which says whose the files are whatever comes between.

    Args:
        path: The export: a folder where there are several files, else its file.
        files: Name in the folder -> content; the one file's name is "".
        data_format: Name of the format.
        facts: Whatever else the manifest says.
        verb: Of metarm, that writes it.

    Raises:
        ConfigError: As `check_replaceable`; or when the path is a folder, and has to be a file.
        RunError: When a file cannot be written.

    Writes:
        The manifest, and the files, each whole or not at all; an earlier export is replaced.
    """
    if "" in files and path.is_dir():
        raise ConfigError(f"{path} is a folder, and {data_format} is one file: name a file")
    if "" not in files:
        # It makes the folder, too: without one the manifest would be beside it.
        check_writable(path)
    replaced = check_replaceable(path, files, verb=verb)
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    document = {"schema_version": SCHEMA_VERSION, "verb": verb, "format": data_format, **facts}
    document["sha256"] = digests
    # A death before the last file leaves some of the earlier ones: they are still metarm's own.
    write_json(manifest_path(path), document | ({"replaces": replaced} if replaced else {}))
    for name, data in files.items():
        write_whole(path / name if name else path, data)
    if replaced:
        write_json(manifest_path(path), document)


def check_replaceable(path: Path, names: Collection[str], *, verb: str = EXPORT) -> dict[str, str]:
    """Leave alone what another has written, and what somebody has changed since.

    Args:
        path: Where an export is to go.
        names: Of its files, as in `write_sealed`.
        verb: Of metarm, that is to write it.

    Returns:
        Name -> SHA-256 of the files that are there and may be replaced.

    Raises:
        ConfigError: At the first that may not.
    """
    place = manifest_path(path)
    own = _written_by(verb, place)
    if own is None and place.exists():
        raise _foreign(place, verb)
    found = {}
    for name in names:
        target = path / name if name else path
        if not target.exists():
            continue
        if own is None or name not in own:
            raise _foreign(target, verb)
        # What cannot be read here cannot be written either, and that is told then.
        if target.is_file():
            found[name] = file_digest(target)
            if found[name] not in own[name]:
                raise ConfigError(
                    f"{target} was changed since `metarm {verb}` wrote it: move it away to keep "
                    "it, remove it, or name another place"
                )
    return found


def _foreign(target: Path, verb: str) -> ConfigError:
    return ConfigError(
        f"{target} exists, and `metarm {verb}` did not write it: name another place, or remove it"
    )


def _written_by(verb: str, place: Path) -> dict[str, set[str]] | None:
    """Name -> digests that a verb's manifest is of; None where the verb wrote none."""
    try:
        document = json.loads(place.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(document, dict) or not {"schema_version", "format"} <= set(document):
        return None
    # Exports of earlier versions name no verb.
    digests, replaced = document.get("sha256"), document.get("replaces", {})
    if document.get("verb", EXPORT) != verb or not isinstance(digests, dict):
        return None
    before = replaced if isinstance(replaced, dict) else {}
    return {name: {str(digest), str(before.get(name))} for name, digest in digests.items()}


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
