# SPDX-License-Identifier: Apache-2.0
"""Scorecards of hand-made scores: every field has a value computed by hand."""

import math
from dataclasses import fields, replace

import pytest
import torch

from metarm.chunk_log import ChunkLog
from metarm.config import EvaluationSettings
from metarm.config_optimize import OptimizeSettings
from metarm.errors import DataError, EmptySetError
from metarm.evaluation.scorecard import (
    PolicySamples,
    ScoreFunctions,
    evaluate_round,
    sample_for_evaluation,
    score_groups,
)
from metarm.models.pair_evaluation import evaluate_preferences
from metarm.policy.sampling import BEST_OF_N_FILE
from metarm.progress import SilentProgress
from metarm.schema import Estimate, PreferencePair, ResponseGroup, Scorecard
from metarm.storage import write_json
from tiny_models import EOS, WORDS, save_fixed_policy, save_reward_model


def group(prompt, *responses):
    return ResponseGroup(prompt, responses)


# Three responses to each of two prompts, of 2, 3 and 4 characters.
OURS = (group("p", "x1", "x22", "x333"), group("q", "y1", "y22", "y333"))
SFT = (group("p", "s1", "s2", "s3"), group("q", "t1", "t2", "t3"))
BEFORE = (group("p", "u1", "u2", "u3"), group("q", "v1", "v2", "v3"))
REWARD = {
    **{"x1": 1.0, "x22": 3.0, "x333": 2.0, "y1": 0.0, "y22": 0.0, "y333": 4.0},
    **{"s1": 0.0, "s2": 2.0, "s3": 4.0, "t1": 1.0, "t2": 1.0, "t3": 1.0},
    **{"u1": 1.0, "u2": 2.0, "u3": 3.0, "v1": 5.0, "v2": 4.0, "v3": 4.0},
    **{"good": 2.0, "fine": 1.5, "bad": 1.0, "worst": -1.0},
}
FIRST = {"x1": 3.0, "x22": 2.0, "x333": 1.0, "y1": 0.0, "y22": 1.0, "y333": 2.0}
GOLD = {
    **{"x1": 2.0, "x22": 5.0, "x333": 5.0, "y1": 1.0, "y22": 3.0, "y333": 0.0},
    **{"s1": 2.05, "s2": 9.0, "s3": 9.0, "t1": 0.0, "t2": 9.0, "t3": 9.0},
    **{"u1": 1.0, "u2": 2.0, "u3": 2.0, "v1": 1.0, "v2": 0.0, "v3": 1.0},
}
PAIRS = (
    PreferencePair("p", "good", "bad"),
    PreferencePair("p", "worst", "fine"),
    PreferencePair("q", "bad", "bad"),
    PreferencePair("r", "fine", "worst"),
)
SAMPLES = PolicySamples(OURS, Estimate(1.5, 1.0, 2.0, 2), 7.5, 0.75)


def table(values):
    return lambda prompts, responses: [values[response] for response in responses]


def evaluate(**changes):
    reward, gold = changes.pop("reward", table(REWARD)), changes.pop("gold", table(GOLD))
    options = {
        "arm": "meta",
        "seed": 3,
        "round_number": 2,
        "samples": SAMPLES,
        "sft_groups": SFT,
        "previous_groups": BEFORE,
        "test_pairs": PAIRS,
        "scores": ScoreFunctions(reward=reward, first=table(FIRST), gold=gold),
        "settings": EvaluationSettings(tie_margin=0.1),
        "seconds_before": 100.0,
    }
    return evaluate_round(**(options | changes))


# Pairs that gold tells apart: x1 < x22, x1 < x333, y1 < y22, y1 > y333, y22 > y333.
# The reward model: right, right, a tie, wrong, wrong. The first one: right on y1 < y22 alone.
# The better one is longer in the first three (1, 1, 0.5), shorter in the last two (0, 0).
EXPECTED = {
    "accuracy_original": (1.0 + 0.0 + 0.5 + 1.0) / 4,
    "accuracy_before": (1.0 + 1.0 + 1.0 + 0.5) / 4,  # u1<u2, u1<u3, v1>v2, v2<v3
    "accuracy_shifted": (1.0 + 1.0 + 0.5 + 0.0 + 0.0) / 5,
    "accuracy_shifted_length_balanced": (2.5 / 3 + 0.0) / 2,
    "accuracy_first": 1.0 / 5,
    # Gaps -2, -1, 1 and 0, -4, -4: mean square 38 / 6, mean -10 / 6.
    "gap_spread": math.sqrt(38 / 6 - (10 / 6) ** 2),
    # SFT's gaps -2, -4, -2 and 0, 0, 0.
    "gap_spread_reference": math.sqrt(24 / 6 - (8 / 6) ** 2),
    # Ranks 1 3 2 against 3 2 1: 1 - 6 * 6 / 24. Ranks 1.5 1.5 3 against 1 2 3: 1.5 / sqrt(3).
    "rank_correlation_plain": (-0.5 + 1.5 / math.sqrt(3)) / 2,
    # SFT's six scores: mean 1.5, mean square 23 / 6.
    "proxy_score": (10 / 6 - 1.5) / math.sqrt(23 / 6 - 1.5**2),
    "gold_score": 16 / 6,
    # First responses: 2 against 2.05 is a tie at a margin of 0.1, 1 against 0 a win.
    "win_fraction": 0.5,
    "tie_fraction": 0.5,
    "lose_fraction": 0.0,
    "kl_nats": 1.5,
    "response_tokens": 7.5,
    "finished_fraction": 0.75,
    "arm": "meta",
    "seed": 3,
    "round": 2,
}
COUNTS = {
    "accuracy_original": 3,
    "accuracy_before": 2,
    "accuracy_shifted": 2,
    "accuracy_first": 2,
    "proxy_score": 2,
    "gold_score": 2,
    "win_fraction": 2,
}


@pytest.mark.parametrize("name", EXPECTED)
def test_field_by_hand(name):
    card, _ = evaluate()
    value = getattr(card, name)
    if isinstance(value, Estimate):
        assert value.low <= value.value <= value.high
        assert value.count == COUNTS.get(name, value.count), "counted by prompt"
        value = value.value
    expected = EXPECTED[name]
    assert value == (expected if isinstance(expected, str) else pytest.approx(expected, abs=1e-12))


def test_every_field_has_a_value_by_hand():
    others = {"gap_histogram", "seconds"}
    assert set(EXPECTED) | others == {field.name for field in fields(Scorecard)}


def test_the_histogram_is_in_units_of_the_spread_on_sft_responses():
    card, _ = evaluate()
    unit = math.sqrt(24 / 6 - (8 / 6) ** 2)
    seen = {}
    for gap in (-2.0, -1.0, 1.0, 0.0, -4.0, -4.0):
        place = math.floor((gap / unit + 4.0) / (8.0 / 41))
        seen[place] = seen.get(place, 0) + 1
    counts = card.gap_histogram.counts
    assert {place: count for place, count in enumerate(counts) if count} == seen
    assert (card.gap_histogram.edges[0], card.gap_histogram.edges[-1]) == (-4.0, 4.0)


def test_the_time_of_the_evaluation_is_added():
    card, _ = evaluate(seconds_before=100.0)
    assert 100.0 < card.seconds < 110.0


def test_rows_hold_the_first_responses_side_by_side():
    _, rows = evaluate()
    assert rows == [
        {
            "prompt": "p",
            "response": "x1",
            "sft_response": "s1",
            "gold": 2.0,
            "sft_gold": 2.05,
            "score": 1.0,
            "sft_score": 0.0,
        },
        {
            "prompt": "q",
            "response": "y1",
            "sft_response": "t1",
            "gold": 1.0,
            "sft_gold": 0.0,
            "score": 0.0,
            "sft_score": 1.0,
        },
    ]


NEEDS_GOLD = {
    *("accuracy_before", "accuracy_shifted", "accuracy_shifted_length_balanced"),
    *("accuracy_first", "gold_score", "win_fraction", "tie_fraction", "lose_fraction"),
}


def test_without_gold_what_needs_it_is_none():
    card, rows = evaluate(gold=None)
    empty = {field.name for field in fields(card) if getattr(card, field.name) is None}
    assert empty == NEEDS_GOLD
    assert {row["gold"] for row in rows} == {row["sft_gold"] for row in rows} == {None}
    assert card.proxy_score == evaluate()[0].proxy_score


def test_without_pairs_or_an_earlier_policy_those_accuracies_are_none():
    card, _ = evaluate(test_pairs=(), previous_groups=None)
    assert card.accuracy_original is None
    assert card.accuracy_before is None
    assert card.accuracy_shifted is not None


def test_gold_that_tells_nothing_apart_gives_no_accuracy():
    card, _ = evaluate(gold=lambda prompts, responses: [1.0] * len(responses))
    assert card.accuracy_shifted is None
    assert card.accuracy_first is None
    assert card.accuracy_shifted_length_balanced is None
    assert card.tie_fraction.value == 1.0


@pytest.mark.parametrize("score", [0.0, 0.1, -1e6])
def test_a_constant_reward_model_has_no_spread(score):
    card, _ = evaluate(reward=lambda prompts, responses: [score] * len(responses))
    assert card.gap_spread == card.gap_spread_reference == 0.0
    assert card.rank_correlation_plain is None
    assert card.proxy_score.value == pytest.approx(0.0, abs=1e-3)
    assert card.accuracy_shifted.value == card.accuracy_original.value == 0.5
    assert card.gap_histogram.counts[20] == 6, "all in the bin around 0"
    assert Scorecard.from_json(card.to_json()) == card


def test_groups_of_different_sizes_are_refused():
    """Four responses in two groups could be cut into two and two."""
    uneven = (group("p", "x1", "x22", "x333"), group("q", "y1"))
    with pytest.raises(DataError, match=r"one size, got sizes \[1, 3\]"):
        score_groups(table(REWARD), uneven)
    with pytest.raises(DataError, match="one size"):
        score_groups(table(REWARD), [])


def test_groups_are_scored_row_by_row():
    assert score_groups(table(REWARD), OURS).tolist() == [[1.0, 3.0, 2.0], [0.0, 0.0, 4.0]]


def test_preferences_by_hand():
    ours = evaluate_preferences(table(REWARD), PAIRS)
    # Gaps 1, -2.5, 0, 2.5; chosen is longer in the first two, the third has equal lengths.
    assert ours.accuracy.value == 2.5 / 4
    assert ours.accuracy.count == 3
    assert ours.gap_mean == pytest.approx(0.25)
    assert ours.gap_spread == pytest.approx(math.sqrt((1 + 6.25 + 6.25) / 4 - 0.0625))
    assert ours.accuracy_length_balanced == pytest.approx((0.5 + 1.0) / 2)
    assert ours.num_pairs == 4


def test_no_pairs_is_an_error():
    with pytest.raises(EmptySetError):
        evaluate_preferences(table(REWARD), [])


FLAT = torch.tensor([-30.0, -30.0, 0.0, -30.0, 0.5, 1.0, 0.0, -0.5, -1.0, 0.2])
TILTED = torch.tensor([-30.0, -30.0, 0.5, -30.0, 2.0, -1.0, 0.0, 0.3, -0.4, 0.1])


def sample(policy, reference, *, k=4, num_prompts=3, length=1, temperature=0.7, log=None):
    return sample_for_evaluation(
        policy,
        reference,
        ["a", "b c", "d"][:num_prompts],
        EvaluationSettings(num_generations=k),
        OptimizeSettings(temperature=temperature, max_completion_length=length),
        batch_size=5,
        seed=0,
        progress=SilentProgress(),
        log=log,
    )


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_kl_is_the_mean_log_ratio_under_the_sampling_distribution(tmp_path, temperature):
    policy = save_fixed_policy(tmp_path / "policy", TILTED)
    reference = save_fixed_policy(tmp_path / "reference", FLAT)
    ours = sample(policy, reference, k=40, length=3, temperature=temperature)
    ratios = torch.log_softmax(TILTED / temperature, 0) - torch.log_softmax(FLAT / temperature, 0)
    ids = {word: 4 + place for place, word in enumerate(WORDS)}
    totals, lengths = [], []
    for one in ours.groups:
        for response, finished in zip(one.responses, one.finished, strict=True):
            tokens = [ids[word] for word in response.split()] + [EOS] * finished
            totals.append(sum(ratios[token].item() for token in tokens))
            lengths.append(len(tokens))
    assert ours.kl_nats.value == pytest.approx(sum(totals) / len(totals), abs=1e-5)
    assert ours.kl_nats.count == 3
    assert ours.response_tokens == pytest.approx(sum(lengths) / len(lengths))
    flags = [flag for one in ours.groups for flag in one.finished]
    assert ours.finished_fraction == pytest.approx(sum(flags) / len(flags))
    assert 0 < ours.finished_fraction < 1


def test_a_policy_has_no_distance_to_itself(tmp_path):
    policy = save_fixed_policy(tmp_path / "policy", TILTED)
    assert sample(policy, policy).kl_nats.value == pytest.approx(0.0, abs=1e-6)


def test_best_of_n_has_its_analytic_distance(tmp_path):
    reference = save_fixed_policy(tmp_path / "reference", FLAT)
    reward = save_reward_model(tmp_path / "reward")
    row = {"base": str(reference), "reward_model": str(reward), "num_candidates": 4}
    write_json(tmp_path / "bon" / BEST_OF_N_FILE, row)
    ours = sample(tmp_path / "bon", reference)
    assert ours.kl_nats.value == pytest.approx(math.log(4) - 3 / 4, abs=1e-12)
    assert [len(one.responses) for one in ours.groups] == [4, 4, 4]


def test_an_evaluation_that_goes_on_is_the_same(tmp_path):
    policy = save_fixed_policy(tmp_path / "policy", TILTED)
    reference = save_fixed_policy(tmp_path / "reference", FLAT)
    whole = sample(policy, reference)
    path = tmp_path / "parts"
    assert sample(policy, reference, log=ChunkLog(path)) == whole
    lines = path.read_bytes().splitlines(keepends=True)
    assert len(lines) == 6, "three batches of responses, three of their KL"
    for count in (2, 4, 6):
        path.write_bytes(b"".join(lines[:count]))
        assert sample(policy, reference, log=ChunkLog(path)) == whole


def test_what_was_scored_is_not_scored_again(tmp_path):
    """By another process, after the evaluation died: the same numbers, and nobody is asked."""
    asked, moved = [], []

    class Bar:
        def advance(self, steps=1, note=""):
            moved.append(steps)

    def counted(name, values):
        def score(prompts, responses):
            asked.append(name)
            return [values[response] for response in responses]

        return score

    def evaluate(gold):
        functions = ScoreFunctions(counted("reward", REWARD), counted("first", FIRST), gold)
        return evaluate_round(
            arm="meta",
            seed=0,
            round_number=1,
            samples=SAMPLES,
            sft_groups=SFT,
            previous_groups=BEFORE,
            test_pairs=PAIRS,
            scores=functions.kept_in(ChunkLog(tmp_path / "parts.jsonl"), Bar()),
            settings=EvaluationSettings(tie_margin=0.1),
            seconds_before=0.0,
        )

    def die(prompts, responses):
        raise InterruptedError

    with pytest.raises(InterruptedError):
        evaluate(die)
    assert asked == ["reward", "first", "reward"]
    first, first_rows = evaluate(counted("gold", GOLD))
    assert asked[3:] == ["gold", "gold", "reward", "gold", "reward", "reward"]
    assert moved == [6, 6, 6], "a bar is told of what need not be scored again"
    del asked[:]
    second, second_rows = evaluate(counted("gold", GOLD))
    assert asked == []
    assert replace(second, seconds=0.0) == replace(first, seconds=0.0)
    assert second_rows == first_rows
