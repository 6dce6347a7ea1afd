# SPDX-License-Identifier: Apache-2.0
"""What every request to the labelling page must pass, and the headers that every answer has.

Host and origin, content type and size are settled here, for all routes alike; who is signed in is
settled by the application, which asks before any route does.
"""

from collections.abc import Collection, Mapping
from typing import Final
from urllib.parse import urlsplit

from metarm.labelling.refusals import refusal
from metarm.serving.bodies import HeldBodies, is_declared_larger, is_json
from metarm.serving.exchange import App, Receive, Scope, Send, host_name, pass_through
from metarm.serving.refusals import RefusedError

__all__ = ["CONTENT_POLICY", "MAX_BODY_BYTES", "PageGate"]

CONTENT_POLICY: Final = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src 'self'",
        "base-uri 'none'",
        "form-action 'self'",
        "frame-ancestors 'none'",
    )
)
MAX_BODY_BYTES: Final = 65_536
MOST_BODIES: Final = 64
"""How many bodies of the largest size may be in memory together."""
BODY_SECONDS: Final = 15.0
SAFE_METHODS: Final = frozenset({"GET", "HEAD"})

_HEADERS: Final = (
    (b"content-security-policy", CONTENT_POLICY.encode()),
    (b"cache-control", b"no-store"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
)


class PageGate:
    """An ASGI application around another."""

    def __init__(self, app: App, *, hosts: Collection[str] | None) -> None:
        """Put `app` behind a gate.

        Args:
            app: Answers what is let through.
            hosts: Names that the `Host` header may have, in lower case; None: any.
        """
        self._app, self._hosts = app, hosts
        self._bodies = HeldBodies(MOST_BODIES * MAX_BODY_BYTES)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One connection, as ASGI has it."""
        await pass_through(self, scope, receive, send)

    def check(self, scope: Scope, headers: Mapping[str, str]) -> None:
        """Refuse what its headers say should not get in.

        Raises:
            RefusedError: Naming the first thing that is wrong.
        """
        host = headers.get("host", "")
        if self._hosts is not None and host_name(host) not in self._hosts:
            raise refusal("wrong_host", "this server is not known by the name in the Host header")
        _check_origin(scope["method"], host, headers)
        if scope["method"] in SAFE_METHODS:
            return
        if not is_json(headers):
            raise refusal("wrong_content_type", "expected Content-Type: application/json")
        if is_declared_larger(headers, MAX_BODY_BYTES):
            raise self.too_large()

    def too_large(self) -> RefusedError:
        """What a body over the cap is told."""
        return refusal("body_too_large", f"expected at most {MAX_BODY_BYTES} bytes a request")

    def hold(self, num_bytes: int) -> None:
        """Count bytes of a body that is in memory now; negative: no more.

        Raises:
            RefusedError: When bodies of all requests together would take too much.
        """
        if not self._bodies.hold(num_bytes):
            raise refusal("overloaded", "too many requests are being read", retry_seconds=1)

    @property
    def app(self) -> App:
        """What is behind the gate."""
        return self._app

    @property
    def body_seconds(self) -> float:
        """How long a body may take to arrive."""
        return BODY_SECONDS

    @property
    def max_body_bytes(self) -> int:
        """Size of the largest body."""
        return MAX_BODY_BYTES

    def signed(self) -> list[tuple[bytes, bytes]]:
        """Headers of every answer: what a browser may load, and that it keeps nothing."""
        return list(_HEADERS)

    def count(self, scope: Scope, status: int, seconds: float) -> None:
        """Nothing is counted of single requests."""


def _check_origin(method: str, host: str, headers: Mapping[str, str]) -> None:
    """Refuse what pages of other sites make a browser send.

    A link from elsewhere may open a page; all else comes from the page itself, or from programs,
    which send neither header.

    Source:
        Fetch metadata (Sec-Fetch-Site), with Origin for browsers that lack it; the rule of Go's
        CrossOriginProtection, for safe methods too.
    """
    told = refusal("foreign_origin", "expected a request of this page itself")
    origin = headers.get("origin")
    if origin is not None and _host_of(origin) != host.strip().lower():
        raise told
    site = headers.get("sec-fetch-site", "same-origin")
    if site in ("same-origin", "none"):
        return
    is_link = (
        method in SAFE_METHODS
        and headers.get("sec-fetch-mode") == "navigate"
        and headers.get("sec-fetch-dest") == "document"
    )
    if not is_link:
        raise told


def _host_of(origin: str) -> str | None:
    """Host and port of an `Origin` header; None where it has none, as `null`."""
    try:
        return urlsplit(origin.strip().lower()).netloc or None
    except ValueError:
        return None
