# SPDX-License-Identifier: Apache-2.0
"""Pages that people open from disk, in headless Chromium, full of hostile texts: all stay texts.

No script runs, no dialog opens, nothing is asked for but the page itself.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page

from hostile_texts import FAR, HOSTILE
from metarm.annotators.label_data import LabelData
from metarm.annotators.report import build_report
from metarm.data.preferences import save_preferences
from metarm.labels.votes import LabelPair, Vote
from metarm.reports import believe_page
from metarm.reports.explain_page import write_explain_page
from metarm.schema import Message, PreferencePair
from metarm.storage import read_json
from tiny_models import save_reward_model
from unit.reports.explanations import document

NUM_TOLD = 8
MARKUP = """() => [...document.querySelectorAll('*')].filter((element) =>
  ['SCRIPT', 'IFRAME', 'OBJECT', 'EMBED', 'VIDEO', 'AUDIO', 'BASE', 'LINK', 'FORM', 'INPUT', 'A',
    'MATH', 'SVG', 'TEMPLATE', 'MARQUEE', 'XMP', 'FRAMESET', 'BUTTON'].includes(
      element.tagName.toUpperCase()) ||
  (element.tagName === 'STYLE' && element.parentElement.tagName !== 'HEAD') ||
  (element.tagName === 'IMG' && !element.src.startsWith('data:image/svg+xml')) ||
  [...element.attributes].some((one) => /^on/i.test(one.name) || one.name === 'style')
).map((element) => element.outerHTML.slice(0, 200))"""


@dataclass
class Seen:
    """What went on in the browser."""

    dialogs: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def watch(self, page: Page) -> None:
        page.on("dialog", lambda dialog: (self.dialogs.append(dialog.message), dialog.dismiss()))
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("console", lambda line: self.errors.append(line.text))
        page.on("request", lambda request: self.requests.append(request.url))


@pytest.fixture
def shown(browser: Browser) -> Iterator[Callable[[Path], str]]:
    """Opens a page, all that is folded in it and every word under the mouse; gives its text."""
    contexts: list[Any] = []

    def show(path: Path) -> str:
        seen = Seen()
        context = browser.new_context()
        contexts.append(context)
        context.on("page", seen.watch)
        page = context.new_page()
        page.goto(path.as_uri())
        page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
        page.keyboard.press("Tab")
        for turn in range(20):
            page.mouse.move(250, 40 + 30 * turn)
            page.mouse.wheel(0, 400)
        page.wait_for_timeout(300)
        assert page.evaluate(MARKUP) == []
        assert page.url == path.as_uri()
        asked = [url for url in seen.requests if not url.startswith("data:image/svg+xml")]
        assert asked == [path.as_uri()]
        assert not seen.dialogs
        assert not seen.errors
        assert len(context.pages) == 1
        text: str = page.evaluate("document.body.textContent")
        return text

    yield show
    for context in contexts:
        context.close()


def missing(text: str, written: Callable[[str], str] = str) -> list[str]:
    """Hostile texts that a page does not show; hidden marks are spelled out on it."""
    plain = "".join(text.split())
    return [
        one
        for one in HOSTILE
        if one.isprintable() and "".join(written(one).split())[:900] not in plain
    ]


def test_there_is_a_barrier_to_see(tmp_path: Path, shown) -> None:
    """The same page with one text as markup is noticed: what is tested can fail."""
    path = write_explain_page(document("word"), tmp_path)
    shown(path)
    for markup in ("<img src=x onerror=alert(1)>", f"<img src={FAR}>", "<script>1</script>"):
        bad = path.with_name("bad.html")
        bad.write_text(path.read_text("utf-8").replace("</main>", f"{markup}</main>"), "utf-8")
        with pytest.raises(AssertionError):
            shown(bad)


def test_an_explanation_of_hostile_texts(tmp_path: Path, shown) -> None:
    """Each in headlines, kinds, pairs, labels, the text alone and settings."""
    every = [document(text) for text in HOSTILE]
    whole = document("\n".join(HOSTILE))
    for name in ("headline", "slices", "pairs", "suspects"):
        whole[name] = [row for one in every for row in one[name]]
    text = shown(write_explain_page(whole, tmp_path))
    assert missing(text) == []
    assert "U+202E" in text


@pytest.mark.slow
def test_hostile_texts_are_explained(tmp_path: Path, shown, metarm) -> None:
    """The whole way: hostile pairs and labels through the command, its page in the browser."""
    for name in ("reward", "adapted"):
        save_reward_model(tmp_path / name, seed=len(name))
    pairs = [
        PreferencePair(text, f"a b {text} {number}", f"c {text}")
        for number, text in enumerate(HOSTILE)
    ]
    save_preferences(tmp_path / "pairs.jsonl", pairs)
    save_preferences(tmp_path / "labels.jsonl", [replace(pair, p=0.7) for pair in pairs])
    done = metarm(
        *("explain", "--reward-model", "reward", "--after", "adapted", "--output", "out"),
        *("--preferences", "pairs.jsonl", "--labelled", "labels.jsonl"),
        *("--rows", str(NUM_TOLD), "--max-steps", "16", "--topics", "12"),
    )
    assert done.code == 0, done.err
    text = shown(tmp_path / "out/explain.html")
    assert text.count("better with probability 0.70") > NUM_TOLD
    told = read_json(tmp_path / "out/explain.json")["pairs"]
    assert len(told) > NUM_TOLD / 2
    plain = "".join(text.split())
    prompts = [pair["prompt"] for pair in told if pair["prompt"].isprintable()]
    assert all("".join(prompt.split()) in plain for prompt in prompts)
    assert prompts


@pytest.mark.slow
def test_what_is_believed_of_hostile_texts(tmp_path: Path, shown, monkeypatch) -> None:
    """Each as an annotator, a prompt, both responses, a source and a strategy."""
    monkeypatch.setattr(believe_page, "NUM_DISPUTED", len(HOSTILE))
    pairs = [
        LabelPair((Message(text[:40], text),), text, f"{text} {n}", source=text, chosen_by=text)
        for n, text in enumerate(HOSTILE)
    ]
    names = [text[:90] for text in HOSTILE]
    votes = [
        Vote(pair.id, names[(place + shift) % len(names)], ("first", "second", "tie")[shift % 3])
        for place, pair in enumerate(pairs)
        for shift in range(4)
    ]
    kinds = {name: ("person", "model")[place % 2] for place, name in enumerate(names)}
    data = LabelData(tuple(votes), {pair.id: pair for pair in pairs}, {}, kinds)
    report = build_report(data, num_next=len(HOSTILE))
    facts = {text: text for text in HOSTILE}
    page = tmp_path / "believe.html"
    page.write_text(believe_page.draw_believe_page(report, data, facts), "utf-8")
    text = shown(page)
    assert missing(text) == []
