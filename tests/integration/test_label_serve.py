# SPDX-License-Identifier: Apache-2.0
"""`metarm label serve` and `label invite` as processes: links, refusals, signals, sudden deaths."""

import http.client
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from integration.commands import Command, Finished
from live_labels import make_store, plain_pairs
from metarm.labels.reading import LabelReader
from patience import PATIENCE_SECONDS, held_port, wait_until

TOKEN = "0123456789abcdef0123"


@pytest.fixture
def store(tmp_path: Path) -> Path:
    make_store(tmp_path / "labels.db", plain_pairs(20))
    return tmp_path / "labels.db"


@pytest.fixture
def serve(launch: Callable[..., Command]) -> Iterator[Callable[..., tuple[Command, str, str]]]:
    """Start the page and say its two links once it answers; it is killed in the end."""
    started: list[Command] = []

    def begin(*words: object) -> tuple[Command, str, str]:
        command = launch("label", "serve", *words)
        started.append(command)
        out = command.folder / f"{command.process.name}.out"

        def said() -> list[str]:
            return re.findall(r"http://\S+(?=\s)", out.read_text() if out.exists() else "")

        wait_until(lambda: len(said()) == 2 or not command.process.is_alive())
        found = said()
        assert len(found) == 2, command.finish()
        return command, found[0].rstrip('",'), found[1].rstrip('",')

    yield begin
    for command in started:
        if command.process.is_alive():
            command.kill()


def post(url: str, path: str, body: Any, cookie: str = "") -> tuple[int, Any, str]:
    place = urlsplit(url)
    connection = http.client.HTTPConnection(
        place.hostname or "", place.port, timeout=PATIENCE_SECONDS
    )
    headers = {"Content-Type": "application/json", "Cookie": cookie}
    connection.request("POST", path, json.dumps(body), headers)
    response = connection.getresponse()
    told = json.loads(response.read())
    cookie = (response.headers["Set-Cookie"] or "").partition(";")[0]
    connection.close()
    return response.status, told, cookie


def sign_in(link: str) -> str:
    status, _, cookie = post(link, "/api/enter", {"token": link.partition("#")[2]})
    assert status == 200
    return cookie


def vote(url: str, cookie: str, key: str, item: str = "") -> str:
    if not item:
        _, told, _ = post(url, "/api/next", {"annotator": "Robin", "besides": []}, cookie)
        item = told["items"][0]["id"]
    body = {"annotator": "Robin", "key": key, "item": item, "answer": "left"}
    status, told, _ = post(url, "/api/vote", body, cookie)
    assert status == 200, told
    return item


def test_invite_serve_vote_and_end(
    metarm: Callable[..., Finished], serve, store: Path, tmp_path: Path
) -> None:
    link = metarm("label", "invite", store, "Robin", "--days", "2").out.strip()
    assert re.fullmatch(r"http://127\.0\.0\.1:8001/enter#[\w-]{32}", link)
    command, url, owner = serve(store, "--port", "0")
    cookie = sign_in(f"{url}/enter#{link.partition('#')[2]}")
    item = vote(url, cookie, "key-00000001")
    vote(url, cookie, "key-00000001", item)
    assert sign_in(owner).startswith("metarm-owner-")
    os.kill(command.process.pid, signal.SIGTERM)
    done = command.finish()
    assert done.code == 0, done.err
    assert "every answer that was accepted is in the store" in done.err
    assert "Traceback" not in done.err
    for secret in (link.partition("#")[2], owner.partition("#")[2]):
        assert secret not in done.err
        assert all(
            secret.encode() not in path.read_bytes()
            for path in tmp_path.iterdir()
            if path.is_file()
        )
    with LabelReader(store) as reader:
        assert len(reader.events()) == 1


def test_a_store_has_one_server(metarm: Callable[..., Finished], serve, store: Path) -> None:
    serve(store, "--port", "0")
    for words in (("label", "serve", store, "--port", "0"), ("label", "invite", store, "Robin")):
        assert "label" in metarm(*words).error


def test_what_is_refused(metarm: Callable[..., Finished], store: Path, tmp_path: Path) -> None:
    def refused(*words: object) -> str:
        return metarm("label", "serve", *words).error

    assert "--owner-token-file" in refused(store, "--host", "0.0.0.0")
    assert "metarm label add" in refused(tmp_path / "none.db")
    assert "https://labels.example.org" in refused(store, "--public-url", "labels", "--port", "0")
    assert "--after" in refused(store, "--before", store, "--port", "0")
    assert "cannot read the guide" in refused(store, "--guide", tmp_path / "none.txt")
    short = tmp_path / "token"
    short.write_text("short")
    assert "at least 16" in refused(store, "--owner-token-file", short)
    assert "days above 0" in metarm("label", "invite", store, "Robin", "--days", "0").error


def test_a_server_for_others_has_the_owners_token(serve, store: Path, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text(TOKEN)
    token.chmod(0o600)
    words = ("--host", "0.0.0.0", "--owner-token-file", token, "--port", "0", "--json")
    _, url, owner = serve(store, *words)
    assert "#" not in owner
    own = url.replace("0.0.0.0", "127.0.0.1")
    assert sign_in(f"{own}/enter#{TOKEN}")


def test_killed_at_once_and_started_again(
    metarm: Callable[..., Finished], serve, store: Path
) -> None:
    token = metarm("label", "invite", store, "Robin").out.strip().partition("#")[2]
    with held_port() as port:
        command, url, _ = serve(store, "--port", port)
        cookie = sign_in(f"{url}/enter#{token}")
        items = [vote(url, cookie, f"key-{n:08d}") for n in range(5)]
        command.kill()
        serve(store, "--port", port)
        # Signed in still, and what is sent again is there already.
        for number, item in enumerate(items):
            vote(url, cookie, f"key-{number:08d}", item)
        vote(url, cookie, "key-after-it")
    with LabelReader(store) as reader:
        assert len(reader.events()) == len(reader.votes()) == 6


@pytest.mark.slow
def test_a_few_kills_of_server_and_annotators(repository: Path, tmp_path: Path) -> None:
    """The benchmark behind docs/labelling.md, in short: its result says what was lost."""
    script = repository / "benchmarks" / "label_kills.py"
    words = ["--kills", "6", "--annotators", "3", "--browsers", "0", "--pairs", "120"]
    output = tmp_path / "kills.json"
    done = subprocess.run(
        [sys.executable, script, *words, "--patience", str(PATIENCE_SECONDS), "--output", output],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(output.read_text())
    assert found["num_lost"] == found["num_doubled"] == found["num_wrong_sides"] == 0
    assert found["num_acknowledged"] == found["num_stored"] > 50
    assert sum(found["kills"].values()) >= 3
