# SPDX-License-Identifier: Apache-2.0
"""The verbs `judge` and `sheet`, and `sample --endpoint`: asked once, kept, told, resumed."""

import csv
import io
import json
import re
import sys
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fault_server import Call, Reply, say, serve
from integration.commands import Command, Finished
from metarm.cli.app import run_command
from metarm.metrics import win_tie_lose
from metarm.storage import read_json_lines
from patience import PATIENCE_SECONDS, wait_until

PROMPTS = [f"prompt {number}" for number in range(12)]
ARMS = {"new": "longer answer", "old": "short", "odd": "<script>alert(1)</script>"}
GOLD = "def length(prompts, responses):\n    return [float(len(text)) for text in responses]\n"
JUDGE = "def first(prompts, one, other):\n    return ['first'] * len(prompts)\n"
QUICK = ["endpoint.max_wait_seconds=0.01", "endpoint.api_key_variable=NO_KEY"]


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """`judge` with three arms; its judge is to be added."""
    for arm, text in ARMS.items():
        rows = [
            {"prompt": prompt, "response": f"{text} {'x' * (number % 3)}"}
            for number, prompt in enumerate(PROMPTS)
        ]
        path = tmp_path / f"{arm}.jsonl"
        path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    (tmp_path / "gold_length.py").write_text(GOLD, encoding="utf-8")
    (tmp_path / "own_judge.py").write_text(JUDGE, encoding="utf-8")
    given = [word for arm in ARMS for word in ("--responses", f"{arm}={arm}.jsonl")]
    return ["judge", "--output", "out", *given]


def result(done: Finished) -> dict[str, Any]:
    assert done.code == 0, done.err
    document: dict[str, Any] = json.loads(done.out)
    return document


def by_arms(document: dict[str, Any], judge: str) -> dict[tuple[str, str], dict[str, Any]]:
    return {
        (rate["first_arm"], rate["second_arm"]): rate
        for rate in document["win_rates"]
        if rate["judge"] == judge
    }


def test_a_score_an_own_judge_and_a_person_side_by_side(
    words: list[str], tmp_path: Path, metarm: Callable[..., Finished]
) -> None:
    document = result(metarm(*words, "--gold", "gold_length:length", "--json", "num_resamples=50"))
    rates = by_arms(document, "length")
    assert rates["new", "old"]["win_rate"]["value"] == 1.0
    assert rates["new", "old"]["order_agreement_fraction"]["value"] == 1.0
    assert [r["arm"] for r in document["ratings"]] == ["odd", "new", "old"]

    # Another judge is added; the arms are known.
    document = result(
        metarm(
            "judge", "--output", "out", "--judge", "own_judge:first", "--json", "num_resamples=50"
        )
    )
    assert list(document["judges"]) == ["first", "length"]
    assert by_arms(document, "first")["new", "old"]["tie_fraction"]["value"] == 1.0
    assert by_arms(document, "first")["new", "old"]["shown_first_fraction"]["value"] == 1.0
    (agreement,) = document["agreements"]
    assert (agreement["num_both"], agreement["agreement_fraction"]) == (36, 0.0)

    exported = metarm(
        "sheet", "--output", "out", "--name", "anna", "--export", "s.csv", "--rows", "9"
    )
    assert exported.code == 0, exported.err
    sheet = tmp_path / "s.csv"
    rows = list(csv.DictReader(io.StringIO(sheet.read_bytes().decode("utf-8-sig"), newline="")))
    assert len(rows) == 9
    refused = metarm("sheet", "--output", "out", "--name", "anna", "--import", "s.csv")
    assert "got 9 that are not" in refused.error
    with sheet.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        for row in rows:
            is_a = len(row["response_a"]) > len(row["response_b"])
            writer.writerow({**row, "verdict": "a" if is_a else "b"})
    document = result(
        metarm("sheet", "--output", "out", "--name", "anna", "--import", "s.csv", "--json")
    )
    (told,) = [
        a
        for a in document["agreements"]
        if {a["first_judge"], a["second_judge"]} == {"anna", "length"}
    ]
    assert (told["num_both"], told["agreement_fraction"]) == (9, 1.0)
    assert sum(rate["num_unjudged"] for rate in by_arms(document, "anna").values()) == 27

    page = (tmp_path / "out" / "judge.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "default-src 'none'" in page
    assert not re.search(r"(src|href)=\"(?!data:)", page)


def test_wrong_words_are_one_error(words: list[str], metarm: Callable[..., Finished]) -> None:
    gold = ["--gold", "gold_length:length"]
    cases = {
        "holds no comparisons yet": ["judge", "--output", "empty", *gold],
        "expected one judge, got --gold and --judge": [*words, *gold, "--judge", "own_judge:first"],
        "belong together": [*words, "--endpoint", "http://127.0.0.1:1/v1"],
        "expected NAME=FILE": ["judge", "--output", "o", "--responses", "new.jsonl"],
        "named twice": [*words, "--responses", "new=new.jsonl"],
        "two or more arms": ["judge", "--output", "o", "--responses", "new=new.jsonl", *gold],
        "no such file": [*words, "--responses", "more=none.jsonl"],
        "no such arm, there is new, old, odd": [*words, *gold, "against=best"],
        "unknown key `tie_margn`": [*words, *gold, "tie_margn=1"],
        "no template 'overal-1'": [
            *words,
            *["--endpoint", "http://127.0.0.1:1/v1", "--model", "m", "template=overal-1"],
        ],
        "give the run with --run": [*words, "--gold", "world"],
        "expected one of --export and --import": ["sheet", "--output", "out", "--name", "x"],
    }
    for told, case in cases.items():
        assert told in metarm(*case).error


def test_verdicts_of_another_judge_are_not_written_over(
    words: list[str], metarm: Callable[..., Finished]
) -> None:
    gold = [*words, "--gold", "gold_length:length", "num_resamples=5"]
    assert metarm(*gold).code == 0
    assert "verdicts of another judge called length" in metarm(*gold, "tie_margin=2").error
    assert metarm(*gold, "tie_margin=2", "--name", "wide").code == 0
    assert "holds other comparisons" in metarm(*gold, "num_prompts=3").error


def prefer_long(call: Call) -> Reply:
    """A judge that likes length, and answers some questions badly."""
    if "prompt 7" in call.text:
        return say("I like both.")
    texts = [
        re.search(rf"response {side} begins\]\n(.*?)\n\[", call.text, re.DOTALL)[1] for side in "AB"
    ]
    longer = "A" if len(texts[0]) > len(texts[1]) else "B"
    return say(f"It says more.\nVerdict: {longer}", wait_seconds=0.02)


def at(server: Any) -> list[str]:
    return ["--endpoint", server.url, "--model", "org/judge-1", *QUICK, "num_resamples=20"]


def without_costs(document: dict[str, Any]) -> dict[str, Any]:
    judges = {
        name: {k: v for k, v in facts.items() if k not in ("spent", "cost", "base_url")}
        for name, facts in document["judges"].items()
    }
    return {**document, "judges": judges, "output": "", "report": ""}


def test_a_killed_judging_goes_on_and_pays_for_nothing_twice(
    words: list[str],
    tmp_path: Path,
    launch: Callable[..., Command],
    metarm: Callable[..., Finished],
) -> None:
    is_killed = threading.Event()

    def plan(call: Call) -> Reply:
        if call.number >= 12:
            is_killed.wait(PATIENCE_SECONDS)
        return prefer_long(call)

    with serve(plan) as server:
        command = [*words, *at(server), "endpoint.num_in_flight=2", "--json"]
        started = launch(*command)
        wait_until(lambda: server.num_replied >= 9 or not started.process.is_alive())
        started.kill()
        before = len(server.calls)
        is_killed.set()
        document = result(metarm(*command))
        asked = Counter(call.text for call in server.calls)
        assert before < 72, "it was killed in the middle"
        assert len(asked) == 72, "three pairs of arms, twelve prompts, both orders"
        # Twice: what was under way when it died, and what had come back unread.
        assert sum(count - 1 for count in asked.values()) <= 4
        total = len(server.calls)
        assert without_costs(result(metarm(*command))) == without_costs(document)
        assert len(server.calls) == total, "a finished judging costs nothing"
        unbroken = [word if word != "out" else "unbroken" for word in command]
        assert without_costs(result(metarm(*unbroken))) == without_costs(document)
    facts = document["judges"]["judge-1"]
    assert facts["template"] == "overall-1"
    assert facts["served_models"] == ["served"]
    # A call is noted before it is sent: two may never have left.
    assert total <= facts["spent"]["calls"] <= total + 2
    rate = by_arms(document, "judge-1")["new", "old"]
    assert (rate["num_judged"], rate["num_malformed"]) == (11, 1)
    assert rate["win_rate"]["value"] == 1.0
    assert (tmp_path / "out" / "answers" / "judge-1.jsonl").exists()


def test_a_cap_stops_cleanly_and_can_be_raised(
    words: list[str], metarm: Callable[..., Finished]
) -> None:
    with serve(prefer_long) as server:
        capped = metarm(*words, *at(server), "endpoint.max_calls=10", "--json")
        rates = by_arms(result(capped), "judge-1")
        assert len(server.calls) == 10
        assert sum(rate["num_judged"] for rate in rates.values()) == 5, "whole comparisons"
        assert sum(rate["num_unjudged"] for rate in rates.values()) == 31
        assert "endpoint.max_calls=10 leaves no room for another call" in capped.err
        rates = by_arms(result(metarm(*words, *at(server), "--json")), "judge-1")
        assert len(server.calls) == 72
        assert sum(rate["num_judged"] for rate in rates.values()) == 33


def test_a_server_that_breaks_is_one_error_and_what_came_is_kept(
    words: list[str], metarm: Callable[..., Finished]
) -> None:
    def plan(call: Call) -> Reply:
        return prefer_long(call) if call.number < 20 else Reply(503, b"")

    with serve(plan) as server:
        broken = [*words, *at(server), "endpoint.max_retries=1", "endpoint.num_in_flight=1"]
        assert re.search(r"HTTP 503, 2 tries.*kept", metarm(*broken).error)
        server.plan = prefer_long
        before = len(server.calls)
        assert metarm(*broken).code == 0
        assert len(server.calls) == before + 72 - 20


def test_the_key_is_sent_and_stands_nowhere(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In this process: others began with an environment of their own."""
    key = "sk-not-to-be-seen"
    monkeypatch.setenv("JUDGE_KEY", key)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    settings = ["num_prompts=1", "num_resamples=5", "endpoint.api_key_variable=JUDGE_KEY"]
    with serve(prefer_long) as server:
        code = run_command([*words, "--endpoint", server.url, "--model", "m", *settings])
        assert code == 0
        assert {call.headers["authorization"] for call in server.calls} == {f"Bearer {key}"}
    for path in (tmp_path / "out").rglob("*"):
        assert path.is_dir() or key.encode() not in path.read_bytes()


def test_the_arms_of_a_run_by_the_gold_of_its_world(
    finished_run: Path, metarm: Callable[..., Finished]
) -> None:
    """The judge's shares are those of the scorecard: the same responses, the same gold."""
    document = result(
        metarm(
            *["judge", "--output", "out", "--run", str(finished_run), "--gold", "world"],
            *["against=sft", "num_resamples=20", "--json"],
        )
    )
    rates = by_arms(document, "gold")
    assert {first for first, _ in rates} == {"frozen", "plain", "meta", "labels"}
    for (arm, _), rate in rates.items():
        place = finished_run / f"seed_0/arms/{arm}/round_02/evaluation"
        card = json.loads((place / "scorecard.json").read_text(encoding="utf-8"))
        assert rate["win_fraction"] == card["win_fraction"]
        assert rate["tie_fraction"] == card["tie_fraction"]
        rows = list(read_json_lines(place / "samples.jsonl"))
        shares = win_tie_lose([r["gold"] for r in rows], [r["sft_gold"] for r in rows], 1e-6)
        assert rate["lose_fraction"]["value"] == shares.lose.value
    model = str(finished_run / "seed_0/reward")
    document = result(
        metarm(
            *["judge", "--output", "out", "--reward-model", model, "--name", "first-rm"],
            *["num_resamples=20", "--json"],
        )
    )
    assert set(document["judges"]) == {"gold", "first-rm"}
    assert len(document["agreements"]) == 1


def test_groups_from_a_server_that_goes_away_and_comes_back(
    tmp_path: Path, metarm: Callable[..., Finished]
) -> None:
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS), encoding="utf-8")
    words = ["sample", "--policy", "org/policy", "--prompts", "prompts.txt", "--output", "g.jsonl"]
    settings = ["num_generations=2", "batch_size=3"]

    def plan(call: Call) -> Reply:
        return Reply(404, b"{}") if call.number >= 10 else say(f" {call.body['seed']}")

    with serve(plan) as server:
        at_server = ["--endpoint", server.url, *settings]
        assert "no such route or model" in metarm(*words, *at_server).error
        server.plan = lambda call: say(f" {call.body['seed']}")
        before = len(server.calls)
        done = metarm(*words, *at_server, "--json")
        assert json.loads(done.out)["num_responses"] == 24
        assert len(server.calls) == before + 14
        assert server.most_in_flight <= 3
    rows = list(read_json_lines(tmp_path / "g.jsonl"))
    assert [row["prompt"] for row in rows] == PROMPTS
    assert len({response for row in rows for response in row["responses"]}) == 24
