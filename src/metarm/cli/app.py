# SPDX-License-Identifier: Apache-2.0
"""The command `metarm`: its verbs, its global flags, and how its errors reach the user."""

import contextlib
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Annotated, Any, Final

import typer
from typer.core import TyperCommand

from metarm import __version__
from metarm.cli.advise import advise
from metarm.cli.bench import bench
from metarm.cli.compare import compare
from metarm.cli.doctor import doctor
from metarm.cli.explain import explain
from metarm.cli.judge import judge, sheet
from metarm.cli.label import (
    add_pairs_to_label,
    back_up_labels,
    export_labels_to,
    import_labels_from,
    tell_labels,
    verify_labels,
)
from metarm.cli.label_ask import ask_for_labels
from metarm.cli.label_believe import label_believe
from metarm.cli.label_page import invite_annotator, serve_labels
from metarm.cli.measure import evaluate, sample, score
from metarm.cli.options import verb_command
from metarm.cli.plan import plan
from metarm.cli.promote import promote
from metarm.cli.runs import report, run
from metarm.cli.select import select
from metarm.cli.serve import serve
from metarm.cli.settings_help import settings_of
from metarm.cli.stretch import augment, pseudo_label
from metarm.cli.train import optimize, reward, sft
from metarm.cli.transfer import adapt, average
from metarm.cli.tune import tune
from metarm.cli.watch import watch
from metarm.errors import ConfigError, MetarmError, nearest_names
from metarm.interrupts import Stopped, stop_on_signals
from metarm.launched import is_first, num_processes, process_index

__all__ = ["GROUPS", "VERBS", "build_command", "find_verb", "run_command"]

VERBS: Final[Mapping[str, tuple[Callable[..., None], str | None]]] = {
    "run": (run, "RunSettings"),
    "sft": (sft, "SftSettings"),
    "reward": (reward, "RewardSettings"),
    "augment": (augment, "AugmentSettings"),
    "pseudo-label": (pseudo_label, "PseudoLabelSettings"),
    "average": (average, None),
    "adapt": (adapt, "AdaptSettings"),
    "sample": (sample, "SamplingSettings"),
    "optimize": (optimize, "OptimizeSettings"),
    "evaluate": (evaluate, None),
    "score": (score, None),
    "serve": (serve, "ServeSettings"),
    "report": (report, None),
    "judge": (judge, "JudgeSettings"),
    "sheet": (sheet, None),
    "label add": (add_pairs_to_label, "LabelSettings"),
    "label ask": (ask_for_labels, "JudgeSettings"),
    "label import": (import_labels_from, None),
    "label export": (export_labels_to, None),
    "label status": (tell_labels, None),
    "label verify": (verify_labels, None),
    "label backup": (back_up_labels, None),
    "select": (select, "SelectSettings"),
    "label believe": (label_believe, None),
    "label serve": (serve_labels, None),
    "label invite": (invite_annotator, None),
    "compare": (compare, "CompareSettings"),
    "tune": (tune, "TuneSettings"),
    "advise": (advise, "AdviseSettings"),
    "watch": (watch, "RewardSettings"),
    "promote": (promote, None),
    "explain": (explain, None),
    "bench": (bench, "BenchSettings"),
    "plan": (plan, None),
    "doctor": (doctor, None),
}
"""Each verb's function and the class of `settings_help.SOURCES` whose settings it takes.

A verb of two words, such as `label serve`, belongs to the group of its first word.
"""

GROUPS: Final[Mapping[str, str]] = {
    "label": "Labels: pairs to compare, votes on them, and the page for people.",
}
"""First words of verbs of two words, and the sentence that the list of verbs has for each."""

# typer carries its own copy of click in newer versions: its public name leads to either.
_UsageError: Final[type[Exception]] = typer.BadParameter.__mro__[1]

_QUIET: Final = {
    "DATASETS_VERBOSITY": "error",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}

TOGETHER: Final = frozenset({"reward"})
"""Verbs that several processes of a launcher do together."""

_KEPT: Final = {
    "serve": "no request had been accepted",
    "label serve": "no answer had been accepted",
    "run": "finished stages and checkpoints are kept; the same command goes on from there",
    "compare": "finished cells are kept; the same command goes on from there",
    "advise": "finished splits are kept; the same command goes on from there",
    "tune": "finished trials are kept; the same command goes on from there",
    "watch": "looks that were taken are kept; the same command takes the next one",
    "promote": "no decision was taken; the same command begins again",
    "explain": "attributions that are done are kept; the same command goes on from there",
    "bench": "finished measurements are kept; the same command goes on from there",
    "label ask": "votes are kept; the same command asks for the others",
    "judge": "answers are kept; the same command goes on from there",
    "sft": "checkpoints are kept beside --output; the same command goes on from the last one",
    "reward": "checkpoints are kept beside --output; the same command goes on from the last one",
    "optimize": "checkpoints are kept beside --output; the same command goes on from the last one",
    "pseudo-label": "finished rounds are kept beside --output; the same command goes on from there",
    "adapt": "finished folds are kept beside --output; the same command goes on from there",
    "augment": "paraphrases are kept beside --output; the same command asks for the others",
}


def build_command() -> Any:
    """The command with all its verbs, ready to be given arguments."""
    app = typer.Typer(
        add_completion=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    )
    app.callback()(_globals)
    groups = {"": app}
    for name, text in GROUPS.items():
        groups[name] = typer.Typer(rich_markup_mode=None, help=text)
        app.add_typer(groups[name], name=name)
    for verb, (function, settings) in VERBS.items():
        group, _, name = verb.rpartition(" ")
        kind = verb_command(settings) if settings else TyperCommand
        groups[group].command(name, cls=kind)(function)
    return typer.main.get_command(app)


def find_verb(command: Any, verb: str) -> Any:
    """The command of a verb, also of one of two words."""
    for word in verb.split():
        command = command.commands[word]
    return command


def _verb_of(words: Sequence[str]) -> str:
    """The verb that a command line names, whether there is such a one or not; "" for none."""
    named = [word for word in words if not word.startswith("-")]
    return " ".join(named[: 2 if named[:1] and named[0] in GROUPS else 1])


def _print_version(is_wanted: bool) -> None:
    if is_wanted:
        print(f"metarm {__version__}")
        raise typer.Exit


def _globals(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")] = False,
    version: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=_print_version, help="Show the version."),
    ] = False,
) -> None:
    """Keep reward models sharp while the policy they train moves away from their data."""


def run_command(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code.

    0 done, 2 wrong input, 75 waiting for people's labels, 130 or 143 stopped.

    Any other error ends the process with code 1, by way of `sys.excepthook`.
    """
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    debug = "--debug" in arguments
    words = [word for word in arguments if word != "--debug"] or ["--help"]
    if not debug:
        sys.excepthook = _one_line
        # Other packages' notes to their callers: the user of a command cannot act on them.
        for category in (DeprecationWarning, FutureWarning):
            warnings.simplefilter("ignore", category)
        # The same in the processes that `run` starts for its seeds, which it may have to end.
        ignored = "ignore::DeprecationWarning,ignore::FutureWarning"
        ignored += ",ignore:resource_tracker:UserWarning"
        os.environ.setdefault("PYTHONWARNINGS", ignored)
    verb = _verb_of(words)
    if verb in GROUPS and words[-1] == verb:
        words = [*words, "--help"]
    wants_help = not {"-h", "--help", "--version"}.isdisjoint(words)
    if num_processes() > 1 and verb not in TOGETHER and not wants_help:
        if is_first():
            _say(
                f"error: metarm {verb} is one process, got WORLD_SIZE={num_processes()}: start it "
                f"without a launcher. Of the verbs only {', '.join(sorted(TOGETHER))} trains in "
                "several processes (docs/scale.md)."
            )
        return 2
    failure: BaseException
    try:
        if verb and verb not in VERBS and verb not in GROUPS:
            raise ConfigError(f"unknown verb {verb!r}: {nearest_names(verb, VERBS)}")
        with stop_on_signals():
            return _invoke(words)
    except MetarmError as error:
        failure, message, code = error, f"error: {error}", 2
    except _UsageError as error:
        failure, message, code = error, f"error: {_usage_message(error, verb)}", 2
    except KeyboardInterrupt as error:
        kept = _KEPT.get(verb, "the same command begins again")
        code = error.exit_code if isinstance(error, Stopped) else 130
        failure, message = error, f"stopped: {kept}"
    except BrokenPipeError:
        # The reader (`| head`) has what it wanted; keep the interpreter from writing more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    if debug:
        traceback.print_exception(failure)
    _say(message)
    return code


def _invoke(words: list[str]) -> int:
    """Parse and call, without the error handling that typer would put around both."""
    command = build_command()
    # Libraries print too: while a verb works, stdout is for its answer alone.
    wants_help = not {"-h", "--help"}.isdisjoint(words)
    redirect = contextlib.nullcontext() if wants_help else contextlib.redirect_stdout(sys.stderr)
    try:
        with command.make_context("metarm", words) as context, redirect:
            command.invoke(context)
    except typer.Exit as stop:
        return stop.exit_code
    finally:
        sys.stdout.flush()
    return 0


def _usage_message(error: Any, verb: str) -> str:
    """A wrong command line in our words, with the nearest known flag."""
    command = build_command()
    where = f"(see metarm {verb} --help)" if verb else "(see metarm --help)"
    if type(error).__name__ != "NoSuchOption":
        return f"{error.format_message()} {where}"
    params = find_verb(command, verb).params
    flags = [name for param in params for name in param.opts if name.startswith("-")]
    name = error.option_name
    setting = name.lstrip("-").replace("-", "_")
    settings = VERBS[verb][1] if verb in VERBS else None
    known = {row.name for row in settings_of(settings)} if settings else set()
    if setting.split(".")[0] in known:
        return f"unknown option {name!r}: settings are words without dashes, {setting}=... {where}"
    return f"unknown option {name!r}: {nearest_names(name, [*flags, '--help'])} {where}"


def _one_line(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """An unexpected error, as `sys.excepthook` is told of it."""
    text = f": {error}" if str(error) else ""
    _say(f"error: {kind.__name__}{text} (re-run with --debug for the traceback)")


def _say(message: str) -> None:
    """One line on stderr, whatever the message holds."""
    if not is_first():
        message = f"process {process_index()} of {num_processes()}: {message}"
    print(" ".join(message.split("\n")), file=sys.stderr, flush=True)
