# SPDX-License-Identifier: Apache-2.0
"""Any judge as an annotator: asked for the pairs of a store that it has not voted on yet."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from metarm.labels.events import LabelContent, VoteEvent
from metarm.labels.queue import is_side_turned
from metarm.labels.store import LabelStore
from metarm.labels.votes import AnnotatorKind, Choice, LabelPair
from metarm.progress import SilentProgress
from metarm.protocols import Judge, ProgressReporter
from metarm.schema import Verdict
from metarm.storage import fingerprint

__all__ = ["Asked", "ask_judge"]

CHUNK: Final = 64
"""Questions after whose answers the votes are stored."""
_MIRROR: Final[dict[Verdict, Verdict]] = {"first": "second", "second": "first"}


@dataclass(frozen=True, slots=True)
class Asked:
    """What became of the questions."""

    num_asked: int
    num_votes: int
    """Answers that were votes, and are stored."""
    num_unusable: int
    """Answers that were none of first, second and tie, or did not come: asked again next time."""


class _Question(NamedTuple):
    """A pair as it is put to the judge."""

    pair: LabelPair
    is_turned: bool | None
    is_repeat: bool


def ask_judge(
    store: LabelStore,
    judge: Judge,
    name: str,
    kind: AnnotatorKind,
    *,
    has_sides: bool = False,
    has_repeats: bool = False,
    progress: ProgressReporter | None = None,
) -> Asked:
    """Have a judge vote on every pair that it has no vote on; votes are stored as they come.

    Stopped and started again it goes on with what is left. Known answers stay unknown to it. It
    becomes an annotator with its first votes: one that never answered is none.

    Args:
        store: Where the pairs are and the votes go.
        judge: Any judge: a score function, a model behind a URL, a rule.
        name: The annotator that it is in the store.
        kind: Of that annotator.
        has_sides: Whether the order of the responses could matter to it: then it is drawn for each
            pair as for people, and stored.
        has_repeats: Whether it is asked every pair again the other way round; needs `has_sides`.
        progress: Shows a bar; None: nothing is shown.

    Raises:
        ConfigError: When the name cannot be one, or belongs to an annotator of another kind.
    """
    store.has_annotator(name, kind)
    questions = _questions(store, name, has_sides=has_sides, has_repeats=has_repeats)
    num_votes = 0
    with (progress or SilentProgress()).stage(
        f"ask {name}", math.ceil(len(questions) / CHUNK)
    ) as shown:
        for start in range(0, len(questions), CHUNK):
            chunk = questions[start : start + CHUNK]
            votes = list(_votes(chunk, judge, name))
            if votes:
                store.add_content(LabelContent((), {}, {name: kind}, tuple(votes)))
            num_votes += len(votes)
            shown.advance()
    return Asked(len(questions), num_votes, len(questions) - num_votes)


def _questions(
    store: LabelStore, name: str, *, has_sides: bool, has_repeats: bool
) -> list[_Question]:
    """What is still to ask, in the order of pairs."""
    voted = {
        (vote.pair, vote.is_repeat) for vote in store.content().votes if vote.annotator == name
    }
    seed = store.seed
    return [
        _Question(
            pair, is_side_turned(seed, pair.id, name, showing) if has_sides else None, bool(showing)
        )
        for pair in store.pairs()
        for showing in range(2 if has_sides and has_repeats else 1)
        if (pair.id, bool(showing)) not in voted
    ]


def _votes(questions: Sequence[_Question], judge: Judge, name: str) -> Iterator[VoteEvent]:
    """The votes that a judge's answers are."""
    sides = [
        (one.pair.second, one.pair.first) if one.is_turned else (one.pair.first, one.pair.second)
        for one in questions
    ]
    verdicts = judge(
        [one.pair.prompt for one in questions],
        [left for left, _ in sides],
        [right for _, right in sides],
    )
    for question, shown in zip(questions, verdicts, strict=True):
        verdict = _MIRROR.get(shown, shown) if question.is_turned else shown
        if verdict not in ("first", "second", "tie"):
            continue
        choice: Choice = verdict
        pair = question.pair.id
        yield VoteEvent(
            f"ask {fingerprint(name, pair, question.is_repeat)}",
            name,
            choice,
            pair=pair,
            is_turned=question.is_turned,
            is_repeat=question.is_repeat,
        )
