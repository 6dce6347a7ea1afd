# SPDX-License-Identifier: Apache-2.0
"""A server from its first look at the port to its last answer."""

import ipaddress
import logging
import signal
import socket
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Final

import uvicorn

from metarm.errors import ConfigError
from metarm.serving.app import Server, build_server
from metarm.serving.counters import Counters
from metarm.serving.guard import Token
from metarm.serving.model_slot import ModelSlot, Watcher
from metarm.serving.settings import ServeSettings

__all__ = ["read_token", "serve_model", "web_server"]

logger = logging.getLogger(__name__)

LOCAL_NAMES: Final = frozenset({"127.0.0.1", "::1", "localhost"})
LEAST_TOKEN: Final = 16
"""Characters; 32 hex digits of `openssl rand -hex 16` are plenty."""
KEEP_ALIVE_SECONDS: Final = 75
MORE_SECONDS: Final = 5
"""That answers under way get at the end, beyond a request's own time."""


def read_token(path: Path) -> str:
    """The token in a file; white space around it does not count.

    Raises:
        ConfigError: When there is none, or one that could be guessed or sent wrongly.
    """
    try:
        text = path.read_text(encoding="utf-8").strip()
        mode = path.stat().st_mode
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the token in {path}: {error}") from error
    if len(text) < LEAST_TOKEN or not text.isascii() or not text.isprintable() or " " in text:
        raise ConfigError(
            f"{path}: expected one token of at least {LEAST_TOKEN} printable ASCII characters "
            "without spaces; make one with: openssl rand -hex 32"
        )
    if mode & (stat.S_IRGRP | stat.S_IROTH):
        logger.warning("others on this machine may read %s: chmod 600 it", path)
    return text


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
    listener = _listen(host, port, has_token=token is not None)
    with listener:
        counters = Counters()
        slot = ModelSlot(model, counters, settings)
        bound, bound_port = listener.getsockname()[:2]
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
        shown = f"[{bound}]" if ":" in bound else bound
        with _signals(watcher):
            on_ready(f"http://{shown}:{bound_port}", server)
            web_server(server, settings).run(sockets=[listener])
        watcher.stop()


def web_server(server: Server, settings: ServeSettings) -> uvicorn.Server:
    """What speaks HTTP for a server; nothing of a request is logged."""
    config = uvicorn.Config(
        server.asgi,
        http="h11",
        ws="none",
        loop="asyncio",
        lifespan="on",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        limit_concurrency=settings.max_connections,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=int(settings.timeout_seconds) + MORE_SECONDS,
    )
    # `access_log=False` takes its handlers away; whoever gives it one would log paths again.
    logging.getLogger("uvicorn.access").disabled = True
    return uvicorn.Server(config)


def _listen(host: str, port: int, *, has_token: bool) -> socket.socket:
    """A bound socket: before the model is loaded, so that a wrong address is known at once."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"cannot find the address {host!r}: {error}. Try 127.0.0.1.") from error
    family, kind, protocol, _, address = found[0]
    ip = ipaddress.ip_address(str(address[0]).partition("%")[0])
    if not ip.is_loopback and not has_token:
        raise ConfigError(
            f"--host {host} can be reached from other machines: expected --token-file too, got "
            "none. Make one with: openssl rand -hex 32 > token.txt"
        )
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
    except (OSError, OverflowError) as error:
        listener.close()
        told = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"cannot listen on {host} port {port}: {told}. Choose another --port, or 0 for any."
        ) from error
    return listener


def _names(host: str, bound: str, settings: ServeSettings) -> frozenset[str] | None:
    """What the Host header may say: a page of another site that leads here says its own name."""
    own = frozenset(name.lower() for name in settings.hosts or ())
    address = ipaddress.ip_address(bound.partition("%")[0])
    if address.is_unspecified and settings.hosts is None:
        return None
    local = LOCAL_NAMES if address.is_loopback or address.is_unspecified else frozenset[str]()
    return own | local | {host.lower(), bound.lower()}


@contextmanager
def _signals(watcher: Watcher) -> Iterator[None]:
    """A block in which SIGHUP reads the model again, and an end that was asked for is no error.

    uvicorn ends gracefully on SIGTERM and SIGINT and raises them again afterwards.
    """

    def refresh(number: int, frame: FrameType | None) -> None:
        watcher.ask()

    def nothing(number: int, frame: FrameType | None) -> None:
        pass

    handlers = {signal.SIGTERM: nothing, signal.SIGINT: nothing}
    if hasattr(signal, "SIGHUP"):
        handlers[signal.SIGHUP] = refresh
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
