# SPDX-License-Identifier: Apache-2.0
"""Links between pages lead somewhere: the file is there, and so is the heading."""

from pathlib import Path
from urllib.parse import unquote

import pytest

from docs.pages import REPOSITORY, anchors, links, markdown_pages, page_id

OUTSIDE = ("http://", "https://", "mailto:")


def _broken(page: Path, text: str) -> list[str]:
    broken = []
    for link in links(text):
        if link.startswith(OUTSIDE):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / unquote(name)).resolve() if name else page
        inside = not name or (target.is_relative_to(REPOSITORY) and target.exists())
        if not inside:
            broken.append(link)
        elif anchor and target.suffix == ".md":
            shown = text if target == page else target.read_text(encoding="utf-8")
            if unquote(anchor) not in anchors(shown):
                broken.append(link)
    return broken


@pytest.mark.parametrize("page", markdown_pages(), ids=page_id)
def test_links_lead_somewhere(page: Path) -> None:
    assert not _broken(page, page.read_text(encoding="utf-8"))


def test_broken_links_are_found() -> None:
    text = (
        "# A title: with `code`\n\n[good](#a-title-with-code) [bad](#nowhere) "
        "[lost](docs/lost.md) ![picture](lost.png)\n\n```sh\n[not](a-link.md)\n```\n"
    )
    assert _broken(REPOSITORY / "page.md", text) == ["#nowhere", "docs/lost.md", "lost.png"]
