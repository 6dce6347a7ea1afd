# SPDX-License-Identifier: Apache-2.0
"""Kill the labelling server and its annotators at random moments, and count what became of votes.

    python benchmarks/label_kills.py --kills 200 --output benchmarks/results/label_kills.json

Twenty annotators label one store until nothing is left. Most are processes that speak HTTP and keep
an outbox in files, as the page keeps one in localStorage: an answer is on their disk before it is
sent, and stays until it is acknowledged. Some are real pages in Chromium. Server, annotators and
browsers are killed by SIGKILL at random moments and started again. Everybody notes what they
answered (which text, before it is sent) and what was acknowledged (before it leaves the outbox); in
the end that is held against the store.
"""

import argparse
import http.client
import json
import multiprocessing
import os
import platform
import random
import signal
import socket
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from metarm.labelling.run import PageOptions, serve_page
from metarm.labels.reading import LabelReader
from metarm.labels.settings import LabelSettings
from metarm.labels.store import LabelStore
from metarm.labels.votes import LabelPair
from metarm.storage import write_json

CHROMIUM: Final = "/usr/bin/chromium"
ANSWERS: Final = {
    "left_much": ("left", 2),
    "left": ("left", 1),
    "tie": ("tie", 1),
    "right": ("right", 1),
    "right_much": ("right", 2),
}
KEYS: Final = dict(zip("12345", ANSWERS, strict=True))
OWNER_TOKEN: Final = "owner-0123456789abcdef"


def append_line(path: Path, row: Any) -> None:
    """One line that is on the disk when this returns."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        os.write(descriptor, f"{json.dumps(row)}\n".encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_lines(path: Path) -> list[Any]:
    """The rows of such a file; a torn line is left out."""
    rows = []
    for line in path.read_bytes().split(b"\n")[:-1] if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


# ---- those who are killed -----------------------------------------------------------------------


def serve(store: str, port: int, log: str) -> None:
    """The server, as `metarm label serve` runs it."""
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.dup2(descriptor, 2)
    options = PageOptions(owner_token=OWNER_TOKEN)
    serve_page(Path(store), options, host="127.0.0.1", port=port, on_ready=lambda links: None)


def annotate(name: str, token: str, port: int, folder: str, seed: int) -> None:
    """One annotator over HTTP: an outbox in files, each answer sent until it is acknowledged."""
    place = Path(folder)
    outbox = place / "outbox"
    outbox.mkdir(parents=True, exist_ok=True)
    draw = random.Random(f"{seed} {name} {time.time_ns()}")
    while True:
        try:
            session = _Session(port, token)
            for path in sorted(outbox.iterdir()):
                if path.suffix == ".json":
                    _send(session, path, place)
            waiting: list[str] = []
            told = session.post("/api/next", {"annotator": name, "besides": waiting})
            if told["wait"] == "batch":
                batch = {"annotator": name, "number": told["progress"]["batch"]}
                session.post("/api/batch", batch)
                continue
            if not told["items"]:
                append_line(place / "done", name)
                return
            item = told["items"][0]
            answer = draw.choice(list(ANSWERS))
            key = f"{draw.getrandbits(128):032x}"
            body = {"annotator": name, "key": key, "item": item["id"], "answer": answer}
            body["seconds"] = round(draw.uniform(0.1, 9), 3)
            _note_answer(place, key, item["left"], item["right"], item["prompt"], answer)
            draft = outbox / f".{key}"
            append_line(draft, body)
            draft.rename(outbox / f"{time.time_ns():020d}.{key}.json")
        except (OSError, http.client.HTTPException, ValueError):
            time.sleep(draw.uniform(0.02, 0.1))


def _note_answer(
    place: Path, key: str, left: list[str], right: list[str], prompt: list[Any], answer: str
) -> None:
    side, strength = ANSWERS[answer]
    winner = {"left": left[0], "right": right[0], "tie": "tie"}[side]
    row = {"key": key, "prompt": prompt[-1]["text"][0], "winner": winner, "strength": strength}
    append_line(place / "answered", row | {"left": left[0]})


def _send(session: "_Session", path: Path, place: Path) -> None:
    [body] = read_lines(path)
    session.post("/api/vote", body)
    if random.random() < 0.1:
        session.post("/api/vote", body)  # as a second tab would
    append_line(place / "acknowledged", body["key"])
    path.unlink()


class _Session:
    """A connection that is signed in."""

    def __init__(self, port: int, token: str) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        self._cookie = ""
        headers = self._request("/api/enter", {"token": token})[1]
        self._cookie = headers["Set-Cookie"].partition(";")[0]

    def post(self, path: str, body: Any) -> Any:
        """The JSON of an answer that is no error.

        Raises:
            ValueError: When it is one, or half of one.
        """
        return json.loads(self._request(path, body)[0])

    def _request(self, path: str, body: Any) -> tuple[bytes, http.client.HTTPMessage]:
        headers = {"Content-Type": "application/json", "Cookie": self._cookie}
        self._connection.request("POST", path, json.dumps(body), headers)
        response = self._connection.getresponse()
        content = response.read()
        if response.status != 200:
            raise ValueError(f"{path}: {response.status} {content!r}")
        return content, response.headers


def browse(name: str, token: str, port: int, folder: str, seed: int) -> None:
    """One annotator with a real page; its profile stays on the disk when the browser is killed."""
    from playwright.sync_api import Error, sync_playwright

    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    os.setsid()  # browser and driver die with this process's group
    draw = random.Random(f"{seed} {name} {time.time_ns()}")
    url = f"http://127.0.0.1:{port}"
    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            place / "profile",
            executable_path=CHROMIUM,
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        context.add_init_script(NOTE_SCRIPT)
        page = context.pages[0] if context.pages else context.new_page()
        page.set_default_timeout(4000)
        page.expose_function("noteAnswered", lambda row: append_line(place / "answered", row))
        page.expose_function(
            "noteAcknowledged", lambda key: append_line(place / "acknowledged", key)
        )
        while True:
            try:
                if not page.url.startswith(url) or page.locator("#token").count():
                    page.goto(f"{url}/enter#{token}")
                    page.reload()
                if "/batch/" in page.url:
                    page.click("a.button")
                page.wait_for_selector("#item:not([hidden]), #away:not([hidden])")
                if page.locator("#item").is_hidden():
                    title = page.locator("#away-title").inner_text()
                    if title.startswith("Nothing left") and _is_sent(page):
                        append_line(place / "done", name)
                        context.close()
                        return
                    page.click("#away-button")
                    page.wait_for_timeout(200)
                    continue
                page.wait_for_timeout(draw.uniform(320, 500))
                page.keyboard.press(draw.choice("12345"))
            except Error:
                if not context.pages:
                    raise
                time.sleep(0.2)


def _is_sent(page: Any) -> bool:
    script = "() => Object.keys(localStorage).every((n) => !n.startsWith('metarm.outbox'))"
    return bool(page.evaluate(script))


NOTE_SCRIPT: Final = """
const text = (id) => document.getElementById(id).textContent;
const setItem = Storage.prototype.setItem;
const removeItem = Storage.prototype.removeItem;
const shown = () => ({ prompt: document.querySelector('#prompt .text').textContent,
  left: text('left'), right: text('right') });
Storage.prototype.setItem = function (name, value) {
  setItem.call(this, name, value);
  if (name.startsWith('metarm.outbox')) {
    const body = JSON.parse(value).body;
    const [side, strength] = { left_much: ['left', 2], left: ['left', 1], tie: ['tie', 1],
      right: ['right', 1], right_much: ['right', 2] }[body.answer];
    const seen = shown();
    const winner = side === 'tie' ? 'tie' : seen[side];
    window.noteAnswered({ key: body.key, prompt: seen.prompt, left: seen.left, winner, strength });
  }
};
Storage.prototype.removeItem = function (name) {
  if (name.startsWith('metarm.outbox')) {
    const kept = this.getItem(name);
    if (kept) window.noteAcknowledged(JSON.parse(kept).body.key);
  }
  removeItem.call(this, name);
};
"""
"""Notes in the page itself, at the moments that count: what is on the screen when an answer is put
into the outbox, and when it leaves it. The outbox is not touched."""


# ---- who kills ----------------------------------------------------------------------------------


class Life:
    """A process that is started again when it was killed."""

    def __init__(self, target: Callable[..., None], *words: Any) -> None:
        self._target, self._words = target, words
        self.process = self._start()

    def _start(self) -> Any:
        process = multiprocessing.get_context("forkserver").Process(
            target=self._target, args=self._words
        )
        process.start()
        return process

    def kill(self) -> bool:
        """End it at once; False where it has ended by itself."""
        if not self.process.is_alive():
            return False
        group = self._target is browse
        try:
            if group and os.getpgid(self.process.pid) == self.process.pid:
                os.killpg(self.process.pid, signal.SIGKILL)
            else:
                os.kill(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            return False
        self.process.join()
        return True

    def again(self) -> None:
        """Start it, unless it runs."""
        if not self.process.is_alive():
            self.process.join()
            self.process = self._start()


def made_up_pairs(count: int) -> list[LabelPair]:
    """Pairs whose texts tell which is which."""
    return [
        LabelPair(f"question {n}", f"one {n}", f"two {n}", "some policy", "random")
        for n in range(count)
    ]


def measure(
    *, kills: int, annotators: int, browsers: int, pairs: int, seed: int, patience: float
) -> dict[str, Any]:
    """Label a store under fire, and count.

    Args:
        kills: Of server, annotators and browsers together.
        annotators: All of them.
        browsers: Of those, the ones with a page in Chromium.
        pairs: In the store; each wants three votes.
        seed: Of the kills.
        patience: Seconds until it is given up.
    """
    draw = random.Random(seed)
    names = [f"annotator {n}" for n in range(annotators)]
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        store = place / "labels.db"
        settings = LabelSettings(
            votes_per_pair=3, repeat_fraction=0.1, lease_minutes=0.02, batch_size=10
        )
        made = made_up_pairs(pairs)
        with LabelStore(store, settings) as opened:
            opened.add_pairs(made, gold={pair.id: "first" for pair in made[:10]})
            tokens = {name: opened.invite(name, days=1) for name in names}
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        began = time.monotonic()
        server = Life(serve, str(store), port, str(place / "server.log"))
        people = {
            name: Life(
                browse if number < browsers else annotate,
                name,
                tokens[name],
                port,
                str(place / name),
                seed,
            )
            for number, name in enumerate(names)
        }
        done: Counter[str] = Counter()
        while done.total() < kills and time.monotonic() - began < patience:
            time.sleep(draw.uniform(0.02, 0.35))
            is_server = draw.random() < 0.5
            finished = {name for name in names if (place / name / "done").exists()}
            if len(finished) == len(names):
                break
            if is_server:
                done["server"] += server.kill()
            else:
                name = draw.choice([name for name in names if name not in finished])
                kind = "browser" if names.index(name) < browsers else "annotator"
                done[kind] += people[name].kill()
            server.again()
            for name, person in people.items():
                if name not in finished:
                    person.again()
        while time.monotonic() - began < patience:
            server.again()
            left = [name for name in names if not (place / name / "done").exists()]
            if not left:
                break
            for name in left:
                people[name].again()
            time.sleep(0.2)
        seconds = time.monotonic() - began
        is_whole = all((place / name / "done").exists() for name in names)
        for person in people.values():
            person.kill()
        os.kill(server.process.pid, signal.SIGTERM)
        server.process.join()
        counted = count(store, place, names)
    return {
        "kills": dict(done),
        "num_kills": done.total(),
        "num_annotators": annotators,
        "num_browsers": browsers,
        "num_pairs": pairs,
        "is_labelled_to_the_end": is_whole,
        "seconds": round(seconds, 1),
        **counted,
        "seed": seed,
        "sqlite": sqlite3.sqlite_version,
        "python": platform.python_version(),
    }


def count(store: Path, place: Path, names: list[str]) -> dict[str, Any]:
    """What was answered and acknowledged, against what is stored."""
    with LabelReader(store) as reader:
        events, pairs = reader.events(), {pair.id: pair for pair in reader.pairs()}
        in_force = reader.vote_events()
        wanted = reader.settings.votes_per_pair
        gold = reader.gold()
    stored = {event.key: event for event in events}
    answered = {row["key"]: row for name in names for row in read_lines(place / name / "answered")}
    acknowledged = {key for name in names for key in read_lines(place / name / "acknowledged")}
    wrong = []
    for key, event in stored.items():
        row, pair = answered[key], pairs[event.pair]
        words = {"first": pair.first, "second": pair.second, "tie": "tie"}
        left = pair.second if event.is_turned else pair.first
        told = (pair.prompt, words[event.choice], event.strength, left)
        if told != (row["prompt"], row["winner"], row["strength"], row["left"]):
            wrong.append(key)
    shown = Counter((e.annotator, e.pair, e.showing) for e in in_force)
    by_pair = Counter(e.pair for e in in_force if e.showing == 0 and e.pair not in gold)
    with sqlite3.connect(store) as connection:
        (integrity,) = connection.execute("PRAGMA integrity_check").fetchone()
    return {
        "num_answered": len(answered),
        "num_acknowledged": len(acknowledged),
        "num_stored": len(stored),
        "num_votes": len(in_force),
        "num_lost": len(acknowledged - stored.keys()),
        "num_doubled": len(events) - len(stored) + sum(n > 1 for n in shown.values()),
        "num_wrong_sides": len(wrong),
        "num_pairs_below_their_votes": sum(
            by_pair[pair] < wanted for pair in pairs if pair not in gold
        ),
        "num_votes_beyond_their_pairs": sum(max(0, n - wanted) for n in by_pair.values()),
        "integrity": integrity,
    }


def main() -> int:
    """Measure, print, keep; 1 where anything went wrong."""
    reader = argparse.ArgumentParser(description=__doc__)
    reader.add_argument("--kills", type=int, default=200)
    reader.add_argument("--annotators", type=int, default=20)
    reader.add_argument("--browsers", type=int, default=2)
    reader.add_argument("--pairs", type=int, default=400)
    reader.add_argument("--seed", type=int, default=0)
    reader.add_argument("--patience", type=float, default=1800.0, help="Seconds.")
    reader.add_argument("--output", type=Path)
    words = reader.parse_args()
    multiprocessing.get_context("forkserver").set_forkserver_preload(
        ["metarm.labelling.run", "playwright.sync_api"]
        if words.browsers
        else ["metarm.labelling.run"]
    )
    found = measure(
        kills=words.kills,
        annotators=words.annotators,
        browsers=words.browsers,
        pairs=words.pairs,
        seed=words.seed,
        patience=words.patience,
    )
    print(json.dumps(found, indent=2))
    if words.output is not None:
        write_json(words.output, {"command": " ".join(["python", *sys.argv]), **found})
    bad = found["num_lost"] + found["num_doubled"] + found["num_wrong_sides"]
    return int(bad > 0 or found["integrity"] != "ok" or not found["is_labelled_to_the_end"])


if __name__ == "__main__":
    raise SystemExit(main())
