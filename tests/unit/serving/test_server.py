# SPDX-License-Identifier: Apache-2.0
"""The server: who gets in, what is refused and how, and that no refusal is a number."""

import json
import logging
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from live_server import Gated, Live, live_server
from metarm.models.ensemble import load_reward, save_ensemble
from metarm.schema import PreferencePair
from metarm.serving.guard import KNOWN_ROUTES, OPEN_ROUTES, SCORING_ROUTES
from metarm.storage import write_json
from patience import PATIENCE_SECONDS, wait_until
from tiny_models import CONTEXT, save_reward_model

PAIRS = [("a", " b"), ("b c", " c d e f"), ("a", ""), ("d e f a", " a"), ("b", " c")]
TOKEN = "0123456789abcdef"


@pytest.fixture(scope="module")
def live(reward_model_dir: Path) -> Iterator[Live]:
    with live_server(
        reward_model_dir, max_items=8, max_body_bytes=4096, max_request_tokens=60
    ) as running:
        yield running


def test_scores_are_local_ones_to_the_last_bit(live: Live, reward_model_dir: Path) -> None:
    local = load_reward(reward_model_dir)
    expected = [local([p], [r])[0] for p, r in PAIRS]
    reply = live.score(*PAIRS)
    assert reply.status == 200
    assert reply.json["scores"] == expected
    assert reply.json["uncertainty"] is None
    assert reply.json["truncated"] == [False] * len(PAIRS)
    query = live.request("POST", "/get_reward", {"query": [p + r for p, r in PAIRS]})
    assert query.json["rewards"] == query.json["scores"] == expected
    assert query.json["extra_logs"] == {}


def test_every_answer_says_which_model_gave_it(live: Live) -> None:
    facts = live.server.slot.current.facts
    replies = [live.score(PAIRS[0]), live.request("GET", "/health"), live.request("GET", "/none")]
    for reply in replies:
        assert reply.headers["x-metarm-sha256"] == facts.sha256
        assert reply.headers["x-metarm-version"] == "1"
    assert replies[0].json["model"] == facts.model_dump()
    assert replies[1].json["sha256"] == facts.sha256


def test_nothing_to_score_is_no_scores(live: Live) -> None:
    """OpenRLHF shares one text out among several servers, so that some get none."""
    assert live.score().json["scores"] == []
    reply = live.request("POST", "/get_reward", {"query": [], "prompts": [], "labels": []})
    assert reply.json["rewards"] == []


def test_the_routes_are_these_and_all_but_one_ask_for_the_token(reward_model_dir: Path) -> None:
    with live_server(reward_model_dir, token=TOKEN) as running:
        routes = {
            (route.path, method) for route in running.server.app.routes for method in route.methods
        }
        assert {path for path, _ in routes} == KNOWN_ROUTES
        asked = [
            *routes,
            ("/none", "GET"),
            ("/openapi.json", "GET"),
            ("/docs", "GET"),
            ("/", "PUT"),
        ]
        for path, method in asked:
            for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": TOKEN}):
                reply = running.request(method, path, **headers)
                assert reply.status == (200 if path in OPEN_ROUTES else 401), path
        shown = {"Authorization": f"Bearer {TOKEN}"}
        assert running.request("GET", "/none", **shown).status == 404
        assert running.request("GET", "/metrics", **shown).status == 200
        items = {"items": [{"prompt": "a", "response": " b"}]}
        for header in (f"Bearer {TOKEN}", "Basic OjAxMjM0NTY3ODlhYmNkZWY="):
            assert running.request("POST", "/v1/score", items, Authorization=header).status == 200


INVALID = [
    {},
    {"items": None},
    {"items": "ab"},
    {"items": [{}]},
    {"items": [{"prompt": "a"}]},
    {"items": [{"prompt": "a", "response": 3}]},
    {"items": [{"prompt": "a", "response": "b", "reward": 1}]},
    {"items": [{"prompt": [], "response": "b"}]},
    {"items": [{"prompt": [{"role": "user"}], "response": "b"}]},
    {"items": [{"messages": [{"role": "user", "content": "a"}]}]},
    {"items": [{"messages": [{"role": "u", "content": "a"}, {"role": "user", "content": "b"}]}]},
    {"items": [], "truncate": "yes"},
    {"items": [], "more": 1},
    [],
    "text",
    3,
]


@pytest.mark.parametrize("body", INVALID, ids=lambda body: json.dumps(body)[:60])
def test_what_is_not_as_it_should_be_is_422(live: Live, body: object) -> None:
    reply = live.request("POST", "/v1/score", body)
    assert (reply.status, reply.reason) == (422, "invalid")


@pytest.mark.parametrize(
    "body",
    [
        {"query": "a"},
        {"query": [1]},
        {"query": ["a"], "prompts": []},
        {"query": ["a"], "labels": ["x", "y"]},
        {"query": ["a"], "score": 1},
    ],
    ids=json.dumps,
)
def test_openrlhf_requests_are_checked_too(live: Live, body: object) -> None:
    reply = live.request("POST", "/get_reward", body)
    assert (reply.status, reply.reason) == (422, "invalid")


@pytest.mark.parametrize(
    "body", [b"", b"{", b"\xff", b"[" * 2000, b'{"items": [1' + b"0" * 3000, b'"\\ud800"']
)
def test_what_is_no_document_is_refused(live: Live, body: bytes) -> None:
    reply = live.request("POST", "/v1/score", body, Content_Type="application/json")
    assert reply.status in (400, 422)
    assert reply.reason in ("not_json", "invalid")


def test_half_a_character_is_refused(live: Live) -> None:
    body = b'{"items": [{"prompt": "\\ud800", "response": "b"}]}'
    assert live.request("POST", "/v1/score", body, Content_Type="application/json").status == 422


def test_too_long_is_an_error_unless_a_cut_was_asked_for(live: Live) -> None:
    long = ("a" + " b" * CONTEXT, " c")
    assert live.score(long).reason == "too_long"
    reply = live.score(long, PAIRS[0], truncate=True)
    assert reply.json["truncated"] == [True, False]
    assert reply.json["num_tokens"][0] == CONTEXT


def test_sizes_are_capped(live: Live) -> None:
    many = live.score(*[PAIRS[0]] * 9)
    assert (many.status, many.reason) == (413, "too_many_items")
    tokens = live.score(*[("a" + " b" * 18, " c")] * 4)
    assert (tokens.status, tokens.reason) == (413, "too_many_tokens")
    large = live.score(("a" * 5000, ""))
    assert (large.status, large.reason) == (413, "body_too_large")


def raw(live: Live, *parts: bytes, pause: float = 0.0) -> bytes:
    """What comes back for bytes sent as they are, until the server closes the line."""
    with socket.create_connection(("127.0.0.1", live.port), timeout=PATIENCE_SECONDS) as line:
        for part in parts:
            line.sendall(part)
            time.sleep(pause)
        found = b""
        while chunk := line.recv(65536):
            found += chunk
        return found


HEAD = (
    b"POST /v1/score HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    b"Connection: close\r\n"
)


def test_a_body_that_does_not_say_its_size_is_capped_while_it_comes(live: Live) -> None:
    chunk = b"400\r\n" + b"x" * 1024 + b"\r\n"
    answer = raw(live, HEAD + b"Transfer-Encoding: chunked\r\n\r\n", *[chunk] * 5)
    assert b" 413 " in answer.splitlines()[0]
    assert b"body_too_large" in answer


def test_a_body_that_does_not_come_is_not_waited_for(reward_model_dir: Path) -> None:
    with live_server(reward_model_dir, body_timeout_seconds=0.2) as running:
        answer = raw(running, HEAD + b'Content-Length: 100\r\n\r\n{"items"')
        assert b" 408 " in answer.splitlines()[0]
        assert b"body_too_slow" in answer
        # A busy machine may be slow with a sound body too.
        wait_until(lambda: running.score(PAIRS[0]).status == 200)


def test_only_json_and_only_by_its_own_name(live: Live) -> None:
    body = json.dumps({"items": []}).encode()
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        reply = live.request("POST", "/v1/score", body, Content_Type=kind)
        assert (reply.status, reply.reason) == (415, "wrong_content_type")
    for host in ("evil.example", "127.0.0.1.evil.example:80", ""):
        reply = live.request("GET", "/health", Host=host)
        assert (reply.status, reply.reason) == (421, "wrong_host")
    assert live.request("GET", "/health", Host=f"localhost:{live.port}").status == 200
    assert live.request("GET", "/v1/score").reason == "wrong_method"


@pytest.fixture
def gated(reward_model_dir: Path) -> Iterator[tuple[Live, Gated]]:
    """A server whose model waits to be let, with room for four items."""
    limits = {"max_items": 4, "max_waiting_items": 4, "max_batch_items": 4}
    with live_server(reward_model_dir, timeout_seconds=PATIENCE_SECONDS, **limits) as running:
        gate = Gated(running.server.slot.current)
        running.server.slot.current = gate
        try:
            yield running, gate
        finally:
            gate.is_open.set()


def test_a_full_queue_is_429_and_what_was_let_in_is_answered(gated, reward_model_dir: Path) -> None:
    running, gate = gated
    local = load_reward(reward_model_dir)
    with ThreadPoolExecutor(8) as pool:
        first = pool.submit(running.score, PAIRS[0])
        assert gate.has_begun.wait(PATIENCE_SECONDS)
        waiting = [pool.submit(running.score, pair) for pair in PAIRS[1:]]
        wait_until(lambda: running.server.queue._num_waiting == 4)
        refused = running.score(PAIRS[0])
        assert (refused.status, refused.reason) == (429, "overloaded")
        assert int(refused.headers["retry-after"]) >= 1
        gate.is_open.set()
        replies = [first.result(), *(future.result() for future in waiting)]
    assert [reply.json["scores"] for reply in replies] == [local([p], [r]) for p, r in PAIRS]
    assert gate.sizes == [1, 4], "what waited went together"


def test_a_wait_that_would_be_too_long_is_429_before_it_begins(gated) -> None:
    running, gate = gated
    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(running.score, PAIRS[0])
        assert gate.has_begun.wait(PATIENCE_SECONDS)
        second = pool.submit(running.score, PAIRS[1])
        wait_until(lambda: running.server.queue._num_waiting == 1)
        running.server.queue._items_per_second = 1 / 25
        third = pool.submit(running.score, PAIRS[2])  # 25 s of work wait, 30 s may
        wait_until(lambda: running.server.queue._num_waiting == 2)
        refused = running.score(PAIRS[3])
        assert (refused.status, refused.reason) == (429, "overloaded")
        assert refused.headers["retry-after"] == "30"
        gate.is_open.set()
        assert [future.result().status for future in (first, second, third)] == [200] * 3


def test_a_batch_is_no_larger_than_it_may(gated) -> None:
    running, gate = gated
    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(running.score, PAIRS[0])
        assert gate.has_begun.wait(PATIENCE_SECONDS)
        futures = [pool.submit(running.score, *PAIRS[:2]), pool.submit(running.score, *PAIRS[:2])]
        wait_until(lambda: running.server.queue._num_waiting == 4)
        gate.is_open.set()
        assert all(future.result().status == 200 for future in [first, *futures])
    assert max(gate.sizes) <= 4


def test_time_that_is_up_is_504_and_frees_its_place(reward_model_dir: Path) -> None:
    with live_server(reward_model_dir, timeout_seconds=0.3) as running:
        gate = Gated(running.server.slot.current)
        running.server.slot.current = gate
        with ThreadPoolExecutor(3) as pool:
            futures = [pool.submit(running.score, pair) for pair in PAIRS[:3]]
            replies = [future.result() for future in futures]
        assert {(reply.status, reply.reason) for reply in replies} == {(504, "deadline")}
        assert running.server.queue._num_waiting == 0
        running.server.slot.current = gate.model
        gate.is_open.set()
        wait_until(lambda: running.score(PAIRS[0]).status == 200)


class _Failing(Gated):
    """Fails where a row holds a token that it does not like."""

    def score(self, items):
        self.has_begun.set()
        self.is_open.wait(PATIENCE_SECONDS)
        if any(9 in row for item in items for row in item.rows):
            raise RuntimeError("a secret text of the request")
        return self.model.score(items)


def test_a_request_that_fails_takes_no_other_with_it(
    gated, reward_model_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    running, gate = gated
    failing = _Failing(gate.model)
    running.server.slot.current = failing
    local = load_reward(reward_model_dir)
    with ThreadPoolExecutor(4) as pool:
        good = [pool.submit(running.score, PAIRS[0])]
        assert failing.has_begun.wait(PATIENCE_SECONDS)
        good.append(pool.submit(running.score, PAIRS[4]))
        bad = pool.submit(running.score, ("a", " f"))
        wait_until(lambda: running.server.queue._num_waiting == 2)
        failing.is_open.set()
        assert (bad.result().status, bad.result().reason) == (500, "failed")
        assert [f.result().json["scores"] for f in good] == [
            local([p], [r]) for p, r in (PAIRS[0], PAIRS[4])
        ]
    assert "secret" not in bad.result().body.decode() + caplog.text


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_without_its_thread_the_server_says_so_and_gives_no_numbers(gated) -> None:
    running, gate = gated

    class Fatal(Gated):
        def score(self, items):
            raise SystemExit

    running.server.slot.current = Fatal(gate.model)
    assert running.score(PAIRS[0]).reason == "failed"
    wait_until(lambda: not running.server.queue.is_alive)
    health = running.request("GET", "/health")
    assert (health.status, health.json["status"]) == (503, "failed")
    assert running.score(PAIRS[0]).reason == "failed"


def test_no_text_of_a_request_is_logged(
    live: Live, reward_model_dir: Path, caplog: pytest.LogCaptureFixture, capfd
) -> None:
    caplog.set_level(logging.DEBUG)
    secret = "a-very-secret-prompt"
    live.score((secret, " b"))
    live.score((f"{secret} " * 40, " b"))
    live.request("POST", "/v1/score", {"items": [{secret: secret}]})
    live.request("POST", "/get_reward", {"query": [secret] * 9})
    live.request("POST", "/v1/score", secret.encode(), Content_Type="application/json")
    live.request("GET", f"/{secret}?prompt={secret}")
    shown = capfd.readouterr()
    metrics = live.request("GET", "/metrics").body.decode()
    assert secret not in caplog.text + shown.out + shown.err + metrics


def test_what_is_wrong_is_told_without_what_was_sent(live: Live) -> None:
    reply = live.request("POST", "/v1/score", {"items": [{"prompt": "hush", "response": 3}]})
    assert "response" in reply.json["error"]["message"]
    assert "hush" not in reply.body.decode()


def test_an_ensemble_is_served_with_its_disagreement(tmp_path: Path) -> None:
    members = [save_reward_model(tmp_path / f"member_{n}", seed=n) for n in range(2)]
    save_ensemble(tmp_path / "reward", members, [PreferencePair("a", " b c", " d")])
    local = load_reward(tmp_path / "reward")
    with live_server(tmp_path / "reward") as running:
        reply = running.score(*PAIRS[:2])
        assert reply.json["scores"] == [local([p], [r])[0] for p, r in PAIRS[:2]]
        assert min(reply.json["uncertainty"]) > 0
        queries = {"query": [p + r for p, r in PAIRS[:2]]}
        logs = running.request("POST", "/get_reward", queries).json["extra_logs"]
        assert logs == {"uncertainty": pytest.approx(sum(reply.json["uncertainty"]) / 2)}


def test_a_swap_under_load_loses_and_mixes_nothing(tmp_path: Path) -> None:
    local = {}
    for number in range(3):
        folder = save_reward_model(tmp_path / f"model_{number}", seed=number)
        score = load_reward(folder)
        local[folder.name] = [score([p], [r])[0] for p, r in PAIRS]
    place = tmp_path / "champion.json"
    write_json(place, {"model": "model_0"})
    with live_server(place) as running, ThreadPoolExecutor(6) as pool:
        is_over = threading.Event()

        replies: list[tuple[int, dict]] = []

        def ask() -> None:
            while not is_over.is_set():
                reply = running.score(*PAIRS)
                replies.append((reply.status, reply.json))

        def is_over_or_seen(version: int) -> bool:
            return any(future.done() for future in futures) or any(
                answer["model"]["version"] == version for _, answer in list(replies)
            )

        futures = [pool.submit(ask) for _ in range(5)]
        try:
            for version, number in enumerate((1, 2, 0, 1), 2):
                write_json(place, {"model": f"model_{number}"})
                assert running.server.slot.refresh()
                wait_until(lambda now=version: is_over_or_seen(now))
        finally:
            is_over.set()
        for future in futures:
            future.result()
    assert {status for status, _ in replies} == {200}
    assert {answer["model"]["version"] for _, answer in replies} >= {2, 3, 4, 5}
    for _, answer in replies:
        assert answer["scores"] == local[answer["model"]["name"]]


def test_what_is_counted(live: Live) -> None:
    before = live.server.counters.value("metarm_items_total")
    live.score(*PAIRS[:3])
    live.request("POST", "/v1/score", {})
    text = live.request("GET", "/metrics").body.decode()
    assert live.server.counters.value("metarm_items_total") == before + 3
    assert 'metarm_requests_total{code="200",route="/v1/score"}' in text
    assert 'metarm_refusals_total{reason="invalid"}' in text
    assert "metarm_waiting_items 0" in text
    assert "metarm_body_bytes 0" in text
    assert live.server.slot.current.facts.sha256 in text
    assert SCORING_ROUTES < KNOWN_ROUTES
