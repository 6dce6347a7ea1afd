# SPDX-License-Identifier: Apache-2.0
"""One request and its answer behind a gate: bounded in size and time, refused in one form."""

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any, Final, Protocol

from metarm.serving.refusals import RefusedError

__all__ = [
    "REASON",
    "App",
    "Exchange",
    "Gate",
    "Message",
    "Receive",
    "Scope",
    "Send",
    "host_name",
    "pass_through",
]

logger = logging.getLogger(__name__)

REASON: Final = "metarm.reason"
"""Key of the ASGI scope under which a refusal's reason is left, to be counted."""

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class Gate(Protocol):
    """What stands before an application and says what may get in."""

    @property
    def app(self) -> App:
        """What is behind the gate."""

    @property
    def body_seconds(self) -> float:
        """How long a body may take to arrive."""

    @property
    def max_body_bytes(self) -> int:
        """Size of the largest body."""

    def check(self, scope: Scope, headers: Mapping[str, str]) -> None:
        """Refuse, with a RefusedError, what its headers say should not get in."""

    def too_large(self) -> RefusedError:
        """What a body over the cap is told."""

    def hold(self, num_bytes: int) -> None:
        """Count bytes of a body that is in memory now; a RefusedError where there are too many."""

    def signed(self) -> list[tuple[bytes, bytes]]:
        """Headers of every answer."""

    def count(self, scope: Scope, status: int, seconds: float) -> None:
        """Count one answered request."""


class Exchange:
    """One request and its answer."""

    def __init__(self, gate: Gate, scope: Scope, receive: Receive, send: Send) -> None:
        self._gate, self._scope, self._receive, self._outer_send = gate, scope, receive, send
        self._started = time.monotonic()
        self._num_bytes = 0
        self._is_whole = False
        self._is_answered = False
        self._status: int | None = None
        self._refusal: RefusedError | None = None

    async def run(self) -> None:
        """Let it in and pass its answer on, or refuse it."""
        headers = {
            key.decode("latin-1"): value.decode("latin-1") for key, value in self._scope["headers"]
        }
        try:
            self._gate.check(self._scope, headers)
            await self._gate.app(self._scope, self._limited_receive, self._send)
            if self._refusal is not None:
                await self._refuse(self._refusal)
        except RefusedError as refusal:
            await self._refuse(refusal)
        except Exception as error:  # noqa: BLE001 - it is answered, and no text of it is logged
            logger.error("no answer: %s", _where(error))
            if not self._is_answered:
                await self._refuse(RefusedError("failed", "a mistake of the server: see its log"))
        finally:
            self._gate.hold(-self._num_bytes)
            if self._status is not None:
                seconds = time.monotonic() - self._started
                self._gate.count(self._scope, self._status, seconds)

    async def _limited_receive(self) -> Message:
        """The next part of the body; where it is refused, the application sees the client go."""
        if self._is_whole:
            return await self._receive()
        left = self._started + self._gate.body_seconds - time.monotonic()
        try:
            async with asyncio.timeout(max(left, 0.001)):
                message = await self._receive()
            self._check_size(len(message.get("body", b"")))
        except TimeoutError:
            told = f"expected the whole request within {self._gate.body_seconds:g} s"
            self._refusal = RefusedError("body_too_slow", told)
        except RefusedError as refusal:
            self._refusal = refusal
        if self._refusal is not None:
            return {"type": "http.disconnect"}
        self._is_whole = not message.get("more_body", False)
        return message

    def _check_size(self, num_bytes: int) -> None:
        if self._num_bytes + num_bytes > self._gate.max_body_bytes:
            raise self._gate.too_large()
        self._gate.hold(num_bytes)
        self._num_bytes += num_bytes

    async def _send(self, message: Message) -> None:
        if self._refusal is not None and self._status is None:
            return  # what the application made of half a body
        await self._pass_on(message)

    async def _pass_on(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
            message["headers"] = [*message.get("headers", []), *self._gate.signed()]
        else:
            self._is_answered = not message.get("more_body", False)
        await self._outer_send(message)

    async def _refuse(self, refusal: RefusedError) -> None:
        self._scope[REASON] = refusal.reason
        if self._status is not None:
            # Half an answer is out: cut the line, so that nobody takes it for a whole one.
            raise ConnectionAbortedError from None
        body = json.dumps(refusal.to_json()).encode()
        headers = {
            "content-type": "application/json",
            "content-length": str(len(body)),
            **{name.lower(): value for name, value in refusal.headers().items()},
        }
        # The rest of other bodies is read and dropped; of these it may never end.
        if refusal.reason in ("body_too_large", "body_too_slow"):
            headers["connection"] = "close"
        pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
        await self._pass_on(
            {"type": "http.response.start", "status": refusal.status, "headers": pairs}
        )
        await self._pass_on({"type": "http.response.body", "body": body})


async def pass_through(gate: Gate, scope: Scope, receive: Receive, send: Send) -> None:
    """One connection at a gate: requests are exchanges, web sockets are closed."""
    if scope["type"] == "lifespan":
        await gate.app(scope, receive, send)
    elif scope["type"] == "http":
        await Exchange(gate, scope, receive, send).run()
    else:
        await send({"type": "websocket.close", "code": 1008})


def host_name(header: str) -> str:
    """The name in a `Host` header, without its port."""
    text = header.strip().lower()
    if text.startswith("["):
        return text.partition("]")[0].lstrip("[")
    return text.partition(":")[0]


def _where(error: BaseException) -> str:
    """The kind of an error and the line that raised it: its words may quote a request."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    place = f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace else "unknown place"
    return f"{type(error).__name__} at {place}"
