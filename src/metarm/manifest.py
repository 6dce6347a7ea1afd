# SPDX-License-Identifier: Apache-2.0
"""A folder with a manifest: the size and SHA-256 of each file, written last, so that all is whole.

A folder without one was never finished; one whose bytes are not those of its manifest is damaged.
"""

import json
import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Final

from metarm import __version__
from metarm.errors import CheckpointError
from metarm.storage import file_digest, fingerprint, sync, write_bytes

__all__ = ["MANIFEST_FILE", "check_folder", "newest_whole", "seal_folder"]

MANIFEST_FILE: Final = "MANIFEST.json"
SCHEMA: Final = 1

logger = logging.getLogger(__name__)


def seal_folder(
    folder: Path, facts: Mapping[str, Any], digests: Mapping[str, str] | None = None
) -> None:
    """Sync every file below a folder and write its manifest, which makes it whole.

    Args:
        folder: With everything that belongs into it.
        facts: What a reader needs to know of it before it opens a file, as JSON values.
        digests: SHA-256 of files that were written and synced by `storage.write_bytes`.

    Writes:
        `MANIFEST.json` in it.
    """
    known = digests or {}
    files = {}
    for parent, _, names in os.walk(folder):
        for name in names:
            path = Path(parent, name)
            inside = path.relative_to(folder).as_posix()
            if inside not in known:
                sync(path)
            files[inside] = {
                "size": path.stat().st_size,
                "sha256": known.get(inside) or file_digest(path),
            }
        sync(Path(parent))
    body = {"schema": SCHEMA, "version": __version__, "facts": dict(facts), "files": files}
    # Under a name of its own first: a manifest that is there is whole.
    partial = folder / f".{MANIFEST_FILE}.partial"
    write_bytes(partial, [_format(json.loads(json.dumps(body))).encode()])
    os.replace(partial, folder / MANIFEST_FILE)
    sync(folder)


def _format(body: Mapping[str, Any]) -> str:
    """The manifest's text: one text for one content, with a digest of the content in it."""
    text = json.dumps({**body, "digest": fingerprint(body)}, indent=1, sort_keys=True)
    return f"{text}\n"


def check_folder(folder: Path) -> dict[str, Any]:
    """The facts of a sealed folder, after every file was read and found as it was written.

    Raises:
        CheckpointError: Says what is missing, damaged or of another version of this format.
    """
    path = folder / MANIFEST_FILE
    try:
        text = path.read_bytes().decode()
        body = json.loads(text)
        body.pop("digest")
        is_exact = _format(body) == text
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{folder}: expected {MANIFEST_FILE}, got none: it was never finished, or was written "
            "by something else. Remove it."
        ) from error
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}. Remove {folder}.") from error
    if not is_exact:
        raise CheckpointError(
            f"{path}: expected the text that was written, got another: it was changed or is "
            f"damaged. Remove {folder}."
        )
    if body.get("schema") != SCHEMA:
        raise CheckpointError(
            f"{path}: expected schema {SCHEMA}, got {body.get('schema')}: it is of another "
            "version of metarm. Use that one, or remove the folder."
        )
    for name, told in body["files"].items():
        _check_file(folder, name, told)
    facts: dict[str, Any] = body["facts"]
    return facts


def _check_file(folder: Path, name: str, told: Mapping[str, Any]) -> None:
    inside = PurePosixPath(name)
    path = folder / name
    if inside.is_absolute() or ".." in inside.parts:
        raise CheckpointError(f"{folder}: its manifest names a file outside of it, {name!r}")
    try:
        size = path.stat().st_size if path.is_file() else None
        problem = None
        if size != told["size"]:
            problem = f"{told['size']} bytes, got {'no file' if size is None else size}"
        elif file_digest(path) != told["sha256"]:
            problem = "the bytes that were written, got others: a disk or a copy has damaged it"
    except OSError as error:
        problem = f"a file that can be read, got: {error.strerror}"
    if problem:
        raise CheckpointError(f"{path}: expected {problem}. Remove {folder}.")


def newest_whole(folders: Iterable[Path]) -> tuple[Path, dict[str, Any]] | None:
    """The first of some folders that is whole, with its facts; each one refused is logged.

    Args:
        folders: Newest first.
    """
    for folder in folders:
        try:
            return folder, check_folder(folder)
        except CheckpointError as error:
            logger.warning("a checkpoint is passed over: %s", error)
    return None
