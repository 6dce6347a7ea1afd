# SPDX-License-Identifier: Apache-2.0
"""Who is asking: an invitation or the owner's token, in a cookie that scripts cannot read."""

import hashlib
import hmac
from dataclasses import dataclass
from typing import Final, Literal

from fastapi import Request
from fastapi.responses import Response

from metarm.labelling.attempts import Attempts
from metarm.labelling.desk import LabelDesk
from metarm.labelling.refusals import refusal

__all__ = ["Keeper", "Role"]

Role = Literal["annotator", "owner"]

KEPT_SECONDS: Final = 90 * 86_400
"""A cookie may live so long; its invitation ends by itself."""


@dataclass(frozen=True, slots=True)
class Keeper:
    """Knows tokens and puts them into cookies.

    Args:
        desk: Knows invitations.
        owner_token: The owner's.
        is_secure: Whether browsers come by https.
        port: Cookies are not told apart by port: their names are.
    """

    desk: LabelDesk
    owner_token: str
    is_secure: bool
    port: int
    attempts: Attempts

    def cookie(self, role: Role) -> str:
        """The cookie's name: over https one that no other host can set."""
        return f"__Host-metarm-{role}" if self.is_secure else f"metarm-{role}-{self.port}"

    async def enter(self, request: Request, response: Response, token: str) -> Role:
        """Sign in whoever shows a token.

        Raises:
            RefusedError: When it is none; right ones are never refused, as behind a proxy all
                people share one address with whoever tries.
        """
        role: Role | None = "owner" if self._is_owner(token) else None
        if role is None and await self.desk.annotator_of(token) is not None:
            role = "annotator"
        if role is None:
            self._count_wrong(request)
            raise refusal(
                "wrong_token",
                "this invitation is unknown or has ended: ask whoever sent it for a new one",
            )
        response.set_cookie(
            self.cookie(role),
            token,
            max_age=KEPT_SECONDS,
            path="/",
            secure=self.is_secure,
            httponly=True,
            samesite="strict",
        )
        return role

    def leave(self, response: Response) -> None:
        """Sign out."""
        for role in ("annotator", "owner"):
            response.delete_cookie(
                self.cookie(role),
                path="/",
                secure=self.is_secure,
                httponly=True,
                samesite="strict",
            )

    async def annotator(self, request: Request) -> str | None:
        """The annotator that a request comes from; None where there is none.

        Raises:
            RefusedError: When its cookie is wrong, and too many were of late; right ones are never
                refused, whoever else shares the address.
        """
        token = request.cookies.get(self.cookie("annotator"))
        if token is None:
            return None
        found = await self.desk.annotator_of(token)
        if found is None:
            self._count_wrong(request)
        return found

    def is_owner(self, request: Request) -> bool:
        """Whether a request comes from the owner; raises as `annotator`."""
        token = request.cookies.get(self.cookie("owner"))
        if token is None:
            return False
        found = self._is_owner(token)
        if not found:
            self._count_wrong(request)
        return found

    def _count_wrong(self, request: Request) -> None:
        address = _address(request)
        self.attempts.check(address)
        self.attempts.fail(address)

    def _is_owner(self, token: str) -> bool:
        return hmac.compare_digest(_digest(token), _digest(self.owner_token))


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode(errors="surrogateescape")).digest()


def _address(request: Request) -> str:
    return request.client.host if request.client else "unknown"
