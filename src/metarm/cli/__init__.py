# SPDX-License-Identifier: Apache-2.0
"""The command line: one verb is one function; nothing heavy is imported before it is needed."""

import sys
from typing import NoReturn

__all__ = ["main"]


def main() -> NoReturn:
    """Run `metarm` with the process's arguments and exit with its code."""
    try:
        from metarm.cli.app import run_command
    except KeyboardInterrupt:
        sys.stderr.write("stopped: nothing has begun\n")
        sys.exit(130)
    sys.exit(run_command(sys.argv[1:]))
