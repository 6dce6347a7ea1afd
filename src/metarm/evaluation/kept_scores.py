# SPDX-License-Identifier: Apache-2.0
"""A score function whose answers are kept: what was scored before a process ended is not again."""

from collections.abc import Sequence
from dataclasses import dataclass

from metarm.chunk_log import ChunkLog
from metarm.protocols import ScoreFunction, StageProgress
from metarm.schema import Prompt, prompt_to_json
from metarm.storage import fingerprint

__all__ = ["KeptScores"]


@dataclass(frozen=True, slots=True)
class KeptScores:
    """Another score function, asked once for each list of texts; a `protocols.ScoreFunction`.

    A whole call is kept and not its parts: scores are those of the very batches that an unbroken
    process would have scored, bit for bit.
    """

    name: str
    """Tells score functions of one log apart."""
    score: ScoreFunction
    log: ChunkLog
    bar: StageProgress | None = None
    """Advances by what was found in the log; what is scored moves the bar of `score`."""

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
        """Score each response, in the order given."""
        texts = fingerprint([prompt_to_json(prompt) for prompt in prompts], list(responses))
        key = f"{self.name} {len(responses)} {texts}"
        found: list[float] | None = self.log.get(key)
        if found is None:
            found = [float(score) for score in self.score(prompts, responses)]
            self.log.put(key, found)
        elif self.bar is not None:
            self.bar.advance(len(found))
        return found
