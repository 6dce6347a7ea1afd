# SPDX-License-Identifier: Apache-2.0
"""docs/cli.md, written from the command itself: `python -m metarm.cli.docs docs/cli.md`."""

import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from metarm.cli.app import VERBS, build_command, find_verb
from metarm.cli.settings_help import setting_lines

__all__ = ["cli_page"]

_HEAD = """\
<!-- Written by `python -m metarm.cli.docs docs/cli.md`: change the help texts instead. -->
# The command line

`metarm VERB --help` shows the same. Errors are one line on stderr; exit codes are 0 (done),
1 (an error that should not happen: `--debug` shows where), 2 (something in the command, a file or a
setting is wrong; the line says what to do), 75 (`run`: all that can be done is done, and people's
labels are waited for) and 130 (stopped by Ctrl-C).

Settings are given as `KEY=VALUE` words or in the YAML file of `--config`; words win over the file,
the file over the defaults. Values are YAML 1.2: `1e-4` is a number, `no` is text, `true` is true.
Anchors, tags and duplicate keys are refused, and unknown keys are errors that name the nearest
known one. Relative paths are relative to the current folder.

Answers are printed on stdout, progress and notes on stderr. With `--json` stdout holds one JSON
document.
"""


def cli_page() -> str:
    """The whole page."""
    command = build_command()
    parts = [_HEAD, "## Before the verb\n", *_options(command)]
    for verb, (function, settings) in VERBS.items():
        verb_command = find_verb(command, verb)
        parts += [f"\n## metarm {verb}\n", f"{inspect.getdoc(function)}\n"]
        parts += _options(verb_command)
        if settings:
            parts += _settings(settings)
        if verb == "run":
            for name, section in _RUN_SECTIONS.items():
                parts += _settings(section, prefix=name)
            own = "The keys of `sft`, `reward`, `sampling` and `optimize` are those of the verbs "
            parts += ["", own + "below (`sampling`: `metarm sample`)."]
    return "\n".join(parts) + "\n"


_RUN_SECTIONS: Final = {
    "world.": "WorldSettings",
    "data.": "DataSettings",
    "evaluation.": "EvaluationSettings",
    "custom_arms.NAME.": "ArmSettings",
}
"""The sections of a run that no verb has for itself."""


def _settings(class_name: str, prefix: str = "") -> Iterator[str]:
    """A table of the settings of one class."""
    yield from ("", "| setting | meaning |", "|---|---|")
    for name, text in setting_lines(class_name):
        yield f"| `{prefix}{name}` | {_cell(text)} |"


def _options(command: Any) -> Iterator[str]:
    """A table of the parameters of one command."""
    yield "| option | meaning |"
    yield "|---|---|"
    for param in command.params:
        words = " ".join(part for part in (param.opts[0], param.metavar) if part)
        if param.param_type_name == "argument":
            words = param.metavar
        need = " Required." if param.required else ""
        yield f"| `{words}` | {_cell(param.help)}{need}{_default(param)} |"


def _default(param: Any) -> str:
    """The default, where there is one worth showing."""
    if param.default is None or param.required or isinstance(param.default, bool):
        return ""
    return f" Default: {param.default}."


def _cell(text: str) -> str:
    """Text that cannot break a table."""
    return text.replace("|", r"\|")


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(cli_page(), encoding="utf-8")
