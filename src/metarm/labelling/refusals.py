# SPDX-License-Identifier: Apache-2.0
"""Every reason for which the labelling page's server refuses a request, and its HTTP status."""

from collections.abc import Mapping
from typing import Final

from metarm.serving.refusals import RefusedError

__all__ = ["PAGE_STATUSES", "refusal"]

PAGE_STATUSES: Final[Mapping[str, int]] = {
    "not_json": 400,
    "not_signed_in": 401,
    "wrong_token": 401,
    "foreign_origin": 403,
    "no_such_route": 404,
    "no_such_item": 404,
    "wrong_method": 405,
    "body_too_slow": 408,
    "other_annotator": 409,
    "body_too_large": 413,
    "wrong_content_type": 415,
    "wrong_host": 421,
    "invalid": 422,
    "too_many_attempts": 429,
    "overloaded": 429,
    "failed": 500,
    "store_failed": 503,
}
"""`docs/labelling.md` explains each; a test holds the two together."""


def refusal(reason: str, message: str, *, retry_seconds: int | None = None) -> RefusedError:
    """A refusal with one of the page's reasons.

    Args:
        reason: A key of `PAGE_STATUSES`.
        message: What was expected and what to do; never a text of the request.
        retry_seconds: When to try again, where that is known.
    """
    return RefusedError(reason, message, retry_seconds=retry_seconds, status=PAGE_STATUSES[reason])
