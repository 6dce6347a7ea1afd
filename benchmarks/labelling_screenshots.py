# SPDX-License-Identifier: Apache-2.0
"""One person's walk through the labelling page, as the pictures of docs/labelling.md.

python benchmarks/labelling_screenshots.py [docs/images]

Needs Chromium and playwright. A made-up crowd votes first, so that the dashboard has something to
show: eight careful people, one who always takes the left side, and one who answers at random.
"""

import argparse
import random
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from playwright.sync_api import Browser, Page, sync_playwright

from metarm.labelling.run import Links, PageOptions, open_page
from metarm.labels.events import VoteEvent
from metarm.labels.settings import LabelSettings
from metarm.labels.store import LabelStore
from metarm.labels.votes import Choice, LabelPair
from metarm.schema import Message
from metarm.serving.listening import uvicorn_server

CHROMIUM: Final = "/usr/bin/chromium"
GUIDE: Final = """Choose the response you would rather have had as an answer.
True before helpful, helpful before well written. Length alone is no merit.
Skip what you cannot judge."""

TASKS: Final = (
    (
        "Why do leaves turn yellow in autumn?",
        "Leaves are green because of chlorophyll. When days get short, trees stop making it and "
        "take back what they can use. The yellow pigments, which were there all summer, are then "
        "no longer covered.",
        "Leaves are green because of chlorophyll. When it gets cold, the frost paints them yellow. "
        "That is why the first cold night brings the colours.",
    ),
    (
        "Write a short message to cancel a dentist's appointment on Tuesday.",
        "Hello, I am sorry, but I cannot come to my appointment on Tuesday. Could we find another "
        "day next week? Thank you, Robin",
        "Hi, cancel Tuesday. Thanks.",
    ),
    (
        "How many legs do three spiders and two ants have together?",
        "A spider has 8 legs, an ant 6. Three spiders have 24, two ants 12: together 36.",
        "A spider has 8 legs, an ant 8. Three spiders have 24, two ants 16: together 40.",
    ),
    (
        "What should I look at when I buy a used bicycle?",
        "1. The frame: cracks near the welds, rust under the paint.\n"
        "2. The wheels: spin them, they should run straight.\n"
        "3. The chain: can you lift it off the chainring at the front? Then it is worn.\n"
        "4. The brakes: both should stop the bicycle by themselves.\n"
        "5. The frame number: ask for the receipt.",
        "A used bicycle can be a great choice! There are many things to consider, such as the "
        "price, the colour, and the brand. In the end, the most important thing is that you feel "
        "happy with it. Happy riding!",
    ),
)


def _is_second_better(number: int) -> bool:
    return bool(number // len(TASKS) % 2)


def known_answers(pairs: list[LabelPair], numbers: range) -> dict[str, Choice]:
    """Pair id -> the better one, for pairs that `made_up_pairs` made."""
    return {pairs[n].id: "second" if _is_second_better(n) else "first" for n in numbers}


def made_up_pairs(count: int) -> list[LabelPair]:
    """Pairs to compare; of every other one the second is better."""
    strategies = ("random", "random", "d-optimal", "near-tie")
    pairs = []
    for number in range(count):
        prompt, good, bad = TASKS[number % len(TASKS)]
        tail = "" if number < len(TASKS) else f" ({number})"
        pairs.append(LabelPair(prompt + tail, good, bad, "policy, round 2", strategies[number % 4]))
    return pairs


def long_pair(number: int) -> LabelPair:
    """A conversation, with a prompt of many lines and characters that cannot be seen."""
    recipe = "\n".join(f"{step}. step {step} of the recipe" for step in range(1, 18))
    return LabelPair(
        (
            Message("user", f"Can you shorten recipe {number}?\n{recipe}"),
            Message("assistant", "Gladly. What matters most to you?"),
            Message("user", "That it fits on a card."),
        ),
        "Steps 1 to 5: prepare. Steps 6 to 12: cook. Steps 13 to 17: serve.",
        "Steps 1 to 5: prepare.\u200b Steps 6 to 12: boil. \u202eSteps 13 to 17: eat.",
        "policy, round 2",
        "random",
    )


def vote_as_a_crowd(store: LabelStore, pairs: list[LabelPair], *, seed: int = 0) -> None:
    """Votes of ten people on items as the store serves them."""
    draw = random.Random(seed)
    names = ["Ada", "Bo", "Chandra", "Dora", "Emre", "Fay", "Gil", "Hana", "Left Lou", "Random Ro"]
    better = known_answers(pairs, range(len(pairs)))
    for name in names:
        store.add_annotator(name)
    for count in range(44):
        for number, name in enumerate(names):
            item = store.next_item(name)
            if item is None or count > 32 + 2 * number:
                continue
            choice: Choice
            if name == "Left Lou":
                choice = "second" if item.is_turned else "first"
            elif name == "Random Ro":
                choice = draw.choice(("first", "second", "tie"))
            else:
                right = better[item.pair.id]
                wrong: Choice = "first" if right == "second" else "second"
                choice = draw.choices((right, "tie", wrong), (0.82, 0.1, 0.08))[0]
            store.record(
                VoteEvent(
                    key=f"crowd-{number}-{count}",
                    annotator=name,
                    choice=choice,
                    item=item.id,
                    strength=2 if choice != "tie" and draw.random() < 0.3 else 1,
                    seconds=draw.lognormvariate(2.7 if name != "Random Ro" else 0.7, 0.5),
                    note="B says nothing" if (number, count) == (2, 5) else "",
                    flag=(number, count) == (4, 3),
                )
            )


@contextmanager
def served(store: Path, options: PageOptions) -> Iterator[Links]:
    """The page in a thread, until the block ends."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=64)
    page, links = open_page(store, options, host="127.0.0.1", listener=listener)
    server = uvicorn_server(page.asgi, max_connections=64, end_seconds=5)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield links
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


class Walk:
    """A browser that takes pictures."""

    def __init__(self, browser: Browser, folder: Path) -> None:
        self.browser, self.folder = browser, folder

    def page(self, width: int, height: int, **more: Any) -> Page:
        """A new page of that size."""
        context = self.browser.new_context(viewport={"width": width, "height": height}, **more)
        return context.new_page()

    def shot(self, page: Page, name: str) -> None:
        """One picture."""
        page.wait_for_timeout(250)
        page.screenshot(path=self.folder / f"labelling-{name}.png")


def walk(browser: Browser, folder: Path, links: Links, token: str, others: list[str]) -> None:
    """The pictures, in the order of the walk."""
    seen = Walk(browser, folder)
    page = seen.page(1180, 760)
    page.goto(f"{links.page}/enter#{token}")
    page.wait_for_selector("#help[open]")
    seen.shot(page, "help")
    page.keyboard.press("Escape")
    page.wait_for_selector("#item:not([hidden])")
    seen.shot(page, "pair")
    page.keyboard.press("d")
    page.keyboard.press("ArrowLeft")
    seen.shot(page, "differences")
    page.keyboard.press("Enter")
    page.wait_for_selector("#status[data-state=saved]")
    page.wait_for_timeout(400)
    page.keyboard.press("4")
    page.wait_for_timeout(400)
    page.keyboard.press("w")
    page.wait_for_timeout(300)
    page.keyboard.press("n")
    page.keyboard.type("One of the two only chats.")
    seen.shot(page, "note")
    page.keyboard.press("Escape")
    page.context.set_offline(True)
    page.keyboard.press("1")
    page.wait_for_selector("#status[data-state=offline]")
    seen.shot(page, "offline")
    page.context.set_offline(False)
    page.wait_for_selector("#status[data-state=saved]")
    page.context.close()

    owner = seen.page(1180, 1500)
    owner.goto(links.owner)
    owner.wait_for_selector(".numbers")
    owner.wait_for_load_state("networkidle")
    seen.shot(owner, "dashboard")
    owner.context.close()

    phone = seen.page(360, 740, device_scale_factor=2, is_mobile=True, has_touch=True)
    phone.goto(f"{links.page}/enter#{others[0]}")
    phone.wait_for_selector("#help[open]")
    phone.click("#help-close")
    phone.wait_for_selector("#item:not([hidden])")
    seen.shot(phone, "phone")
    while phone.locator("#item").is_visible():
        phone.wait_for_timeout(400)
        is_long = phone.locator("#more").is_visible()
        phone.click("#skip" if is_long else "[data-answer=right]")
    phone.wait_for_selector("#away-title:has-text('A batch')")
    phone.wait_for_selector("#status[data-state=saved]")
    phone.click("#away-button")
    phone.wait_for_selector("#batch-title")
    phone.click("details summary >> nth=0")
    seen.shot(phone, "batch")
    phone.context.close()

    dark = seen.page(1180, 760, color_scheme="dark")
    dark.goto(f"{links.page}/enter#{others[1]}")
    dark.wait_for_selector("#help[open]")
    dark.keyboard.press("Escape")
    for _ in range(8):
        if dark.locator("#more").is_visible():
            break
        dark.wait_for_timeout(400)
        dark.keyboard.press("s")
    seen.shot(dark, "dark")
    while dark.locator("#item").is_visible():
        dark.wait_for_timeout(400)
        dark.keyboard.press("2")
    dark.wait_for_selector("#status[data-state=saved]")
    seen.shot(dark, "border")
    dark.context.close()


def main() -> None:
    """Make the store, let the crowd vote, walk."""
    reader = argparse.ArgumentParser(description=__doc__)
    reader.add_argument("folder", nargs="?", type=Path, default=Path("docs/images"))
    folder = reader.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "answers.db"
        pairs = [*made_up_pairs(92), *(long_pair(n) for n in range(30))]
        settings = LabelSettings(votes_per_pair=4, batch_size=20, gold_feedback="which")
        gold = known_answers(pairs, range(4, 16))
        with LabelStore(path, settings) as store:
            store.add_pairs(pairs, gold=gold)
            vote_as_a_crowd(store, pairs)
            token = store.invite("Robin", days=1)
            others = [store.invite(name, days=1) for name in ("Sam", "Kim")]
        options = PageOptions(guide=GUIDE, price=0.12)
        with served(path, options) as links, sync_playwright() as playwright:
            browser = playwright.chromium.launch(
                executable_path=CHROMIUM,
                args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
            )
            walk(browser, folder, links, token, others)
            browser.close()


if __name__ == "__main__":
    main()
