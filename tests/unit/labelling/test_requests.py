# SPDX-License-Identifier: Apache-2.0
"""What the page's server lets in: default deny, host and origin on every route, cookies, sizes."""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from live_labels import OWNER, SECRETS, LiveLabels, live_labels, make_store, plain_pairs
from metarm.labelling.app import OPEN_ROUTES
from metarm.labelling.gate import CONTENT_POLICY
from metarm.labels.events import VoteEvent
from metarm.labels.store import LabelStore

GOOD_KEY = "0123456789abcdef"


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    path = tmp_path_factory.mktemp("labels") / "labels.db"
    return path, make_store(path, plain_pairs(30), "Ada", "Bo")


@pytest.fixture(scope="module")
def live(tokens: tuple[Path, list[str]]) -> Iterator[LiveLabels]:
    with live_labels(tokens[0], price=0.5) as served:
        yield served


@pytest.fixture(scope="module")
def ada(live: LiveLabels, tokens: tuple[Path, list[str]]) -> str:
    return live.sign_in(tokens[1][0])


def routes(live: LiveLabels) -> list[tuple[str, str]]:
    found = [
        (method, route.path.replace("{name}", "label.css"))
        for route in live.page.app.routes
        for method in route.methods
    ]
    assert len(found) >= 14
    return found


def test_only_named_routes_are_open(live: LiveLabels) -> None:
    closed = 0
    for method, path in routes(live):
        told = live.request(method, path, {} if method == "POST" else None)
        is_open = path in OPEN_ROUTES or path.startswith("/static/")
        if method == "HEAD":
            continue
        if is_open:
            assert told.status in (200, 422), path
        else:
            assert (told.status, told.reason) == (401, "not_signed_in"), path
            closed += 1
    assert closed >= 9


def test_annotators_are_no_owners(live: LiveLabels, ada: str) -> None:
    for method, path in routes(live):
        if "/owner" in path:
            told = live.request(method, path, {} if method == "POST" else None, Cookie=ada)
            assert told.status == 401, path
    owner = live.sign_in(OWNER)
    assert live.request("GET", "/owner", Cookie=owner).status == 200
    assert live.request("GET", "/", Cookie=owner).status == 401


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "127.0.0.1.evil.example"},
        {"Host": ""},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "cors"},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"},
    ],
    ids=str,
)
def test_a_foreign_host_or_origin_is_refused_on_every_route(
    live: LiveLabels, ada: str, headers: dict[str, str]
) -> None:
    owner = live.sign_in(OWNER)
    for method, path in routes(live):
        body = {} if method == "POST" else None
        told = live.request(method, path, body, Cookie=f"{ada}; {owner}", **headers)
        assert told.status == (421 if "Host" in headers else 403), path


def test_a_link_from_elsewhere_opens_a_page_and_posts_nothing(live: LiveLabels) -> None:
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    link["Sec-Fetch-Dest"] = "document"
    assert live.request("GET", "/enter", None, **link).status == 200
    assert live.request("POST", "/api/enter", {"token": "x"}, **link).status == 403


def test_every_answer_says_what_may_be_loaded(live: LiveLabels, ada: str) -> None:
    for method, path in [*routes(live), ("GET", "/none"), ("GET", "/static/none")]:
        told = live.request(method, path, {} if method == "POST" else None, Cookie=ada)
        assert told.headers.get_all("Content-Security-Policy") == [CONTENT_POLICY]
        assert told.headers["X-Content-Type-Options"] == "nosniff"
        assert told.headers["Cache-Control"] == "no-store"
        assert told.headers["Referrer-Policy"] == "no-referrer"
        assert "Access-Control-Allow-Origin" not in told.headers
        assert "Server" not in told.headers
    assert "unsafe" not in CONTENT_POLICY
    assert CONTENT_POLICY.startswith("default-src 'none'; script-src 'self'")


def test_cookies(live: LiveLabels, tokens: tuple[Path, list[str]], tmp_path: Path) -> None:
    plain = live.request("POST", "/api/enter", {"token": tokens[1][0]}).headers["Set-Cookie"]
    assert plain.startswith(f"metarm-annotator-{live.port}=")
    assert re.search("HttpOnly", plain)
    assert re.search("SameSite=strict", plain, re.IGNORECASE)
    assert "Secure" not in plain
    path = tmp_path / "labels.db"
    [token] = make_store(path, plain_pairs(2), "Ada")
    with live_labels(path, public_url="https://labels.example") as behind:
        host = {"Host": "labels.example"}
        cookie = behind.request("POST", "/api/enter", {"token": token}, **host)
        told = cookie.headers["Set-Cookie"]
        assert told.startswith("__Host-metarm-annotator=")
        assert {"Secure", "HttpOnly", "Path=/"} <= {part.strip() for part in told.split(";")}
        assert "Domain" not in told
        own = {"Origin": "https://labels.example", **host, "Cookie": told.partition(";")[0]}
        assert behind.request("POST", "/api/next", _next("Ada"), **own).status == 200
        assert behind.links.page == "https://labels.example"


def _next(name: str, **more: object) -> dict[str, object]:
    return {"annotator": name, "besides": [], **more}


def _vote(item: str, **more: object) -> dict[str, object]:
    return {"annotator": "Ada", "key": GOOD_KEY, "item": item, "answer": "left", **more}


def test_bodies(live: LiveLabels, ada: str) -> None:
    def post(body: object, **headers: str) -> int:
        return live.request("POST", "/api/vote", body, Cookie=ada, **headers).status

    assert post(b"{}", **{"Content-Type": "text/plain"}) == 415
    assert post(b"a=1", **{"Content-Type": "application/x-www-form-urlencoded"}) == 415
    assert post(b"{}") == 415
    assert post(b"{", **{"Content-Type": "application/json"}) == 400
    assert post({"note": "x" * 70_000}) == 413
    item = live.request("POST", "/api/next", _next("Ada"), Cookie=ada).json["items"][0]["id"]
    for wrong in (
        {"answer": "first"},
        {"key": "short"},
        {"key": "x" * 65},
        {"key": "with space 1"},
        {"seconds": -1.0},
        {"seconds": "1"},
        {"changes": 1.5},
        {"note": "x" * 8001},
        {"strength": 2},
        {"is_turned": True},
        {"choice": "first"},
    ):
        assert post(_vote(item, **wrong)) == 422, wrong
    assert post(_vote("another item")) == 404
    assert live.request("POST", "/api/next", _next("Bo"), Cookie=ada).reason == "other_annotator"
    assert post(_vote(item, note="\ud800 half")) == 422
    assert post(_vote(item, note="a \x00 and \u202e")) == 200
    assert live.events()[-1].note == "a \ufffd and \u202e"


def test_why_comes_after_the_answer_only(live: LiveLabels, ada: str) -> None:
    key = "why-0123456789"
    told = live.request("POST", "/api/why", {"annotator": "Ada", "key": key}, Cookie=ada)
    assert told.reason == "no_such_item"
    page = live.request("GET", "/", Cookie=ada).body.decode()
    items = live.request("POST", "/api/next", _next("Ada", count=3), Cookie=ada)
    for secret in SECRETS:
        assert secret not in page
        assert secret not in items.body.decode()
    assert set(items.json["items"][0]) == {"id", "prompt", "left", "right"}
    item = items.json["items"][0]["id"]
    assert live.request("POST", "/api/vote", _vote(item, key=key), Cookie=ada).json["is_new"]
    told = live.request("POST", "/api/why", {"annotator": "Ada", "key": key}, Cookie=ada)
    assert "features" in told.json["why"][0]
    assert "policy" not in told.json["why"][0]


def test_gold_and_repeats_look_the_same(tmp_path: Path) -> None:
    path = tmp_path / "labels.db"
    pairs = plain_pairs(30)
    gold = {pair.id: "first" for pair in pairs[:10]}
    [token] = make_store(path, pairs, "Ada", gold=gold, gold_fraction=0.4, repeat_fraction=0.5)
    shapes, kinds, left = set(), set(), []
    with live_labels(path) as live:
        cookie = live.sign_in(token)
        for number in range(24):
            told = live.request("POST", "/api/next", _next("Ada"), Cookie=cookie).json
            if not told["items"]:
                break
            item = told["items"][0]
            shapes.add((tuple(item), len(item["id"]), tuple(item["prompt"][0])))
            answered = live.request(
                "POST", "/api/vote", _vote(item["id"], key=f"key-{number:08d}"), Cookie=cookie
            )
            left.append(answered.json["progress"]["num_left"])
        for event in live.events():
            kinds.add(("gold" if event.pair in gold else "plain", event.showing))
    # An exact count would stay as it is after each of them, and after nothing else.
    assert set(left) <= {0, 10, 20}
    assert {("gold", 0), ("plain", 0), ("plain", 1)} <= kinds
    assert len(shapes) == 1


def test_sides_are_those_that_were_shown(tmp_path: Path) -> None:
    path = tmp_path / "labels.db"
    pairs = {pair.id: pair for pair in plain_pairs(20)}
    [token] = make_store(path, list(pairs.values()), "Ada")
    answers = ["left_much", "left", "tie", "right", "right_much", "skip"] * 3
    expected = {}
    with live_labels(path) as live:
        cookie = live.sign_in(token)
        for number, answer in enumerate(answers):
            item = live.request("POST", "/api/next", _next("Ada"), Cookie=cookie).json["items"][0]
            key = f"key-{number:08d}"
            body = _vote(item["id"], key=key, answer=answer, seconds=1.5)
            for is_new in (True, False):
                told = live.request("POST", "/api/vote", body, Cookie=cookie)
                assert told.json["is_new"] is is_new
            side = {"left": item["left"][0], "right": item["right"][0]}
            side = side.get(answer.partition("_")[0], answer)
            expected[key] = (side, 2 if "much" in answer else 1)
        events = live.events()
        assert len(events) == len(answers)
        for event in events:
            pair = pairs[event.pair]
            words = {"first": pair.first, "second": pair.second}
            told = (words.get(event.choice, event.choice), event.strength)
            assert told == expected[event.key]
        assert {event.is_turned for event in events} == {True, False}


def test_undo_is_an_event(live: LiveLabels, ada: str) -> None:
    item = live.request("POST", "/api/next", _next("Ada"), Cookie=ada).json["items"][0]["id"]
    live.request("POST", "/api/vote", _vote(item, key="undone-00001"), Cookie=ada)
    before = len(live.votes())
    for _ in range(2):
        body = {"annotator": "Ada", "key": "undone-00001"}
        assert live.request("POST", "/api/undo", body, Cookie=ada).status == 200
    assert len(live.votes()) == before - 1
    assert [event.choice for event in live.events()[-2:]][-1] == "undo"
    body = {"annotator": "Ada", "key": "never-was-there"}
    assert live.request("POST", "/api/undo", body, Cookie=ada).status == 404


def test_an_undo_tells_whether_it_took_something_back(live: LiveLabels, ada: str) -> None:
    def undo(key: str) -> tuple[bool, bool]:
        body = {"annotator": "Ada", "key": key}
        told = live.request("POST", "/api/undo", body, Cookie=ada).json
        return told["is_undone"], told["is_closed"]

    item = live.request("POST", "/api/next", _next("Ada"), Cookie=ada).json["items"][0]["id"]
    for key in ("replaced-0001", "in-force-0001"):
        live.request("POST", "/api/vote", _vote(item, key=key), Cookie=ada)
    events = len(live.events())
    assert undo("replaced-0001") == (False, False), "another tab's answer took its place"
    assert len(live.events()) == events
    # The same once more, as where the reply was lost, is told the same.
    for _ in range(2):
        assert undo("in-force-0001") == (True, False)
        assert len(live.events()) == events + 1


def test_invitations_end(live: LiveLabels) -> None:
    owner = live.sign_in(OWNER)
    body = {"name": "Cleo", "days": 3}
    link = live.request("POST", "/api/owner/invite", body, Cookie=owner).json["link"]
    cookie = live.sign_in(link.partition("#")[2])
    assert live.request("GET", "/", Cookie=cookie).status == 200
    body = {"name": "Cleo"}
    assert live.request("POST", "/api/owner/revoke", body, Cookie=owner).status == 200
    assert live.request("GET", "/", Cookie=cookie).status == 401
    token = link.partition("#")[2]
    assert live.request("POST", "/api/enter", {"token": token}).reason == "wrong_token"
    for wrong in ({"name": "\u202e"}, {"name": " "}):
        told = live.request("POST", "/api/owner/invite", wrong, Cookie=owner)
        assert told.status == 422
        assert live.request("POST", "/api/owner/revoke", {"name": "x"}, Cookie=owner).status == 422
    assert token.encode() not in live.path.read_bytes()


def test_wrong_tokens_wait_and_right_ones_do_not(tmp_path: Path) -> None:
    path = tmp_path / "labels.db"
    [token] = make_store(path, plain_pairs(3), "Ada")
    with live_labels(path) as live:
        cookie = live.sign_in(token)
        statuses = [
            live.request("POST", "/api/enter", {"token": f"wrong {n}"}).status for n in range(12)
        ]
        assert statuses == [401] * 10 + [429] * 2
        told = live.request("POST", "/api/enter", {"token": "wrong again"})
        assert told.reason == "too_many_attempts"
        assert int(told.headers["Retry-After"]) > 0
        # Behind a proxy everybody has the proxy's address: who is invited gets in nonetheless.
        assert live.request("POST", "/api/enter", {"token": token}).status == 200
        guess = f"{cookie.partition('=')[0]}=guess"
        assert live.request("POST", "/api/next", _next("Ada"), Cookie=guess).status == 429
        assert live.request("POST", "/api/next", _next("Ada"), Cookie=cookie).status == 200


def test_pages_for_people_when_something_is_wrong(live: LiveLabels) -> None:
    html = {"Accept": "text/html"}
    told = live.request("GET", "/", **html)
    assert (told.status, told.headers["Location"]) == (303, "/enter")
    told = live.request("GET", "/<script>alert(1)</script>", **html)
    assert told.status == 404
    assert b"script" not in told.body
    assert b"There is no such page" in told.body or b"there is no such page" in told.body


def test_the_dashboard(live: LiveLabels, tokens: tuple[Path, list[str]], ada: str) -> None:
    owner = live.sign_in(OWNER)
    item = live.request("POST", "/api/next", _next("Ada"), Cookie=ada).json["items"][0]["id"]
    live.request("POST", "/api/vote", _vote(item, key="dashboard-1"), Cookie=ada)
    page = live.request("GET", "/owner", Cookie=owner).body.decode()
    for words in ("Pairs done", "Agreement (alpha)", "still to come, at 0.50 a label", "Ada"):
        assert words in page
    assert "That cannot be told from votes" in page
    figure = live.request("GET", "/owner/figures/annotators.svg", Cookie=owner)
    assert figure.headers["Content-Type"] == "image/svg+xml"
    assert live.request("GET", "/owner/figures/agreement.svg", Cookie=owner).status == 404
    assert live.request("GET", "/owner/figures/..%2fx", Cookie=owner).status == 404


def test_a_late_answer_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "labels.db"
    tokens = make_store(path, plain_pairs(1), "Ada", "Bo", lease_minutes=1e-6)
    with live_labels(path) as live:
        cookies = [live.sign_in(token) for token in tokens]
        items = [
            live.request("POST", "/api/next", _next(name), Cookie=cookie).json["items"][0]
            for name, cookie in zip(("Ada", "Bo"), cookies, strict=True)
        ]
        for name, cookie, item in zip(("Ada", "Bo"), cookies, items, strict=True):
            body = _vote(item["id"], key=f"late-{name}-00", annotator=name)
            assert live.request("POST", "/api/vote", body, Cookie=cookie).status == 200
        assert len(live.votes()) == 2


def test_votes_of_others_are_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "labels.db"
    tokens = make_store(path, plain_pairs(3), "Ada", "Bo")
    with LabelStore(path) as store:
        item = store.next_item("Bo")
        store.record(VoteEvent(GOOD_KEY, "Bo", "tie", item=item.id))
    with live_labels(path) as live:
        ada = live.sign_in(tokens[0])
        item_id = live.request("POST", "/api/next", _next("Ada"), Cookie=ada).json["items"][0]["id"]
        assert live.request("POST", "/api/vote", _vote(item.id), Cookie=ada).status == 404
        assert live.request("POST", "/api/vote", _vote(item_id), Cookie=ada).status in (404, 422)
        body = {"annotator": "Ada", "key": GOOD_KEY}
        assert live.request("POST", "/api/undo", body, Cookie=ada).status == 404
        assert live.request("POST", "/api/why", body, Cookie=ada).status == 404
        [vote] = live.votes()
        assert (vote.annotator, vote.choice) == ("Bo", "tie")


def answer_batch(live: LiveLabels, cookie: str, count: int, start: int = 0) -> list[str]:
    """Answer so many items, or as many as there are; why there were no more, each time."""
    waits = []
    for number in range(start, start + count):
        told = live.request("POST", "/api/next", _next("Ada"), Cookie=cookie).json
        waits.append(told["wait"])
        if not told["items"]:
            break
        body = _vote(told["items"][0]["id"], key=f"batch-{number:04}", seconds=3.0)
        assert live.request("POST", "/api/vote", body, Cookie=cookie).status == 200
    return waits


def test_a_batch_is_handed_out_whole_and_no_more(tmp_path: Path) -> None:
    path = tmp_path / "labels.db"
    tokens = make_store(path, plain_pairs(30), "Ada", "Bo", batch_size=6)
    with live_labels(path) as live:
        cookie = live.sign_in(tokens[0])

        def ask(count: int, *besides: str) -> tuple[list[str], str | None]:
            body = {"annotator": "Ada", "besides": list(besides), "count": count}
            told = live.request("POST", "/api/next", body, Cookie=cookie).json
            return [item["id"] for item in told["items"]], told["wait"]

        def close(number: int) -> bool:
            body = {"annotator": "Ada", "number": number}
            told = live.request("POST", "/api/batch", body, Cookie=cookie)
            return told.json["is_closed"]

        held, wait = ask(4)
        assert (len(held), wait) == (4, None)
        more, wait = ask(4, *held)
        assert (len(more), wait) == (2, "batch")
        assert ask(4, *held, *more) == ([], "batch")
        assert not close(1)
        assert live.request("GET", "/batch/1", Cookie=cookie).status == 404
        for number, item in enumerate([*held, *more]):
            body = _vote(item, key=f"key-{number:05}")
            told = live.request("POST", "/api/vote", body, Cookie=cookie).json
            assert told["progress"]["num_in_batch"] == number + 1
        assert ask(1) == ([], "batch")
        # An answer that is on its way counts once, also when it has come meanwhile.
        assert ask(1, *held) == ([], "batch")
        undo = {"annotator": "Ada", "key": "key-00005"}
        assert live.request("POST", "/api/undo", undo, Cookie=cookie).json["is_undone"]
        assert ask(2) == ([more[1]], "batch")
        body = _vote(more[1], key="key-00006")
        assert live.request("POST", "/api/vote", body, Cookie=cookie).status == 200
        assert close(1)
        assert close(1)
        undo["key"] = "key-00006"
        told = live.request("POST", "/api/undo", undo, Cookie=cookie).json
        assert (told["is_undone"], told["is_closed"]) == (False, True)
        assert told["progress"]["num_in_batch"] == 0
        late = _vote(more[1], key="key-late-1")
        assert live.request("POST", "/api/vote", late, Cookie=cookie).status == 200
        undo["key"] = "key-late-1"
        assert not live.request("POST", "/api/undo", undo, Cookie=cookie).json["is_undone"]
        assert len(ask(4)[0]) == 4
        # It is Ada's, and nobody else's.
        assert live.request("GET", "/batch/1", Cookie=cookie).status == 200
        other = live.sign_in(tokens[1])
        assert live.request("GET", "/batch/1", Cookie=other).status == 404
        body = {"annotator": "Ada", "number": 1}
        assert live.request("POST", "/api/batch", body, Cookie=other).reason == "other_annotator"


@pytest.mark.parametrize("feedback", ["none", "count", "which"])
def test_a_batch_tells_what_the_owner_allows(tmp_path: Path, feedback: str) -> None:
    path = tmp_path / "labels.db"
    pairs = plain_pairs(40)
    gold = {pair.id: "tie" for pair in pairs[:10]}
    own = {"gold_fraction": 0.4, "gold_feedback": feedback, "batch_size": 10}
    [token] = make_store(path, pairs, "Ada", gold=gold, **own)
    with live_labels(path) as live:
        cookie = live.sign_in(token)
        answer_batch(live, cookie, 10)
        known = [vote.pair for vote in live.votes() if vote.pair in gold]
        body = {"annotator": "Ada", "number": 1}
        assert live.request("POST", "/api/batch", body, Cookie=cookie).json["is_closed"]
        page = live.request("GET", "/batch/1", Cookie=cookie).body.decode()
        assert "30 s" in page
        assert (f"0 of {len(known)}" in page) == (feedback != "none")
        assert ("nown answer" in page) == (feedback != "none")
        shown = {pair.prompt for pair in pairs if f">{pair.prompt}</p>" in page}
        expected = {pair.prompt for pair in pairs if pair.id in known}
        assert shown == (expected if feedback == "which" else set())
        for secret in SECRETS:
            assert secret not in page


def test_a_short_batch_does_not_tell_which_pair_was_known(tmp_path: Path) -> None:
    path = tmp_path / "labels.db"
    pairs = plain_pairs(30)
    gold = {pair.id: "tie" for pair in pairs[:8]}
    own = {"gold_fraction": 1.0, "gold_feedback": "which", "batch_size": 50}
    [token] = make_store(path, pairs, "Ada", gold=gold, **own)
    with live_labels(path) as live:
        cookie, owner = live.sign_in(token), live.sign_in(OWNER)
        answer_batch(live, cookie, 9)  # two of the first ten have a known answer
        told = live.request("POST", "/api/owner/queue", {"is_open": False}, Cookie=owner)
        assert told.json == {"is_open": False}
        assert answer_batch(live, cookie, 1, 9) == ["closed"]
        assert any(vote.pair in gold for vote in live.votes())
        body = {"annotator": "Ada", "number": 1}
        assert live.request("POST", "/api/batch", body, Cookie=cookie).json["is_closed"]
        page = live.request("GET", "/batch/1", Cookie=cookie).body.decode()
        assert "too short to say" in page
        assert "answers met" not in page
        assert not any(f">{pair.prompt}</p>" in page for pair in pairs)
        live.request("POST", "/api/owner/queue", {"is_open": True}, Cookie=owner)
        assert answer_batch(live, cookie, 1, 9) == [None]


def test_why_does_not_tell_a_known_answer(tmp_path: Path) -> None:
    path = tmp_path / "labels.db"
    known = [replace(pair, chosen_by="known to us") for pair in plain_pairs(8)]
    pairs = [*known, *plain_pairs(30)[8:]]
    gold = {pair.id: "tie" for pair in known}
    [token] = make_store(path, pairs, "Ada", gold=gold, gold_fraction=0.4)
    with live_labels(path) as live:
        cookie = live.sign_in(token)
        answer_batch(live, cookie, 10)
        assert any(vote.pair in gold for vote in live.votes())
        told = {
            live.request(
                "POST", "/api/why", {"annotator": "Ada", "key": event.key}, Cookie=cookie
            ).json["why"][0]
            for event in live.events()
        }
        assert len(told) == 1
        assert "features" in told.pop()
