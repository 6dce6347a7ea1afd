# SPDX-License-Identifier: Apache-2.0
"""The labelling page in a thread of the test, with a store of its own, and a client for it."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from live_http import Reply, ask, running
from metarm.labelling.app import LabelPage
from metarm.labelling.run import Links, PageOptions, open_page
from metarm.labels.events import Event
from metarm.labels.reading import LabelReader
from metarm.labels.settings import LabelSettings
from metarm.labels.store import LabelStore
from metarm.labels.votes import Choice, LabelPair, Vote
from metarm.serving.listening import uvicorn_server

__all__ = ["OWNER", "LiveLabels", "live_labels", "make_store", "plain_pairs"]

OWNER = "owner-0123456789abcdef"
SECRETS = ("policy-round-7", "weak-model", "d-optimal")
"""What no annotator may read before they have answered."""


def plain_pairs(count: int) -> list[LabelPair]:
    """Pairs whose texts tell their number and their side."""
    return [
        LabelPair(f"question {n}", f"one {n}", f"two {n}", "policy-round-7 weak-model", "d-optimal")
        for n in range(count)
    ]


def make_store(
    path: Path,
    pairs: list[LabelPair],
    *names: str,
    gold: dict[str, Choice] | None = None,
    **settings: Any,
) -> list[str]:
    """A store with pairs, and a token for each name."""
    own = {"gold_fraction": 0.0, "repeat_fraction": 0.0, "seed": 0, **settings}
    with LabelStore(path, LabelSettings(**own)) as store:
        store.add_pairs(pairs, gold=gold)
        return [store.invite(name, days=1) for name in names]


@dataclass(frozen=True)
class LiveLabels:
    """A page that is served."""

    page: LabelPage
    links: Links
    path: Path
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def request(self, method: str, path: str, body: Any = None, **headers: str) -> Reply:
        """One request on a connection of its own; a body that is no bytes is sent as JSON."""
        return ask(self.port, method, path, body, headers)

    def sign_in(self, token: str) -> str:
        """The cookie that a token gives."""
        told = self.request("POST", "/api/enter", {"token": token})
        assert told.status == 200, told.body
        return told.headers["Set-Cookie"].partition(";")[0]

    def votes(self) -> list[Vote]:
        """The votes that count."""
        with LabelReader(self.path) as reader:
            return reader.votes()

    def events(self) -> list[Event]:
        """All events."""
        with LabelReader(self.path) as reader:
            return reader.events()


@contextmanager
def live_labels(path: Path, *, port: int = 0, **options: Any) -> Iterator[LiveLabels]:
    """The page of the store at `path`, until the block ends."""
    listener = socket.create_server(("127.0.0.1", port), backlog=256)
    own = PageOptions(**{"owner_token": OWNER, **options})
    page, links = open_page(path, own, host="127.0.0.1", listener=listener)
    server = uvicorn_server(page.asgi, max_connections=256, end_seconds=5)
    with running(server, listener) as bound:
        yield LiveLabels(page, links, path, bound)
