# SPDX-License-Identifier: Apache-2.0
"""What a run's folder says of the run itself: its settings, its starts, and who holds it."""

import os
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import metarm
from metarm.config import RunSettings
from metarm.config_file import write_settings
from metarm.errors import FingerprintError, FormatError
from metarm.locks import lock_file
from metarm.storage import check_writable, read_json, write_json, write_text

__all__ = ["hold_folder", "hold_output", "open_run_folder"]

PACKAGES: Final = ("torch", "transformers", "trl", "accelerate", "datasets", "numpy")


@contextmanager
def open_run_folder(settings: RunSettings) -> Iterator[Path]:
    """A run's folder, held against every other process for as long as the block lasts.

    Raises:
        RunError: When the folder cannot be written or is in use.

    Writes:
        `config.yaml`, which stays as it was where the block finds stages of other settings;
        `run.json`, the first start and each later one; `.lock`.
    """
    folder = settings.output_dir
    check_writable(folder)
    with hold_folder(folder):
        config = folder / "config.yaml"
        before = config.read_text(encoding="utf-8") if config.exists() else None
        write_settings(config, settings)
        _add_start(folder / "run.json")
        try:
            yield folder
        except FingerprintError:
            if before is not None:
                write_text(config, before)
            raise


@contextmanager
def hold_folder(folder: Path) -> Iterator[bool]:
    """Hold a folder: two processes in one would overwrite each other's work.

    Yields:
        Whether it is held: some network file systems have no locks, and work there is better
        than none.

    Raises:
        RunError: When another process holds it.

    Writes:
        `.lock` in it.
    """
    with open(folder / ".lock", "w", encoding="utf-8") as lock:
        yield lock_file(lock, folder, "output_dir")


@contextmanager
def hold_output(output: Path) -> Iterator[None]:
    """Hold a folder or file that is still to be made, against every other process.

    Raises:
        RunError: When another process makes it.

    Writes:
        `.NAME.lock` beside it, for as long as the block lasts.
    """
    path = output.with_name(f".{output.name}.lock")
    check_writable(output.parent)
    while True:
        with open(path, "w", encoding="utf-8") as lock:
            lock_file(lock, output, "--output")
            # Whoever held it before may have removed the file that was opened here.
            if not path.exists() or os.fstat(lock.fileno()).st_ino != path.stat().st_ino:
                continue
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return


def _add_start(path: Path) -> None:
    """Note this start: the first in full, a later one with what differs from the first."""
    start = _describe_start()
    if not path.exists():
        write_json(path, start)
        return
    first = read_json(path)
    if not isinstance(first, dict):
        raise FormatError(f"{path}: expected the facts of a run, got {first!r}. Remove the file.")
    again = {key: value for key, value in start.items() if first.get(key) != value}
    write_json(path, {**first, "resumed": [*first.get("resumed", []), again]})


def _describe_start() -> dict[str, Any]:
    import torch

    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return {
        "versions": {"metarm": metarm.__version__, "python": platform.python_version()}
        | {name: version(name) for name in PACKAGES},
        "machine": {
            "system": f"{platform.system()} {platform.machine()}",
            "cores": os.cpu_count(),
            "accelerator": str(accelerator or "none"),
        },
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "started_at": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
