# SPDX-License-Identifier: Apache-2.0
"""The server as a FastAPI application: four routes, and one form of every error.

Documentation pages and the schema are no routes of it: the pages would load scripts from elsewhere,
and the schema is in `docs/serving.md`.
"""

from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from time import monotonic
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from starlette.exceptions import HTTPException

from metarm.serving.batching import Answer, ScoreQueue
from metarm.serving.counters import Counters, resident_bytes
from metarm.serving.exchange import REASON
from metarm.serving.guard import Guard, Token
from metarm.serving.model_slot import ModelSlot
from metarm.serving.refusals import STATUSES, RefusedError
from metarm.serving.served_model import ScoreItem
from metarm.serving.settings import ServeSettings
from metarm.serving.wire import (
    ErrorAnswer,
    HealthAnswer,
    RewardAnswer,
    RewardRequest,
    ScoreAnswer,
    ScoreRequest,
)

__all__ = ["Server", "build_server"]

PROMETHEUS: Final = "text/plain; version=0.0.4"
MOST_PROBLEMS: Final = 3
"""Wrong fields that an error names."""

_FRAMEWORK_ERRORS: Final[Mapping[int, tuple[str, str]]] = {
    400: ("not_json", "expected one JSON document"),
    404: ("no_such_route", "there are /v1/score, /get_reward, /health and /metrics"),
    405: ("wrong_method", "POST to /v1/score and /get_reward; GET /health and /metrics"),
}
"""What the framework's own errors mean here."""


@dataclass(frozen=True, slots=True)
class Server:
    """The parts of a server; `asgi` is what a web server runs, and all that it should run."""

    asgi: Guard
    app: FastAPI
    queue: ScoreQueue
    slot: ModelSlot
    counters: Counters


def build_server(
    slot: ModelSlot,
    counters: Counters,
    settings: ServeSettings,
    *,
    token: Token | None,
    hosts: Collection[str] | None,
) -> Server:
    """A server of the model in `slot`; its thread runs while the application does.

    Args:
        slot: Holds the model.
        counters: Where it is counted.
        settings: Sizes and times.
        token: What requests must show; None: nothing.
        hosts: Names that requests may call the server by; None: any.
    """
    queue = ScoreQueue(slot, settings, counters)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        queue.start()
        yield
        queue.stop()

    errors: dict[int | str, dict[str, Any]] = {
        status: {"model": ErrorAnswer} for status in sorted(set(STATUSES.values()))
    }
    app = FastAPI(
        title="metarm serve",
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        responses=errors,
        redirect_slashes=False,
    )
    _add_routes(app, queue, slot, counters, settings)
    _add_errors(app)
    counters.read_with("process_resident_memory_bytes", lambda: {(): resident_bytes()})
    counters.read_with("metarm_rows_total", lambda: _rows(slot))
    counters.read_with("metarm_model_info", lambda: _model_info(slot))
    guard = Guard(
        app,
        settings=settings,
        token=token,
        hosts=hosts,
        counters=counters,
        check_room=queue.check_room,
        model=lambda: slot.current.facts,
    )
    return Server(guard, app, queue, slot, counters)


def _add_routes(
    app: FastAPI, queue: ScoreQueue, slot: ModelSlot, counters: Counters, settings: ServeSettings
) -> None:
    began = monotonic()

    def check_count(num_items: int) -> None:
        if num_items > settings.max_items:
            raise RefusedError(
                "too_many_items",
                f"expected at most {settings.max_items} items a request, got {num_items}",
            )

    async def scored(items: Sequence[ScoreItem], *, truncate: bool) -> Answer:
        check_count(len(items))
        if not items:
            return Answer([], [], slot.current.facts)
        return await queue.submit(items, truncate=truncate)

    @app.post("/v1/score")
    async def score(request: ScoreRequest) -> ScoreAnswer:
        """Score responses; the server applies the chat template."""
        items = [ScoreItem(*item.sides()) for item in request.items]
        answer = await scored(items, truncate=request.truncate)
        uncertainty = [s.uncertainty for s in answer.scores if s.uncertainty is not None]
        return ScoreAnswer(
            scores=[s.score for s in answer.scores],
            uncertainty=uncertainty or None,
            truncated=[item.is_truncated for item in answer.items],
            num_tokens=[item.num_tokens for item in answer.items],
            exact=settings.exact,
            model=answer.model,
        )

    @app.post("/get_reward")
    async def get_reward(request: RewardRequest) -> RewardAnswer:
        """Score whole texts, in OpenRLHF's format."""
        for name, others in (("prompts", request.prompts), ("labels", request.labels)):
            if others is not None and len(others) != len(request.query):
                raise RefusedError(
                    "invalid",
                    f"expected as many {name} as queries ({len(request.query)}), got {len(others)}",
                )
        items = [ScoreItem("", text, is_query=True) for text in request.query]
        answer = await scored(items, truncate=False)
        scores = [s.score for s in answer.scores]
        doubts = [s.uncertainty for s in answer.scores if s.uncertainty is not None]
        logs = {"uncertainty": sum(doubts) / len(doubts)} if doubts else {}
        return RewardAnswer(rewards=scores, scores=scores, extra_logs=logs, model=answer.model)

    @app.get("/health", responses={503: {"model": HealthAnswer}})
    async def health() -> JSONResponse:
        """Whether scores are to be had, and of which model."""
        facts = slot.current.facts
        answer = HealthAnswer(
            status="ok" if queue.is_alive else "failed",
            version=facts.version,
            sha256=facts.sha256,
            uptime_seconds=round(monotonic() - began, 3),
            last_swap_failed=slot.last_error is not None,
        )
        return JSONResponse(answer.model_dump(), status_code=200 if queue.is_alive else 503)

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> PlainTextResponse:
        """Counters in Prometheus' text format."""
        return PlainTextResponse(counters.text(), media_type=PROMETHEUS)


def _add_errors(app: FastAPI) -> None:
    """All errors in one form, and no text of a request in any."""

    def respond(request: Request, refusal: RefusedError, status: int | None = None) -> JSONResponse:
        request.scope[REASON] = refusal.reason
        return JSONResponse(
            refusal.to_json(), status_code=status or refusal.status, headers=refusal.headers()
        )

    async def refused(request: Request, refusal: Exception) -> JSONResponse:
        assert isinstance(refusal, RefusedError)
        return respond(request, refusal)

    async def invalid(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        return respond(request, _validation_refusal(error))

    async def http_error(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        reason, message = _FRAMEWORK_ERRORS.get(error.status_code, ("invalid", "a wrong request"))
        return respond(request, RefusedError(reason, message), error.status_code)

    async def mistake(request: Request, error: Exception) -> JSONResponse:
        return respond(request, RefusedError("failed", "a mistake of the server: see its log"))

    app.add_exception_handler(RefusedError, refused)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http_error)
    app.add_exception_handler(Exception, mistake)


def _validation_refusal(error: RequestValidationError) -> RefusedError:
    """Which fields are wrong and how, without what stood in them."""
    problems = error.errors()
    if any(problem["type"] == "json_invalid" for problem in problems):
        return RefusedError("not_json", "expected one JSON document")
    shown = []
    for problem in problems[:MOST_PROBLEMS]:
        place = ".".join(str(part)[:40] for part in problem["loc"][1:]) or "body"
        shown.append(f"{place}: {problem['msg']}")
    more = f"; and {len(problems) - MOST_PROBLEMS} more" if len(problems) > MOST_PROBLEMS else ""
    return RefusedError("invalid", "; ".join(shown) + more)


def _rows(slot: ModelSlot) -> dict[tuple[tuple[str, str], ...], float]:
    model = slot.current
    return {
        (("how", "together"),): model.num_together,
        (("how", "alone"),): model.num_alone,
    }


def _model_info(slot: ModelSlot) -> dict[tuple[tuple[str, str], ...], float]:
    facts = slot.current.facts
    return {tuple((name, str(value)) for name, value in facts.model_dump().items()): 1.0}
