# SPDX-License-Identifier: Apache-2.0
"""Deaths and damage on purpose: at the n-th system call, by one bit, by a cut."""

import os
import random
from collections.abc import Callable
from pathlib import Path

__all__ = ["CALLS", "cut", "die_at_call", "flip_bit"]

CALLS = ("open", "write", "fsync", "close", "replace", "rename", "mkdir", "unlink", "rmdir")
DIED = 77


def die_at_call(number: int, work: Callable[[], None]) -> bool:
    """Run `work` in a child that dies at its n-th os call, half-way through a write.

    Returns whether it died; False when it had fewer calls and finished.
    """
    child = os.fork()
    if child == 0:
        left = [number]

        def counting(name: str, real: Callable[..., object]) -> Callable[..., object]:
            def call(*args: object, **kwargs: object) -> object:
                left[0] -= 1
                if left[0] == 0:
                    if name == "write":
                        real(args[0], bytes(args[1])[: len(args[1]) // 2])
                    os._exit(DIED)
                return real(*args, **kwargs)

            return call

        for name in CALLS:
            setattr(os, name, counting(name, getattr(os, name)))
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code in (0, DIED), "the work itself failed"
    return code == DIED


def flip_bit(path: Path, draw: random.Random) -> None:
    """Turn one random bit of a file."""
    data = bytearray(path.read_bytes())
    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    path.write_bytes(data)


def cut(path: Path, draw: random.Random) -> None:
    """Leave a random part of a file's begin."""
    data = path.read_bytes()
    path.write_bytes(data[: draw.randrange(len(data))])
