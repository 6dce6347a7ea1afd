# SPDX-License-Identifier: Apache-2.0
"""The language: sentences scored by hand, what is drawn, what is refused."""

import math
import random
import re

import numpy as np
import pytest

from metarm.config import WorldSettings
from metarm.errors import ConfigError
from metarm.world.language import (
    SPECIAL_TOKENS,
    GoldReward,
    Language,
    build_language,
    draw_prompt,
    draw_response,
    measure_loud_features,
    vocabulary,
)

PROMPT = "describe the rose and the pond in the garden ."
QUIET = {"red": 0.3, "old": -0.2, "slowly": 0.05}
LANGUAGE = Language(("garden", "kitchen", "harbour"), QUIET, dict.fromkeys(QUIET, 1.0))


def coefficient(pattern):
    """A number of the formula in the docstring, which the code must follow."""
    formula = " ".join(GoldReward.__doc__.split())
    (number,) = re.findall(pattern, formula)
    return float(number)


THANKS = coefficient(r"([\d.]+) \[thanks\]")
REASON = coefficient(r"([\d.]+) \[a reason\]")
ASKED = coefficient(r"\+ ([\d.]+) \* asked")
ON_TOPIC = coefficient(r"\+ ([\d.]+) \* min\(on_topic, 3\)")
OFF_TOPIC = coefficient(r"- ([\d.]+) \* off_topic")
MORE_THANKS = coefficient(r"- ([\d.]+) \* \(further thanks\)")
MORE_REASONS = coefficient(r"- ([\d.]+) \* \(further reasons\)")
REPEAT = coefficient(r"- ([\d.]+) \* repeats")
LONG = coefficient(r"- ([\d.]+) \* \(words past \d+\)")
BRIEF = int(coefficient(r"\(words past (\d+)\)"))

SENTENCES = {
    "": 0.0,
    "the .": 0.0,
    "thanks .": THANKS,
    "thanks . thanks . thanks .": THANKS - 2 * MORE_THANKS,
    "because": REASON,
    "because because because": REASON - 2 * MORE_REASONS,
    "the rose stands .": ASKED + ON_TOPIC,
    "the rose stands because the pond shines .": 2 * ASKED + 2 * ON_TOPIC + REASON,
    "the bee waits .": ON_TOPIC,
    "the bee waits . the lawn waits . the hedge waits . the spade waits .": 3 * ON_TOPIC,
    "the kettle waits .": -OFF_TOPIC,
    "the kettle waits . the boat waits .": -2 * OFF_TOPIC,
    "the rose waits . the rose waits .": ASKED + ON_TOPIC - REPEAT,
    "the kettle waits . the kettle waits .": -2 * OFF_TOPIC - REPEAT,
    "the red bee waits slowly .": ON_TOPIC + QUIET["red"] + QUIET["slowly"],
    "the red bee waits . the red lawn waits .": 2 * ON_TOPIC + QUIET["red"] - REPEAT,
    "the old bee waits .": ON_TOPIC + QUIET["old"],
    "the garden the garden": 0.0,
    " ".join(["the"] * BRIEF): 0.0,
    " ".join(["the"] * (BRIEF + 3)): -3 * LONG,
    "words of no language": 0.0,
}


@pytest.mark.parametrize("response", SENTENCES, ids=lambda text: text[:40] or "empty")
def test_gold_by_hand(response):
    assert GoldReward(LANGUAGE).score(PROMPT, f" {response}") == pytest.approx(
        SENTENCES[response], abs=1e-12
    )


def test_gold_is_a_score_function():
    """It keeps the law: a score depends on its own prompt and response alone."""
    gold = GoldReward(LANGUAGE)
    responses = list(SENTENCES)
    assert gold([PROMPT] * len(responses), responses) == [
        gold([PROMPT], [response])[0] for response in responses
    ]
    other = "show the kettle and the stove in the kitchen ."
    assert gold.score(other, "the kettle waits .") == pytest.approx(ASKED + ON_TOPIC)


def test_loud_features_by_hand():
    text = "thanks . the red rose stands because the red kettle waits . thanks ."
    loud = measure_loud_features(LANGUAGE, PROMPT, text)
    assert (loud.thanks, loud.reasons, loud.asked, loud.on_topic) == (2, 1, 1, 1)
    assert (loud.off_topic, loud.repeats, loud.words) == (1, 1, 14)


def test_a_language_is_drawn_by_its_seed():
    assert build_language(WorldSettings(seed=1)) == build_language(WorldSettings(seed=1))
    assert build_language(WorldSettings(seed=1)) != build_language(WorldSettings(seed=2))


@pytest.mark.parametrize("name", ["num_topics", "num_quiet_words"])
def test_more_words_than_there_are_is_an_error(name):
    with pytest.raises(ConfigError, match=rf"world\.{name} is 1000, but the language has \d+"):
        build_language(WorldSettings(**{name: 1000}))


@pytest.mark.parametrize("count", [1, 13, 24, 40])
def test_there_are_as_many_quiet_words_and_topics_as_asked_for(count):
    language = build_language(WorldSettings(num_quiet_words=count, num_topics=2))
    assert len(language.quiet_weights) == len(language.quiet_odds) == count
    assert len(language.topics) == 2


def test_weights_have_the_spread_that_is_set():
    weights = [
        weight
        for seed in range(40)
        for weight in build_language(
            WorldSettings(seed=seed, quiet_weight=0.5, num_quiet_words=40)
        ).quiet_weights.values()
    ]
    # 1600 draws: the deviation's standard error is 0.5 / sqrt(3200) = 0.009.
    assert np.std(weights) == pytest.approx(0.5, abs=0.04)
    assert np.mean(weights) == pytest.approx(0.0, abs=0.05)


@pytest.mark.parametrize("alignment", [-1.0, 0.0, 0.7, 1.0])
def test_alignment_is_the_correlation_of_odds_and_weights(alignment):
    weights, odds = [], []
    for seed in range(40):
        language = build_language(
            WorldSettings(seed=seed, quiet_alignment=alignment, num_quiet_words=40)
        )
        weights += language.quiet_weights.values()
        odds += [math.log(value) for value in language.quiet_odds.values()]
    assert np.corrcoef(weights, odds)[0, 1] == pytest.approx(alignment, abs=0.1)


def test_no_word_has_two_meanings():
    words = vocabulary(build_language(WorldSettings(num_topics=8, num_quiet_words=40)))
    assert len(words) == len(set(words))
    assert tuple(words[:4]) == SPECIAL_TOKENS


def test_all_that_is_drawn_is_in_the_vocabulary():
    language = build_language(WorldSettings())
    known, draw = set(vocabulary(language)), random.Random(0)
    for _ in range(200):
        prompt = draw_prompt(language, draw)
        assert set(prompt.split()) | set(draw_response(language, prompt, draw).split()) <= known


def test_a_prompt_asks_about_two_things_of_one_place():
    language, draw = build_language(WorldSettings()), random.Random(0)
    for _ in range(50):
        words = draw_prompt(language, draw).split()
        first, second, topic = words[2], words[5], words[8]
        assert first != second
        assert language.topic_of(first) == language.topic_of(second) == topic


def test_quiet_words_come_as_often_as_their_odds():
    odds = {"red": 4.0, "old": 1.0, "slowly": 1.0}
    language, draw = Language(("garden",), QUIET, odds), random.Random(0)
    words = [
        word
        for _ in range(2000)
        for word in draw_response(language, PROMPT, draw).split()
        if word in odds
    ]
    shares = [words.count(word) / len(words) for word in odds]
    assert shares == pytest.approx([4 / 6, 1 / 6, 1 / 6], abs=0.04)
