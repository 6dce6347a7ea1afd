# SPDX-License-Identifier: Apache-2.0
"""A round whose annotator is a model behind a URL: asked, capped, cut off, killed, and gone on."""

import shutil
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from fault_server import Call, FaultServer, Reply, say, serve
from integration.commands import Command, Finished, scorecards, start
from integration.rounds_of_labels import arm, made_of_labels
from metarm.data.preferences import load_preferences
from metarm.endpoint.answers import AnswerFile
from metarm.endpoint.client import Question
from metarm.labels.votes import LabelPair
from metarm.storage import read_json, read_json_lines

pytestmark = pytest.mark.slow

NUM_PAIRS = 8
PLACE = "seed_0/arms/judged/round_01"
UNFINISHED = f"{PLACE}/.labels.checkpoints/answers.jsonl"


def choice_of(first: str, second: str) -> str:
    """The longer response is the better one; of some pairs the model does not say."""
    if (len(first) + len(second)) % 5 == 0:
        return "skip"
    gap = len(first) - len(second)
    return "tie" if gap == 0 else "first" if gap > 0 else "second"


def judge(call: Call) -> Reply:
    """What the model answers."""
    sides = (call.text.split(f"response {side} begins]\n")[1].split("\n[")[0] for side in "AB")
    verdict = {"first": "A", "second": "B", "tie": "tie"}.get(choice_of(*sides))
    return say(f"It is longer.\nVerdict: {verdict}" if verdict else "I cannot say.")


def words(smoke: list[str], run: Path, server: FaultServer, *more: str) -> list[str]:
    """The command of a run with one arm and one round whose labels are a model's."""
    caps = {"max_wait_seconds": 0.01, "api_key_variable": "NO_KEY", "max_retries": 0}
    return [
        *smoke,
        str(run),
        "rounds=1",
        "arms=[judged]",
        *arm("judged", labels_per_round=NUM_PAIRS, labels_from="model"),
        f"labels.url={server.url}",
        "labels.model=judge-1",
        "labels.judge.endpoint.price_prompt=2.0",
        "labels.judge.endpoint.price_answer=4.0",
        *(f"labels.judge.endpoint.{key}={value}" for key, value in caps.items()),
        *more,
    ]


def key_of(call: Call) -> str:
    """What an answer is kept under."""
    body = dict(call.body)
    return Question(body, 1).key(body.pop("model"))


@pytest.fixture(scope="module")
def copies(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Path]:
    """Gives copies of the finished run, to which the arm is added."""
    return lambda: Path(shutil.copytree(finished_run, tmp_path_factory.mktemp("copy") / "run"))


@pytest.fixture(scope="module")
def judged_run(copies, smoke, tmp_path_factory) -> tuple[Path, list[Call]]:
    """The run whose model answered everything at once, and what it was asked."""
    run = copies()
    with serve(judge) as server:
        place = tmp_path_factory.mktemp("judged")
        done = start(words(smoke, run, server), place, place).finish()
        assert done.code == 0, done.err
        return run, list(server.calls)


def test_a_model_is_asked_in_both_orders_and_its_votes_are_trained_on(judged_run) -> None:
    run, calls = judged_run
    place = run / PLACE
    pairs = [LabelPair.from_json(row) for row in read_json_lines(place / "asked/pairs.jsonl")]
    assert len(pairs) == NUM_PAIRS
    assert {call.path for call in calls} == {"/v1/chat/completions"}
    assert len({call.text for call in calls}) == len(calls) == 2 * NUM_PAIRS
    for pair in pairs:
        shown = [call for call in calls if pair.first in call.text and pair.second in call.text]
        assert shown, "the pair was put to the model"
    chosen = Counter()
    for row in read_json_lines(place / "labels/answers.jsonl"):
        (vote,) = row["votes"]
        assert (vote["annotator"], vote["choice"]) == (
            "judge-1",
            choice_of(row["first"], row["second"]),
        )
        chosen[vote["choice"]] += 1
    assert chosen["skip"], "an answer without a verdict was paid for, and is no label"
    num_labels = NUM_PAIRS - chosen["skip"]
    told = read_json(place / "labels/stage.json")["metrics"]
    assert told["kinds"] == {"judge-1": "model"}
    assert (told["num_asked"], told["num_votes"]) == (NUM_PAIRS, num_labels)
    assert told["votes_by"] == {"judge-1": num_labels}
    assert told["num_skips"] == chosen["skip"]
    assert told["spent"] == {"calls": 16, "prompt_tokens": 160, "answer_tokens": 80}
    assert told["cost"] == pytest.approx((160 * 2.0 + 80 * 4.0) / 1e6, rel=1e-12)
    assert told["served_models"] == ["served"]
    labels = load_preferences(place / "labels/labels.jsonl", "trl-explicit", keep_blank=True).pairs
    assert len(labels) == told["num_labels"] == num_labels
    assert all(len(label.chosen) >= len(label.rejected) for label in labels)
    encoded = read_json(place / "reward/stage.json")["metrics"]["encoding"]
    num_original = len(load_preferences(run / "seed_0/world/preferences.jsonl").pairs)
    assert encoded.startswith(f"{num_original + 2 * num_labels} of "), "each label stands twice"
    assert f"{PLACE}/evaluation/scorecard.json" in scorecards(run)
    assert not (run / UNFINISHED).exists()


def test_a_cap_is_kept_and_a_server_that_dies_leaves_what_was_paid(
    copies, smoke, metarm: Callable[..., Finished], judged_run
) -> None:
    """Five starts, and no question that has an answer is asked again."""
    run = copies()
    answered: Counter[str] = Counter()
    labels = run / PLACE / "labels"

    def answer(call: Call) -> Reply:
        answered[call.text] += 1
        return judge(call)

    with serve(answer) as server:
        capped = words(smoke, run, server, "labels.judge.endpoint.max_calls=5")
        error = metarm(*capped).error
        assert "judge-1 left" in error
        assert "endpoint.max_calls=5 leaves no room for another call" in error
        assert (len(server.calls), labels.exists()) == (5, False)
        assert "endpoint.max_calls=5" in metarm(*capped).error
        assert len(server.calls) == 5, "over all starts"

    def dies(call: Call) -> Reply:
        return answer(call) if call.number < 3 else Reply(cut_after=0)

    with serve(dies) as server:
        halted = words(smoke, run, server, "labels.judge.endpoint.num_in_flight=1")
        error = metarm(*halted).error
        assert "run the same command again" in error
        assert sum(answered.values()) == 8
        assert len(server.calls) == 3 + NUM_PAIRS, "eight failures in a row are enough"
    error = metarm(*halted).error
    assert "connection lost or refused" in error
    assert "kept" in error
    assert not labels.exists()
    with serve(answer) as server:
        done = metarm(*words(smoke, run, server))
        assert done.code == 0, done.err
        assert len(server.calls) == 2 * NUM_PAIRS - 8
        done = metarm(*words(smoke, run, server))
        assert (done.code, len(server.calls)) == (0, 2 * NUM_PAIRS - 8), "finished is finished"
    assert set(answered.values()) == {1}
    assert len(answered) == 2 * NUM_PAIRS
    assert made_of_labels(run, "judged") == made_of_labels(judged_run[0], "judged")
    told = read_json(labels / "stage.json")["metrics"]
    # What was cut off may be billed: it is counted at the most that it can have taken.
    assert told["spent"]["calls"] > 2 * NUM_PAIRS


def test_killed_while_a_model_is_asked_it_asks_nothing_twice(
    copies, smoke, launch: Callable[..., Command], metarm, judged_run
) -> None:
    """What was in the file at the death is never asked again; two calls are under way at most."""
    run = copies()

    def slowly(call: Call) -> Reply:
        time.sleep(0.03)
        return judge(call)

    kept: set[str] = set()
    seen = 0
    with serve(slowly) as server:
        command = words(smoke, run, server, "labels.judge.endpoint.num_in_flight=2")
        for until in (1, 4, 7, 11, 14):
            started = launch(*command)
            while len(server.calls) < until:
                assert started.process.is_alive(), started.finish().err
                time.sleep(0.002)
            started.kill()
            time.sleep(0.1)
            assert not kept & {key_of(call) for call in server.calls[seen:]}
            seen = len(server.calls)
            with AnswerFile(run / UNFINISHED) as file:
                assert kept <= file.answers.keys()
                kept = set(file.answers)
        done = metarm(*command)
        assert done.code == 0, done.err
        assert not kept & {key_of(call) for call in server.calls[seen:]}
        asked = Counter(map(key_of, server.calls))
        assert len(asked) == 2 * NUM_PAIRS
        assert len(server.calls) <= 2 * NUM_PAIRS + 2 * 5, "two under way at each death"
    assert len(kept) >= 4, "14 calls less two of each death"
    assert made_of_labels(run, "judged") == made_of_labels(judged_run[0], "judged")


def test_a_cap_of_the_run_holds_over_rounds_starts_and_deaths(
    copies, smoke, launch: Callable[..., Command], metarm
) -> None:
    run = copies()

    def slowly(call: Call) -> Reply:
        time.sleep(0.03)
        return judge(call)

    with serve(slowly) as server:
        command = words(smoke, run, server, "rounds=2", "labels.judge.endpoint.num_in_flight=2")
        started = launch(*command, "labels.max_calls=20")
        while len(server.calls) < 6:
            assert started.process.is_alive(), started.finish().err
            time.sleep(0.002)
        started.kill()
        time.sleep(0.1)
        paid = len(server.calls)
        error = metarm(*command, "labels.max_calls=20").error
        assert "labels.max_calls=20 leaves no room for another call" in error
        assert "labels.judge.endpoint.max_* for the labels of one round" in error
        # A call that was under way at the death is counted; it may not have come to the server.
        assert 18 <= len(server.calls) <= 20
        assert (run / PLACE / "labels/stage.json").exists(), "the first round has its labels"
        first_round = read_json(run / PLACE / "labels/stage.json")["metrics"]["spent"]["calls"]
        assert first_round >= 16 > paid
        stopped_at = len(server.calls)
        assert "labels.max_calls=20" in metarm(*command, "labels.max_calls=20").error
        assert len(server.calls) == stopped_at
        done = metarm(*command, "labels.max_calls=36")
        assert done.code == 0, done.err
        assert len(set(map(key_of, server.calls))) == 4 * NUM_PAIRS
        assert len(server.calls) <= 36
