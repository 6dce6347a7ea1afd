# SPDX-License-Identifier: Apache-2.0
"""A server of OpenAI's protocol whose every reply a test decides: sound, late, cut, wrong."""

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

__all__ = ["Call", "FaultServer", "Reply", "say", "serve"]


@dataclass(frozen=True)
class Reply:
    """What the server does with one call."""

    status: int = 200
    body: bytes = b"{}"
    headers: dict[str, str] = field(default_factory=dict)
    wait_seconds: float = 0.0
    """Before the first byte."""
    drip_seconds: float = 0.0
    """Between any two bytes of the body."""
    cut_after: int | None = None
    """Bytes of the body after which the connection is closed."""


@dataclass(frozen=True)
class Call:
    """One call as it came."""

    number: int
    path: str
    body: dict[str, Any]
    headers: dict[str, str]
    at: float
    """Monotonic time."""

    @property
    def text(self) -> str:
        """What was asked."""
        return (
            self.body["messages"][-1]["content"] if "messages" in self.body else self.body["prompt"]
        )


Plan = Callable[[Call], Reply]


def say(text: str, *, usage: bool = True, finish: str = "stop", **more: Any) -> Reply:
    """A sound reply of both routes."""
    choice = {"message": {"role": "assistant", "content": text}, "text": text}
    document: dict[str, Any] = {
        "model": "served",
        "choices": [{**choice, "index": 0, "finish_reason": finish}],
    }
    if usage:
        document["usage"] = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
    return Reply(body=json.dumps(document).encode(), **more)


@dataclass
class FaultServer:
    """Where the server is, and what it has seen."""

    plan: Plan
    url: str = ""
    calls: list[Call] = field(default_factory=list)
    num_replied: int = 0
    most_in_flight: int = 0
    _in_flight: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def begin(self, path: str, body: dict[str, Any], headers: dict[str, str]) -> Call:
        with self._lock:
            call = Call(len(self.calls), path, body, headers, time.monotonic())
            self.calls.append(call)
            self._in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self._in_flight)
            return call

    def end(self) -> None:
        with self._lock:
            self._in_flight -= 1
            self.num_replied += 1


@contextlib.contextmanager
def serve(plan: Plan) -> Iterator[FaultServer]:
    """A server on a free port of this machine, for as long as the block lasts."""
    server = FaultServer(plan)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            call = server.begin(self.path, body, {k.lower(): v for k, v in self.headers.items()})
            try:
                self._reply(server.plan(call))
            except OSError:
                self.close_connection = True  # the client has gone
            finally:
                server.end()

        def _reply(self, reply: Reply) -> None:
            time.sleep(reply.wait_seconds)
            self.send_response(reply.status)
            for name, value in {"Content-Type": "application/json", **reply.headers}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(reply.body)))
            self.end_headers()
            body = reply.body[: reply.cut_after]
            if reply.drip_seconds:
                for place in range(len(body)):
                    self.wfile.write(body[place : place + 1])
                    self.wfile.flush()
                    time.sleep(reply.drip_seconds)
            else:
                self.wfile.write(body)
            if reply.cut_after is not None:
                self.wfile.flush()
                self.connection.shutdown(socket.SHUT_RDWR)
                self.close_connection = True

        def log_message(self, *_: Any) -> None:
            """Nothing on the screen."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        # The default of 5 refuses some of those who come at once on a busy machine.
        request_queue_size = 128

    http = Server(("127.0.0.1", 0), Handler)
    server.url = f"http://127.0.0.1:{http.server_address[1]}/v1"
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
        thread.join()
