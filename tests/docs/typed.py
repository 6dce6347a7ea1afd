# SPDX-License-Identifier: Apache-2.0
"""Commands of a page typed into a shell: bash runs them, and `metarm` begins with its imports done.

Each `metarm` asks this process for a fork of one that is ready, as tests of the command do: pages
with many commands would else spend most of their time on imports. The tutorial is typed without.
"""

import contextlib
import json
import shlex
import socketserver
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from docs.pages import reader_environment
from integration.commands import ready, start
from patience import PATIENCE_SECONDS

__all__ = ["type_out"]

PROGRAM = """#!/bin/sh
exec {python} -S -E {script} "$@"
"""
ASK = """
import json, os, socket, sys
line = socket.socket(socket.AF_UNIX)
line.connect({place!r})
words = dict(words=sys.argv[1:], folder=os.getcwd(), environment=dict(os.environ))
line.sendall(json.dumps(words).encode() + b"\\n")
told = json.load(line.makefile(encoding="utf-8"))
sys.stdout.write(told["out"])
sys.stderr.write(told["err"])
sys.exit(told["code"])
"""


def type_out(commands: str, folder: Path, *, is_ready: bool = True) -> tuple[str, str]:
    """Type commands into a shell in a folder; they must end well.

    Args:
        commands: Lines of shell.
        folder: Where they are typed.
        is_ready: Whether `metarm` begins with its imports done, or as it is installed.

    Returns:
        What was said on stdout and stderr.
    """
    environment = reader_environment()
    with _ready_program() if is_ready else contextlib.nullcontext() as program:
        places = [*([str(program)] if program else []), str(Path(sys.executable).parent)]
        environment["PATH"] = ":".join([*places, environment["PATH"]])
        done = subprocess.run(
            ["bash", "-euc", commands],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=PATIENCE_SECONDS,
            check=False,
        )
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout, done.stderr


@contextlib.contextmanager
def _ready_program() -> Iterator[Path]:
    """A folder with a program `metarm` in it."""
    ready()
    with tempfile.TemporaryDirectory(prefix="typed-") as name:
        place = Path(name)

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                asked = json.loads(self.rfile.readline())
                done = start(
                    asked["words"], Path(asked["folder"]), place, asked["environment"]
                ).finish()
                told = {"code": done.code, "out": done.out, "err": done.err}
                self.wfile.write(json.dumps(told).encode())

        (place / "ask.py").write_text(ASK.format(place=f"{name}/line"), "utf-8")
        program = place / "metarm"
        python, script = shlex.quote(sys.executable), shlex.quote(f"{name}/ask.py")
        program.write_text(PROGRAM.format(python=python, script=script), "utf-8")
        program.chmod(0o755)
        with socketserver.ThreadingUnixStreamServer(f"{name}/line", Handler) as server:
            thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
            thread.start()
            try:
                yield place
            finally:
                server.shutdown()
                thread.join()
