# SPDX-License-Identifier: Apache-2.0
"""`metarm serve` as a process: its address, its refusals, its signals, and its sudden death."""

import json
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from integration.commands import Command, Finished
from metarm.errors import ServingError
from metarm.models.ensemble import load_reward
from metarm.served_score import ServedScore
from metarm.storage import write_json
from patience import wait_until
from tiny_models import save_causal_lm, save_reward_model

PROMPTS = ["a", "b c", "a", "d e f a", "b", "c d"]
RESPONSES = [" b", " c d e f", "", " a", " c", " e"]
TOKEN = "0123456789abcdef0123"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_reward_model(tmp_path / "model")


@pytest.fixture
def serve(launch: Callable[..., Command]) -> Iterator[Callable[..., tuple[Command, str]]]:
    """Start a server and say its address once it answers; it is killed in the end."""
    started: list[Command] = []

    def begin(*words: object) -> tuple[Command, str]:
        command = launch("serve", *words, "--port", "0")
        started.append(command)
        out = command.folder / f"{command.process.name}.out"

        def said() -> re.Match[str] | None:
            return re.search(r"http://\S+\s", out.read_text() if out.exists() else "")

        wait_until(lambda: said() or not command.process.is_alive())
        found = said()
        assert found, command.finish()
        return command, found.group().strip().rstrip('",')

    yield begin
    for command in started:
        if command.process.is_alive():
            command.kill()


def expected_of(folder: Path) -> list[float]:
    local = load_reward(folder)
    return [local([p], [r])[0] for p, r in zip(PROMPTS, RESPONSES, strict=True)]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_serves_what_a_local_call_gives_and_ends_when_told(serve, model: Path, number) -> None:
    command, url = serve(model)
    score = ServedScore(url)
    assert score(PROMPTS, RESPONSES) == expected_of(model)
    os.kill(command.process.pid, number)
    done = command.finish()
    assert done.code == 0, done.err
    assert "every request that was accepted has been answered" in done.err
    assert "Traceback" not in done.err


def test_its_address_as_json(serve, model: Path) -> None:
    command, url = serve(model, "--json")
    os.kill(command.process.pid, signal.SIGTERM)
    document = json.loads(command.finish().out)
    assert document["url"] == url
    assert document["model"]["name"] == "model"
    assert len(document["model"]["sha256"]) == 64


def test_requests_under_way_are_answered_before_it_ends(serve, model: Path) -> None:
    command, url = serve(model)
    expected = expected_of(model)
    found: list[list[float]] = []
    refused: list[str] = []

    def ask() -> None:
        score = ServedScore(url, patience_seconds=0.5)
        while True:
            try:
                found.append(score(PROMPTS, RESPONSES))
            except ServingError as error:
                refused.append(str(error))
                return

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(found) >= 20)
    os.kill(command.process.pid, signal.SIGTERM)
    for thread in threads:
        thread.join()
    assert command.finish().code == 0
    assert all(scores == expected for scores in found)
    assert len(refused) == 4


def test_killed_at_once_its_clients_get_errors_and_no_numbers(serve, model: Path) -> None:
    command, url = serve(model)
    expected = expected_of(model)
    found: list[list[float]] = []
    errors: list[ServingError] = []

    def ask() -> None:
        score = ServedScore(url, patience_seconds=1)
        try:
            while True:
                found.append(score(PROMPTS, RESPONSES))
        except ServingError as error:
            errors.append(error)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(found) >= 20)
    command.kill()
    for thread in threads:
        thread.join()
    assert len(errors) == 4
    assert all(scores == expected for scores in found)


def test_a_new_champion_takes_its_place_on_sighup(serve, model: Path, tmp_path: Path) -> None:
    save_reward_model(tmp_path / "challenger", seed=1)
    local = {name: expected_of(tmp_path / name) for name in ("model", "challenger")}
    write_json(tmp_path / "champion.json", {"model": "model"})
    command, url = serve(tmp_path / "champion.json")
    versions = {1: "model", 2: "challenger"}
    is_over = threading.Event()

    seen: list[list[int]] = [[] for _ in range(4)]

    def ask(own: list[int]) -> None:
        score = ServedScore(url, batch_items=2)
        while not is_over.is_set():
            found = score.ask(PROMPTS, RESPONSES)
            assert found.scores == local[versions[found.version]]
            own.append(found.version)

    def all_have_seen(version: int) -> bool:
        return all(version in own for own in seen) or any(future.done() for future in futures)

    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(ask, own) for own in seen]
        try:
            wait_until(lambda: all_have_seen(1))
            write_json(tmp_path / "champion.json", {"model": "challenger"})
            os.kill(command.process.pid, signal.SIGHUP)
            wait_until(lambda: all_have_seen(2))
        finally:
            is_over.set()
        for future in futures:
            future.result()
    assert all(versions == sorted(versions) for versions in seen)
    assert {version for versions in seen for version in versions} == {1, 2}


def test_a_watched_place_needs_no_signal(serve, model: Path, tmp_path: Path) -> None:
    save_reward_model(tmp_path / "challenger", seed=1)
    write_json(tmp_path / "champion.json", {"model": "model"})
    _, url = serve(tmp_path / "champion.json", "watch_seconds=0.1")
    write_json(tmp_path / "champion.json", {"model": "challenger"})
    wait_until(lambda: ServedScore(url).ask(["a"], ["b"]).version == 2, pause=0.05)


def test_a_token_is_asked_for(serve, model: Path, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(TOKEN)
    _, url = serve(model, "--token-file", tmp_path / "token")
    with pytest.raises(ServingError, match="HTTP 401"):
        ServedScore(url)(PROMPTS, RESPONSES)
    assert ServedScore(url, token=TOKEN)(PROMPTS, RESPONSES) == expected_of(model)


def test_what_cannot_be_served_is_one_line(
    metarm: Callable[..., Finished], model: Path, tmp_path: Path
) -> None:
    save_causal_lm(tmp_path / "policy")
    (tmp_path / "weak").write_text("123")
    wrong = {
        "can be reached from other machines": (model, "--host", "0.0.0.0"),
        "expected a folder with a reward model": ("missing",),
        "got one without score.weight": ("policy", "--port", "0"),
        "expected one token of at least 16": (model, "--token-file", "weak"),
        "cannot find the address": (model, "--host", "no such host"),
        "did you mean 'max_items'": (model, "max_item=3"),
        "expected max_items (256) up to max_waiting_items (8)": (model, "max_waiting_items=8"),
    }
    for message, words in wrong.items():
        assert message in metarm("serve", *words).error
