# SPDX-License-Identifier: Apache-2.0
"""The paper map names functions, settings, defaults and tests that are there."""

import ast
import importlib
import re
from pathlib import Path

from docs.pages import REPOSITORY

PAGE = REPOSITORY / "docs" / "paper-map.md"
_NAME = re.compile(r"`(metarm(?:\.\w+)+)`")
_TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")
_ROW = re.compile(r"^\|(.+)\|$", re.MULTILINE)


def _missing(text: str) -> list[str]:
    """The code and test names of a page that nothing answers to."""
    lost = [name for name in _NAME.findall(text) if not _is_defined(name)]
    return lost + [
        f"{path}::{name}"
        for path, name in _TEST.findall(text)
        if name not in _defined_in(REPOSITORY / path)
    ]


def _is_defined(name: str) -> bool:
    """Whether the source has it: read, not imported, because some modules are slow to import."""
    parts = name.split(".")
    for length in range(len(parts) - 1, 0, -1):
        source = REPOSITORY.joinpath("src", *parts[:length]).with_suffix(".py")
        if source.exists():
            return ".".join(parts[length:]) in _defined_in(source)
    return False


def _defined_in(source: Path) -> set[str]:
    """Functions and classes of a file, and the fields of its classes as `Class.field`."""
    if not source.exists():
        return set()
    found = set()
    for node in ast.parse(source.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {
                f"{node.name}.{field.target.id}"
                for field in node.body
                if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
            }
    return found


def _rows(text: str, section: str) -> list[list[str]]:
    """The cells of a section's table, without its head."""
    body = text.split(f"\n## {section}\n")[1].split("\n## ")[0]
    return [[cell.strip() for cell in row.split("|")] for row in _ROW.findall(body)][2:]


def _wrong_defaults(text: str) -> list[str]:
    wrong = []
    for _, _, setting, stated in _rows(text, "Settings"):
        _, _, owner, name = setting.strip("`").split(".")
        fields = getattr(importlib.import_module("metarm.config"), owner).model_fields
        if str(fields[name].default) != stated:
            wrong.append(f"{name}: {stated}, not {fields[name].default}")
    return wrong


def test_every_name_exists() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert not _missing(text)
    assert len(_TEST.findall(text)) > 10


def test_every_part_of_the_method_has_a_test() -> None:
    """Cells are checked one by one, so that a typo cannot turn a name into plain words."""
    text = PAGE.read_text(encoding="utf-8")
    for section in ("The method", "Rounds", "Measurements"):
        for statement, code, test, differs in _rows(text, section):
            assert code == "-" or _NAME.search(code), statement
            assert test == "-" or _TEST.fullmatch(test), statement
            assert differs, statement


def test_every_default_is_that_of_the_code() -> None:
    assert not _wrong_defaults(PAGE.read_text(encoding="utf-8"))


def test_what_is_not_there_is_found() -> None:
    text = (
        "`metarm.objectives.difference_loss` `metarm.objectives.lost` `metarm.lost.name` "
        "`metarm.config.RunSettings.rounds` `metarm.config.RunSettings.lost` "
        "`tests/docs/test_paper_map.py::test_lost` `tests/lost.py::test_every_name_exists`\n"
        "\n## Settings\n\n| a | b | c | d |\n|---|---|---|---|\n"
        "| rounds | 3 | `metarm.config.RunSettings.rounds` | 7 |\n"
    )
    assert _missing(text) == [
        "metarm.objectives.lost",
        "metarm.lost.name",
        "metarm.config.RunSettings.lost",
        "tests/docs/test_paper_map.py::test_lost",
        "tests/lost.py::test_every_name_exists",
    ]
    assert _wrong_defaults(text) == ["rounds: 7, not 3"]
