# SPDX-License-Identifier: Apache-2.0
"""What the verbs share: options, their settings section, what they print, outputs made once."""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from typer.core import TyperCommand

from metarm.cli.settings_help import setting_lines
from metarm.launched import is_first, num_processes

if TYPE_CHECKING:
    from pydantic import BaseModel

    from metarm.storage import Stage

__all__ = [
    "AsJson",
    "CheckpointSteps",
    "ConfigFile",
    "DataFormat",
    "NewFolder",
    "OutputFolder",
    "Seed",
    "SettingWords",
    "answer",
    "build_output",
    "change_text",
    "estimate_text",
    "note",
    "print_json",
    "print_table",
    "read_section",
    "verb_command",
    "words_with_output",
]

Section = TypeVar("Section", bound="BaseModel")

AsJson = Annotated[
    bool, typer.Option("--json", help="Print one JSON document on stdout, and nothing else.")
]
ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="YAML file of the settings listed below."),
]
CheckpointSteps = Annotated[
    int | None,
    typer.Option(
        "--checkpoint-steps",
        metavar="N",
        min=1,
        help="Steps between two checkpoints. Default: as often as costs 2 % of the time.",
    ),
]
DataFormat = Annotated[
    str | None, typer.Option("--data-format", metavar="NAME", help="Default: detected.")
]
NewFolder = Annotated[
    Path, typer.Option("--output", metavar="DIR", help="Folder to make; whole or not at all.")
]
OutputFolder = Annotated[
    Path | None, typer.Option("--output", metavar="DIR", help="Folder: output_dir=DIR.")
]
Seed = Annotated[int, typer.Option("--seed", metavar="N", min=0, help="Seed of everything random.")]
SettingWords = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Settings, listed below; they override --config."),
]


def verb_command(settings_class: str) -> type[TyperCommand]:
    """A command class whose help ends with the settings of `settings_class`."""

    class VerbCommand(TyperCommand):
        settings_name = settings_class

        def format_epilog(self, ctx: Any, formatter: Any) -> None:
            """The settings and their defaults."""
            with formatter.section("Settings (KEY=VALUE, shown with their defaults)"):
                formatter.write_dl(setting_lines(settings_class), col_max=34)

    return VerbCommand


def read_section(config: Path | None, words: Sequence[str] | None, cls: type[Section]) -> Section:
    """The verb's settings: defaults, then `--config`, then the KEY=VALUE words."""
    from metarm.config_file import read_settings

    return read_settings(config, words or [], cls)


def words_with_output(words: Sequence[str] | None, output: Path | None) -> list[str]:
    """The KEY=VALUE words, and `--output` as the one that it is short for."""
    shortcut = f"output_dir={json.dumps(str(output), ensure_ascii=False)}"
    return [*(words or []), *([] if output is None else [shortcut])]


def answer(text: str) -> None:
    """Say something on the process's stdout, wherever `sys.stdout` leads while a verb works."""
    if not is_first():
        return
    print(text, file=sys.__stdout__, flush=True)


def note(text: str) -> None:
    """Say something on stderr, where it is in no program's way; of several processes the first."""
    if not is_first():
        return
    print(text, file=sys.stderr, flush=True)


def estimate_text(found: Mapping[str, Any]) -> str:
    """A number with its interval, out of a document."""
    from metarm.schema import Estimate

    return str(Estimate(**found))


def change_text(found: Mapping[str, Any]) -> str:
    """The same of a change, with its sign."""
    return f"{found['value']:+.3f} [{found['low']:+.3f}, {found['high']:+.3f}]"


def print_json(document: Any) -> None:
    """The answer for programs."""
    answer(json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False))


def print_table(rows: Mapping[str, Any]) -> None:
    """The answer for people: names and values in two columns."""
    width = max(map(len, rows), default=0)
    for name, value in rows.items():
        shown = f"{value:.4g}" if isinstance(value, float) else value
        answer(f"{name:<{width}}  {shown}")


def build_output(
    verb: str,
    output: Path,
    settings: "BaseModel | None",
    inputs: Mapping[str, str | Path | None],
    facts: Mapping[str, Any],
    build: Callable[[Path], Mapping[str, Any]],
    *,
    goes_on: bool = False,
) -> "Stage | None":
    """Make the folder `output` whole or not at all; one that is finished is not made again.

    Started in several processes, the first one makes it and the others help.

    Args:
        verb: The command's name.
        output: The folder to make.
        settings: The verb's settings; None where it has none.
        inputs: Files and folders that it reads; their bytes decide whether it is still the same.
        facts: Whatever else decides the result, as JSON values.
        build: Fills a folder and returns the document that the verb prints.
        goes_on: As in `build_stage`.

    Returns:
        The stage; None on a process that only helped.
    """

    def make(fill: Callable[[Path], Mapping[str, Any]]) -> "Stage":
        return _make_output(verb, output, settings, inputs, facts, fill, goes_on=goes_on)

    if num_processes() > 1:
        from metarm.training.together import join_processes, make_together

        join_processes()
        return make_together(make, build, output.with_name(f".{output.name}.partial"))
    return make(build)


def _make_output(
    verb: str,
    output: Path,
    settings: "BaseModel | None",
    inputs: Mapping[str, str | Path | None],
    facts: Mapping[str, Any],
    build: Callable[[Path], Mapping[str, Any]],
    *,
    goes_on: bool,
) -> "Stage":
    from metarm.run_folder import hold_output
    from metarm.storage import STAGE_FILE, build_stage, content_digest

    record = {
        "verb": verb,
        "settings": settings and settings.model_dump(mode="json"),
        "inputs": {name: source and content_digest(source) for name, source in inputs.items()},
        **facts,
    }
    was_there = (output / STAGE_FILE).exists()
    with nullcontext() if was_there else hold_output(output):
        stage = build_stage(output, record, [], build, goes_on=goes_on)
    if was_there:
        note(f"{output} is finished; nothing is done again")
    return stage
