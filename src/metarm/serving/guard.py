# SPDX-License-Identifier: Apache-2.0
"""What every request must pass before it reaches a route: host, token, room, type, size, time.

Refusing is cheap: all but size and time are settled by the headers. What is not let in by name here
is not let in: a route that is added later asks for the token by itself.
"""

import asyncio
import base64
import binascii
import hashlib
import hmac
import json
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, MutableMapping
from typing import Any, Final

from metarm.serving.counters import Counters
from metarm.serving.refusals import RefusedError
from metarm.serving.settings import ServeSettings
from metarm.serving.wire import ModelFacts

__all__ = ["KNOWN_ROUTES", "OPEN_ROUTES", "REASON", "SCORING_ROUTES", "Guard", "Token"]

logger = logging.getLogger(__name__)

OPEN_ROUTES: Final = frozenset({"/health"})
"""The only routes that ask for no token."""
SCORING_ROUTES: Final = frozenset({"/get_reward", "/v1/score"})
KNOWN_ROUTES: Final = OPEN_ROUTES | SCORING_ROUTES | {"/metrics"}
REASON: Final = "metarm.reason"
"""Key of the ASGI scope under which a refusal's reason is left, to be counted."""
MOST_BODIES: Final = 16
"""How many bodies of the largest size may be in memory together."""

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class Token:
    """The token that requests must show; only its hash is kept."""

    def __init__(self, text: str) -> None:
        self._digest = hashlib.sha256(text.encode()).digest()

    def is_shown_by(self, authorization: str) -> bool:
        """Whether an `Authorization` header holds it: as Bearer, or as the password of Basic.

        Basic is what clients make of `http://:TOKEN@host/`, where a header cannot be given.
        """
        kind, _, value = authorization.partition(" ")
        if kind.lower() == "basic":
            try:
                decoded = base64.b64decode(value.strip(), validate=True).decode()
            except (binascii.Error, UnicodeDecodeError):
                return False
            value = decoded.partition(":")[2]
        elif kind.lower() != "bearer":
            return False
        shown = hashlib.sha256(value.strip().encode(errors="surrogateescape")).digest()
        return hmac.compare_digest(shown, self._digest)


class Guard:
    """An ASGI application around another; it also counts, and signs answers with the model."""

    def __init__(
        self,
        app: App,
        *,
        settings: ServeSettings,
        token: Token | None,
        hosts: Collection[str] | None,
        counters: Counters,
        check_room: Callable[[], None],
        model: Callable[[], ModelFacts],
    ) -> None:
        """Put `app` behind a guard.

        Args:
            app: Answers what is let through.
            settings: Sizes and times.
            token: None: nobody is asked for one.
            hosts: Names that the `Host` header may have, in lower case; None: any.
            counters: Where requests are counted.
            check_room: Raises a RefusedError where a scoring request could not be queued.
            model: What is served now.
        """
        self._app, self._settings, self._token, self._hosts = app, settings, token, hosts
        self._counters, self._check_room, self._model = counters, check_room, model
        self._num_bytes = 0
        counters.read_with("metarm_body_bytes", lambda: {(): self._num_bytes})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One connection, as ASGI has it."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await _Exchange(self, scope, receive, send).run()
        else:
            await send({"type": "websocket.close", "code": 1008})

    def check(self, scope: Scope, headers: Mapping[str, str]) -> None:
        """Refuse what its headers say should not get in.

        Raises:
            RefusedError: Naming the first thing that is wrong.
        """
        host = _host_name(headers.get("host", ""))
        if self._hosts is not None and host not in self._hosts:
            raise RefusedError(
                "wrong_host", "this server is not known by the name in the Host header"
            )
        path = scope["path"]
        if self._token is not None and path not in OPEN_ROUTES:
            if "authorization" not in headers:
                raise RefusedError(
                    "no_token", "expected the header Authorization: Bearer TOKEN, got none"
                )
            if not self._token.is_shown_by(headers["authorization"]):
                raise RefusedError("no_token", "expected this server's token, got another")
        if scope["method"] != "POST" or path not in SCORING_ROUTES:
            return
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise RefusedError("wrong_content_type", "expected Content-Type: application/json")
        length = headers.get("content-length", "")
        if (
            length.isascii()
            and length.isdigit()
            and int(length[:20]) > self._settings.max_body_bytes
        ):
            raise self.too_large()
        self._check_room()

    def too_large(self) -> RefusedError:
        """What a body over the cap is told."""
        most = self._settings.max_body_bytes
        return RefusedError(
            "body_too_large", f"expected at most {most} bytes a request: send fewer items"
        )

    def hold(self, num_bytes: int) -> None:
        """Count bytes of a body that is in memory now; negative: no more.

        Raises:
            RefusedError: When bodies of all requests together would take too much.
        """
        most = MOST_BODIES * self._settings.max_body_bytes
        if num_bytes > 0 and self._num_bytes + num_bytes > most:
            raise RefusedError("overloaded", "too many requests are being read", retry_seconds=1)
        self._num_bytes += num_bytes

    @property
    def app(self) -> App:
        """What is behind the guard."""
        return self._app

    @property
    def body_seconds(self) -> float:
        """How long a body may take to arrive."""
        return self._settings.body_timeout_seconds

    @property
    def max_body_bytes(self) -> int:
        """Size of the largest body."""
        return self._settings.max_body_bytes

    def signed(self) -> list[tuple[bytes, bytes]]:
        """Headers of every answer: which model, and nothing to be kept or guessed by a browser."""
        facts = self._model()
        return [
            (b"x-metarm-version", str(facts.version).encode()),
            (b"x-metarm-sha256", facts.sha256.encode()),
            (b"cache-control", b"no-store"),
            (b"x-content-type-options", b"nosniff"),
        ]

    def count(self, scope: Scope, status: int, seconds: float) -> None:
        """Count one answered request."""
        route = scope["path"] if scope["path"] in KNOWN_ROUTES else "other"
        self._counters.add("metarm_requests_total", route=route, code=str(status))
        if status == 200 and route in SCORING_ROUTES:
            self._counters.observe("metarm_request_seconds", seconds, route=route)
        if status != 200 and REASON in scope:
            self._counters.add("metarm_refusals_total", reason=scope[REASON])


class _Exchange:
    """One request and its answer."""

    def __init__(self, guard: Guard, scope: Scope, receive: Receive, send: Send) -> None:
        self._guard, self._scope, self._receive, self._outer_send = guard, scope, receive, send
        self._started = time.monotonic()
        self._num_bytes = 0
        self._is_whole = False
        self._is_answered = False
        self._status: int | None = None
        self._refusal: RefusedError | None = None

    async def run(self) -> None:
        headers = {
            key.decode("latin-1"): value.decode("latin-1") for key, value in self._scope["headers"]
        }
        try:
            self._guard.check(self._scope, headers)
            await self._guard.app(self._scope, self._limited_receive, self._send)
            if self._refusal is not None:
                await self._refuse(self._refusal)
        except RefusedError as refusal:
            await self._refuse(refusal)
        except Exception as error:  # noqa: BLE001 - it is answered, and no text of it is logged
            logger.error("no answer: %s", _where(error))
            if not self._is_answered:
                await self._refuse(RefusedError("failed", "a mistake of the server: see its log"))
        finally:
            self._guard.hold(-self._num_bytes)
            if self._status is not None:
                seconds = time.monotonic() - self._started
                self._guard.count(self._scope, self._status, seconds)

    async def _limited_receive(self) -> Message:
        """The next part of the body; where it is refused, the application sees the client go."""
        if self._is_whole:
            return await self._receive()
        left = self._started + self._guard.body_seconds - time.monotonic()
        try:
            async with asyncio.timeout(max(left, 0.001)):
                message = await self._receive()
            self._check_size(len(message.get("body", b"")))
        except TimeoutError:
            told = f"expected the whole request within {self._guard.body_seconds:g} s"
            self._refusal = RefusedError("body_too_slow", told)
        except RefusedError as refusal:
            self._refusal = refusal
        if self._refusal is not None:
            return {"type": "http.disconnect"}
        self._is_whole = not message.get("more_body", False)
        return message

    def _check_size(self, num_bytes: int) -> None:
        if self._num_bytes + num_bytes > self._guard.max_body_bytes:
            raise self._guard.too_large()
        self._guard.hold(num_bytes)
        self._num_bytes += num_bytes

    async def _send(self, message: Message) -> None:
        if self._refusal is not None and self._status is None:
            return  # what the application made of half a body
        await self._pass_on(message)

    async def _pass_on(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
            message["headers"] = [*message.get("headers", []), *self._guard.signed()]
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


def _host_name(header: str) -> str:
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
