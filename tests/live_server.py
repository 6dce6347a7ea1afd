# SPDX-License-Identifier: Apache-2.0
"""A reward server in a thread of the test, on a port of its own."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from live_http import Reply, ask, running
from metarm.serving.app import Server, build_server
from metarm.serving.counters import Counters
from metarm.serving.guard import Token
from metarm.serving.model_slot import ModelSlot
from metarm.serving.run import web_server
from metarm.serving.settings import ServeSettings
from patience import PATIENCE_SECONDS

__all__ = ["Gated", "Live", "live_server"]


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
        return ask(self.port, method, path, body, headers)

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
        assert self.is_open.wait(PATIENCE_SECONDS)
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
    with running(web_server(server, own), listener) as port:
        yield Live(server, port)
