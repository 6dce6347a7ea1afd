# SPDX-License-Identifier: Apache-2.0
"""Gold as an annotator: pairs of a policy's responses, drawn at random and ordered by gold."""

import itertools
import random
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from metarm.labels.votes import LabelPair
from metarm.protocols import ScoreFunction
from metarm.schema import PreferencePair, ResponseGroup

__all__ = ["GoldGap", "draw_pairs", "gold_gaps", "label_groups", "relabel_pairs", "told_apart"]


class GoldGap(NamedTuple):
    """A pair and how much more gold its first response has than its second."""

    pair: LabelPair
    gap: float


def draw_pairs(groups: Sequence[ResponseGroup], *, seed: int) -> list[LabelPair]:
    """All pairs of different responses in an order drawn by `seed`, spread over the groups.

    Every group gives one pair before any gives a second. Two groups may share a prompt, and then a
    pair, which comes once. The first side of a pair is the smaller text.
    """
    draw = random.Random(f"labels|{seed}")
    choices = []
    for group in draw.sample(list(groups), len(groups)):
        texts = list(dict.fromkeys(group.responses))
        pairs = [(group.prompt, min(p), max(p)) for p in itertools.combinations(texts, 2)]
        choices.append(draw.sample(pairs, len(pairs)))
    turns = itertools.chain.from_iterable(itertools.zip_longest(*choices))
    return [LabelPair(*choice) for choice in dict.fromkeys(turns) if choice is not None]


def gold_gaps(pairs: Sequence[LabelPair], gold: ScoreFunction) -> list[GoldGap]:
    """Each pair with gold of its first response less that of its second."""
    scores = gold(
        [pair.prompt for pair in pairs for _ in range(2)],
        [response for pair in pairs for response in (pair.first, pair.second)],
    )
    gaps = zip(pairs, scores[::2], scores[1::2], strict=True)
    return [GoldGap(pair, one - two) for pair, one, two in gaps]


def told_apart(pairs: Sequence[LabelPair], gold: ScoreFunction, count: int) -> list[GoldGap]:
    """The first `count` pairs that do not tie in gold; fewer where there are no others.

    No more of them are scored than it takes.
    """
    waiting, found = list(pairs), list[GoldGap]()
    while waiting and len(found) < count:
        part = waiting[: count - len(found)]
        waiting = waiting[len(part) :]
        found += [told for told in gold_gaps(part, gold) if told.gap]
    return found


def label_groups(
    groups: Sequence[ResponseGroup], gold: ScoreFunction, count: int, *, seed: int
) -> list[PreferencePair]:
    """Pairs of responses labelled by gold, `count` of them, spread over the groups.

    Every group gives one pair before any gives a second; groups and pairs are drawn by `seed`.
    Pairs that tie in gold are passed over: fewer come back where there are no others. Blank
    responses are labelled like any: a reward model that never saw one may like it best.
    """
    return list(_ordered(told_apart(draw_pairs(groups, seed=seed), gold, count)))


def _ordered(found: Sequence[GoldGap]) -> Iterator[PreferencePair]:
    for pair, gap in found:
        chosen, rejected = (pair.first, pair.second) if gap > 0 else (pair.second, pair.first)
        yield PreferencePair(pair.prompt, chosen, rejected)


def relabel_pairs(
    pairs: Sequence[PreferencePair], gold: ScoreFunction
) -> tuple[PreferencePair, ...]:
    """The same pairs ordered by gold, without margins; pairs that tie in gold are left out."""
    prompts = [pair.prompt for pair in pairs]
    chosen = gold(prompts, [pair.chosen for pair in pairs])
    rejected = gold(prompts, [pair.rejected for pair in pairs])
    return tuple(
        PreferencePair(pair.prompt, pair.chosen, pair.rejected)
        if one > two
        else PreferencePair(pair.prompt, pair.rejected, pair.chosen)
        for pair, one, two in zip(pairs, chosen, rejected, strict=True)
        if one != two
    )
