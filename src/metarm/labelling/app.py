# SPDX-License-Identifier: Apache-2.0
"""The labelling page as a FastAPI application: its pages, and what they ask.

What is not named in `OPEN_ROUTES` asks who is there before it does anything, also a route that is
added later; what begins with `/owner` asks for the owner.
"""

from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated, Final, Literal

from fastapi import Depends, FastAPI, Request
from fastapi import Path as PathField
from fastapi.responses import HTMLResponse, Response
from starlette.exceptions import HTTPException

from metarm.labelling.cookies import Keeper
from metarm.labelling.dashboard import Dashboard
from metarm.labelling.desk import LabelDesk
from metarm.labelling.errors import add_errors
from metarm.labelling.gate import PageGate
from metarm.labelling.pages import read_static, render
from metarm.labelling.refusals import refusal
from metarm.labelling.texts import duration, parts_of, prompt_turns
from metarm.labelling.wire import (
    BatchAnswer,
    BatchRequest,
    EnterAnswer,
    EnterRequest,
    InviteAnswer,
    InviteRequest,
    NextAnswer,
    NextRequest,
    QueueAnswer,
    QueueRequest,
    RevokeAnswer,
    RevokeRequest,
    UndoAnswer,
    UndoRequest,
    VoteAnswer,
    VoteRequest,
    WhyAnswer,
    WhyRequest,
    item_answer,
    progress_answer,
)

__all__ = ["OPEN_ROUTES", "LabelPage", "build_page"]

OPEN_ROUTES: Final = frozenset({"/api/enter", "/enter", "/health", "/static/{name}"})
"""The only routes that ask nobody who they are."""
BatchNumber = Annotated[int, PathField(ge=1, le=10**9)]
FIRST_ITEMS: Final = 1
"""Items that come with the page; it asks for more at once."""


@dataclass(frozen=True, slots=True)
class LabelPage:
    """The parts of the server; `asgi` is what a web server runs, and all that it should run."""

    asgi: PageGate
    app: FastAPI
    desk: LabelDesk


def build_page(
    keeper: Keeper,
    dashboard: Dashboard,
    *,
    hosts: Collection[str] | None,
    address: str,
    guide: str = "",
) -> LabelPage:
    """The page of the store behind `keeper.desk`, which is open already and closed in the end.

    Args:
        keeper: Knows who is who.
        dashboard: The owner's.
        hosts: Names that requests may call the server by; None: any.
        address: Where people find the page, for links in invitations.
        guide: What annotators are asked to judge by, as text.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        keeper.desk.close()

    async def ask_who(request: Request) -> None:
        """Let in whom the route is for."""
        path = request.scope["route"].path
        if path in OPEN_ROUTES:
            return
        if path.startswith(("/owner", "/api/owner")):
            if not keeper.is_owner(request):
                raise refusal("not_signed_in", "expected the owner: open the owner's link")
            return
        annotator = await keeper.annotator(request)
        if annotator is None:
            raise refusal("not_signed_in", "expected an invitation: open the link you were sent")
        request.state.annotator = annotator

    app = FastAPI(
        title="metarm label serve",
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        redirect_slashes=False,
        dependencies=[Depends(ask_who)],
    )
    _add_pages(app, keeper, guide)
    _add_calls(app, keeper)
    _add_owner(app, keeper, dashboard, address)
    add_errors(app)
    return LabelPage(PageGate(app, hosts=hosts), app, keeper.desk)


def _add_pages(app: FastAPI, keeper: Keeper, guide: str) -> None:
    static = read_static()

    @app.get("/health")
    async def health() -> dict[str, str]:
        """Whether the server answers."""
        return {"status": "ok"}

    @app.get("/static/{name}")
    async def static_file(name: str) -> Response:
        """Style, scripts, icon."""
        found = static.get(name)
        if found is None:
            raise HTTPException(404)
        return Response(found.content, media_type=found.content_type)

    @app.get("/enter", response_class=HTMLResponse)
    async def enter_page() -> HTMLResponse:
        """Where a link leads; its token is in the fragment, which no browser sends."""
        return HTMLResponse(render("enter.html.j2"))

    @app.get("/", response_class=HTMLResponse)
    async def label_page(request: Request) -> HTMLResponse:
        """One decision per screen."""
        annotator = request.state.annotator
        items, progress, wait = await keeper.desk.next_items(annotator, [], FIRST_ITEMS)
        start = {
            "annotator": annotator,
            "items": [item_answer(item).model_dump() for item in items],
            "progress": progress_answer(progress).model_dump(),
            "wait": wait,
        }
        return HTMLResponse(render("label.html.j2", start=start, annotator=annotator, guide=guide))

    @app.get("/batch/{number}", response_class=HTMLResponse)
    async def batch_page(request: Request, number: BatchNumber) -> HTMLResponse:
        """How a batch of the annotator's went, once it is closed."""
        told = await keeper.desk.batch(request.state.annotator, number)
        if told is None:
            raise HTTPException(404)
        page = render(
            "batch.html.j2", batch=told.batch, told=told, duration=duration, turns=prompt_turns
        )
        return HTMLResponse(page)


def _add_calls(app: FastAPI, keeper: Keeper) -> None:
    desk = keeper.desk

    def check_self(request: Request, annotator: str) -> None:
        if annotator != request.state.annotator:
            raise refusal(
                "other_annotator",
                "somebody else has signed in with this browser since: open your own link again",
            )

    @app.post("/api/enter")
    async def enter(request: Request, response: Response, body: EnterRequest) -> EnterAnswer:
        """Sign in with an invitation, or as the owner."""
        role = await keeper.enter(request, response, body.token)
        go: Literal["/", "/owner"] = "/owner" if role == "owner" else "/"
        return EnterAnswer(go=go)

    @app.post("/api/leave")
    async def leave(response: Response) -> dict[str, bool]:
        """Sign out."""
        keeper.leave(response)
        return {"left": True}

    @app.post("/api/next")
    async def next_items(request: Request, body: NextRequest) -> NextAnswer:
        """Items to answer."""
        check_self(request, body.annotator)
        items, progress, wait = await desk.next_items(body.annotator, body.besides, body.count)
        return NextAnswer(
            items=[item_answer(item) for item in items],
            progress=progress_answer(progress),
            wait=wait,
        )

    @app.post("/api/vote")
    async def vote(request: Request, body: VoteRequest) -> VoteAnswer:
        """Take an answer; it is on the disk when this is answered."""
        check_self(request, body.annotator)
        recorded, progress = await desk.record(body)
        return VoteAnswer(is_new=recorded.is_new, progress=progress_answer(progress))

    @app.post("/api/undo")
    async def undo(request: Request, body: UndoRequest) -> UndoAnswer:
        """Take an answer back; nothing is removed, an event takes its place."""
        check_self(request, body.annotator)
        return await desk.undo(body.annotator, body.key)

    @app.post("/api/batch")
    async def close_batch(request: Request, body: BatchRequest) -> BatchAnswer:
        """Close a batch that is over; `/batch/NUMBER` then tells how it went."""
        check_self(request, body.annotator)
        return BatchAnswer(is_closed=await desk.close_batch(body.annotator, body.number))

    @app.post("/api/why")
    async def why(request: Request, body: WhyRequest) -> WhyAnswer:
        """Why a pair had been chosen, once it was answered."""
        check_self(request, body.annotator)
        return WhyAnswer(why=parts_of(await desk.why(body.annotator, body.key)))


def _add_owner(app: FastAPI, keeper: Keeper, dashboard: Dashboard, address: str) -> None:
    desk = keeper.desk

    @app.get("/owner", response_class=HTMLResponse)
    async def owner_page() -> HTMLResponse:
        """The dashboard."""
        return HTMLResponse(await dashboard.page())

    @app.get("/owner/figures/{name}")
    async def figure(name: str, dark: bool = False) -> Response:
        """A figure of the dashboard."""
        found = await dashboard.figure(name, is_dark=dark)
        if found is None:
            raise HTTPException(404)
        return Response(found, media_type="image/svg+xml")

    @app.post("/api/owner/invite")
    async def invite(body: InviteRequest) -> InviteAnswer:
        """A new invitation; only its hash is kept."""
        token = await desk.invite(body.name, body.days)
        return InviteAnswer(link=f"{address}/enter#{token}", name=parts_of(body.name))

    @app.post("/api/owner/revoke")
    async def revoke(body: RevokeRequest) -> RevokeAnswer:
        """End the invitations of somebody."""
        await desk.revoke(body.name)
        return RevokeAnswer(name=parts_of(body.name))

    @app.post("/api/owner/queue")
    async def queue(body: QueueRequest) -> QueueAnswer:
        """Hand out no new pairs, or hand them out again."""
        await desk.set_open(body.is_open)
        return QueueAnswer(is_open=body.is_open)

    @app.post("/api/owner/leave")
    async def owner_leave(response: Response) -> dict[str, bool]:
        """Sign the owner out."""
        keeper.leave(response)
        return {"left": True}
