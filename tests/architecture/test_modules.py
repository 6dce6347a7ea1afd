# SPDX-License-Identifier: Apache-2.0
"""Every source file is laid out alike: licence, sentence, public names, size."""

import ast
import functools
from pathlib import Path

import pytest

from architecture.syntax import (
    LICENSE_LINE,
    SOURCE,
    code_lines,
    declared_names,
    defined_names,
    gathered_names,
    imported_names,
    module_name,
    sort_key,
    source_files,
)

MODULES = source_files("src")
EVERYWHERE = source_files("src", "tests", "examples", "benchmarks")
DOCUMENTED = source_files("src", "examples", "benchmarks")
MAX_CODE_LINES = 400


def _id(path: Path) -> str:
    return path.relative_to(SOURCE.parent).as_posix()


@functools.cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@functools.cache
def _public_names() -> dict[str, set[str]]:
    """What each module lets others use."""
    return {
        module_name(path): {*(declared_names(_tree(path)) or ()), "__version__"} for path in MODULES
    }


def test_there_are_modules() -> None:
    assert {"metarm", "metarm.errors", "metarm.schema"} <= {module_name(path) for path in MODULES}


@pytest.mark.parametrize("path", EVERYWHERE, ids=_id)
def test_first_line_is_the_licence(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[:1] == [LICENSE_LINE]


@pytest.mark.parametrize("path", DOCUMENTED, ids=_id)
def test_first_docstring_line_is_a_sentence(path: Path) -> None:
    docstring = ast.get_docstring(_tree(path)) or ""
    first = docstring.split("\n\n")[0]
    assert first.endswith((".", ":")), (
        f"expected a docstring that begins with a sentence: {first!r}"
    )


@pytest.mark.parametrize("path", MODULES, ids=_id)
def test_public_names_are_declared(path: Path) -> None:
    tree = _tree(path)
    definitions, assigned = defined_names(tree)
    declared = declared_names(tree)
    if declared is None:
        assert not definitions, f"add __all__ = {sorted(definitions, key=sort_key)}"
        return
    assert declared == sorted(set(declared), key=sort_key)
    undefined = set(declared) - definitions - assigned - gathered_names(path)
    assert not undefined, f"in __all__, but not defined in this file: {undefined}"
    undeclared = definitions - set(declared)
    assert not undeclared, f"add to __all__, or begin with an underscore: {undeclared}"


@pytest.mark.parametrize("path", MODULES, ids=_id)
def test_modules_use_each_others_public_names_only(path: Path) -> None:
    public = _public_names()
    hidden = [
        f"line {line}: {module}.{name}"
        for line, module, name in imported_names(_tree(path))
        if module in public and f"{module}.{name}" not in public and name not in public[module]
    ]
    assert not hidden, f"not in their module's __all__: {hidden}"


@pytest.mark.parametrize("path", MODULES, ids=_id)
def test_modules_stay_short(path: Path) -> None:
    count = code_lines(path.read_text(encoding="utf-8"))
    assert count <= MAX_CODE_LINES, f"{count} lines of code: split it by idea"


def test_code_lines_are_neither_blank_nor_prose() -> None:
    prose = '"""One.\n\nTwo.\n"""\n\n# Why.\n'
    code = 'x = 1\n\n\ndef f():\n    """Three."""\n    return """a\nb"""\n'
    assert code_lines(prose + code) == 4
