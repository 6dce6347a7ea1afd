# SPDX-License-Identifier: Apache-2.0
"""A reward server from its first look at the port to its last answer."""

import ipaddress
import socket
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from metarm.serving.app import Server, build_server
from metarm.serving.counters import Counters
from metarm.serving.guard import Token
from metarm.serving.listening import (
    address_of,
    ending_on_signals,
    listen,
    local_names,
    uvicorn_server,
)
from metarm.serving.model_slot import ModelSlot, Watcher
from metarm.serving.settings import ServeSettings

if TYPE_CHECKING:
    import uvicorn

__all__ = ["serve_model", "web_server"]

MORE_SECONDS: Final = 5
"""That answers under way get at the end, beyond a request's own time."""


def serve_model(
    model: Path,
    settings: ServeSettings,
    *,
    host: str,
    port: int,
    token: str | None,
    on_ready: Callable[[str, Server], None],
) -> None:
    """Serve the model at `model` until SIGTERM or Ctrl-C; then answer what was accepted, and end.

    Args:
        model: Its folder, or a JSON file that points to one.
        settings: Sizes and times.
        host: Address to listen on; one that others can reach needs a token.
        port: 0: any that is free.
        token: What requests must show.
        on_ready: Told the address, once connections are taken.

    Raises:
        ConfigError: When the address cannot be had, or would be open to everybody.
        ModelError: When there is no reward model at `model`.
    """
    listener = listen(host, port, has_token=token is not None, token_flag="--token-file")
    with listener:
        counters = Counters()
        slot = ModelSlot(model, counters, settings)
        bound = listener.getsockname()[0]
        server = build_server(
            slot,
            counters,
            settings,
            token=None if token is None else Token(token),
            hosts=_names(host, bound, settings),
        )
        watcher = Watcher(slot.refresh, seconds=settings.watch_seconds)
        watcher.start()
        listener.listen(socket.SOMAXCONN)
        web = web_server(server, settings)
        with ending_on_signals(web, watcher.ask):
            on_ready(address_of(listener), server)
            web.run(sockets=[listener])
        watcher.stop()


def web_server(server: Server, settings: ServeSettings) -> "uvicorn.Server":
    """What speaks HTTP for a server; nothing of a request is logged."""
    return uvicorn_server(
        server.asgi,
        max_connections=settings.max_connections,
        end_seconds=int(settings.timeout_seconds) + MORE_SECONDS,
    )


def _names(host: str, bound: str, settings: ServeSettings) -> frozenset[str] | None:
    """What the Host header may say: a page of another site that leads here says its own name."""
    own = frozenset(name.lower() for name in settings.hosts or ())
    if ipaddress.ip_address(bound.partition("%")[0]).is_unspecified and settings.hosts is None:
        return None
    return own | local_names(host, bound)
