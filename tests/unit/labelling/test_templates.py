# SPDX-License-Identifier: Apache-2.0
"""Templates, style and scripts: escaped, quoted, nothing inline, nothing from elsewhere."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

import metarm.labelling
from hostile_texts import HOSTILE
from metarm.labelling.batches import BatchTold, ShownAnswer
from metarm.labelling.pages import STATIC_FILES, read_static, render
from metarm.labelling.texts import duration, prompt_turns
from metarm.labels.batches import Batch, KnownAnswer
from metarm.schema import Message

PACKAGE = Path(metarm.labelling.__file__).parent
TEMPLATES = sorted((PACKAGE / "templates").glob("*.j2"))
SCRIPTS = sorted((PACKAGE / "static").glob("*.js"))


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_a_template_trusts_no_text(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"\|\s*safe|Markup|autoescape\s+false|style=|\son\w+=", text)
    # What is printed inside a tag stands in quotes.
    for tag in re.findall(r"<[a-z][^<>]*>", re.sub(r"\{%.*?%\}", "", text)):
        assert not re.search(r"=\s*\{\{", tag), tag
    scripts = re.findall(r"<script[^>]*>(.*?)</script>", text, re.DOTALL)
    assert all(body in ("", "{{ start | tojson }}") for body in scripts)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_a_script_makes_text_nodes_only(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.startswith("// SPDX-License-Identifier: Apache-2.0\n")
    banned = r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|new Function|DOMParser"
    assert not re.search(banned, text)
    assert not re.search(r"https?://|srcdoc|setTimeout\(\s*[\"'`]", text)
    for source in re.findall(r"from \"(.+)\"", text):
        assert source.removeprefix("/static/") in STATIC_FILES


def test_python_makes_no_markup_of_data() -> None:
    for path in PACKAGE.glob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert "Markup(" not in text, path


def test_every_static_file_is_named() -> None:
    assert set(read_static()) == {path.name for path in (PACKAGE / "static").iterdir()}
    css = read_static()["label.css"].content.decode()
    assert not re.search(r"@import|url\(|http", css)


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        assert not any(name.startswith("on") or name == "style" for name, _ in attrs), attrs

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def _label_page(text: str) -> str:
    start = {
        "annotator": text,
        "items": [{"id": "i", "prompt": [], "left": [text], "right": [text]}],
    }
    return render("label.html.j2", start=start, annotator=text, guide=text)


def test_hostile_texts_add_no_tag() -> None:
    plain = _Tags()
    plain.feed(_label_page("plain"))
    for text in HOSTILE:
        page = _label_page(text)
        tags = _Tags()
        tags.feed(page)
        chips = [tag for tag in tags.tags if tag == "span"]
        expected = [tag for tag in plain.tags if tag == "span"]
        assert [tag for tag in tags.tags if tag != "span"] == [
            tag for tag in plain.tags if tag != "span"
        ], text
        assert len(chips) >= len(expected)


def _batch_page(text: str) -> str:
    batch = Batch(2, 10, 1, 90.0, (KnownAnswer("id", "first", "tie"),))
    shown = ShownAnswer((Message(text, text),), text, text, "A", "B", is_right=False)
    told = BatchTold(batch, is_told=True, is_too_short=False, shown=(shown,))
    return render("batch.html.j2", batch=batch, told=told, duration=duration, turns=prompt_turns)


def test_hostile_texts_add_no_tag_to_a_batch() -> None:
    plain = _Tags()
    plain.feed(_batch_page("plain"))
    for text in HOSTILE:
        if not text:
            continue
        tags = _Tags()
        tags.feed(_batch_page(text))
        assert [tag for tag in tags.tags if tag != "span"] == plain.tags, text


@pytest.mark.parametrize(
    ("is_told", "is_too_short", "words"),
    [
        (True, False, "0 of 1"),
        (False, True, "too short to say"),
        (False, False, "Everything is saved"),
    ],
)
def test_a_batch_tells_what_it_may(is_told: bool, is_too_short: bool, words: str) -> None:
    batch = Batch(2, 10, 0, None, (KnownAnswer("id", "first", "tie"),))
    told = BatchTold(batch, is_told, is_too_short, ())
    page = render("batch.html.j2", batch=batch, told=told, duration=duration, turns=prompt_turns)
    assert words in page
    assert ("0 of 1" in page) == is_told
    assert "Time" not in page


def test_an_error_page_shows_its_words_as_text() -> None:
    page = render("error.html.j2", status=404, message="<script>alert(1)</script>")
    assert "<script>alert" not in page
    assert "&lt;script&gt;" in page
