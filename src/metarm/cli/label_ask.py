# SPDX-License-Identifier: Apache-2.0
"""The verb `label ask`: a gold function, a reward model or a model behind a URL as an annotator."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from metarm.cli.judge_sources import (
    FLAGS,
    EndpointModel,
    EndpointUrl,
    GoldFunction,
    OwnFunction,
    RewardModel,
    build_judge,
    file_name,
    read_judge_source,
    say_what_is_missing,
)
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
    gold: GoldFunction = None,
    run_dir: Annotated[
        Path | None, typer.Option("--run", metavar="RUN_DIR", help="The run of `--gold world`.")
    ] = None,
    reward_model: RewardModel = None,
    endpoint: EndpointUrl = None,
    model: EndpointModel = None,
    own: OwnFunction = None,
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
    judge_source = read_judge_source(gold, reward_model, endpoint, model, own)
    if judge_source is None:
        raise ConfigError(f"expected one of {', '.join(FLAGS)}, got none: say who is asked")
    if not store.exists():
        raise ConfigError(f"{store}: no such label store. Make it with `metarm label add`.")
    called = name or file_name(judge_source.name)
    answers = store.with_name(f"{store.name}.asked")
    kind = _KINDS[judge_source.flag]
    has_sides = judge_source.flag in ("--endpoint", "--judge")
    with LabelStore(store) as opened:
        # A name that cannot be one is told before a model is loaded or asked.
        opened.has_annotator(called, kind)
        judge = build_judge(judge_source, settings, answers, file_name(called), run_dir)
        asked = ask_judge(
            opened,
            judge,
            called,
            kind,
            has_sides=has_sides,
            has_repeats=settings.both_orders,
            progress=choose_progress(),
        )
    say_what_is_missing(getattr(judge, "facts", {}))
    (print_json if as_json else print_table)({"annotator": called, **asdict(asked)})
