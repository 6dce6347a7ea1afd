# SPDX-License-Identifier: Apache-2.0
"""All errors of the page's server in one form, a page for people and JSON for its scripts."""

from collections.abc import Mapping
from typing import Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.exceptions import HTTPException

from metarm.labelling.pages import render
from metarm.labelling.refusals import refusal
from metarm.serving.exchange import REASON
from metarm.serving.refusals import RefusedError

__all__ = ["add_errors"]

MOST_PROBLEMS: Final = 3
"""Wrong fields that an error names."""
MISTAKE: Final = "a mistake of the server: see its log"

_FRAMEWORK_ERRORS: Final[Mapping[int, tuple[str, str]]] = {
    400: ("not_json", "expected one JSON document"),
    404: ("no_such_route", "there is no such page"),
    405: ("wrong_method", "expected another method"),
}
"""What the framework's own errors mean here."""


def add_errors(app: FastAPI) -> None:
    """Let every error end in one form, with no text of a request in it."""

    async def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, RefusedError)
        return _respond(request, error)

    async def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return _respond(request, _validation_refusal(error))

    async def http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        reason, message = _FRAMEWORK_ERRORS.get(error.status_code, ("invalid", "a wrong request"))
        return _respond(request, refusal(reason, message))

    async def mistake(request: Request, error: Exception) -> Response:
        return _respond(request, refusal("failed", MISTAKE))

    app.add_exception_handler(RefusedError, refused)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http_error)
    app.add_exception_handler(Exception, mistake)


def _respond(request: Request, refused: RefusedError) -> Response:
    request.scope[REASON] = refused.reason
    if "text/html" in request.headers.get("accept", "") and request.method == "GET":
        if refused.reason == "not_signed_in":
            return RedirectResponse("/enter", status_code=303)
        page = render("error.html.j2", status=refused.status, message=refused.message)
        return HTMLResponse(page, status_code=refused.status, headers=refused.headers())
    return JSONResponse(refused.to_json(), status_code=refused.status, headers=refused.headers())


def _validation_refusal(error: RequestValidationError) -> RefusedError:
    """Which fields are wrong and how, without what stood in them."""
    problems = error.errors()
    if any(problem["type"] == "json_invalid" for problem in problems):
        return refusal("not_json", "expected one JSON document")
    shown = []
    for problem in problems[:MOST_PROBLEMS]:
        # An unknown field's own name is a text of the request; the kind of mistake says enough.
        is_known = problem["type"] != "extra_forbidden"
        place = ".".join(str(part) for part in problem["loc"][1:]) if is_known else "a field"
        shown.append(f"{place or 'body'}: {problem['msg']}")
    return refusal("invalid", "; ".join(shown))
