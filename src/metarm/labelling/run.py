# SPDX-License-Identifier: Apache-2.0
"""The labelling page from its first look at the port to its last answer."""

import ipaddress
import secrets
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from metarm.errors import ConfigError
from metarm.labelling.app import LabelPage, build_page
from metarm.labelling.attempts import Attempts
from metarm.labelling.changed import read_gaps
from metarm.labelling.cookies import Keeper
from metarm.labelling.dashboard import Dashboard
from metarm.labelling.desk import LabelDesk
from metarm.serving.listening import (
    address_of,
    ending_on_signals,
    listen,
    local_names,
    uvicorn_server,
)

__all__ = ["Links", "PageOptions", "judge_address", "open_page", "serve_page"]

MAX_CONNECTIONS: Final = 512
END_SECONDS: Final = 20
"""That answers under way get when the server is told to end."""
OWNER_TOKEN_BYTES: Final = 24


@dataclass(frozen=True, slots=True)
class PageOptions:
    """What the owner decides about the page."""

    owner_token: str | None = None
    """None: one is made, and told in the owner's link."""
    public_url: str | None = None
    """Where people find the page, when a proxy stands before it; None: where it listens."""
    guide: str = ""
    """What annotators are asked to judge by."""
    price: float | None = None
    """Of one label."""
    before: Path | None = None
    after: Path | None = None
    """What `metarm score` wrote for the pairs before and after the reward model learnt."""


@dataclass(frozen=True, slots=True)
class Links:
    """Where the page is to be found."""

    page: str
    owner: str
    """With the owner's token where the server made it."""


def serve_page(
    store: Path,
    options: PageOptions,
    *,
    host: str,
    port: int,
    on_ready: Callable[[Links], None],
) -> None:
    """Serve the page until SIGTERM or Ctrl-C; then answer what was accepted, and end.

    Args:
        store: The label store; it is the server's alone meanwhile.
        options: What the owner decides.
        host: Address to listen on; one that others can reach needs an owner's token from a file.
        port: 0: any that is free.
        on_ready: Told the links, once connections are taken.

    Raises:
        ConfigError: When the address cannot be had, would be open to everybody, or is none.
        RunError: When the store cannot be used, or another process has it.
    """
    if not store.is_file():
        raise ConfigError(
            f"{store}: expected a label store, got no such file. Make it with: metarm label add"
        )
    has_token = options.owner_token is not None
    with listen(host, port, has_token=has_token, token_flag="--owner-token-file") as listener:
        page, links = open_page(store, options, host=host, listener=listener)
        try:
            listener.listen(socket.SOMAXCONN)
            server = uvicorn_server(
                page.asgi, max_connections=MAX_CONNECTIONS, end_seconds=END_SECONDS
            )
            with ending_on_signals(server, lambda: None):
                on_ready(links)
                server.run(sockets=[listener])
        finally:
            page.desk.close()


def open_page(
    store: Path, options: PageOptions, *, host: str, listener: socket.socket
) -> tuple[LabelPage, Links]:
    """The page with its store taken, and its links.

    Raises:
        ConfigError: When the public address is none.
        RunError: When the store cannot be used.
    """
    bound, bound_port = listener.getsockname()[:2]
    address = options.public_url or address_of(listener)
    is_secure, hosts = judge_address(options.public_url)
    if not ipaddress.ip_address(bound.partition("%")[0]).is_unspecified or hosts:
        hosts = hosts | local_names(host, bound)
    scores = None
    if options.before is not None and options.after is not None:
        scores = (read_gaps(options.before), read_gaps(options.after))
    elif options.before != options.after:
        raise ConfigError("expected --before and --after together, got one of them")
    made = secrets.token_urlsafe(OWNER_TOKEN_BYTES)
    desk = LabelDesk(store)
    keeper = Keeper(
        desk,
        owner_token=options.owner_token or made,
        is_secure=is_secure,
        port=bound_port,
        attempts=Attempts(),
    )
    page = build_page(
        keeper,
        Dashboard(store, options.price, scores),
        hosts=hosts or None,
        address=address.rstrip("/"),
        guide=options.guide,
    )
    desk.open()
    owner = f"{address.rstrip('/')}/enter"
    return page, Links(address, owner if options.owner_token else f"{owner}#{made}")


def judge_address(url: str | None) -> tuple[bool, frozenset[str]]:
    """Whether a public address is https, and the name in it."""
    if url is None:
        return False, frozenset()
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.path not in ("", "/"):
        raise ConfigError(f"--public-url: expected such as https://labels.example.org, got {url!r}")
    return parts.scheme == "https", frozenset({parts.hostname.lower()})
