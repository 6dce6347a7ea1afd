# SPDX-License-Identifier: Apache-2.0
"""The annotated file tree of src/metarm and its layers, as docs/architecture.md shows them.

python tests/docs/tree.py            prints them
python tests/docs/tree.py --write    puts them into the page
"""

import ast
import re
import sys
import textwrap
import tomllib
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGE = REPOSITORY / "src" / "metarm"
PAGE = REPOSITORY / "docs" / "architecture.md"
COLUMN, WIDTH = 28, 100


def first_sentence(path: Path) -> str:
    """The first sentence of a module's docstring, on one line."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    paragraph = " ".join(docstring.split("\n\n")[0].split())
    return re.split(r"(?<=[.])\s+(?=[A-Z`])", paragraph)[0]


def render_tree(folder: Path = PACKAGE) -> str:
    """The tree: files before folders, each file with its sentence."""
    lines = [f"src/{folder.name}/", *_entries(folder, depth=1)]
    return "\n".join(line.rstrip() for line in lines)


def _entries(folder: Path, depth: int) -> list[str]:
    indent = "  " * depth
    lines: list[str] = []
    for path in sorted(folder.glob("*.py")):
        if path.name == "__init__.py" and depth > 1:
            continue  # its sentence stands beside the folder
        lines += _row(f"{indent}{path.name}", first_sentence(path))
    for child in sorted(path for path in folder.iterdir() if path.is_dir()):
        if list(child.glob("*.py")):
            init = child / "__init__.py"
            lines += _row(f"{indent}{child.name}/", first_sentence(init) if init.exists() else "")
            lines += _entries(child, depth + 1)
    return lines


def _row(name: str, sentence: str) -> list[str]:
    """One entry; a sentence too long for the line goes on below itself."""
    wrapped = textwrap.wrap(sentence, WIDTH - COLUMN) or [""]
    return [f"{name:<{COLUMN - 1}} {wrapped[0]}", *(" " * COLUMN + more for more in wrapped[1:])]


def render_layers(project: Path = REPOSITORY / "pyproject.toml") -> str:
    """The layers of the import contract, highest first."""
    contracts = tomllib.loads(project.read_text(encoding="utf-8"))["tool"]["importlinter"]
    layers = next(c["layers"] for c in contracts["contracts"] if c["type"] == "layers")
    return "\n".join(re.sub(r"[()]", "", layer) for layer in layers)


def shown(page: str, part: str) -> str:
    """What a page shows between the marks of a part."""
    return _around(page, part)[1].strip().removeprefix("```text\n").removesuffix("\n```")


def with_part(page: str, part: str, text: str) -> str:
    """The page with this text between the marks of a part."""
    before, _, after = _around(page, part)
    return f"{before}\n```text\n{text}\n```\n{after}"


def _around(page: str, part: str) -> tuple[str, str, str]:
    begin, end = f"<!-- {part}: begin -->", f"<!-- {part}: end -->"
    start, stop = page.index(begin) + len(begin), page.index(end)
    return page[:start], page[start:stop], page[stop:]


PARTS = {"tree": render_tree, "layers": render_layers}

if __name__ == "__main__":
    text = PAGE.read_text(encoding="utf-8")
    for name, render in PARTS.items():
        text = with_part(text, name, render())
        sys.stdout.write(f"{render()}\n\n")
    if "--write" in sys.argv[1:]:
        PAGE.write_text(text, encoding="utf-8")
