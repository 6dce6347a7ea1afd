# SPDX-License-Identifier: Apache-2.0
"""The language: prompts that ask about two things in a place, answers, and their true reward.

An answer can be polite, on its subject, reasoned, brief: a few loud features that decide most
original comparisons and that any optimised policy soon always has. What then still differs from
answer to answer is the choice among many quiet words (adjectives, adverbs), each with a small true
weight of its own: weakly visible in the original pairs, never absent from them.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from metarm.config import WorldSettings
from metarm.errors import ConfigError
from metarm.schema import Prompt

__all__ = [
    "SPECIAL_TOKENS",
    "GoldReward",
    "Language",
    "LoudFeatures",
    "build_language",
    "draw_prompt",
    "draw_response",
    "measure_loud_features",
    "vocabulary",
]

SPECIAL_TOKENS: Final = ("<pad>", "<s>", "</s>", "<unk>")
TOPICS: Final[dict[str, tuple[str, ...]]] = {
    "garden": ("rose", "fence", "spade", "bee", "lawn", "pond", "hedge", "tulip"),
    "kitchen": ("stove", "kettle", "spoon", "oven", "recipe", "bread", "table", "cook"),
    "harbour": ("boat", "anchor", "sailor", "gull", "pier", "net", "tide", "crane"),
    "forest": ("oak", "fox", "trail", "owl", "moss", "river", "deer", "cabin"),
    "market": ("stall", "apple", "crowd", "coin", "basket", "fish", "cheese", "baker"),
    "workshop": ("hammer", "bench", "saw", "nail", "lamp", "clock", "wheel", "drawer"),
    "station": ("train", "ticket", "platform", "guard", "whistle", "bridge", "luggage", "tunnel"),
    "library": ("book", "shelf", "reader", "desk", "poem", "map", "window", "author"),
}
QUIET_WORDS: Final = (
    *("red", "old", "warm", "quiet", "small", "bright", "heavy", "round", "wooden", "gentle"),
    *("plain", "narrow", "golden", "dusty", "crisp", "hollow", "tidy", "steep", "pale", "proud"),
    *("slowly", "often", "well", "together", "again", "nearby", "safely", "early", "alone"),
    *("clearly", "softly", "twice", "today", "there", "firmly", "daily", "outside", "gladly"),
    *("smoothly", "late"),
)
VERBS: Final = ("stands", "works", "waits", "turns", "helps", "moves", "rests", "shines")
ASKING: Final = ("describe", "explain", "show")
THANKS: Final = "thanks"
BECAUSE: Final = "because"
STOP: Final = "."
FUNCTION_WORDS: Final = ("the", "and", "in", STOP, THANKS, BECAUSE)
MAX_SENTENCES: Final = 3
BRIEF_WORDS: Final = 20


@dataclass(frozen=True, slots=True)
class LoudFeatures:
    """The features of an answer that are easy to see."""

    thanks: int
    """How often it says thanks."""
    reasons: int
    """How often it says because."""
    asked: int
    """Distinct things it was asked about and speaks of, 0 to 2."""
    on_topic: int
    """Distinct things of the asked place it speaks of."""
    off_topic: int
    """Things of other places it speaks of."""
    repeats: int
    """Things and quiet words said again."""
    words: int
    """Its length."""


@dataclass(frozen=True, slots=True)
class Language:
    """One drawn world: which words there are and what each quiet word is truly worth."""

    topics: tuple[str, ...]
    quiet_weights: dict[str, float]
    """True weight of each quiet word, in units of reward."""
    quiet_odds: dict[str, float]
    """How often the SFT distribution uses it, relative to the others."""

    def about(self, topics: Sequence[str]) -> "Language":
        """The same language where prompts and answers are about some of its topics only."""
        return replace(self, topics=tuple(topics))

    def topic_of(self, word: str) -> str | None:
        """The place a thing belongs to."""
        return next((topic for topic in self.topics if word in TOPICS[topic]), None)


def build_language(settings: WorldSettings) -> Language:
    """Draw the true weights of a world from its seed.

    Raises:
        ConfigError: When more topics or quiet words are asked for than the language has.
    """
    num_topics = settings.num_topics + settings.num_new_topics
    for name, wanted, known in (
        ("num_topics", settings.num_topics, len(TOPICS)),
        ("num_topics + num_new_topics", num_topics, len(TOPICS)),
        ("num_quiet_words", settings.num_quiet_words, len(QUIET_WORDS)),
    ):
        if wanted > known:
            raise ConfigError(f"world.{name} is {wanted}, but the language has {known}: lower it")
    draw = random.Random(f"world|{settings.seed}")
    words = QUIET_WORDS[:: max(1, len(QUIET_WORDS) // settings.num_quiet_words)]
    words = words[: settings.num_quiet_words]
    standard = {word: draw.gauss(0.0, 1.0) for word in words}
    rho = settings.quiet_alignment
    noise = math.sqrt(1.0 - rho * rho)
    return Language(
        topics=tuple(TOPICS)[:num_topics],
        quiet_weights={word: settings.quiet_weight * z for word, z in standard.items()},
        quiet_odds={
            word: math.exp(0.5 * (rho * z + noise * draw.gauss(0.0, 1.0)))
            for word, z in standard.items()
        },
    )


def vocabulary(language: Language) -> list[str]:
    """Every token, special ones first; the position is the id."""
    things = [thing for topic in language.topics for thing in TOPICS[topic]]
    return [
        *SPECIAL_TOKENS,
        *FUNCTION_WORDS,
        *ASKING,
        *VERBS,
        *language.topics,
        *things,
        *language.quiet_weights,
    ]


def draw_prompt(language: Language, draw: random.Random) -> str:
    """A prompt such as `describe the rose and the pond in the garden .`, drawn by chance."""
    topic = draw.choice(language.topics)
    first, second = draw.sample(TOPICS[topic], 2)
    return f"{draw.choice(ASKING)} the {first} and the {second} in the {topic} {STOP}"


def draw_response(language: Language, prompt: str, draw: random.Random) -> str:
    """An answer as a demonstrator would write it: sometimes good, often not."""
    topic, asked = _read_prompt(language, prompt)
    words: list[str] = []
    for _ in range(draw.choices(range(1, MAX_SENTENCES + 1), weights=(4, 4, 2))[0]):
        if draw.random() < 0.25:
            words += [THANKS, STOP]
        words += _draw_clause(language, topic, asked, draw)
        if draw.random() < 0.2:
            words += [BECAUSE, *_draw_clause(language, topic, asked, draw)]
        words.append(STOP)
    return " ".join(words)


def _draw_clause(
    language: Language, topic: str, asked: Sequence[str], draw: random.Random
) -> list[str]:
    quiet, odds = list(language.quiet_odds), list(language.quiet_odds.values())
    words = ["the"]
    if draw.random() < 0.5:
        words += draw.choices(quiet, odds)
    source = draw.random()
    place = topic if source < 0.85 else draw.choice(language.topics)
    words.append(draw.choice(asked) if source < 0.4 else draw.choice(TOPICS[place]))
    words.append(draw.choice(VERBS))
    if draw.random() < 0.5:
        words += draw.choices(quiet, odds)
    return words


def _read_prompt(language: Language, prompt: str) -> tuple[str, tuple[str, ...]]:
    words = prompt.split()
    topic = next((word for word in words if word in language.topics), language.topics[0])
    return topic, tuple(word for word in words if language.topic_of(word) is not None)


def measure_loud_features(language: Language, prompt: str, response: str) -> LoudFeatures:
    """Count an answer's loud features."""
    topic, asked = _read_prompt(language, prompt)
    words = response.split()
    things = [word for word in words if language.topic_of(word) is not None]
    content = things + [word for word in words if word in language.quiet_weights]
    on_topic = {thing for thing in things if thing in TOPICS[topic]}
    return LoudFeatures(
        thanks=words.count(THANKS),
        reasons=words.count(BECAUSE),
        asked=len(on_topic & set(asked)),
        on_topic=len(on_topic),
        off_topic=sum(thing not in TOPICS[topic] for thing in things),
        repeats=len(content) - len(set(content)),
        words=len(words),
    )


@dataclass(frozen=True, slots=True)
class GoldReward:
    """The world's true reward as a score function; nobody but the evaluation sees it.

    gold = 1 [thanks] + 1 [a reason] + 0.7 * asked + 0.4 * min(on_topic, 3) - 0.4 * off_topic
           - 1 * (further thanks) - 0.7 * (further reasons) - 0.5 * repeats
           - 0.1 * (words past 20) + sum of the true weights of the distinct quiet words
    """

    language: Language

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
        """True reward of each response, in units where one loud feature is worth about 1."""
        return [
            self.score(str(prompt), response)
            for prompt, response in zip(prompts, responses, strict=True)
        ]

    def score(self, prompt: str, response: str) -> float:
        """True reward of one response."""
        loud = measure_loud_features(self.language, prompt, response)
        # Not a set: its order, and with it the sum's last bit, differs from process to process.
        words = dict.fromkeys(response.split())
        quiet = sum(self.language.quiet_weights.get(word, 0.0) for word in words)
        return (
            1.0 * (loud.thanks > 0)
            + 1.0 * (loud.reasons > 0)
            + 0.7 * loud.asked
            + 0.4 * min(loud.on_topic, 3)
            - 0.4 * loud.off_topic
            - 1.0 * max(loud.thanks - 1, 0)
            - 0.7 * max(loud.reasons - 1, 0)
            - 0.5 * loud.repeats
            - 0.1 * max(loud.words - BRIEF_WORDS, 0)
            + quiet
        )
