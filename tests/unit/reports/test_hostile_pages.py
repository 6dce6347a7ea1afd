# SPDX-License-Identifier: Apache-2.0
"""More than a hundred hostile texts in every place of every page that shows texts: none is markup.

A page with them has the tags and attributes of a page with harmless texts, and every one of them
can be read on it as it was written.
"""

import dataclasses
from collections.abc import Callable, Sequence
from html.parser import HTMLParser
from pathlib import Path

import pytest

from hostile import PAYLOADS
from metarm.judging.comparisons import Comparison, Judgement, JudgementSet
from metarm.judging.results import Agreement, Judging
from metarm.judging.win_rates import win_rates
from metarm.reports import judging_page, page
from metarm.reports.judging_page import write_judging_page
from metarm.reports.page import write_report
from metarm.reports.watch_page import write_watch_page
from metarm.schema import Message
from metarm.storage import write_json_lines

HARMLESS = tuple(f"text {number}" for number in range(len(PAYLOADS)))
OF_FIGURES = ("src", "alt")
"""Attributes that say what is drawn: escaped too, and of other texts other ones."""


class Page(HTMLParser):
    """Tags and their attributes, without what figures say; and the text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, tuple[tuple[str, str | None], ...]]] = []
        self.parts: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()

    def handle_starttag(self, tag, attrs):
        if tag == "img":
            assert (dict(attrs)["src"] or "").startswith("data:image/")
        told = tuple((name, None if name in OF_FIGURES else value) for name, value in attrs)
        self.tags.append((tag, told))

    def handle_endtag(self, tag):
        self.tags.append((f"/{tag}", ()))

    def handle_data(self, data):
        self.parts.append(data)

    @property
    def text(self) -> str:
        return "".join(self.parts)


def report(make_run, folder: Path, texts: Sequence[str]) -> Path:
    run = make_run(folder, arms=("sft",), rounds=1, seeds=(0,))
    for path in run.glob("seed_0/arms/*/round_*/evaluation/samples.jsonl"):
        rows = [{"prompt": f"prompt {text}", "response": f"response {text}"} for text in texts]
        write_json_lines(path, rows)
    return write_report(run)


def judging(make_run, folder: Path, texts: Sequence[str]) -> Path:
    folder.mkdir()
    compared = [
        Comparison((Message("user", f"prompt {text}"),), f"arm {text}", "old", text, f"{text} too")
        for text in texts
    ]
    told = [Judgement("first", "second") for _ in compared]
    judged = tuple(
        JudgementSet(f"judge {text}", {"template_text": text, "model": text}, tuple(told))
        for text in texts
    )
    rates = [
        dataclasses.replace(rate, judge=text, first_arm=text)
        for rate in win_rates("one", compared[:1], told[:1], num_resamples=10)
        for text in texts
    ]
    found = Judging(
        comparisons=tuple(compared),
        judged=judged,
        win_rates=tuple(rates),
        ratings=(),
        agreements=tuple(Agreement(text, text, 1, 1.0, None) for text in texts),
        alpha=1.0,
    )
    return write_judging_page(found, folder, {"--endpoint": texts[0]})


def watching(make_run, folder: Path, texts: Sequence[str]) -> Path:
    folder.mkdir()
    look = {"number": 1, "step": 1, "state": "look", "level": 0.01, "tests": {}}
    look |= {"mean_reward": None, "kl_nats": None, "reasons": list(texts)}
    looks = {"one": [look], **{f"run {text}": [] for text in texts}}
    return write_watch_page(looks, folder / "watch.html", {text: text for text in texts})


PAGES: dict[str, Callable[..., Path]] = {
    "report": report,
    "judging": judging,
    "watching": watching,
}


@pytest.mark.parametrize("name", PAGES)
def test_no_text_is_markup(name, make_run, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(page, "NUM_SAMPLES", len(PAYLOADS))
    monkeypatch.setattr(judging_page, "NUM_SAMPLES", len(PAYLOADS))
    hostile = Page(PAGES[name](make_run, tmp_path / "hostile", PAYLOADS))
    harmless = Page(PAGES[name](make_run, tmp_path / "harmless", HARMLESS))
    assert hostile.tags == harmless.tags
    missing = [text for text in PAYLOADS if text not in hostile.text]
    assert missing == []


def test_there_are_more_than_a_hundred() -> None:
    assert len(set(PAYLOADS)) > 100
