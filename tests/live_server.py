# SPDX-License-Identifier: Apache-2.0
"""A server in a thread of the test, on a port of its own, and a client that hides nothing."""

import http.client
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metarm.serving.app import Server, build_server
from metarm.serving.counters import Counters
from metarm.serving.guard import Token
from metarm.serving.model_slot import ModelSlot
from metarm.serving.run import web_server
from metarm.serving.settings import ServeSettings

__all__ = ["Gated", "Live", "Reply", "live_server"]


@dataclass(frozen=True)
class Reply:
    """One answer, as it came."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def reason(self) -> str:
        """Of a refusal, which holds nothing that could be taken for a score."""
        assert set(self.json) == {"error"}, self.body
        assert set(self.json["error"]) == {"reason", "message"}
        return self.json["error"]["reason"]


@dataclass(frozen=True)
class Live:
    """A server that runs."""

    server: Server
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def request(self, method: str, path: str, body: Any = None, **headers: str) -> Reply:
        """One request on a connection of its own; a body that is no bytes is sent as JSON."""
        own = {name.replace("_", "-"): value for name, value in headers.items()}
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
            own = {"Content-Type": "application/json", **own}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body, own)
            response = connection.getresponse()
            names = {name.lower(): value for name, value in response.getheaders()}
            return Reply(response.status, names, response.read())
        finally:
            connection.close()

    def score(self, *pairs: tuple[str, str], **more: Any) -> Reply:
        """`POST /v1/score` of these prompts and responses."""
        items = [{"prompt": prompt, "response": response} for prompt, response in pairs]
        return self.request("POST", "/v1/score", {"items": items, **more})


class Gated:
    """A served model that scores when it is let."""

    def __init__(self, model: Any) -> None:
        self.model, self.is_open, self.has_begun = model, threading.Event(), threading.Event()
        self.sizes: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def score(self, items: list[Any]) -> Any:
        self.sizes.append(len(items))
        self.has_begun.set()
        assert self.is_open.wait(60)
        return self.model.score(items)


@contextmanager
def live_server(place: Path, *, token: str | None = None, **settings: Any) -> Iterator[Live]:
    """A server of the model at `place`, until the block ends."""
    own = ServeSettings(**settings)
    counters = Counters()
    slot = ModelSlot(place, counters, own)
    hosts = frozenset({"127.0.0.1", "localhost"})
    server = build_server(
        slot, counters, own, token=None if token is None else Token(token), hosts=hosts
    )
    listener = socket.create_server(("127.0.0.1", 0), backlog=512)
    web = web_server(server, own)
    thread = threading.Thread(target=web.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield Live(server, listener.getsockname()[1])
    finally:
        web.should_exit = True
        thread.join(60)
        assert not thread.is_alive(), "the server does not end"
