# SPDX-License-Identifier: Apache-2.0
"""Names of a table and names of a user's own functions, and what is said about wrong ones."""

import subprocess
import sys
from pathlib import Path

import pytest

from metarm.errors import ConfigError
from metarm.resolve import resolve_name


def double(x):
    return 2 * x


TABLE = {"double": double}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty current folder; what was imported from it is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_a_name_of_the_table(folder):
    assert resolve_name("double", TABLE, what="x") is double


def test_the_table_comes_before_modules(folder):
    assert resolve_name("a:b", {"a:b": double}, what="x") is double


def test_a_function_beside_the_configuration(folder):
    (folder / "own_functions.py").write_text("def triple(x):\n    return 3 * x\n")
    assert resolve_name("own_functions:triple", TABLE, what="x")(2) == 6


def test_a_function_of_an_installed_package(folder):
    assert resolve_name("math:sqrt", {}, what="x")(4) == 2


def test_a_file_here_stands_in_for_no_installed_package(folder):
    """Else a user's `queue.py` would break whatever imports the real one later."""
    (folder / "jinja2.py").write_text("def render():\n    return 'mine'\n")
    (folder / "own_functions.py").write_text("def f():\n    return 1\n")
    script = (
        "from metarm.resolve import resolve_name\n"
        "resolve_name('own_functions:f', {}, what='x')\n"
        "import jinja2\n"
        "assert jinja2.Environment\n"
    )
    # -P: as under the console script, the current folder is not on the path.
    done = subprocess.run(
        [sys.executable, "-P", "-c", script],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_the_current_folder_is_added_once(folder):
    for _ in range(2):
        resolve_name("math:sqrt", {}, what="x")
    assert sys.path.count(str(Path.cwd())) <= 1


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("doubel", ["optimize.algo", "'doubel'", "did you mean 'double'?", "module:function"]),
        ("", ["optimize.algo", "''"]),
        (":double", ["optimize.algo", "':double'"]),
        ("math:", ["optimize.algo", "'math:'"]),
        (".relative:f", ["optimize.algo", "'.relative:f'"]),
        ("no_such_module:f", ["cannot import module 'no_such_module'", "current folder"]),
        ("math:sqroot", ["'math'", "no function 'sqroot'", "did you mean 'sqrt'?"]),
        ("math:pi", ["no function 'pi'"]),
        ("math:a.b", ["no function 'a.b'"]),
    ],
)
def test_a_wrong_name_is_explained(folder, name, words):
    with pytest.raises(ConfigError) as caught:
        resolve_name(name, TABLE, what="optimize.algo")
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_without_a_table_the_message_asks_for_a_function(folder):
    with pytest.raises(ConfigError, match=r"'gold': give your own as module:function"):
        resolve_name("gold", {}, what="evaluation.gold")


def test_the_file_that_was_found_is_named(folder):
    (folder / "own_functions.py").write_text("def triple(x):\n    return 3 * x\n")
    with pytest.raises(ConfigError, match=r"own_functions\.py\).*did you mean 'triple'"):
        resolve_name("own_functions:tripel", TABLE, what="x")


def test_a_module_that_cannot_import_is_told_apart_from_a_missing_one(folder):
    (folder / "own_functions.py").write_text("import no_such_dependency\n")
    with pytest.raises(ConfigError, match="no_such_dependency"):
        resolve_name("own_functions:f", {}, what="x")
