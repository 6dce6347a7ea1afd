# SPDX-License-Identifier: Apache-2.0
"""How long a test waits for others: far longer than any of them takes, since waiting is free.

A wait that ends tells that something hangs, not that the machine is busy.
"""

import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator

__all__ = ["PATIENCE_SECONDS", "TRIES", "frozen", "held_port", "wait_until"]

PATIENCE_SECONDS = 600
"""For one step of another process, thread or browser."""
TRIES = 20
"""For what a busy machine may make miss its moment, such as a kill inside a stage."""


def wait_until(holds: Callable[[], object], pause: float = 0.005) -> None:
    """Look every `pause` seconds until it holds; what looks must bear files that come and go."""
    end = time.monotonic() + PATIENCE_SECONDS
    while not holds():
        assert time.monotonic() < end, "it never came"
        time.sleep(pause)


@contextlib.contextmanager
def frozen(pid: int) -> Iterator[None]:
    """A process that stands still, and so stays alive, until the block ends."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@contextlib.contextmanager
def held_port() -> Iterator[int]:
    """A port that nobody else is given: refused, unless a server of the test listens on it.

    A server that sets SO_REUSEADDR may bind it too, as all of ours do.
    """
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]
