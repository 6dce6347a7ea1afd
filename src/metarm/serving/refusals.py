# SPDX-License-Identifier: Apache-2.0
"""Every reason for which a request gets no scores, and its HTTP status."""

from collections.abc import Mapping
from typing import Final

from metarm.errors import MetarmError

__all__ = ["STATUSES", "RefusedError"]

STATUSES: Final[Mapping[str, int]] = {
    "not_json": 400,
    "no_token": 401,
    "no_such_route": 404,
    "wrong_method": 405,
    "body_too_slow": 408,
    "body_too_large": 413,
    "too_many_items": 413,
    "too_many_tokens": 413,
    "wrong_content_type": 415,
    "wrong_host": 421,
    "invalid": 422,
    "too_long": 422,
    "cannot_encode": 422,
    "overloaded": 429,
    "failed": 500,
    "stopping": 503,
    "deadline": 504,
}
"""`docs/serving.md` explains each; a test holds the two together."""


class RefusedError(MetarmError):
    """A request that gets no scores, and why.

    Attributes:
        reason: A key of `STATUSES`, or another server's own.
        message: What was expected, what came, what to do; never a text of the request.
        retry_seconds: When to try again, where that is known.
        status: The HTTP status.
    """

    def __init__(
        self,
        reason: str,
        message: str,
        *,
        retry_seconds: int | None = None,
        status: int | None = None,
    ) -> None:
        super().__init__(message)
        self.reason, self.message, self.retry_seconds = reason, message, retry_seconds
        self.status = STATUSES[reason] if status is None else status

    def to_json(self) -> dict[str, dict[str, str]]:
        """The body of the answer: no key of it could be taken for a score."""
        return {"error": {"reason": self.reason, "message": self.message}}

    def headers(self) -> dict[str, str]:
        """`Retry-After` where it is known, and how to show a token where one is missing."""
        found = {} if self.retry_seconds is None else {"Retry-After": str(self.retry_seconds)}
        return found | ({"WWW-Authenticate": "Bearer"} if self.reason == "no_token" else {})
