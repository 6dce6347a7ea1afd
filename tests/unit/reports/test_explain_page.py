# SPDX-License-Identifier: Apache-2.0
"""The page of an explanation: texts are text, figures the document's, colours mean something."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from metarm.reports.explain_page import shade, write_explain_page
from unit.reports.explanations import document

PAYLOADS = [
    "<script>window.hit = 1</script>",
    "<img src=x onerror=alert(1)>",
    '"><svg onload=alert(1)>',
    "javascript:alert(1)",
    "</span></style><script>1</script>",
    "{{ 7 * 7 }}{% include 'x' %}",
    "\u202eright to left",
    "\x00\x1b[31m",
    "<a href=//evil.example>x</a>",
    "'-alert(1)-'",
]


class Reader(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag, attrs) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data) -> None:
        self.text += data


def read(page: Path) -> tuple[str, Reader]:
    text = page.read_text("utf-8")
    reader = Reader()
    reader.feed(text)
    return text, reader


@pytest.mark.parametrize("payload", PAYLOADS)
def test_hostile_texts_are_text(tmp_path: Path, payload: str) -> None:
    plain = read(write_explain_page(document("word"), tmp_path))[1]
    _, hostile = read(write_explain_page(document(payload), tmp_path))
    assert [tag for tag, _ in hostile.tags] == [tag for tag, _ in plain.tags]
    for _, attributes in hostile.tags:
        assert not any(name.startswith("on") or name == "href" for name in attributes)
    sources = [a["src"] for _, a in hostile.tags if "src" in a]
    assert all(source.startswith("data:image/svg+xml") for source in sources)
    assert "\x00" not in hostile.text
    assert "\u202e" not in hostile.text


def test_the_policy_is_strict(tmp_path: Path) -> None:
    text, reader = read(write_explain_page(document(), tmp_path))
    (policy,) = [a["content"] for t, a in reader.tags if a.get("http-equiv")]
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert not any("style" in attributes for _, attributes in reader.tags)
    assert "<script" not in text


def test_figures_are_those_of_the_document(tmp_path: Path) -> None:
    _, reader = read(write_explain_page(document(), tmp_path))
    text = re.sub(r"\s+", " ", reader.text)
    assert "It gives the worse answer 1.25 more: 78% sure, and wrong by the label." in text
    assert "left over (completeness gap)+0.150" in text
    assert "The gap is above the tolerance after 64 steps" in text
    assert "+0.100 (by a fit without it: +0.110)" in text
    assert "label 3, similarity -0.50: speaks for the worse answer" in text
    assert "73% for the other side" in text
    assert "the mean over 2 members" in text.lower()


@pytest.mark.parametrize(
    ("p", "says", "answers"),
    [
        (1.0, "speaks for the worse answer", ("labelled better", "labelled worse")),
        (
            0.3,
            "speaks for the better answer",
            ("better with probability 0.30", "better with probability 0.70"),
        ),
        (
            0.5,
            "speaks for neither answer",
            ("better with probability 0.50", "better with probability 0.50"),
        ),
    ],
)
def test_soft_labels_say_how_sure_they_are(
    tmp_path: Path, p: float, says: str, answers: tuple[str, str]
) -> None:
    told = document()
    told["pairs"][0]["neighbours"][0]["p"] = p
    _, reader = read(write_explain_page(told, tmp_path))
    _, _, after = reader.text.partition("label 3, similarity -0.50: ")
    lines = [line for line in after.splitlines() if line.strip()]
    assert lines[0] == says
    assert lines[2:4] == [f"{answer}word" for answer in answers]


def test_words_are_coloured_by_what_they_do(tmp_path: Path) -> None:
    _, reader = read(write_explain_page(document(), tmp_path))
    spans = [a for tag, a in reader.tags if tag == "span" and "title" in a]
    # The response alone; the prompt, the better answer, and the worse one turned.
    assert [(a["class"], a["title"]) for a in spans] == [
        ("p4", "+0.500"),
        ("n4", "-2.000"),
        ("p2", "+0.500"),
        ("n2", "-0.500"),
    ]


@pytest.mark.parametrize(
    ("value", "expected"), [(0.04, ""), (0.05, "p1"), (-0.2, "n2"), (0.45, "p3"), (-0.7, "n4")]
)
def test_shades(value: float, expected: str) -> None:
    assert shade(value, 1.0) == expected
    assert shade(0.0, 0.0) == ""


def test_a_text_alone_has_a_page(tmp_path: Path) -> None:
    whole = document()
    alone = {name: whole[name] for name in ("reward_model", "after", "seed", "text")}
    text, reader = read(write_explain_page(alone, tmp_path))
    assert "One response, word by word" in reader.text
    assert "Where it is confident" not in text


@pytest.mark.filterwarnings("error")
def test_no_figure_is_drawn_where_no_kind_can_be_tested(tmp_path: Path) -> None:
    told = document()
    assert "No kind of pairs can be tested" not in read(write_explain_page(told, tmp_path))[1].text
    for row in told["slices"]:
        row["p_value"] = row["p_holm"] = None
    _, reader = read(write_explain_page(told, tmp_path))
    assert "img" not in [tag for tag, _ in reader.tags]
    assert "No kind of pairs can be tested" in reader.text
