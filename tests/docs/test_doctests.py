# SPDX-License-Identifier: Apache-2.0
"""The examples in docstrings give what they say they give."""

import ast
import doctest
import importlib

import pytest

from architecture.syntax import module_name, source_files


def _with_examples() -> list[str]:
    """The modules that have a `>>>` in some docstring."""
    found = []
    for path in source_files("src"):
        documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        docstrings = [
            ast.get_docstring(node) or "" for node in nodes if isinstance(node, documented)
        ]
        if any(">>> " in docstring for docstring in docstrings):
            found.append(module_name(path))
    return found


@pytest.mark.parametrize("name", _with_examples())
def test_docstring_examples_hold(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert result.attempted > 0
    assert result.failed == 0, f"see the output above; {result.failed} of {result.attempted} failed"
