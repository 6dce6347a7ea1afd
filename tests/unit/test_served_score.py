# SPDX-License-Identifier: Apache-2.0
"""The client: it waits and asks again where that helps, and never makes up a number."""

import http.server
import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import metarm.served_score
from metarm.errors import ConfigError, ServingError
from metarm.resolve import load_gold
from metarm.schema import Message
from metarm.served_score import TOKEN_VARIABLE, ServedScore

MODEL = {"name": "m", "version": 1, "sha256": "aa"}
Step = Callable[[dict[str, Any]], tuple[int, dict[str, str], Any]]


def good(request: dict[str, Any], **model: Any) -> tuple[int, dict[str, str], Any]:
    scores = [float(len(item["response"])) for item in request["items"]]
    return 200, {}, {"scores": scores, "uncertainty": None, "model": {**MODEL, **model}}


def answer(status: int, body: Any = None, **headers: str) -> Step:
    return lambda _: (status, {k.replace("_", "-"): v for k, v in headers.items()}, body)


def broken(_: dict[str, Any]) -> tuple[int, dict[str, str], Any]:
    raise ConnectionAbortedError


class Script:
    """A server that answers as it is told, one step a request, and good scores after the last."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.waits: list[float] = []
        self.url = ""


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[Script]:
    script = Script()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            script.requests.append(request)
            script.headers.append({name.lower(): value for name, value in self.headers.items()})
            step = script.steps.pop(0) if script.steps else good
            try:
                status, headers, body = step(request)
            except ConnectionAbortedError:
                self.close_connection = True
                return
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            for name, value in {"Content-Length": str(len(data)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    class Waits:
        """Time of the client: what it sleeps is noted and passes at once."""

        offset = 0.0

        def sleep(self, seconds: float) -> None:
            script.waits.append(seconds)
            self.offset += seconds

        def monotonic(self) -> float:
            return time.monotonic() + self.offset

        def time(self) -> float:
            return time.time()

    monkeypatch.setattr(metarm.served_score, "time", Waits())
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    script.url = f"http://127.0.0.1:{server.server_address[1]}"
    yield script
    server.shutdown()
    thread.join()
    server.server_close()


def test_scores_come_in_order_over_several_requests(script: Script) -> None:
    score = ServedScore(script.url, batch_items=2)
    conversation = (Message("user", "hi"),)
    assert score(["p", conversation, "p"], ["a", "bb", "ccc"]) == [1.0, 2.0, 3.0]
    assert [len(request["items"]) for request in script.requests] == [2, 1]
    assert script.requests[0]["items"][1]["prompt"] == [{"role": "user", "content": "hi"}]
    assert score([], []) == []


@pytest.mark.parametrize(
    "step",
    [
        *(answer(status, {"error": {"reason": "r", "message": "m"}}) for status in (429, 500, 503)),
        *(answer(502, b"<html>"), answer(504), broken),
    ],
)
def test_what_may_pass_is_asked_again(script: Script, step: Step) -> None:
    script.steps = [step, step, step]
    assert ServedScore(script.url)(["p"], ["abc"]) == [3.0]
    assert len(script.requests) == 4
    assert len(script.waits) == 3
    assert all(0 <= wait <= 10 for wait in script.waits)


def test_waits_grow_and_are_not_all_alike(script: Script) -> None:
    script.steps = [answer(503)] * 12
    score = ServedScore(script.url, patience_seconds=1000)
    score._jitter.seed(0)  # unseeded, the last waits would be shorter once in a million runs
    score(["p"], ["a"])
    assert max(script.waits[-4:]) > max(script.waits[:2])
    assert len(set(script.waits)) == 12


@pytest.mark.parametrize(("text", "least"), [("3", 3.0), ("0", 0.0), ("soon", 0.0), ("", 0.0)])
def test_the_server_says_when_to_come_back(script: Script, text: str, least: float) -> None:
    script.steps = [answer(429, Retry_After=text)]
    ServedScore(script.url)(["p"], ["a"])
    assert least <= script.waits[0] <= least + 0.2


def test_a_date_to_come_back_at(script: Script) -> None:
    from email.utils import formatdate

    script.steps = [answer(503, Retry_After=formatdate(time.time() + 100, usegmt=True))]
    ServedScore(script.url)(["p"], ["a"])
    assert 50 < script.waits[0] < 101


@pytest.mark.parametrize("status", [400, 401, 404, 413, 415, 421, 422, 301])
def test_what_will_not_pass_is_an_error_at_once(script: Script, status: int) -> None:
    script.steps = [answer(status, {"error": {"reason": "why", "message": "what to do"}})]
    with pytest.raises(ServingError, match=f"HTTP {status}: why: what to do"):
        ServedScore(script.url)(["p"], ["a"])
    assert len(script.requests) == 1


def test_patience_ends(script: Script) -> None:
    script.steps = [answer(429)] * 1000
    with pytest.raises(ServingError, match=r"no scores in \d+ tries within 30 s.*HTTP 429"):
        ServedScore(script.url, patience_seconds=30)(["p"], ["a"])


def test_nobody_there(script: Script) -> None:
    with pytest.raises(ServingError, match="Is it running"):
        ServedScore("http://127.0.0.1:1", patience_seconds=60)(["p"], ["a"])
    assert len(script.waits) > 3


def changed(**fields: Any) -> Step:
    return lambda request: (200, {}, {**good(request)[2], **fields})


@pytest.mark.parametrize(
    "step",
    [
        *(changed(scores=value) for value in ([], [1.0, 2.0], [None], ["1"], [True], None, {})),
        *(changed(scores=value) for value in ([[1.0]], "1", [10**400])),
        *(changed(uncertainty=value) for value in ([], [None], ["x"], 3)),
        *(changed(model=value) for value in (None, {}, {"version": "x", "sha256": "a"})),
        *(answer(200, body) for body in (b"", b"0", b"[]", b"{}", b"null", b"<html>", b"[" * 9999)),
        answer(200, b'{"scores": [NaN], "uncertainty": null, "model": {"version":1,"sha256":""}}'),
        answer(
            200, b'{"scores": [1e999], "uncertainty": null, "model": {"version":1,"sha256":""}}'
        ),
        answer(200, {"rewards": [0.0]}),
    ],
)
def test_an_answer_that_is_not_all_scores_is_an_error(script: Script, step: Step) -> None:
    script.steps = [step]
    with pytest.raises(ServingError):
        ServedScore(script.url)(["p"], ["a"])


def test_a_model_swapped_within_a_call_is_asked_for_all_again(script: Script) -> None:
    script.steps = [good, lambda request: good(request, sha256="bb", version=2)]
    script.steps += [lambda request: good(request, sha256="bb", version=2)] * 2
    found = ServedScore(script.url, batch_items=1).ask(["p", "p"], ["a", "bb"])
    assert (found.scores, found.version, found.sha256) == ([1.0, 2.0], 2, "bb")
    assert len(script.requests) == 4


def test_a_model_that_is_swapped_all_the_time_is_an_error(script: Script) -> None:
    hashes = iter(range(1000))
    script.steps = [lambda request: good(request, sha256=str(next(hashes)))] * 100
    with pytest.raises(ServingError, match="swapped 5 times"):
        ServedScore(script.url, batch_items=1)(["p", "p"], ["a", "b"])


def test_only_the_model_that_was_asked_for(script: Script) -> None:
    assert ServedScore(script.url, sha256="aa")(["p"], ["a"]) == [1.0]
    with pytest.raises(ServingError, match="expected scores of the model bb"):
        ServedScore(script.url, sha256="bb")(["p"], ["a"])


def test_the_disagreement_of_an_ensemble(script: Script) -> None:
    script.steps = [changed(uncertainty=[0.5]), changed(uncertainty=[0.25])]
    found = ServedScore(script.url, batch_items=1).ask(["p", "p"], ["a", "b"])
    assert found.uncertainty == [0.5, 0.25]


def test_the_token_is_shown_and_never_told(script: Script, monkeypatch) -> None:
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    ServedScore(script.url)(["p"], ["a"])
    monkeypatch.setenv(TOKEN_VARIABLE, "from-the-environment")
    ServedScore(script.url)(["p"], ["a"])
    ServedScore(script.url, token="given")(["p"], ["a"])
    shown = [headers.get("authorization") for headers in script.headers]
    assert shown == [None, "Bearer from-the-environment", "Bearer given"]
    script.steps = [answer(401, {"error": {"reason": "no_token", "message": "another"}})]
    with pytest.raises(ServingError) as caught:
        ServedScore(script.url, token="given-secret")(["p"], ["a"])
    assert "given-secret" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["ftp://x", "localhost:8000", "http://", "http://u:p@host", "http://:p@h", "http://h:x"]
)
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ServedScore(url)
    assert ":p@" not in str(caught.value)


def test_an_address_is_a_gold_function(script: Script) -> None:
    gold = load_gold(f"{script.url}/behind/a/proxy/", what="evaluation.gold")
    assert gold(["p"], ["abcd"]) == [4.0]


def test_an_error_of_the_server_is_told_as_it_is(script: Script) -> None:
    script.steps = [answer(422, {"error": {"reason": "too_long", "message": "shorten it"}})]
    with pytest.raises(ServingError, match="too_long: shorten it"):
        load_gold(script.url, what="evaluation.gold")(["p"], ["abcd"])
