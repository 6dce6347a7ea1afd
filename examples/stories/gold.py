# SPDX-License-Identifier: Apache-2.0
"""The gold function of this example: what a good short ending of a story opening is.

It stands for the people who would label pairs: the reward model learns from labels that it gives,
and it measures the result. Named in run.yaml as `examples.stories.gold:score`, so that any function
of yours, `(prompts, responses) -> floats`, can take its place.
"""

import re
from collections.abc import Sequence

__all__ = ["score", "score_story"]


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


GOOD_LENGTH = (12, 36)
"""Words of a story that is neither cut short nor padded out."""
WARM = _words(
    "friend friends fun good happily happy home hug hugged kind laughed learned love loved play "
    "played proud safe share shared smile smiled thank thanked together"
)
COMMON = _words(
    "a an and but came could for found from gave had he her his in it liked lived look looked lost "
    "loved named near not on once one saw she so the then there they time to too took upon was "
    "wanted went who with day mom"
)


def score(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    """One number a story, about -3 to 3: what a run calls the gold function."""
    return [score_story(*both) for both in zip(prompts, responses, strict=True)]


def score_story(opening: str, story: str) -> float:
    """A point for its subject, one for an ending, half for a warm one; less for what spoils it."""
    words = re.findall(r"[a-z']+", story.lower())
    subject = set(re.findall(r"[a-z]+", opening.lower())) - COMMON
    on_subject = min(len(subject & set(words)), 3) / 3
    return on_subject + _ending(story) - _strangers(opening, story) - _padding(words)


def _ending(story: str) -> float:
    """1 for a last sentence that is whole, half a point more for a warm one."""
    if not re.search(r"[.!?][\"']?\s*$", story):
        return 0.0
    last = re.split(r"[.!?][\"']?\s+", story.strip())[-1]
    return 1.0 + 0.5 * bool(WARM & set(re.findall(r"[a-z]+", last.lower())))


def _strangers(opening: str, story: str) -> float:
    """Half a point for each name that the opening did not have, up to two."""
    inside = re.findall(r"(?<=[a-z,;] )[A-Z][a-z]+", story)
    return 0.5 * min(len({name for name in inside if name not in opening}), 2)


def _padding(words: Sequence[str]) -> float:
    """What is missing to a story's length or too much of it, and what is said again and again."""
    short, long = GOOD_LENGTH
    triples = list(zip(words, words[1:], words[2:], strict=False))
    repeated = 1 - len(set(triples)) / len(triples) if triples else 0.0
    return 0.1 * max(short - len(words), 0) + 0.1 * max(len(words) - long, 0) + 2.0 * repeated
