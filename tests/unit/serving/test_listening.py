# SPDX-License-Identifier: Apache-2.0
"""What ends a server: also a signal that comes before it listens to any."""

import subprocess
import sys

import pytest

from patience import PATIENCE_SECONDS

SERVER = """
import os, signal, socket
from metarm.serving.listening import ending_on_signals, uvicorn_server

async def app(scope, receive, send):
    while (event := await receive())["type"].startswith("lifespan"):
        await send({"type": f"{event['type']}.complete"})
        if event["type"].endswith("shutdown"):
            return

server = uvicorn_server(app, max_connections=4, end_seconds=2)
with socket.create_server(("127.0.0.1", 0)) as listener:
    with ending_on_signals(server, lambda: None):
        os.kill(os.getpid(), signal.NAME)
        server.run(sockets=[listener])
print("ended")
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_before_the_server_listens_to_any_ends_it(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SERVER.replace("NAME", name)],
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "ended\n"), done.stderr
