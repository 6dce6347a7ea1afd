# SPDX-License-Identifier: Apache-2.0
"""Markdown pages as tests see them: fenced blocks, headings, links, and a folder to run them in.

Convention: all ```python blocks of a page run one after the other in one process; `no-run` in the
info string leaves a block out, which then must still parse and import names that exist.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
LEFT_OUT = {"runs", ".venv", ".git"}
SHELLS = {"sh", "bash", "shell", "console"}

_FENCE = re.compile(r"^(?P<indent>\s*)(?P<fence>`{3,}|~{3,})\s*(?P<info>.*?)\s*$")
_LINK = re.compile(r"(?<!\\)\[(?:[^\[\]]|\[[^\]]*\])*\]\((?P<target>[^()\s]+)(?:\s+\"[^\"]*\")?\)")


@dataclass(frozen=True, slots=True)
class Block:
    """One fenced block: its language, the rest of the info string, where its text begins."""

    language: str
    info: tuple[str, ...]
    line: int
    text: str


def markdown_pages() -> list[Path]:
    """Every page a reader meets: README and its neighbours, and docs."""
    return sorted([*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").rglob("*.md")])


def page_id(page: Path) -> str:
    """The page's path from the root of the repository."""
    return page.relative_to(REPOSITORY).as_posix()


def fenced_blocks(text: str) -> Iterator[Block]:
    """The fenced blocks of a page, in order; indented fences lose their indent."""
    opened: re.Match[str] | None = None
    first, lines = 0, []
    for number, line in enumerate(text.splitlines(), start=1):
        match = _FENCE.match(line)
        if opened is None:
            if match:
                opened, first, lines = match, number + 1, []
        elif match and match["fence"].startswith(opened["fence"]) and not match["info"]:
            language, *info = opened["info"].split() or [""]
            yield Block(language, tuple(info), first, "".join(f"{x}\n" for x in lines))
            opened = None
        else:
            lines.append(line.removeprefix(opened["indent"]))
    if opened is not None:
        raise ValueError(f"line {first - 1}: this fence is never closed")


def prose(text: str) -> str:
    """The page without what stands in fences and in `code`, line numbers kept."""
    lines = text.splitlines()
    for block in list(fenced_blocks(text)):
        count = block.text.count("\n")
        lines[block.line - 1 : block.line - 1 + count] = [""] * count
    return re.sub(r"`[^`\n]*`", "", "\n".join(lines))


def anchors(text: str) -> set[str]:
    """The anchors a code host gives to a page's headings, and those set by hand."""
    kept = list(text.splitlines())
    for block in fenced_blocks(text):
        count = block.text.count("\n")
        kept[block.line - 1 : block.line - 1 + count] = [""] * count
    found = set(re.findall(r"<a (?:id|name)=\"([^\"]+)\"", "\n".join(kept)))
    for line in kept:
        heading = re.match(r"#{1,6}\s+(.*?)\s*#*$", line)
        if not heading:
            continue
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading[1]).lower()
        slug = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
        repeats = sum(bool(re.fullmatch(rf"{re.escape(slug)}(-\d+)?", name)) for name in found)
        found.add(f"{slug}-{repeats}" if slug in found else slug)
    return found


def links(text: str) -> list[str]:
    """The targets of a page's links and pictures."""
    targets = [match["target"] for match in _LINK.finditer(prose(text))]
    return targets + re.findall(r"<(?:img|a) [^>]*?(?:src|href)=\"([^\"]+)\"", prose(text))


def logical_lines(text: str) -> list[str]:
    """The commands of a shell block: continued lines joined, prompts and comments gone."""
    joined = re.sub(r"\\\n\s*", " ", text)
    commands = [re.sub(r"^\s*\$ ", "", line).strip() for line in joined.splitlines()]
    return [command for command in commands if command and not command.startswith("#")]


def reader_folder(folder: Path) -> Path:
    """A stand-in for the checkout: its files are there to read, and what is written stays here."""
    for entry in REPOSITORY.iterdir():
        if entry.name not in LEFT_OUT and not (folder / entry.name).exists():
            (folder / entry.name).symlink_to(entry)
    return folder


def reader_environment() -> dict[str, str]:
    """The environment of a documented command: one thread, no screen, no network."""
    return os.environ | {
        "OMP_NUM_THREADS": "1",
        "MPLBACKEND": "Agg",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "COLUMNS": "200",
        "NO_COLOR": "1",
        "TERM": "dumb",
    }
