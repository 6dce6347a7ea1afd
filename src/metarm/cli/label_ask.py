# SPDX-License-Identifier: Apache-2.0
"""The verb `label ask`: a gold function, a reward model or a model behind a URL as an annotator."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from metarm.cli.judge import build_judge, judge_name, say_what_is_missing
from metarm.cli.label import StorePath
from metarm.cli.options import (
    AsJson,
    ConfigFile,
    SettingWords,
    print_json,
    print_table,
    read_section,
)
from metarm.cli.progress import choose_progress

if TYPE_CHECKING:
    from collections.abc import Mapping

    from metarm.labels.votes import AnnotatorKind

__all__ = ["ask_for_labels"]

_KINDS: Final["Mapping[str, AnnotatorKind]"] = {
    "--gold": "gold",
    "--reward-model": "model",
    "--endpoint": "model",
    "--judge": "rule",
}


def ask_for_labels(
    store: StorePath,
    words: SettingWords = None,
    config: ConfigFile = None,
    gold: Annotated[
        str | None,
        typer.Option("--gold", metavar="M:F", help="Ask a score function; `world`: that of --run."),
    ] = None,
    run_dir: Annotated[
        Path | None, typer.Option("--run", metavar="RUN_DIR", help="The run of `--gold world`.")
    ] = None,
    reward_model: Annotated[
        str | None, typer.Option("--reward-model", metavar="M", help="Ask a reward model.")
    ] = None,
    endpoint: Annotated[
        str | None,
        typer.Option(
            "--endpoint", metavar="URL", help="Ask a model at a server of OpenAI's protocol."
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", metavar="NAME", help="Its name at the server.")
    ] = None,
    own: Annotated[
        str | None, typer.Option("--judge", metavar="M:F", help="Ask a function of yours.")
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(
            "--name", metavar="NAME", help="The annotator it is in the store; default: its own."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Have a model, a gold function or a rule vote on every pair that it has not voted on yet.

    Votes are stored as they come: the same command goes on where it was stopped. A model behind a
    URL and a function of yours are asked with sides drawn as for people, and with both_orders=true
    each pair again the other way round.
    """
    from dataclasses import asdict

    from metarm.config_judge import JudgeSettings
    from metarm.errors import ConfigError
    from metarm.labels.asking import ask_judge
    from metarm.labels.store import LabelStore

    settings = read_section(config, words, JudgeSettings)
    chosen = {
        "--gold": gold,
        "--reward-model": reward_model,
        "--endpoint": endpoint,
        "--judge": own,
    }
    given = {flag: value for flag, value in chosen.items() if value}
    if len(given) != 1:
        raise ConfigError(
            f"expected one of {', '.join(chosen)}, got {' and '.join(given) or 'none'}: start once "
            "for each"
        )
    if bool(endpoint) != bool(model):
        raise ConfigError("--endpoint and --model belong together: the server, and the model there")
    if not store.exists():
        raise ConfigError(f"{store}: no such label store. Make it with `metarm label add`.")
    ((flag, source),) = given.items()
    called = name or judge_name(model or ("gold" if gold == "world" else source))
    answers = store.with_name(f"{store.name}.asked")
    judge = build_judge(flag, source, model, settings, answers, judge_name(called), run_dir)
    has_sides = flag in ("--endpoint", "--judge")
    with LabelStore(store) as opened:
        asked = ask_judge(
            opened,
            judge,
            called,
            _KINDS[flag],
            has_sides=has_sides,
            has_repeats=settings.both_orders,
            progress=choose_progress(),
        )
    say_what_is_missing(getattr(judge, "facts", {}))
    (print_json if as_json else print_table)({"annotator": called, **asdict(asked)})
