# SPDX-License-Identifier: Apache-2.0
"""What every server of metarm needs: a socket, its own names, a token, an end in good order."""

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
from metarm.serving.exchange import App

__all__ = [
    "address_of",
    "ending_on_signals",
    "listen",
    "local_names",
    "log_to_stderr",
    "read_token",
    "uvicorn_server",
]

logger = logging.getLogger(__name__)

LOCAL_NAMES: Final = frozenset({"127.0.0.1", "::1", "localhost"})
LEAST_TOKEN: Final = 16
"""Characters; 32 hex digits of `openssl rand -hex 16` are plenty."""
KEEP_ALIVE_SECONDS: Final = 75


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


def listen(host: str, port: int, *, has_token: bool, token_flag: str) -> socket.socket:
    """A bound socket, to be had before anything slow, so that a wrong address is known at once.

    Args:
        host: Address to listen on; one that others can reach needs a token.
        port: 0: any that is free.
        has_token: Whether requests must show a token that was given.
        token_flag: The flag that gives it, for the message.

    Raises:
        ConfigError: When the address cannot be had, or would be open to everybody.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"cannot find the address {host!r}: {error}. Try 127.0.0.1.") from error
    family, kind, protocol, _, address = found[0]
    ip = ipaddress.ip_address(str(address[0]).partition("%")[0])
    if not ip.is_loopback and not has_token:
        raise ConfigError(
            f"--host {host} can be reached from other machines: expected {token_flag} too, got "
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


def local_names(host: str, bound: str) -> frozenset[str]:
    """Names by which a server is called that listens on `host`, bound as `bound`; lower case."""
    address = ipaddress.ip_address(bound.partition("%")[0])
    local = LOCAL_NAMES if address.is_loopback or address.is_unspecified else frozenset[str]()
    return local | {host.lower(), bound.lower()}


def address_of(listener: socket.socket) -> str:
    """Where a bound socket is to be found, such as `http://127.0.0.1:8000`."""
    bound, port = listener.getsockname()[:2]
    return f"http://[{bound}]:{port}" if ":" in bound else f"http://{bound}:{port}"


def uvicorn_server(app: App, *, max_connections: int, end_seconds: int) -> uvicorn.Server:
    """What speaks HTTP for an application; nothing of a request is logged.

    Args:
        app: What answers.
        max_connections: Open at once; more get a bare 503.
        end_seconds: That answers under way get when the server is told to end.
    """
    config = uvicorn.Config(
        app,
        http="h11",
        ws="none",
        loop="asyncio",
        lifespan="on",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        limit_concurrency=max_connections,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=end_seconds,
    )
    # `access_log=False` takes its handlers away; whoever gives it one would log paths again.
    logging.getLogger("uvicorn.access").disabled = True
    return uvicorn.Server(config)


@contextmanager
def ending_on_signals(server: uvicorn.Server, on_hang_up: Callable[[], None]) -> Iterator[None]:
    """A block in which SIGHUP calls `on_hang_up`, and an end that was asked for is no error.

    uvicorn ends gracefully on SIGTERM and SIGINT and raises them again afterwards; one that comes
    before it listens to them ends it as soon as it has begun.
    """

    def hang_up(number: int, frame: FrameType | None) -> None:
        on_hang_up()

    def end(number: int, frame: FrameType | None) -> None:
        server.should_exit = True

    handlers = {signal.SIGTERM: end, signal.SIGINT: end}
    if hasattr(signal, "SIGHUP"):
        handlers[signal.SIGHUP] = hang_up
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def log_to_stderr(name: str) -> None:
    """What a server says of itself, a line an event; never a text of a request."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    for logger_name, level in ((name, logging.INFO), ("uvicorn", logging.WARNING)):
        own = logging.getLogger(logger_name)
        own.handlers, own.propagate = [handler], False
        own.setLevel(level)
