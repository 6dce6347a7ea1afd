# SPDX-License-Identifier: Apache-2.0
"""What every request must pass before it reaches a route: host, token, room, type, size, time.

Refusing is cheap: all but size and time are settled by the headers. What is not let in by name here
is not let in: a route that is added later asks for the token by itself.
"""

import base64
import binascii
import hashlib
import hmac
from collections.abc import Callable, Collection, Mapping
from typing import Final

from metarm.serving.bodies import HeldBodies, is_declared_larger, is_json
from metarm.serving.counters import Counters
from metarm.serving.exchange import REASON, App, Receive, Scope, Send, host_name, pass_through
from metarm.serving.refusals import RefusedError
from metarm.serving.settings import ServeSettings
from metarm.serving.wire import ModelFacts

__all__ = ["KNOWN_ROUTES", "OPEN_ROUTES", "SCORING_ROUTES", "Guard", "Token"]

OPEN_ROUTES: Final = frozenset({"/health"})
"""The only routes that ask for no token."""
SCORING_ROUTES: Final = frozenset({"/get_reward", "/v1/score"})
KNOWN_ROUTES: Final = OPEN_ROUTES | SCORING_ROUTES | {"/metrics"}
MOST_BODIES: Final = 16
"""How many bodies of the largest size may be in memory together."""


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
        self._bodies = HeldBodies(MOST_BODIES * settings.max_body_bytes)
        counters.read_with("metarm_body_bytes", lambda: {(): self._bodies.num_bytes})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One connection, as ASGI has it."""
        await pass_through(self, scope, receive, send)

    def check(self, scope: Scope, headers: Mapping[str, str]) -> None:
        """Refuse what its headers say should not get in.

        Raises:
            RefusedError: Naming the first thing that is wrong.
        """
        host = host_name(headers.get("host", ""))
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
        if not is_json(headers):
            raise RefusedError("wrong_content_type", "expected Content-Type: application/json")
        if is_declared_larger(headers, self._settings.max_body_bytes):
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
        if not self._bodies.hold(num_bytes):
            raise RefusedError("overloaded", "too many requests are being read", retry_seconds=1)

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
