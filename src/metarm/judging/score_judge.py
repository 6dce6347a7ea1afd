# SPDX-License-Identifier: Apache-2.0
"""A score as a judge: a reward model, a gold function, or one of the user's own."""

from collections.abc import Sequence

from metarm.protocols import ScoreFunction
from metarm.schema import Prompt, Verdict

__all__ = ["ScoreJudge"]


class ScoreJudge:
    """The response with the higher score is better; near scores are a tie.

    Satisfies `protocols.Judge`. It has no preference for an order, and scores each response once,
    however often it is compared.

    Args:
        score: Any score function.
        tie_margin: Differences up to this are ties, in the score's unit.
    """

    def __init__(self, score: ScoreFunction, tie_margin: float = 0.0) -> None:
        self._score = score
        self._tie_margin = tie_margin
        self._known: dict[tuple[Prompt, str], float] = {}

    def __call__(
        self, prompts: Sequence[Prompt], first: Sequence[str], second: Sequence[str]
    ) -> list[Verdict]:
        """Judge `first[i]` against `second[i]` as answers to `prompts[i]`."""
        sides = [list(zip(prompts, side, strict=True)) for side in (first, second)]
        wanted = dict.fromkeys(place for side in sides for place in side)
        new = [place for place in wanted if place not in self._known]
        scores = self._score([prompt for prompt, _ in new], [response for _, response in new])
        self._known.update(zip(new, scores, strict=True))
        return [
            self._verdict(self._known[one] - self._known[other])
            for one, other in zip(*sides, strict=True)
        ]

    def _verdict(self, gap: float) -> Verdict:
        if abs(gap) <= self._tie_margin:
            return "tie"
        return "first" if gap > 0 else "second"
