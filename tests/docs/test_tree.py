# SPDX-License-Identifier: Apache-2.0
"""docs/architecture.md shows the files and layers that are there, each file with its sentence."""

from pathlib import Path

import pytest

from docs.tree import PAGE, PARTS, first_sentence, render_layers, render_tree, shown, with_part


@pytest.mark.parametrize("part", PARTS)
def test_the_page_shows_what_is_there(part: str) -> None:
    text = shown(PAGE.read_text(encoding="utf-8"), part)
    assert text == PARTS[part](), "mend it with: python tests/docs/tree.py --write"


def test_a_new_file_or_sentence_changes_the_tree(tmp_path: Path) -> None:
    (tmp_path / "one.py").write_text('"""One thing: of a kind. Another."""\n', encoding="utf-8")
    before = render_tree(tmp_path)
    assert first_sentence(tmp_path / "one.py") == "One thing: of a kind."
    (tmp_path / "one.py").write_text('"""Two things."""\n', encoding="utf-8")
    changed = render_tree(tmp_path)
    (tmp_path / "two.py").write_text('"""More."""\n', encoding="utf-8")
    assert len({before, changed, render_tree(tmp_path)}) == 3


def test_layers_are_read_from_the_contract(tmp_path: Path) -> None:
    contract = '[[tool.importlinter.contracts]]\ntype = "layers"\nlayers = ["(a) | b", "c"]\n'
    (tmp_path / "pyproject.toml").write_text(contract, encoding="utf-8")
    assert render_layers(tmp_path / "pyproject.toml") == "a | b\nc"


@pytest.mark.parametrize("part", PARTS)
def test_a_page_gives_back_what_was_put_in(part: str) -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert shown(with_part(page, part, "one\n  two"), part) == "one\n  two"
    assert with_part(page, part, shown(page, part)) == page
