# SPDX-License-Identifier: Apache-2.0
"""The verbs `label serve` and `label invite`: the page on which people compare responses."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from metarm.cli.label import StorePath
from metarm.cli.options import AsJson, answer, note, print_json

if TYPE_CHECKING:
    from metarm.labelling.run import Links

__all__ = ["invite_annotator", "serve_labels"]

PublicUrl = Annotated[
    str | None,
    typer.Option(
        "--public-url",
        metavar="URL",
        help="Where people find the page, when a proxy stands before it; https makes the "
        "cookies Secure.",
    ),
]


def serve_labels(
    store: StorePath,
    host: Annotated[
        str, typer.Option("--host", metavar="H", help="Address to listen on.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", metavar="N", min=0, max=65535, help="Port; 0: any.")
    ] = 8001,
    owner_token_file: Annotated[
        Path | None,
        typer.Option(
            "--owner-token-file",
            metavar="F",
            help="File with the token of the owner's dashboard; needed where other machines can "
            "reach the host. Default: one is made and printed.",
        ),
    ] = None,
    public_url: PublicUrl = None,
    guide: Annotated[
        Path | None,
        typer.Option(
            "--guide", metavar="F.txt", help="What annotators are asked to judge by, as plain text."
        ),
    ] = None,
    price: Annotated[
        float | None,
        typer.Option("--price", metavar="X", min=0, help="Of one label, for the dashboard."),
    ] = None,
    before: Annotated[
        Path | None,
        typer.Option(
            "--before",
            metavar="F.jsonl",
            help="Scores of the pairs by the reward model before it learnt: `metarm score` on "
            "rows of two responses.",
        ),
    ] = None,
    after: Annotated[
        Path | None,
        typer.Option("--after", metavar="F.jsonl", help="The same after it learnt."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Serve the page on which people compare responses, and the owner's dashboard.

    Both links are printed once it answers (docs/labelling.md). While it runs the store is its own:
    the owner invites people on the dashboard. SIGTERM and Ctrl-C end it when all accepted answers
    are on the disk.
    """
    from metarm.errors import ConfigError

    try:
        from metarm.labelling.run import PageOptions, serve_page
        from metarm.serving.listening import log_to_stderr, read_token
    except ImportError as error:
        raise ConfigError(
            f"label serve needs fastapi and uvicorn: pip install 'metarm[label]' ({error})"
        ) from error

    log_to_stderr("metarm.labelling")
    options = PageOptions(
        owner_token=None if owner_token_file is None else read_token(owner_token_file),
        public_url=public_url,
        guide="" if guide is None else _read_guide(guide),
        price=price,
        before=before,
        after=after,
    )

    def tell(links: "Links") -> None:
        if as_json:
            print_json({"url": links.page, "owner": links.owner})
        else:
            answer(f"labelling page: {links.page}\nowner's dashboard: {links.owner}")

    serve_page(store, options, host=host, port=port, on_ready=tell)
    note("every answer that was accepted is in the store")


def _read_guide(path: Path) -> str:
    from metarm.errors import ConfigError

    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the guide in {path}: {error}") from error


def invite_annotator(
    store: StorePath,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Who is invited.")],
    days: Annotated[
        float, typer.Option("--days", metavar="N", help="Days until the invitation ends.")
    ] = 14.0,
    public_url: PublicUrl = None,
    port: Annotated[
        int, typer.Option("--port", metavar="N", min=1, max=65535, help="Of the page.")
    ] = 8001,
    as_json: AsJson = False,
) -> None:
    """Invite somebody to compare responses: their link, which is shown this once.

    The store keeps a hash of it. While `label serve` runs, invite on the dashboard.
    """
    from metarm.errors import ConfigError
    from metarm.labelling.run import judge_address
    from metarm.labels.store import LabelStore

    if not store.is_file():
        raise ConfigError(
            f"{store}: expected a label store, got no such file. Make it with: metarm label add"
        )
    if public_url is not None:
        judge_address(public_url)
    with LabelStore(store) as opened:
        token = opened.invite(name, days=days)
    address = (public_url or f"http://127.0.0.1:{port}").rstrip("/")
    link = f"{address}/enter#{token}"
    if as_json:
        print_json({"annotator": name, "link": link, "days": days})
    else:
        answer(link)
