# SPDX-License-Identifier: Apache-2.0
"""Who answers a round's pairs, and what the votes come to."""

import math
from functools import partial

import numpy as np
import pytest

from metarm.config import ArmSettings, RunSettings
from metarm.errors import ConfigError, RunError
from metarm.judging.score_judge import ScoreJudge
from metarm.labels.votes import LabelPair, Vote
from metarm.progress import SilentProgress
from metarm.round_labels.answering import answer_by_gold, answer_by_judge, load_arm_judge
from metarm.round_labels.soft import soft_labels

PAIRS = [LabelPair(f"p{n}", " x" * (n % 3 + 1), " y" * (n % 4 + 1)) for n in range(12)]


def length(prompts, responses):
    return [float(len(response)) for response in responses]


def longer(prompts, first, second):
    return ["tie" if len(a) == len(b) else "first" if len(a) > len(b) else "second"
            for a, b in zip(first, second, strict=True)]  # fmt: skip


def left(prompts, first, second):
    return ["first"] * len(prompts)


def mute(prompts, first, second):
    return ["malformed" if prompt == "p0" else "second" for prompt in prompts]


def unasked(prompts, first, second):
    return ["unjudged"] * len(prompts)


def choices(answers) -> dict[str, str]:
    return {vote.pair: vote.choice for vote in answers.votes}


def test_exact_gold_says_the_sign_and_a_tie() -> None:
    answers = answer_by_gold(PAIRS, length, label_noise=0.0, seed=0)
    assert [vote.choice for vote in answers.votes] == longer(
        None, [p.first for p in PAIRS], [p.second for p in PAIRS]
    )
    assert answers.kinds == {"gold": "gold"}


def test_noisy_gold_errs_as_often_as_the_logistic_law_says() -> None:
    """P(first) = sigmoid(2 / noise) for a difference of 2: frequencies within four errors."""
    pairs = [LabelPair(f"p{n}", " xx", "y") for n in range(4000)]
    for noise in (1.0, 4.0):
        answers = answer_by_gold(pairs, length, label_noise=noise, seed=3)
        share = np.mean([vote.choice == "first" for vote in answers.votes])
        expected = 1 / (1 + math.exp(-2 / noise))
        assert abs(share - expected) < 4 * math.sqrt(expected * (1 - expected) / len(pairs))


def test_an_error_belongs_to_its_pair_and_seed() -> None:
    whole = choices(answer_by_gold(PAIRS, length, label_noise=5.0, seed=1))
    parts = [choices(answer_by_gold([pair], length, label_noise=5.0, seed=1)) for pair in PAIRS]
    assert whole == {key: value for part in parts for key, value in part.items()}
    others = [choices(answer_by_gold(PAIRS, length, label_noise=5.0, seed=s)) for s in range(9)]
    assert len({tuple(sorted(other.items())) for other in others}) > 1


def test_a_judge_is_asked_in_both_orders_and_malformed_is_a_skip() -> None:
    same = answer_by_judge(PAIRS, longer, "longer", both_orders=True)
    assert choices(same) == choices(answer_by_gold(PAIRS, length, label_noise=0.0, seed=0))
    assert set(choices(answer_by_judge(PAIRS, left, "left", both_orders=True)).values()) == {"tie"}
    assert set(choices(answer_by_judge(PAIRS, left, "left", both_orders=False)).values()) == {
        "first"
    }
    muted = choices(answer_by_judge(PAIRS, mute, "mute", both_orders=False))
    assert muted[PAIRS[0].id] == "skip"
    assert list(muted.values()).count("skip") == 1


def test_unjudged_pairs_stop_the_round() -> None:
    with pytest.raises(RunError, match=r"lazy left 12 of 12 pairs unjudged .* run the same comm"):
        answer_by_judge(PAIRS, unasked, "lazy", both_orders=True)


def test_functions_of_two_and_of_three_arguments(tmp_path, monkeypatch) -> None:
    (tmp_path / "own_labels.py").write_text(
        "def score(prompts, responses):\n    return [len(r) for r in responses]\n"
        "def judge(prompts, first, second):\n    return ['tie'] * len(prompts)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    settings = RunSettings.model_validate({"output_dir": "run", "world": {}})

    def judge_of(name: str):
        arm = ArmSettings(labels_per_round=1, labels_from=name)
        return load_arm_judge(settings, arm, tmp_path / "answers.jsonl", SilentProgress())

    score, name = judge_of("own_labels:score")
    assert isinstance(score, ScoreJudge)
    assert (score(["p"], ["xx"], ["x"]), name) == (["first"], "own_labels:score")
    judge, _ = judge_of("own_labels:judge")
    assert judge(["p"], ["xx"], ["x"]) == ["tie"]
    with pytest.raises(ConfigError, match="labels_from: module 'own_labels'"):
        judge_of("own_labels:nothing")


def test_votes_of_one_annotator_are_taken_as_they_are() -> None:
    a, b, c, d = PAIRS[:4]
    votes = [
        Vote(a.id, "ann", "first"),
        Vote(b.id, "ann", "second"),
        Vote(c.id, "ann", "tie"),
        Vote(d.id, "ann", "skip"),
    ]
    assert soft_labels(PAIRS[:4], votes, dict) == {a.id: 1.0, b.id: 0.0, c.id: 0.5, d.id: None}
    again = [*votes, Vote(a.id, "ann", "second", is_turned=True)]
    assert soft_labels([a], again[:1] + again[-1:], dict) == {a.id: 0.5}


@pytest.fixture(scope="module")
def rounds():
    """Five rounds of 50 pairs and five people, one a pair: one the reverse, one always the left."""
    found = []
    for seed in range(6):
        draw = np.random.default_rng(seed)
        features = draw.normal(size=(250, 16))
        gaps = features @ (draw.normal(size=16) * 0.7)
        pairs = [LabelPair(f"q{n}", " a", " b") for n in range(250)]
        votes = []
        for n, (pair, gap) in enumerate(zip(pairs, gaps, strict=True)):
            is_turned = bool(draw.random() < 0.5)
            informed = 1 / (1 + np.exp(-2 * gap))
            chance = (informed, informed, informed, 1 - informed, 0.05 if is_turned else 0.95)
            choice = "first" if draw.random() < chance[n % 5] else "second"
            votes.append(Vote(pair.id, f"w{n % 5}", choice, is_turned=is_turned))
        of = {pair.id: row for pair, row in zip(pairs, features, strict=True)}
        found.append((pairs, gaps, votes, of))
    return found


def _share_right(rounds, **more):
    """Of the last round's labels, over the draws."""
    right = []
    for pairs, gaps, votes, features in rounds:
        extra = {name: choose(pairs, gaps, votes) for name, choose in more.items()}
        asked = {vote.pair for vote in [*votes[200:], *extra.get("history", [])]}
        own = {pair: row for pair, row in features.items() if pair in asked}
        believed = soft_labels(pairs[200:], votes[200:], lambda own=own: own, **extra)
        assert set(believed) == {pair.id for pair in pairs[200:]}
        right += [
            (believed[p.id] > 0.5) == (g > 0) for p, g in zip(pairs[200:], gaps[200:], strict=True)
        ]
    return np.mean(right)


def test_votes_of_earlier_rounds_tell_whom_to_believe(rounds) -> None:
    alone = _share_right(rounds)
    with_earlier = _share_right(rounds, history=lambda pairs, gaps, votes: votes[:200])
    # As docs/labels-in-the-loop.md has it.
    assert (alone, with_earlier) == (pytest.approx(0.71, abs=0.02), pytest.approx(0.94, abs=0.02))


def test_known_answers_tell_whom_to_believe(rounds) -> None:
    def known(pairs, gaps, votes):
        return votes[:100]

    def answers(pairs, gaps, votes, sign=1):
        told = zip(pairs[:100], gaps[:100], strict=True)
        return {pair.id: "first" if sign * gap > 0 else "second" for pair, gap in told}

    assert _share_right(rounds, history=known, gold=answers) > 0.85
    # Were they the reverse, it would be the one who votes the reverse that is right.
    turned = _share_right(rounds, history=known, gold=partial(answers, sign=-1))
    assert turned < 0.3


def test_of_several_annotators_who_says_the_reverse_is_believed_less() -> None:
    """Rewards are known by one feature; five agree with it and one always says the reverse."""
    draw = np.random.default_rng(0)
    gaps = draw.normal(size=120) * 2
    pairs = [LabelPair(f"q{n}", " a", " b") for n in range(120)]
    names = ("ann", "bob", "cid", "dan", "eve")
    votes = [
        Vote(pair.id, names[n % 5], "first" if (gap > 0) != (names[n % 5] == "eve") else "second")
        for n, (pair, gap) in enumerate(zip(pairs, gaps, strict=True))
    ]
    features = {pair.id: [gap] for pair, gap in zip(pairs, gaps, strict=True)}
    believed = soft_labels(pairs, votes, lambda: features)
    right = [(believed[pair.id] > 0.5) == (gap > 0) for pair, gap in zip(pairs, gaps, strict=True)]
    assert np.mean(right) > 0.95, "a majority of single votes would be right in 0.8"
    assert all(0.0 <= p <= 1.0 for p in believed.values())
