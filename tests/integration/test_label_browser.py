# SPDX-License-Identifier: Apache-2.0
"""The labelling page as people use it, in headless Chromium: keys, phones, lost networks, tabs."""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, Route

from hostile_texts import FAR, HOSTILE
from live_labels import OWNER, SECRETS, LiveLabels, live_labels, make_store, plain_pairs
from metarm.labels.store import LabelStore
from metarm.labels.votes import LabelPair
from metarm.schema import Message
from patience import PATIENCE_SECONDS, held_port

WATCH = """
window.seenViolations = [];
document.addEventListener("securitypolicyviolation",
  (event) => window.seenViolations.push(event.violatedDirective + " " + event.blockedURI));
"""
CURRENT = "() => document.querySelector('#prompt .text')?.textContent"


@dataclass
class Seen:
    """What went on in a browser while a test ran."""

    dialogs: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)
    pages: list[Page] = field(default_factory=list)


@pytest.fixture
def seen() -> Seen:
    return Seen()


@pytest.fixture
def open_context(browser: Browser, seen: Seen) -> Iterator[Callable[..., BrowserContext]]:
    """New profiles; afterwards no dialog, error, violation or foreign request may have been."""
    contexts: list[BrowserContext] = []

    def make(**more: Any) -> BrowserContext:
        context = browser.new_context(**more)
        context.set_default_timeout(1000 * PATIENCE_SECONDS)
        context.add_init_script(WATCH)
        context.on("page", lambda page: watch(page, seen))
        contexts.append(context)
        return context

    yield make
    for page in seen.pages:
        if not page.is_closed() and page.url.startswith("http"):
            violations = page.evaluate("window.seenViolations")
            assert violations == [], violations
    for context in contexts:
        context.close()
    assert not seen.dialogs
    assert not seen.errors
    assert not seen.foreign


def watch(page: Page, seen: Seen) -> None:
    seen.pages.append(page)
    page.on("dialog", lambda dialog: (seen.dialogs.append(dialog.message), dialog.dismiss()))
    page.on("pageerror", lambda error: seen.errors.append(str(error)))
    page.on(
        "request",
        lambda request: (
            None
            if re.match(r"http://127\.0\.0\.1:\d+/", request.url)
            else seen.foreign.append(request.url)
        ),
    )


@pytest.fixture
def page_of(open_context: Callable[..., BrowserContext]) -> Callable[..., Page]:
    """Sign somebody in, in a profile of their own."""

    def enter(live: LiveLabels, token: str, **more: Any) -> Page:
        page = open_context(**more).new_page()
        page.goto(f"{live.url}/enter#{token}")
        page.wait_for_selector("#item:not([hidden])")
        return page

    return enter


def next_key(page: Page, key: str) -> str:
    """Press a key that answers, when the page takes it; the prompt that was answered."""
    before = page.evaluate(CURRENT)
    page.wait_for_timeout(320)
    page.keyboard.press(key)
    page.wait_for_function(
        "(before) => document.querySelector('#item').hidden"
        " || document.querySelector('#prompt .text').textContent !== before",
        arg=before,
    )
    return before


def wait_saved(page: Page) -> None:
    page.wait_for_selector("#status[data-state=saved]")
    page.wait_for_function(
        "() => Object.keys(localStorage).every((name) => !name.startsWith('metarm.outbox'))"
    )


def sides(page: Page) -> dict[str, str]:
    return {side: page.locator(f"#{side}").inner_text() for side in ("left", "right")}


def test_a_batch_by_keyboard_alone(tmp_path: Path, page_of) -> None:
    path = tmp_path / "labels.db"
    [token] = make_store(path, plain_pairs(8), "Robin")
    with live_labels(path) as live:
        page = page_of(live, token)
        assert page.evaluate("location.hash") == ""
        expected: dict[str, tuple[str, int]] = {}
        wins = {"1": ("left", 2), "2": ("left", 1), "4": ("right", 1), "5": ("right", 2)}
        for key, (side, strength) in wins.items():
            shown = sides(page)
            prompt = next_key(page, key)
            expected[prompt] = (shown[side], strength)
        expected[next_key(page, "3")] = ("tie", 1)
        expected[next_key(page, "s")] = ("skip", 1)
        # Arrows and Enter, with a flag, a note, and a change of mind.
        page.wait_for_timeout(320)
        shown = sides(page)
        page.keyboard.press("f")
        assert page.locator("#flag").get_attribute("aria-pressed") == "true"
        page.keyboard.press("n")
        page.keyboard.type("12 s? n")
        page.keyboard.press("Escape")
        for key in ("ArrowRight", "ArrowLeft", "ArrowLeft"):
            page.keyboard.press(key)
        assert page.locator("[aria-checked=true]").get_attribute("data-answer") == "left"
        assert page.evaluate("document.activeElement.dataset.answer") == "left"
        expected[next_key(page, "Enter")] = (shown["left"], 1)
        # Undo brings the pair back with its answer marked, and its note and flag.
        page.keyboard.press("u")
        page.wait_for_function("() => document.querySelector('#note').value === '12 s? n'")
        assert page.locator("#flag").get_attribute("aria-pressed") == "true"
        again = page.evaluate(CURRENT)
        expected[again] = (sides(page)["right"], 2)
        assert next_key(page, "5") == again
        shown = sides(page)
        expected[next_key(page, "2")] = (shown["left"], 1)
        page.wait_for_selector("#away-title:has-text('Nothing left')")
        wait_saved(page)
        pairs = {pair.id: pair for pair in plain_pairs(8)}
        told = {}
        for vote in live.votes():
            pair = pairs[vote.pair]
            words = {"first": pair.first, "second": pair.second}
            told[str(pair.prompt)] = (words.get(vote.choice, vote.choice), vote.strength)
        assert told == expected
        events = live.events()
        assert [event.choice for event in events].count("undo") == 1
        noted = [event for event in events if event.note]
        assert [(event.note, event.flag) for event in noted] == [("12 s? n", True)] * 2
        assert all(event.lead_ms is not None and event.lead_ms > 0 for event in noted)
        behaviour = (tmp_path / "labels.db.behaviour.jsonl").read_text().splitlines()
        assert len(behaviour) == 9
        assert '"changes": 2' in behaviour[6]


def test_a_phone(tmp_path: Path, page_of) -> None:
    path = tmp_path / "labels.db"
    long = "\n".join(f"line {n} of a long response" for n in range(60))
    pairs = [LabelPair("question\n" * 30, f"one {long}", f"two {long}"), *plain_pairs(2)]
    [token] = make_store(path, pairs, "Robin")
    with live_labels(path) as live:
        page = page_of(
            live, token, viewport={"width": 360, "height": 640}, has_touch=True, is_mobile=True
        )
        for _ in range(3):
            if page.locator("#more").is_visible():
                break
            page.wait_for_timeout(320)
            page.tap("#skip")
        page.wait_for_selector("#more:not([hidden])")
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        assert page.locator("#more").inner_text() == "Show all 30 lines of the prompt"
        a, b = (page.locator(f"#{side}").bounding_box() for side in ("left", "right"))
        assert b["y"] >= a["y"] + a["height"]
        assert a["width"] == b["width"]
        # The answers stay in sight, and so does the chip of what is being read.
        page.evaluate("window.scrollTo(0, 1100)")
        page.wait_for_timeout(100)
        chips = [page.locator(f"#title-{side}").bounding_box()["y"] for side in "ab"]
        assert min(abs(y) for y in chips) < 1
        answers = page.locator("#choices").bounding_box()
        assert 0 < answers["y"] < 640 - answers["height"]
        for radio in page.locator("[role=radio]").all():
            box = radio.bounding_box()
            assert box["width"] >= 44
            assert box["height"] >= 44
        page.wait_for_timeout(320)
        page.tap("[data-answer=right]")
        wait_saved(page)
        [vote] = [vote for vote in live.votes() if vote.choice != "skip"]
        assert vote.chose_left is False


def test_a_double_click_answers_one_pair(tmp_path: Path, page_of) -> None:
    path = tmp_path / "labels.db"
    [token] = make_store(path, plain_pairs(4), "Robin")
    with live_labels(path) as live:
        page = page_of(live, token)
        page.wait_for_timeout(320)
        page.dblclick("[data-answer=left]")
        page.wait_for_timeout(600)
        wait_saved(page)
        assert len(live.events()) == 1


def test_back_and_forward_answer_nothing_twice(tmp_path: Path, page_of) -> None:
    path = tmp_path / "labels.db"
    [token] = make_store(path, plain_pairs(4), "Robin")
    with live_labels(path) as live:
        page = page_of(live, token)
        first = next_key(page, "1")
        page.goto(f"{live.url}/enter")
        page.go_back()
        page.wait_for_selector("#item:not([hidden])")
        assert page.evaluate(CURRENT) != first
        second = next_key(page, "1")
        wait_saved(page)
        assert first != second
        assert len(live.events()) == len(live.votes()) == 2
        # Undo still knows the last answer after the page was loaded anew.
        page.reload()
        page.wait_for_selector("#item:not([hidden])")
        page.keyboard.press("u")
        page.wait_for_selector(f"#prompt .text:text-is('{second}')")
        wait_saved(page)
        assert len(live.votes()) == 1


def test_two_tabs_and_two_browsers(tmp_path: Path, page_of) -> None:
    path = tmp_path / "labels.db"
    [token] = make_store(path, plain_pairs(1), "Robin")
    with live_labels(path) as live:
        one = page_of(live, token)
        two = one.context.new_page()
        two.goto(live.url)
        two.wait_for_selector("#item:not([hidden])")
        other = page_of(live, token)
        assert two.evaluate(CURRENT) == other.evaluate(CURRENT) == one.evaluate(CURRENT)
        next_key(one, "1")
        # The other tab hears of it; another browser does not, and answers the pair once more.
        two.wait_for_selector("#away-title:has-text('Nothing left')")
        wait_saved(one)
        next_key(other, "5")
        wait_saved(other)
        [vote] = live.votes()
        assert len(live.events()) == 2
        assert (vote.chose_left, vote.strength) == (False, 2)


def test_offline_and_back(tmp_path: Path, page_of) -> None:
    path = tmp_path / "labels.db"
    [token] = make_store(path, plain_pairs(9), "Robin")
    with live_labels(path) as live:
        page = page_of(live, token)
        page.wait_for_load_state("networkidle")
        page.context.set_offline(True)
        for key in "123":
            next_key(page, key)
        page.wait_for_function(
            "() => document.querySelector('#status').textContent === 'Offline (3)'"
        )
        assert live.events() == []
        page.context.set_offline(False)
        wait_saved(page)
        assert re.fullmatch(r"Saved \d\d:\d\d:\d\d", page.locator("#status").inner_text())
        assert len(live.events()) == len(live.votes()) == 3


FILL = """() => {
  let size = 1 << 22;
  for (let number = 0; size >= 1; size >>= 1) {
    try {
      for (;;) localStorage.setItem(`filler ${number++}`, "x".repeat(size));
    } catch {
      // no room for so much: half of it
    }
  }
}"""
"""Leave no room for a single character more."""


def test_a_browser_that_is_full_holds_up_no_answer(tmp_path: Path, page_of) -> None:
    """One answer is kept before the browser is full, and refused by the server after it."""
    path = tmp_path / "labels.db"
    [token] = make_store(path, plain_pairs(9), "Robin")
    with live_labels(path) as live:
        page = page_of(live, token)
        page.wait_for_load_state("networkidle")
        page.context.set_offline(True)
        next_key(page, "1")
        page.evaluate(FILL)
        kept = page.evaluate("Object.keys(localStorage).filter((n) => n.startsWith('metarm.out'))")
        next_key(page, "2")
        page.keyboard.press("d")
        page.keyboard.press("c")
        assert page.locator("#diff").get_attribute("aria-pressed") == "true"
        page.wait_for_function(
            "() => document.querySelector('#status').textContent === 'Offline (2)'"
        )
        assert kept == page.evaluate(
            "Object.keys(localStorage).filter((n) => n.startsWith('metarm.out'))"
        )
        refused: list[str] = []

        def refuse(route: Route) -> None:
            key = json.loads(route.request.post_data)["key"]
            if not refused or key in refused:
                refused.append(key)
                told = {"error": {"reason": "no_such_item", "message": "no such item " * 9}}
                route.fulfill(status=404, json=told)
            else:
                route.continue_()

        page.route("**/api/vote", refuse)
        page.context.set_offline(False)
        page.wait_for_function(
            "() => /^Saved .*, 1 not taken$/.test(document.querySelector('#status').textContent)"
        )
        assert kept[0].endswith(refused[0])
        assert len(refused) == 1
        next_key(page, "3")
        page.wait_for_function("() => document.querySelector('#pace').textContent[0] === '2'")
        assert [event.choice == "tie" for event in live.events()] == [False, True]


def test_an_undo_after_the_clock_was_set_back(tmp_path: Path, page_of) -> None:
    """It follows its vote, also from a page that was loaded anew since."""
    path = tmp_path / "labels.db"
    [token] = make_store(path, plain_pairs(9), "Robin")
    with live_labels(path) as live:
        page = page_of(live, token)
        page.wait_for_load_state("networkidle")
        back = "{ const now = Date.now; Date.now = () => now() - 3600e3; }"
        page.route("**/api/vote", lambda route: route.abort())
        page.route("**/api/undo", lambda route: route.abort())
        answered = next_key(page, "1")
        page.add_init_script(back)
        page.reload()
        page.wait_for_selector("#item:not([hidden])")
        page.keyboard.press("u")
        assert page.evaluate(CURRENT) == answered
        page.unroute("**/api/vote")
        page.unroute("**/api/undo")
        wait_saved(page)
        assert [event.choice == "undo" for event in live.events()] == [False, True]
        assert live.votes() == []
        assert "not taken" not in page.locator("#status").inner_text()
        assert next_key(page, "5") == answered
        wait_saved(page)
        assert len(live.votes()) == 1


def test_undo_while_signed_out_takes_nothing_away(tmp_path: Path, page_of) -> None:
    path = tmp_path / "labels.db"
    [token] = make_store(path, plain_pairs(6), "Robin")
    with live_labels(path) as live:
        owner = live.sign_in(OWNER)
        page = page_of(live, token)
        page.wait_for_load_state("networkidle")
        answered = next_key(page, "1")
        wait_saved(page)
        live.request("POST", "/api/owner/revoke", {"name": "Robin"}, Cookie=owner)
        page.wait_for_timeout(320)
        page.keyboard.press("2")
        page.wait_for_selector("#away-title:has-text('signed out')")
        page.keyboard.press("u")
        page.keyboard.press("u")
        page.wait_for_function(
            "() => document.querySelector('#announce').textContent.includes('signed out')"
        )
        # Both answers are still there to be asked about, and to be taken back.
        page.keyboard.press("w")
        page.wait_for_function("() => /invit/.test(document.querySelector('#last').textContent)")
        told = live.request("POST", "/api/owner/invite", {"name": "Robin", "days": 1}, Cookie=owner)
        page.goto(told.json["link"])
        page.wait_for_selector("#item:not([hidden])")
        wait_saved(page)
        page.keyboard.press("u")
        page.keyboard.press("u")
        assert page.evaluate(CURRENT) == answered
        wait_saved(page)
        assert live.votes() == []


def test_a_name_that_begins_like_another_has_an_outbox_of_its_own(tmp_path: Path, page_of) -> None:
    path = tmp_path / "labels.db"
    tokens = make_store(path, plain_pairs(6), "Robin.7", "Robin")
    with live_labels(path) as live:
        page = page_of(live, tokens[0])
        page.wait_for_load_state("networkidle")
        page.route("**/api/vote", lambda route: route.abort())
        next_key(page, "1")
        page.unroute("**/api/vote")
        page.goto(f"{live.url}/enter#{tokens[1]}")
        page.wait_for_selector(".who:has-text('Robin')")
        page.wait_for_selector("#item:not([hidden])")
        next_key(page, "2")
        page.wait_for_selector("#status[data-state=saved]")
        wait_for_event(page, live, 1)
        assert [event.annotator for event in live.events()] == ["Robin"]


def test_an_acknowledgement_that_is_lost(tmp_path: Path, page_of) -> None:
    path = tmp_path / "labels.db"
    [token] = make_store(path, plain_pairs(4), "Robin")
    with live_labels(path) as live:
        page = page_of(live, token)
        lost = []

        def lose(route: Route) -> None:
            if len(lost) < 2:
                lost.append(route.fetch().status)
                route.abort()
            else:
                route.continue_()

        page.route("**/api/vote", lose)
        next_key(page, "2")
        wait_saved(page)
        assert lost == [200, 200]
        assert len(live.events()) == 1


def test_a_page_that_is_closed_before_its_answers_are_sent(tmp_path: Path, page_of) -> None:
    path = tmp_path / "labels.db"
    [token] = make_store(path, plain_pairs(6), "Robin")
    with live_labels(path) as live:
        page = page_of(live, token)
        page.route("**/api/vote", lambda route: route.abort())
        answered = [next_key(page, key) for key in "12"]
        page.close()
        assert live.events() == []
        fresh = page.context.new_page()
        fresh.goto(live.url)
        fresh.wait_for_selector("#item:not([hidden])")
        assert fresh.evaluate(CURRENT) not in answered
        wait_saved(fresh)
        assert len(live.events()) == len(live.votes()) == 2


def test_a_server_that_goes_and_comes(tmp_path: Path, page_of) -> None:
    path = tmp_path / "labels.db"
    [token] = make_store(path, plain_pairs(6), "Robin")
    with held_port() as port:
        with live_labels(path, port=port) as live:
            page = page_of(live, token)
            page.wait_for_load_state("networkidle")
            next_key(page, "1")
            wait_saved(page)
        next_key(page, "5")
        page.wait_for_selector("#status[data-state=offline]")
        with live_labels(path, port=port) as live:
            wait_saved(page)
            assert len(live.events()) == len(live.votes()) == 2
            page.close()


def test_an_invitation_that_ends_loses_nothing(tmp_path: Path, page_of) -> None:
    path = tmp_path / "labels.db"
    [token] = make_store(path, plain_pairs(4), "Robin")
    with live_labels(path) as live:
        owner = live.sign_in(OWNER)
        page = page_of(live, token)
        page.wait_for_load_state("networkidle")
        told = live.request("POST", "/api/owner/revoke", {"name": "Robin"}, Cookie=owner)
        assert told.status == 200
        page.wait_for_timeout(320)
        page.keyboard.press("1")
        page.wait_for_selector("#away-title:has-text('signed out')")
        assert "1 of your answers" in page.locator("#away-text").inner_text()
        link = live.request(
            "POST", "/api/owner/invite", {"name": "Robin", "days": 1}, Cookie=owner
        ).json["link"]
        page.goto(link)
        page.wait_for_selector("#item:not([hidden])")
        wait_saved(page)
        assert len(live.events()) == 1


def test_two_people_in_one_browser_are_not_mixed(tmp_path: Path, page_of) -> None:
    path = tmp_path / "labels.db"
    tokens = make_store(path, plain_pairs(6), "Robin", "Sam")
    with live_labels(path) as live:
        one = page_of(live, tokens[0])
        one.wait_for_load_state("networkidle")
        two = one.context.new_page()
        two.goto(f"{live.url}/enter#{tokens[1]}")
        two.wait_for_selector("#item:not([hidden])")
        one.bring_to_front()
        one.wait_for_timeout(320)
        one.keyboard.press("1")
        one.wait_for_selector("#away-title:has-text('signed out')")
        assert live.events() == []
        two.bring_to_front()
        next_key(two, "1")
        wait_for_event(two, live, 1)
        assert [event.annotator for event in live.events()] == ["Sam"]
        one.goto(f"{live.url}/enter#{tokens[0]}")
        one.wait_for_selector("#item:not([hidden])")
        wait_for_event(one, live, 2)
        assert [event.annotator for event in live.events()] == ["Sam", "Robin"]


def wait_for_event(page: Page, live: LiveLabels, count: int) -> None:
    wait_in(page, lambda: len(live.events()) >= count)


def wait_in(page: Page, holds: Callable[[], bool]) -> None:
    """As `wait_until`, while the browser's own events are taken in."""
    for _ in range(20 * PATIENCE_SECONDS):
        if holds():
            return
        page.wait_for_timeout(50)
    raise AssertionError("it never came")


def test_nothing_that_is_delivered_tells_the_sides(tmp_path: Path, page_of) -> None:
    path = tmp_path / "labels.db"
    pairs = plain_pairs(16)
    gold = {pair.id: "first" for pair in pairs[:4]}
    [token] = make_store(
        path, pairs, "Robin", gold=gold, gold_fraction=0.4, repeat_fraction=0.4, votes_per_pair=2
    )
    with live_labels(path) as live:
        page = page_of(live, token)
        delivered: list[str] = [page.content()]
        page.on(
            "response",
            lambda response: (
                delivered.append(response.text())
                if "/api/next" in response.url or "/api/vote" in response.url
                else None
            ),
        )
        for key in "1234512345":
            next_key(page, key)
        wait_saved(page)
        page.wait_for_load_state("networkidle")
        told = "\n".join(delivered)
        assert "question" in told
        assert len(delivered) > 10
        for secret in (*SECRETS, "chosen_by", "source", "is_gold", "is_repeat", "is_turned"):
            assert secret not in told
        for pair in pairs:
            assert pair.id not in told
        assert re.search(r'"(first|second|score|length|model)"', told) is None
        # Why comes afterwards, and only when it is asked for.
        page.keyboard.press("w")
        page.wait_for_function(
            "() => document.querySelector('#last').textContent.includes('features')"
        )
        stored = {event.key: event for event in live.events()}
        assert {event.is_turned for event in stored.values()} == {True, False}


def test_differences_and_scrolling(tmp_path: Path, page_of) -> None:
    path = tmp_path / "labels.db"
    tail = "\n".join(f"the same line {n}" for n in range(80))
    pair = LabelPair(
        "question", f"the cat sat here\n{tail}", f"the dog sat\u202e there\n{tail}\nend"
    )
    [token] = make_store(path, [pair], "Robin")
    with live_labels(path) as live:
        page = page_of(live, token)
        page.keyboard.press("d")
        marks = {
            side: page.locator(f"#{side} mark").all_inner_texts() for side in ("left", "right")
        }
        own = {"cat": ["cat", "here"], "dog": ["dog", "U+202E there", "end"]}
        for side, words in marks.items():
            key = "cat" if "cat" in sides(page)[side] else "dog"
            assert [word.replace("\u202f", " ") for word in words] == own[key]
        assert page.locator(".response .chip").all_inner_texts() == ["U+202E"]
        page.keyboard.press("c")
        page.evaluate("document.querySelector('#left').scrollTop = 400")
        page.wait_for_function("() => document.querySelector('#right').scrollTop > 300")
        page.keyboard.press("c")
        page.evaluate("document.querySelector('#left').scrollTop = 0")
        page.wait_for_timeout(150)
        assert page.evaluate("document.querySelector('#right').scrollTop") > 300


def test_names_roles_and_focus(tmp_path: Path, page_of) -> None:
    path = tmp_path / "labels.db"
    prompt = (Message("user", "question"), Message("assistant", "which?"), Message("user", "this"))
    [token] = make_store(path, [LabelPair(prompt, "one", "two"), *plain_pairs(2)], "Robin")
    with live_labels(path, guide="True before helpful.") as live:
        page = page_of(live, token)
        page.wait_for_selector("#help[open]")
        assert page.locator("#guide").inner_text() == "True before helpful."
        page.keyboard.press("Escape")
        tree = page.locator("body").aria_snapshot()
        for line in (
            'radiogroup "Which response is better?"',
            *(
                f'radio "{name}"'
                for name in (
                    "A is much better",
                    "A is better",
                    "Equally good",
                    "B is better",
                    "B is much better",
                )
            ),
            'region "Response A"',
            'region "Response B"',
            'heading "Which response is better?" [level=1]',
            'progressbar "Share of your pairs that is done"',
            'button "Keys and help"',
        ):
            assert line in tree, tree
        assert page.get_attribute("html", "lang") == "en"
        assert page.get_attribute("#status", "aria-live") == "polite"
        # By Tab alone: everything that can be reached has a name and shows where it is.
        page.evaluate("document.querySelector('.skip-link').focus()")
        reached = []
        for _ in range(24):
            page.keyboard.press("Tab")
            told = page.evaluate(
                """() => {
                  const e = document.activeElement;
                  const style = getComputedStyle(e);
                  return [e.id || e.dataset.answer || e.tagName,
                    (e.getAttribute('aria-label') || e.textContent).trim(),
                    style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) >= 2];
                }"""
            )
            if told[0] in ("BODY", "HTML"):
                break
            assert told[1], told
            assert told[2], f"no focus to be seen on {told}"
            reached.append(told[0])
        assert reached == [
            *("help-button", "left", "right", "tie", "skip", "flag", "note-button", "diff"),
            "together",
        ]
        # Space marks, as it does for a screen reader; it does not answer.
        page.focus("[data-answer=tie]")
        page.keyboard.press("Space")
        assert page.get_attribute("[data-answer=tie]", "aria-checked") == "true"
        assert page.is_enabled("#confirm")
        assert live.events() == []
        page.keyboard.press("?")
        assert page.evaluate("document.querySelector('#help').open")
        page.keyboard.press("1")
        assert live.events() == []


CONTRAST = """() => {
  const linear = (v) => (v <= 10 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4);
  const light = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  const parse = (text) => (text.match(/[\\d.]+/g) || []).map(Number);
  const back = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const colour = parse(getComputedStyle(e).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  const found = [];
  const texts = "p, h1, h2, h3, button, .response, th, td, dt, dd, label, a";
  for (const element of document.querySelectorAll(texts)) {
    if (!element.checkVisibility() || element.disabled || !element.textContent.trim()) continue;
    const [a, b] = [light(parse(getComputedStyle(element).color)), light(back(element))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) found.push([element.outerHTML.slice(0, 80), ratio]);
  }
  return found;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast_and_motion(tmp_path: Path, page_of, scheme: str) -> None:
    path = tmp_path / "labels.db"
    [token] = make_store(path, plain_pairs(5), "Robin")
    with live_labels(path, price=0.1) as live:
        page = page_of(live, token, color_scheme=scheme, reduced_motion="reduce")
        assert page.evaluate(CONTRAST) == []
        moved = page.evaluate(
            "getComputedStyle(document.querySelector('#skip')).transitionDuration"
        )
        assert moved == "0s"
        next_key(page, "1")
        wait_saved(page)
        page.goto(f"{live.url}/enter#{OWNER}")
        page.wait_for_selector(".numbers")
        assert page.evaluate(CONTRAST) == []


def test_the_owner_invites(tmp_path: Path, open_context) -> None:
    path = tmp_path / "labels.db"
    make_store(path, plain_pairs(5))
    with live_labels(path) as live:
        owner = open_context().new_page()
        owner.goto(live.url)
        assert owner.url == f"{live.url}/enter"
        owner.fill("#token", f"{live.url}/enter#{OWNER}")
        owner.keyboard.press("Enter")
        owner.wait_for_selector(".numbers")
        owner.fill("#invite [name=name]", "Robin <b>")
        owner.click("#invite button")
        owner.wait_for_selector("#made:has-text('enter#')")
        link = re.search(r"http\S+#\S+", owner.locator("#made").inner_text()).group()
        page = open_context().new_page()
        page.goto(link)
        page.wait_for_selector("#item:not([hidden])")
        assert page.locator(".who").inner_text() == "Robin <b>"
        owner.reload()
        assert "Robin <b>" in owner.locator("#invited-now").inner_text()
        assert link.split("#")[1] not in owner.content()
        owner.fill("#revoke [name=name]", "Robin <b>")
        owner.click("#revoke button")
        owner.wait_for_selector("#made:has-text('Ended')")
        page.goto(live.url)
        assert page.url == f"{live.url}/enter"


def finish_batch(page: Page) -> None:
    """From the screen between batches to the page that tells how it went."""
    page.click("#away-button:has-text('See how it went')")
    page.wait_for_url("**/batch/*")


def test_a_batch_and_undo_across_its_border(tmp_path: Path, page_of) -> None:
    path = tmp_path / "labels.db"
    pairs = plain_pairs(30)
    gold = {pair.id: "tie" for pair in pairs[:8]}
    [token] = make_store(path, pairs, "Robin", gold=gold, gold_fraction=0.4, batch_size=10)
    with live_labels(path) as live:
        page = page_of(live, token)
        delivered: list[str] = [page.content()]
        page.on(
            "response",
            lambda told: delivered.append(told.text()) if "/api/" in told.url else None,
        )
        for number in range(10):
            wait_saved(page)
            page.wait_for_load_state("networkidle")
            page.wait_for_selector(f"#batch-pace:text-is('{number} of 10 in this batch')")
            last = next_key(page, "3" if number % 2 else "1")
        page.wait_for_selector("#away-title:has-text('A batch of 10 is done')")
        assert page.evaluate("document.activeElement.id") == "away-title"
        # Undo, by key, brings the last pair of the batch back; answered again, it is over again.
        page.keyboard.press("u")
        page.wait_for_selector("#item:not([hidden])")
        assert page.evaluate(CURRENT) == last
        page.wait_for_timeout(320)
        page.keyboard.press("5")
        page.wait_for_selector("#away-title:has-text('A batch of 10 is done')")
        wait_saved(page)
        assert len(live.votes()) == 10
        known = [vote for vote in live.votes() if vote.pair in gold]
        right = sum(vote.choice == "tie" for vote in known)
        # Nothing that was delivered so far tells which, or how many.
        text = "\n".join(delivered)
        assert not re.search(
            r"known|gold|Known", re.sub(r"some have an answer that is known", "", text)
        )
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.id") == "away-button"
        page.keyboard.press("Enter")
        page.wait_for_url("**/batch/1")
        assert page.evaluate("document.activeElement.id") == "batch-title"
        tree = page.locator("main").aria_snapshot()
        assert 'heading "Batch 1 is done" [level=1]' in tree
        words = page.locator("main").inner_text()
        assert f"{right} of {len(known)}" in words
        assert page.locator("details").count() == 0, "the owner did not allow to say which"
        assert not any(str(pair.prompt) in words for pair in pairs)
        assert page.evaluate(CONTRAST) == []
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        page.wait_for_selector("#item:not([hidden])")
        page.wait_for_selector("#batch-pace:text-is('0 of 10 in this batch')")
        # What is behind the border cannot be undone.
        assert page.is_disabled("#undo")
        page.keyboard.press("u")
        page.wait_for_timeout(200)
        assert len(live.votes()) == 10


def test_an_undo_of_a_batch_that_another_tab_closed(tmp_path: Path, page_of) -> None:
    path = tmp_path / "labels.db"
    [token] = make_store(path, plain_pairs(12), "Robin", batch_size=4)
    with live_labels(path) as live:
        page = page_of(live, token)
        for _ in range(4):
            next_key(page, "1")
        wait_saved(page)
        page.wait_for_selector("#away-title:has-text('A batch of 4')")
        cookie = live.sign_in(token)
        told = live.request(
            "POST", "/api/batch", {"annotator": "Robin", "number": 1}, Cookie=cookie
        )
        assert told.json == {"is_closed": True}
        page.keyboard.press("u")
        page.wait_for_function(
            "() => document.querySelector('#announce').textContent.includes('stays as it was')"
        )
        wait_saved(page)
        assert page.is_disabled("#undo")
        assert len(live.votes()) == len(live.events()) == 4
        # The next batch has begun.
        page.wait_for_selector("#item:not([hidden])")
        page.wait_for_selector("#batch-pace:text-is('0 of 4 in this batch')")


def test_a_batch_that_ends_offline(tmp_path: Path, page_of) -> None:
    path = tmp_path / "labels.db"
    [token] = make_store(path, plain_pairs(9), "Robin", batch_size=4)
    with live_labels(path) as live:
        page = page_of(live, token)
        next_key(page, "1")
        wait_saved(page)
        page.wait_for_load_state("networkidle")
        page.context.set_offline(True)
        for key in "234":
            next_key(page, key)
        assert live.events()[1:] == []
        page.wait_for_selector("#away-title:has-text('A batch of 4')")
        page.click("#away-button")
        page.wait_for_selector("#away-text:has-text('have to be sent first')")
        page.context.set_offline(False)
        wait_saved(page)
        finish_batch(page)
        assert len(live.events()) == len(live.votes()) == 4
        assert page.locator("main").inner_text().startswith("Batch 1 is done")


def test_which_known_answers_were_met_where_the_owner_allows_it(tmp_path: Path, page_of) -> None:
    path = tmp_path / "labels.db"
    pairs = plain_pairs(30)
    gold = {pair.id: "first" for pair in pairs[:8]}
    [token] = make_store(
        path, pairs, "Robin", gold=gold, gold_fraction=0.4, batch_size=10, gold_feedback="which"
    )
    with live_labels(path) as live:
        page = page_of(
            live, token, viewport={"width": 360, "height": 640}, has_touch=True, is_mobile=True
        )
        shown: dict[str, dict[str, str]] = {}
        for _ in range(10):
            texts = sides(page)
            shown[next_key(page, "1")] = texts
        finish_batch(page)
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        known = {vote.pair: vote for vote in live.votes() if vote.pair in gold}
        rows = page.locator("details")
        assert rows.count() == len(known) > 1
        by_id = {pair.id: pair for pair in pairs}
        for row, vote in zip(rows.all(), known.values(), strict=True):
            row.locator("summary").click()
            pair = by_id[vote.pair]
            texts = row.locator(".text").all_inner_texts()
            assert texts == [pair.prompt, *shown[str(pair.prompt)].values()]
            # A was answered each time; the known answer is wherever `first` stood.
            place = "A" if texts[1] == pair.first else "B"
            expected = "Met: you said A" if place == "A" else "the known answer is B"
            assert expected in row.locator("summary").inner_text()
        box = page.locator("a.button").bounding_box()
        assert box["height"] >= 36
        page.click("#leave")
        page.wait_for_url("**/enter")


def test_the_owner_closes_the_queue_and_opens_it(tmp_path: Path, page_of, open_context) -> None:
    path = tmp_path / "labels.db"
    [token] = make_store(path, plain_pairs(12), "Robin")
    with live_labels(path) as live:
        owner = open_context().new_page()
        owner.goto(f"{live.url}/enter#{OWNER}")
        owner.wait_for_selector("#queue:enabled")
        page = page_of(live, token)
        page.wait_for_load_state("networkidle")
        owner.click("#queue:has-text('Close the queue')")
        owner.wait_for_selector("#queue-told:has-text('The queue is closed.')")
        assert owner.evaluate("document.activeElement.id") == "queue"
        assert "Closed" in owner.locator("#queue-state").inner_text()
        # Four pairs are in hand, and are answered; no more come.
        for _ in range(4):
            next_key(page, "2")
        page.wait_for_selector("#away-title:has-text('Nothing to do now')")
        wait_saved(page)
        assert len(live.votes()) == 4
        assert page.locator("#away-more").is_visible(), "the batch so far can be seen"
        page.reload()
        page.wait_for_selector("#away-title:has-text('Nothing to do now')")
        owner.click("#queue:has-text('Open the queue again')")
        owner.wait_for_selector("#queue-told:has-text('open again')")
        page.click("#away-button:has-text('Look again')")
        page.wait_for_selector("#item:not([hidden])")
        next_key(page, "1")
        wait_saved(page)
        assert len(live.votes()) == 5


@pytest.mark.parametrize("is_phone", [False, True])
def test_how_long_each_side_was_in_view(tmp_path: Path, page_of, is_phone: bool) -> None:
    path = tmp_path / "labels.db"
    tall = "\n".join(f"line {n}" for n in range(60))
    pairs = [LabelPair(f"question {n}", f"one {tall}", f"two {tall}") for n in range(3)]
    [token] = make_store(path, pairs, "Robin")
    size = {"viewport": {"width": 360, "height": 640}} if is_phone else {}
    with live_labels(path) as live:
        page = page_of(live, token, **size)
        page.wait_for_timeout(1500)
        if is_phone:
            page.evaluate("window.scrollTo(0, document.querySelector('#title-b').offsetTop + 1e5)")
            page.wait_for_timeout(1500)
        page.keyboard.press("?")
        page.wait_for_timeout(1500)
        page.keyboard.press("Escape")
        next_key(page, "1")
        page.wait_for_timeout(1000)
        next_key(page, "1")
        wait_saved(page)
        first, second = (
            json.loads(line)
            for line in path.with_name("labels.db.behaviour.jsonl").read_text().splitlines()
        )
        spent = [event.lead_ms / 1000 for event in live.events()]
        left, right = first["left_seconds"], first["right_seconds"]
        assert left >= 0.5
        if is_phone:
            # First A alone, then B alone; both were covered by the help for a while.
            assert right >= 0.3
            assert left + right <= spent[0] - 0.6
            assert second["right_seconds"] == 0
        else:
            assert left == right <= spent[0] - 0.6
            assert second["left_seconds"] == second["right_seconds"] > 0.2


@pytest.mark.parametrize("script", ["owner", "enter"])
def test_a_form_waits_for_its_script(tmp_path: Path, open_context, script: str) -> None:
    """Neither a click nor Enter in a field sends a form before its script can: names and tokens
    would stand in the address."""
    path = tmp_path / "labels.db"
    make_store(path, plain_pairs(2))
    held: list[Route] = []
    field = {"owner": "#invite [name=name]", "enter": "#token"}[script]
    text = {"owner": "Robin", "enter": OWNER}[script]
    with live_labels(path) as live:
        page = open_context().new_page()
        if script == "owner":
            page.goto(f"{live.url}/enter#{OWNER}")
            page.wait_for_selector(".numbers")
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.route(f"**/static/{script}.js", lambda route: held.append(route))
        page.goto(f"{live.url}/{script}", wait_until="commit")
        page.wait_for_selector(field)
        wait_in(page, lambda: bool(held))
        page.wait_for_timeout(200)
        assert len(held) == 1
        page.fill(field, text)
        before = len(asked)
        page.keyboard.press("Enter")
        assert page.locator("form button:enabled").count() == 0
        page.locator("form button").first.click(force=True)
        page.wait_for_timeout(300)
        assert len(asked) == before
        assert page.url == f"{live.url}/{script}"
        assert page.input_value(field) == text
        held[0].continue_()
        page.wait_for_function("() => !document.querySelector('form button:disabled')")
        page.focus(field)
        page.keyboard.press("Enter")
        page.wait_for_selector({"owner": "#made:has-text('enter#')", "enter": ".numbers"}[script])


@pytest.mark.slow
def test_hostile_texts_stay_texts(tmp_path: Path, page_of, open_context) -> None:
    """Each in prompt, response, name, note, source, strategy, role, guide and error."""
    assert len(set(HOSTILE)) > 100
    path = tmp_path / "labels.db"
    pairs = [
        LabelPair((Message(text[:40], text),), text, f"{text} {n}", source=text, chosen_by=text)
        for n, text in enumerate(HOSTILE)
    ]
    names = [text[:90] for text in HOSTILE if text[:90].strip() and text[:90].isprintable()]
    assert len(names) > 90
    # Half of the pairs have a known answer, which is shown when the batch is over.
    gold = {pair.id: "second" for pair in pairs[::2]}
    tokens = make_store(
        path,
        pairs,
        *names,
        votes_per_pair=2,
        gold=gold,
        gold_fraction=0.6,
        gold_feedback="which",
        batch_size=500,
    )
    shown: set[str] = set()
    with live_labels(path, guide="\n".join(HOSTILE)) as live:
        page = page_of(live, tokens[0])
        page.keyboard.press("Escape")
        while page.locator("#item").is_visible():
            shown.add(page.locator("#prompt .text").text_content())
            assert_harmless(page)
            if len(shown) % 10 == 0:
                page.keyboard.press("d")
                assert_harmless(page)
            page.keyboard.press("n")
            page.evaluate(
                "(text) => { document.querySelector('#note').value = text; }",
                HOSTILE[len(shown) - 1],
            )
            page.keyboard.press("Escape")
            next_key(page, "1")
            if len(shown) % 25 == 0:
                page.keyboard.press("w")
        wait_saved(page)
        # What is left of the known answers is no more to be asked when nothing else is.
        assert len(shown) >= len(HOSTILE) * 0.8
        page.click("#away-more:has-text('See how it went')")
        page.wait_for_url("**/batch/1")
        page.evaluate("document.querySelectorAll('details').forEach((e) => { e.open = true; })")
        assert page.locator("details").count() > 30
        assert_harmless(page)
        # The dashboard shows each pair, for its note.
        owner = open_context().new_page()
        owner.goto(f"{live.url}/enter#{OWNER}")
        owner.wait_for_selector(".numbers")
        assert_harmless(owner)
        assert owner.locator("details").count() >= len(shown)
        owner.evaluate("document.querySelectorAll('details').forEach((e) => { e.open = true; })")
        owner.wait_for_timeout(300)
        assert_harmless(owner)
        # Names of others, each signed in once.
        for token in tokens[1:]:
            cookie = live.sign_in(token)
            body = live.request("GET", "/", Cookie=cookie).body.decode()
            assert body.count("<script") == 2
        # What a browser is led to by a wrong address or a wrong token.
        lost = open_context().new_page()
        for text in HOSTILE[::6]:
            lost.goto(f"{live.url}/owner/{text.replace('#', '')}?{text}")
            assert_harmless(lost)
        lost.goto(f"{live.url}/enter")
        for text in HOSTILE[:9]:
            lost.fill("#token", text[:500])
            lost.click("button[type=submit]")
            lost.wait_for_function(
                "() => /unknown|wrong|expected/.test("
                "document.querySelector('#enter-status').textContent)"
            )
            assert_harmless(lost)


def assert_harmless(page: Page) -> None:
    """Only our own scripts, and nothing that loads, runs or leads anywhere."""
    found = page.evaluate(
        """() => [...document.querySelectorAll('*')].filter((element) =>
          (element.tagName === 'SCRIPT' &&
            !/^(\\/static\\/(label|enter|owner|batch)\\.js)?$/
              .test(element.getAttribute('src') || '')) ||
          ['IFRAME', 'OBJECT', 'EMBED', 'VIDEO', 'AUDIO', 'BASE', 'STYLE', 'MATH', 'TEMPLATE',
            'MARQUEE', 'XMP', 'FRAMESET'].includes(element.tagName) ||
          [...element.attributes].some((one) => /^on/i.test(one.name) || one.name === 'style')
        ).map((element) => element.outerHTML.slice(0, 200))"""
    )
    assert found == []
    assert page.evaluate("document.querySelectorAll('script').length") <= 2
    assert FAR not in page.evaluate(
        "[...document.querySelectorAll('[src], [href], [action]')]"
        ".map((e) => e.src || e.href || e.action).join(' ')"
    )


def test_the_store_is_its_own_again(tmp_path: Path, page_of) -> None:
    path = tmp_path / "labels.db"
    [token] = make_store(path, plain_pairs(4), "Robin")
    with live_labels(path) as live:
        page = page_of(live, token)
        next_key(page, "1")
        wait_saved(page)
        page.close()
    with LabelStore(path) as store:
        assert len(store.votes()) == 1
