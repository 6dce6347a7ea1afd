# SPDX-License-Identifier: Apache-2.0
"""Every judge keeps the laws of `Judge`, and all of them agree on what is plain."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from fault_server import Call, Reply, say, serve
from metarm.config import WorldSettings
from metarm.config_judge import EndpointSettings, JudgeSettings
from metarm.endpoint.client import Endpoint
from metarm.judging.comparisons import Comparison, Judgement
from metarm.judging.endpoint_judge import EndpointJudge
from metarm.judging.judge_all import judge_all, load_judge
from metarm.judging.score_judge import ScoreJudge
from metarm.models.reward_model import load_score_function
from metarm.progress import SilentProgress
from metarm.protocols import Judge
from metarm.schema import VERDICTS
from metarm.world.language import GoldReward, build_language
from tiny_models import save_reward_model

PROMPTS = ["a", "b c", "a", "d e f a"]
FIRST = [" b", " c d e f", "", " a"]
SECOND = [" c d", " c", " a", " a"]


def longer(prompts, first, second):
    """A judge of the user's own: the longer response is better."""
    sizes = [(len(one), len(other)) for one, other in zip(first, second, strict=True)]
    return ["first" if a > b else "second" if b > a else "tie" for a, b in sizes]


def _by_length(call: Call) -> Reply:
    """A model that reads the two responses out of the question, and says which is longer."""
    mark = call.text.split("[", 1)[1].split(" ", 1)[0]
    texts = [
        call.text.split(f"[{mark} response {side} begins]\n")[1].split(f"\n[{mark} response")[0]
        for side in "AB"
    ]
    (verdict,) = longer([""], texts[:1], texts[1:])
    return say(f"Verdict: { {'first': 'A', 'second': 'B', 'tie': 'tie'}[verdict] }")


@pytest.fixture(params=["reward_model", "gold", "function", "endpoint"])
def judge(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Judge]:
    if request.param == "reward_model":
        yield ScoreJudge(load_score_function(save_reward_model(tmp_path)))
    elif request.param == "gold":
        yield ScoreJudge(GoldReward(build_language(WorldSettings())))
    elif request.param == "function":
        yield load_judge("conformance.test_judges:longer")
    else:
        with serve(_by_length) as server:
            endpoint = Endpoint(server.url, "judge", EndpointSettings())
            answers = tmp_path / "answers.jsonl"
            yield EndpointJudge(endpoint, answers, JudgeSettings(), SilentProgress())


def test_there_is_one_verdict_a_pair(judge: Judge) -> None:
    assert isinstance(judge, Judge)
    found = judge(PROMPTS, FIRST, SECOND)
    assert len(found) == len(PROMPTS)
    assert set(found) <= set(VERDICTS)
    assert judge([], [], []) == []


def test_the_same_input_has_the_same_verdict(judge: Judge) -> None:
    assert judge(PROMPTS, FIRST, SECOND) == judge(PROMPTS, FIRST, SECOND)


def test_a_verdict_is_its_own_pairs_alone(judge: Judge) -> None:
    together = judge(PROMPTS, FIRST, SECOND)
    places = range(len(PROMPTS))
    alone = [judge([PROMPTS[n]], [FIRST[n]], [SECOND[n]])[0] for n in places]
    turned = judge(PROMPTS[::-1], FIRST[::-1], SECOND[::-1])[::-1]
    assert together == alone == turned


def test_these_judges_prefer_no_order(judge: Judge) -> None:
    mirror = {"first": "second", "second": "first"}
    backward = judge(PROMPTS, SECOND, FIRST)
    assert [mirror.get(v, v) for v in backward] == judge(PROMPTS, FIRST, SECOND)


def test_the_same_text_is_a_tie_that_is_not_asked(judge: Judge) -> None:
    same = Comparison("a", "x", "y", " b", " b")
    assert judge_all([same], judge, both_orders=True) == [Judgement("tie", "tie")]

    def refuse(prompts, first, second):
        assert not prompts
        return []

    assert judge_all([same], refuse, both_orders=False) == [Judgement("tie", None)]


def test_both_orders_are_asked_side_by_side() -> None:
    asked = []

    def first_shown(prompts, first, second):
        asked.extend(zip(first, second, strict=True))
        return ["first"] * len(prompts)

    comparisons = [Comparison("p", "x", "y", "1", "2"), Comparison("p", "x", "y", "3", "4")]
    found = judge_all(comparisons, first_shown, both_orders=True)
    assert asked == [("1", "2"), ("2", "1"), ("3", "4"), ("4", "3")]
    assert [judgement.verdict for judgement in found] == ["tie", "tie"]
    assert [j.verdict for j in judge_all(comparisons, first_shown, both_orders=False)] == [
        "first",
        "first",
    ]


def test_a_score_is_asked_once_for_each_response() -> None:
    scored = []

    def score(prompts, responses):
        scored.extend(zip(prompts, responses, strict=True))
        return [float(len(response)) for response in responses]

    judge = ScoreJudge(score, tie_margin=1.0)
    assert judge(["p"] * 3, ["aaa", "aa", "aaa"], ["a", "a", "a"]) == ["first", "tie", "first"]
    assert judge(["p"], ["a"], ["aaa"]) == ["second"]
    assert sorted(scored) == [("p", "a"), ("p", "aa"), ("p", "aaa")]
