# SPDX-License-Identifier: Apache-2.0
"""A model behind a URL: what fails is tried again within bounds, and nothing is paid for twice."""

import json
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fault_server import Call, FaultServer, Reply, say, serve
from metarm.config_judge import EndpointSettings
from metarm.endpoint.answers import AnswerFile, Spent
from metarm.endpoint.caps import cost_of
from metarm.endpoint.client import Asked, Endpoint, Question, read_answer, retry_after_seconds
from metarm.errors import ConfigError, EndpointError
from metarm.progress import SilentProgress

KEY = "sk-very-secret-123"


def questions(count: int, **body: Any) -> list[Question]:
    return [
        Question({"messages": [{"role": "user", "content": f"question {n}"}], **body}, 5)
        for n in range(count)
    ]


def ask(server: FaultServer, path: Path, asked: list[Question] | int = 6, **settings: Any) -> Asked:
    quick = {"max_wait_seconds": 0.01, "num_in_flight": 3, "timeout_seconds": 5.0}
    endpoint = Endpoint(server.url, "judge", EndpointSettings(**{**quick, **settings}))
    wanted = questions(asked) if isinstance(asked, int) else asked
    with AnswerFile(path) as file, SilentProgress().stage("ask", len(wanted)) as bar:
        return endpoint.ask(wanted, file, bar)


def texts(asked: Asked) -> list[str | None]:
    return [None if answer is None else answer.text for answer in asked.answers]


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where answers are kept; whatever a test does, the key does not get there."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    yield tmp_path / "answers.jsonl"
    for file in tmp_path.rglob("*"):
        assert KEY.encode() not in file.read_bytes()


def echo(call: Call) -> Reply:
    return say(call.text)


def test_answers_stand_in_the_order_of_the_questions(path: Path) -> None:
    def plan(call: Call) -> Reply:
        return say(call.text, wait_seconds=0.05 if call.number % 2 else 0.0)

    with serve(plan) as server:
        asked = ask(server, path, 12)
    assert texts(asked) == [f"question {n}" for n in range(12)]
    assert (asked.num_new, asked.stopped, asked.failures) == (12, None, {})
    assert server.most_in_flight == 3
    assert {call.path for call in server.calls} == {"/v1/chat/completions"}
    assert {call.headers["authorization"] for call in server.calls} == {f"Bearer {KEY}"}
    assert all(call.body["model"] == "judge" for call in server.calls)


def test_what_is_known_costs_nothing_and_equal_questions_are_one(path: Path) -> None:
    with serve(echo) as server:
        ask(server, path, [*questions(2), *questions(3)])
        assert len(server.calls) == 3
        again = ask(server, path, 3)
        assert (len(server.calls), again.num_new) == (3, 0)
        ask(server, path, questions(3, temperature=0.5))
        assert len(server.calls) == 6, "another temperature is another question"


FAULTS = {
    "time-out": Reply(wait_seconds=1.0),
    "dripping": say("slow", drip_seconds=0.05),
    "429": Reply(429, b'{"error": "slow down"}'),
    "500": Reply(500, b"oops"),
    "503 with a page": Reply(503, b"<html>", {"Content-Type": "text/html"}),
    "no JSON": Reply(200, b"hello"),
    "half of it": say("never whole", cut_after=30),
    "an empty body": Reply(200, b""),
    "a list": Reply(200, b"[]"),
    "no choices": Reply(200, b'{"choices": []}'),
    "no text": Reply(200, b'{"choices": [{"message": {"content": null}}]}'),
    "another shape": Reply(200, b'{"choices": {"message": 3}}'),
    "not UTF-8": Reply(200, b"\xff\xfe{}"),
    "nested": Reply(200, b"[" * 100_000),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_tried_again_and_the_answer_is_the_right_one(name: str, path: Path) -> None:
    seen: Counter[str] = Counter()

    def plan(call: Call) -> Reply:
        seen[call.text] += 1
        return FAULTS[name] if seen[call.text] == 1 and call.number % 2 else say(call.text)

    with serve(plan) as server:
        asked = ask(server, path, 4, timeout_seconds=0.3)
    assert texts(asked) == [f"question {n}" for n in range(4)]
    assert len(server.calls) > 4, "some were tried again"
    assert asked.failures == {}


@pytest.mark.parametrize("name", ["429", "no JSON", "half of it"])
def test_a_fault_that_stays_ends_after_the_tries_that_are_allowed(name: str, path: Path) -> None:
    with (
        serve(lambda call: FAULTS[name]) as server,
        pytest.raises(EndpointError, match=r"gives no answer.*3 tries.*kept"),
    ):
        ask(server, path, 1, max_retries=2)
    assert len(server.calls) == 3


def test_one_bad_question_does_not_stop_the_others(path: Path) -> None:
    def plan(call: Call) -> Reply:
        return Reply(400, b'{"error": "too long"}') if call.text == "question 2" else say(call.text)

    with serve(plan) as server:
        asked = ask(server, path, 5)
        assert texts(asked)[2] is None
        assert sum(answer is not None for answer in asked.answers) == 4
        ((reason, count),) = asked.failures.items()
        assert count == 1
        assert reason.startswith("HTTP 400")
        assert len(server.calls) == 5, "no second try of what cannot go better"
        server.plan = echo
        assert texts(ask(server, path, 5))[2] == "question 2"
        assert len(server.calls) == 6


@pytest.mark.parametrize(
    ("status", "told"), [(401, "refuses the key"), (403, "forbids"), (404, "no such route")]
)
def test_what_no_try_mends_ends_at_once(status: int, told: str, path: Path) -> None:
    body = json.dumps({"error": f"Incorrect API key provided: {KEY}"}).encode()
    with (
        serve(lambda call: Reply(status, body)) as server,
        pytest.raises(EndpointError, match=told) as error,
    ):
        ask(server, path, 50)
    assert KEY not in str(error.value)
    assert len(server.calls) <= 3, "those under way, and no more"


def test_many_failures_in_a_row_end_the_asking_and_keep_what_came(path: Path) -> None:
    def plan(call: Call) -> Reply:
        return say(call.text) if call.number < 4 else Reply(400, b"{}")

    with serve(plan) as server, pytest.raises(EndpointError, match="gives no answer: HTTP 400"):
        ask(server, path, 100)
    assert len(server.calls) < 20
    with AnswerFile(path) as file:
        assert len(file.answers) == 4


def test_a_server_that_is_not_there_is_said(path: Path) -> None:
    with serve(echo) as server:
        pass
    with pytest.raises(EndpointError, match="connection lost or refused"):
        ask(server, path, 5, max_retries=1)
    with AnswerFile(path) as file:
        assert file.spent.prompt_tokens == 0, "what was never sent cannot be billed"


def test_all_wait_as_long_as_the_server_asks_for(path: Path) -> None:
    def plan(call: Call) -> Reply:
        return Reply(429, b"{}", {"Retry-After": "0.4"}) if call.number == 0 else say(call.text)

    with serve(plan) as server:
        asked = ask(server, path, 3, max_wait_seconds=5.0, num_in_flight=1)
    assert texts(asked) == [f"question {n}" for n in range(3)]
    assert server.calls[1].at - server.calls[0].at >= 0.4


def test_a_wait_that_is_too_long_ends_the_asking_cleanly(path: Path) -> None:
    def plan(call: Call) -> Reply:
        if call.number < 2:
            return say(call.text)
        return Reply(429, b"{}", {"Retry-After": "3600"})

    with serve(plan) as server:
        asked = ask(server, path, 30, num_in_flight=1)
        assert asked.stopped is not None
        assert "asks to wait 3600 s" in asked.stopped
        assert texts(asked) == ["question 0", "question 1", *[None] * 28]
        assert len(server.calls) == 3


@pytest.mark.parametrize("num_in_flight", [1, 4])
def test_the_cap_on_calls_holds_over_starts_and_tries(path: Path, num_in_flight: int) -> None:
    def plan(call: Call) -> Reply:
        return Reply(500, b"") if call.number == 1 else say(call.text)

    with serve(plan) as server:
        for cap, kept in ((4, 3), (7, 6), (7, 6), (100, 10)):
            asked = ask(server, path, 10, max_calls=cap, num_in_flight=num_in_flight)
            assert len(server.calls) == min(cap, 11)
            assert sum(answer is not None for answer in asked.answers) == kept
            assert (asked.stopped is None) == (kept == 10)
    assert asked.stopped is None


@pytest.mark.parametrize("num_in_flight", [1, 5])
def test_caps_on_tokens_and_cost_are_never_exceeded(path: Path, num_in_flight: int) -> None:
    """The server counts 15 tokens a call; the most a call can take is far more."""
    with serve(echo) as server:
        bound = sum(questions(1)[0].bound)
        caps = {"max_total_tokens": bound + 40, "num_in_flight": num_in_flight}
        asked = ask(server, path, 50, **caps)
        with AnswerFile(path) as file:
            spent = file.spent
        assert asked.stopped is not None
        assert "max_total_tokens" in asked.stopped
        assert 0 < spent.prompt_tokens + spent.answer_tokens <= bound + 40
        # Nothing under way: as many as fit under the cap, the last one at its most.
        assert len(server.calls) == 40 // 15 + 1
        priced = {"price_prompt": 1.0, "price_answer": 2.0}
        cost = cost_of(spent, EndpointSettings(**priced))
        asked = ask(server, path, 50, max_cost=cost, **priced)
        assert asked.num_new == 0
        assert "max_cost" in str(asked.stopped)


def test_calls_that_never_came_back_count_at_their_most(path: Path) -> None:
    with serve(lambda call: FAULTS["time-out"]) as server:
        with pytest.raises(EndpointError):
            ask(server, path, 1, max_retries=0, timeout_seconds=0.1)
        bound = questions(1)[0].bound
        with AnswerFile(path) as file:
            assert file.spent == Spent(1, bound.prompt, bound.answer)


def test_caps_on_tokens_need_a_server_that_counts(path: Path) -> None:
    with (
        serve(lambda call: say("x", usage=False)) as server,
        pytest.raises(EndpointError, match="does not say how many tokens"),
    ):
        ask(server, path, 3, max_total_tokens=10_000)
    with serve(lambda call: say("x", usage=False)) as server:
        assert None not in ask(server, path, 3, max_calls=10).answers


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("localhost:8000", "expected a URL"),
        ("ftp://host/v1", "expected a URL"),
        ("http://[bad", "expected a URL"),
        ("https://me:word@host/v1", "password"),
        ("http://judge.example/v1", "unencrypted"),
    ],
)
def test_urls_that_are_none_or_give_secrets_away(url: str, told: str, path: Path) -> None:
    with pytest.raises(ConfigError, match=told):
        Endpoint(url, "judge", EndpointSettings())


def test_a_server_without_a_key_needs_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    settings = EndpointSettings(api_key_variable="NO_KEY")
    assert Endpoint("http://judge.example/v1", "m", settings).model == "m"


def test_another_model_is_another_question() -> None:
    (question,) = questions(1)
    assert question.key("one") != question.key("other")


@given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
def test_no_reply_breaks_the_reader(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    try:
        answer = read_answer(text)
    except ValueError:
        return
    assert isinstance(answer.text, str)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


@given(st.fixed_dictionaries({}, optional={"choices": JSON, "usage": JSON, "model": JSON}))
def test_replies_of_any_shape_are_answers_or_errors(document: dict[str, Any]) -> None:
    try:
        answer = read_answer(json.dumps(document))
    except ValueError:
        return
    assert answer.prompt_tokens is None or answer.prompt_tokens >= 0


def test_retry_after_in_all_its_forms() -> None:
    now = time.time()
    assert retry_after_seconds(None, now) is None
    assert retry_after_seconds("soon", now) is None
    assert retry_after_seconds("nan", now) is None
    assert retry_after_seconds("inf", now) is None
    assert retry_after_seconds("-5", now) == 0.0
    assert retry_after_seconds("2", now) == 2.0
    assert retry_after_seconds("Thu, 01 Jan 1970 00:00:00 GMT", now) == 0.0
