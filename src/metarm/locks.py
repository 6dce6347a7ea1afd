# SPDX-License-Identifier: Apache-2.0
"""Locks of files: what one process holds, no other one writes."""

import errno
import fcntl
from pathlib import Path
from typing import TextIO

from metarm.errors import RunError

__all__ = ["lock_file"]


def lock_file(lock: TextIO, place: Path, setting: str) -> bool:
    """Lock an open file until it is closed, also by the death of the process.

    Args:
        lock: The file that is locked.
        place: What it stands for.
        setting: The setting or flag that names `place`.

    Returns:
        Whether it is held: some network file systems have no locks.

    Raises:
        RunError: When another process has it.
    """
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise RunError(
            f"{place} is in use by another process: wait for it, stop it, or choose another "
            f"{setting}"
        ) from error
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
            raise
        return False
    return True
