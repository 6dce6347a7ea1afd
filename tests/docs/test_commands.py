# SPDX-License-Identifier: Apache-2.0
"""The commands that the pages show exist: verbs and flags of metarm, make targets, files."""

import functools
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from docs.pages import (
    REPOSITORY,
    SHELLS,
    fenced_blocks,
    logical_lines,
    markdown_pages,
    page_id,
    reader_environment,
)
from metarm.bench.settings import (
    AdviseSettings,
    CompareSettings,
    RangeSettings,
    SourceSettings,
    TuneSettings,
)
from metarm.config import ArmSettings, RunSettings
from metarm.config_judge import JudgeSettings
from metarm.yaml_document import parse_yaml

SEPARATORS = {"&&", "||", "|", ";", "&"}
FOLDERS = ("configs/", "examples/", "benchmarks/", "docs/", "tests/", "src/")


@functools.cache
def _help(*verbs: str) -> str:
    shown = subprocess.run(
        [sys.executable, "-m", "metarm", *verbs, "--help"],
        cwd=REPOSITORY,
        env=reader_environment(),
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    assert shown.returncode == 0, f"metarm {' '.join(verbs)} --help: {shown.stderr}"
    return shown.stdout


def _has_verb(help_text: str, verb: str) -> bool:
    return re.search(rf"^[\s│|]*{re.escape(verb)}(\s|$)", help_text, re.MULTILINE) is not None


def _is_setting(dotted: str) -> bool:
    """Whether a dotted name is a field of a run's, comparison's or search's settings.

    Some sections stand under any name: an arm of one's own, the source of a shift, a range.
    """
    known = (RunSettings, CompareSettings, TuneSettings, AdviseSettings, JudgeSettings)
    fields = {name: field for settings in known for name, field in settings.model_fields.items()}
    parts = dotted.split(".")
    sections = {"custom_arms": ArmSettings, "sources": SourceSettings, "space": RangeSettings}
    named = sections.get(parts[0])
    if named is not None and len(parts) == 3:
        return parts[2] in named.model_fields
    for part in parts:
        if part not in fields:
            return False
        annotation = fields[part].annotation
        kinds = (annotation, *getattr(annotation, "__args__", ()))
        fields = next((kind.model_fields for kind in kinds if hasattr(kind, "model_fields")), {})
    return True


def _check_metarm(arguments: list[str]) -> None:
    verbs: list[str] = []
    while arguments and not arguments[0].startswith("-"):
        if verbs and not re.search(r"Usage:.*COMMAND", _help(*verbs)):
            break
        verb = arguments.pop(0)
        assert _has_verb(_help(*verbs), verb), f"metarm {' '.join(verbs)} has no verb {verb!r}"
        verbs.append(verb)
    text = _help(*verbs)
    for before, argument in zip(["", *arguments], arguments, strict=False):
        if before.startswith("-") and re.search(rf"{re.escape(before)} +\w+=\w", text):
            continue  # the flag's own NAME=FILE
        name, equals, value = argument.partition("=")
        if equals and value.startswith(("[", "{")):
            parse_yaml(value.encode(), argument)  # quoted where it has spaces
        if name.startswith("-"):
            known = re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", text)
            assert known, f"metarm {' '.join(verbs)} has no flag {name}"
        elif equals and re.fullmatch(r"[a-z_][\w.]*", name):
            is_own = re.search(rf"^\s*{re.escape(name)}=", text, re.MULTILINE)
            is_in_section = f"{name.split('.')[0]}." in text and _is_setting(name)
            assert is_own or is_in_section, f"metarm {' '.join(verbs)} has no setting {name}"


def _check_make(arguments: list[str]) -> None:
    rules = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    for target in arguments:
        if "=" not in target and not target.startswith("-"):
            assert re.search(rf"^{re.escape(target)}:", rules, re.MULTILINE), f"no target {target}"


def _check_files(arguments: list[str]) -> None:
    for argument in arguments:
        if argument.startswith(FOLDERS):
            assert list(REPOSITORY.glob(argument.rstrip("/"))), f"{argument} does not exist"


def _check_command(line: str) -> None:
    words = shlex.split(line, comments=True)
    while words:
        cut = next((i for i, word in enumerate(words) if word in SEPARATORS), len(words))
        command, words = words[:cut], words[cut + 1 :]
        while command and re.fullmatch(r"[A-Z_]+=.*", command[0]):
            command.pop(0)
        if not command:
            continue
        program, arguments = Path(command[0]).name, command[1:]
        _check_files(command)
        if program.startswith("python") and arguments[:2] == ["-m", "metarm"]:
            program, arguments = "metarm", arguments[2:]
        if program == "metarm":
            _check_metarm(arguments)
        elif program == "make":
            _check_make(arguments)


COMMANDS = [
    pytest.param(line, id=f"{page_id(page)}:{block.line}: {line[:50]}")
    for page in markdown_pages()
    for block in fenced_blocks(page.read_text(encoding="utf-8"))
    if block.language in SHELLS
    for line in logical_lines(block.text)
]


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_exist(line: str) -> None:
    _check_command(line)


@pytest.mark.parametrize(
    "line",
    [
        "make no-such-target",
        "python examples/no_such_file.py",
        "make setup && make nothing",
        "metarm no-such-verb",
        "metarm run --no-such-flag",
        "OMP_NUM_THREADS=1 metarm run reward.no_such_setting=1",
        "metarm reward no_such_setting=1",
    ],
)
def test_the_check_refuses_what_is_not_there(line: str) -> None:
    with pytest.raises(AssertionError):
        _check_command(line)


@pytest.mark.parametrize(
    "line",
    [
        "make setup && make demo PYTHON=python3.12",
        "metarm run --output runs/mine rounds=1 reward.meta_mode=descent --seed 3",
        "metarm reward meta_mode=descent | tee log.txt",
        ".venv/bin/metarm run custom_arms.mine.meta_mode=ascent",
    ],
)
def test_the_check_accepts_what_is_there(line: str) -> None:
    _check_command(line)


def test_settings_are_known_by_their_dotted_name() -> None:
    assert _is_setting("reward.meta_mode")
    assert _is_setting("custom_arms.mine.reward")
    assert not _is_setting("reward.no_such_thing")
    assert not _is_setting("reward.meta_mode.deeper")
