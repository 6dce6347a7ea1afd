# SPDX-License-Identifier: Apache-2.0
"""Labelled pairs that a split is tested on, as rows of its texts: how scores order them."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metarm.bench.results import Tally
from metarm.bench.shifts import Shift
from metarm.metrics import length_balanced_accuracy
from metarm.schema import PreferencePair, Prompt, prompt_text

__all__ = ["HeldOut", "PairRows"]


@dataclass(frozen=True, slots=True, eq=False)
class PairRows:
    """Pairs as rows of scores, and the prompt of each."""

    rows: Tensor
    """Shape (pairs, 2): chosen, rejected."""
    prompts: tuple[str, ...]
    """A short hash of each prompt."""
    prompt_of: NDArray[np.int64]
    """For each pair, which of the prompts is its own."""
    lengths: NDArray[np.int64]
    """Shape (pairs, 2), in characters."""

    @classmethod
    def of(
        cls, pairs: Sequence[PreferencePair], place: Mapping[tuple[Prompt, str], int]
    ) -> "PairRows":
        """At least one pair; `place` is each text's row among the scores."""
        texts = [prompt_text(pair.prompt) for pair in pairs]
        number = {text: index for index, text in enumerate(dict.fromkeys(texts))}
        return cls(
            torch.tensor([[place[p.prompt, p.chosen], place[p.prompt, p.rejected]] for p in pairs]),
            tuple(hashlib.sha256(text.encode()).hexdigest()[:12] for text in number),
            np.array([number[text] for text in texts]),
            np.array([[len(pair.chosen), len(pair.rejected)] for pair in pairs]),
        )

    def tally(self, scores: Tensor) -> Tally:
        """By prompt, how many pairs there are and how many are ordered as labelled."""
        sums = np.bincount(self.prompt_of, weights=self._correct(scores))
        return Tally(
            self.prompts, tuple(np.bincount(self.prompt_of).tolist()), tuple(sums.tolist())
        )

    def length_balanced(self, scores: Tensor) -> float | None:
        """See `metrics.length_balanced_accuracy`."""
        better, worse = self.lengths.T
        return length_balanced_accuracy(self._correct(scores), better, worse)

    def _correct(self, scores: Tensor) -> NDArray[np.float64]:
        gaps = scores[self.rows[:, 0]] - scores[self.rows[:, 1]]
        correct: NDArray[np.float64] = ((1 + gaps.sign()) / 2).double().numpy()
        return correct


@dataclass(frozen=True, slots=True, eq=False)
class HeldOut:
    """What a split of a shift tests on."""

    shift: str
    original: PairRows
    shifted: PairRows | None
    """None where nobody has labelled any."""

    @classmethod
    def of(cls, shift: Shift) -> "HeldOut":
        """Scores are in the order of `shift.texts`."""
        place = {text: row for row, text in enumerate(shift.texts)}
        shifted = PairRows.of(shift.test_shifted, place) if shift.test_shifted else None
        return cls(shift.name, PairRows.of(shift.test_original, place), shifted)
