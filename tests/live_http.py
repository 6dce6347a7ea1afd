# SPDX-License-Identifier: Apache-2.0
"""What live servers in tests share: a web server in a thread, and a client that hides nothing."""

import http.client
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import uvicorn

from patience import PATIENCE_SECONDS

__all__ = ["Reply", "ask", "running"]


@dataclass(frozen=True)
class Reply:
    """One answer, as it came."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def reason(self) -> str:
        """Of a refusal, which holds nothing else."""
        assert set(self.json) == {"error"}, self.body
        assert set(self.json["error"]) == {"reason", "message"}
        return str(self.json["error"]["reason"])


def ask(port: int, method: str, path: str, body: Any, headers: dict[str, str]) -> Reply:
    """One request on a connection of its own; a body that is no bytes is sent as JSON."""
    own = {name.replace("_", "-"): value for name, value in headers.items()}
    if body is not None and not isinstance(body, bytes):
        body = json.dumps(body).encode()
        own = {"Content-Type": "application/json", **own}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_SECONDS)
    try:
        connection.request(method, path, body, own)
        response = connection.getresponse()
        return Reply(response.status, response.headers, response.read())
    finally:
        connection.close()


@contextmanager
def running(server: uvicorn.Server, listener: socket.socket) -> Iterator[int]:
    """Serve in a thread until the block ends; the port."""
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(PATIENCE_SECONDS)
        listener.close()
        assert not thread.is_alive(), "the server does not end"
