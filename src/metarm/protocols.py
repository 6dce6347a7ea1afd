# SPDX-License-Identifier: Apache-2.0
"""The seams: what a score function, a judge, an optimiser and those who look on must do.

Each law below is a test of the conformance suites in `tests/conformance`.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from metarm.schema import Prompt, Verdict

__all__ = [
    "IterationObserver",
    "Judge",
    "PolicyOptimizer",
    "ProgressReporter",
    "ScoreFunction",
    "StageProgress",
]


@runtime_checkable
class ScoreFunction(Protocol):
    """Scores responses: a reward model, an ensemble, a gold function, a call over the network.

    Laws: one finite float per response, in order; a score depends on its own prompt and response
    alone, not on the batch it came in; the same input gives the same score.
    """

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
        """Score `responses[i]` as an answer to `prompts[i]`."""
        ...


@runtime_checkable
class Judge(Protocol):
    """Says which of two responses to a prompt is better: a score, a model behind a URL, people.

    Laws: one verdict per pair, in order; a verdict depends on its own prompt and responses alone,
    not on what else is asked with them; the same input gives the same verdict; an answer that is
    none of `first`, `second` and `tie` is `malformed`, and none at all `unjudged`: never a guess.
    """

    def __call__(
        self, prompts: Sequence[Prompt], first: Sequence[str], second: Sequence[str]
    ) -> list[Verdict]:
        """Judge `first[i]` against `second[i]`, in this order, as answers to `prompts[i]`."""
        ...


class StageProgress(Protocol):
    """Progress of one stage, of a known number of steps."""

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Report that `steps` more steps are done; `note` is shown beside the bar."""
        ...


class ProgressReporter(Protocol):
    """Shows long work: each stage gets a bar with the time left."""

    def stage(self, name: str, total: int) -> AbstractContextManager[StageProgress]:
        """Open a bar for `total` steps of the stage called `name`."""
        ...


class IterationObserver(Protocol):
    """Looks on while a policy is optimised, after each iteration.

    Laws: weights, gradients, the mode of the model and the global random state are as before when
    it returns.
    """

    def __call__(self, *, iteration: int, policy: Any, encoder: Any) -> bool:
        """Look at the policy after iteration 1, 2, ...; whether the optimisation is to end here."""
        ...


class PolicyOptimizer(Protocol):
    """Moves a policy towards higher scores.

    Laws: writes a Hugging Face causal language model with its tokenizer into `output_dir`, or a
    `best_of_n.json` that says how to sample; leaves `policy_dir` untouched; a KL
    penalty is measured to the model in `reference_dir` and to nothing else; the same seed gives
    the same result; appends one JSON line per iteration to `output_dir/metrics.jsonl`.
    """

    def __call__(
        self,
        *,
        policy_dir: Path,
        reference_dir: Path,
        reward_model_dir: Path,
        score: ScoreFunction,
        prompts: Sequence[Prompt],
        output_dir: Path,
        seed: int,
        monitor: ScoreFunction | None,
        progress: ProgressReporter,
    ) -> Mapping[str, float]:
        """Optimise, write the new policy, and return the last iteration's metrics."""
        ...
