# SPDX-License-Identifier: Apache-2.0
"""The verb `serve`: a reward model over HTTP."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from metarm.cli.options import (
    AsJson,
    ConfigFile,
    SettingWords,
    answer,
    note,
    print_json,
    read_section,
)

if TYPE_CHECKING:
    from metarm.serving.app import Server

__all__ = ["serve"]


def serve(
    model: Annotated[
        Path,
        typer.Argument(
            metavar="MODEL",
            help="Folder of a reward model or ensemble, or a JSON file that points to one: "
            '{"model": "folder"}.',
        ),
    ],
    words: SettingWords = None,
    config: ConfigFile = None,
    host: Annotated[
        str, typer.Option("--host", metavar="H", help="Address to listen on.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", metavar="N", min=0, max=65535, help="Port; 0: any.")
    ] = 8000,
    token_file: Annotated[
        Path | None,
        typer.Option(
            "--token-file",
            metavar="F",
            help="File with the token that requests must show; needed where other machines can "
            "reach the host.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Serve a reward model over HTTP: what it answers is what a local call gives, bit for bit.

    OpenRLHF's /get_reward and /v1/score (docs/serving.md). The address is printed once it answers.
    SIGHUP reads the model again; SIGTERM and Ctrl-C end it when all accepted requests are answered.
    """
    from metarm.errors import ConfigError
    from metarm.serving.settings import ServeSettings

    settings = read_section(config, words, ServeSettings)
    try:
        from metarm.serving.listening import log_to_stderr, read_token
        from metarm.serving.run import serve_model
    except ImportError as error:
        raise ConfigError(
            f"serve needs fastapi and uvicorn: pip install 'metarm[serve]' ({error})"
        ) from error

    log_to_stderr("metarm.serving")
    token = None if token_file is None else read_token(token_file)

    def tell(url: str, server: "Server") -> None:
        facts = server.slot.current.facts
        if as_json:
            print_json({"url": url, "model": facts.model_dump()})
        else:
            answer(f"serving {facts.name} (sha256 {facts.sha256[:12]}...) on {url}")

    serve_model(model, settings, host=host, port=port, token=token, on_ready=tell)
    note("every request that was accepted has been answered")
