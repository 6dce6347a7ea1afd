# SPDX-License-Identifier: Apache-2.0
"""A watch: look after look, whether the reward model still tells the policy's responses apart.

    fine    nothing that chance would not do
    look    the responses are no longer those the reward model is known on: label some of them
    adapt   it tells them apart less, or its members disagree more: train it again
    stop    the KL budget is spent, hardly any spread is left, or a reward is not finite

Words follow from tests whose chance of any alarm in a whole run without a shift is bounded
(`thresholds`), and from two sizes: a loss of spread that is sure but small asks for a look only.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from metarm.errors import ConfigError, FormatError
from metarm.schema import Estimate
from metarm.storage import append_json_line, fingerprint, read_json_lines
from metarm.watching.measuring import Measured
from metarm.watching.statistics import (
    ShiftTest,
    disagreement_test,
    length_test,
    reward_test,
    shift_test,
    spread_test,
)
from metarm.watching.thresholds import AlarmBudget, num_relabellings

__all__ = ["LOOKS_FILE", "STATES", "TESTS", "Look", "Watch", "WatchRules", "read_looks", "worst"]

LOOKS_FILE: Final = "looks.jsonl"
STATES: Final = ("fine", "look", "adapt", "stop")
"""From best to worst."""


@dataclass(frozen=True, slots=True)
class WatchRules:
    """When a watch says what."""

    budget: AlarmBudget = field(default_factory=AlarmBudget)
    """Chance of a false alarm in the whole run, and how it is spent."""
    adapt_below: float = 0.9
    """`adapt` where the spread is surely smaller and less than this share of the reference's."""
    stop_below: float = 0.25
    """`stop` where less than this share is left."""
    disagree_above: float = 1.25
    """`adapt` where members surely disagree more, by this factor."""
    kl_budget: float | None = None
    """`stop` where KL to the reference policy is above it, in nats; None: no budget."""
    seed: int = 0
    """Draws the relabellings."""

    def __post_init__(self) -> None:
        if not 0.0 < self.stop_below <= self.adapt_below <= 1.0 <= self.disagree_above:
            raise ConfigError(
                "expected 0 < stop_below <= adapt_below <= 1 <= disagree_above, got "
                f"{self.stop_below}, {self.adapt_below}, {self.disagree_above}"
            )
        if self.kl_budget is not None and not self.kl_budget > 0.0:
            raise ConfigError(f"a KL budget is above 0 nats, got {self.kl_budget}")


@dataclass(frozen=True, slots=True)
class Look:
    """One look: what was measured, what follows, and why."""

    number: int
    """1, 2, ... over the whole run, adaptations included."""
    step: int
    """Where the policy stood: iteration, optimiser step or round."""
    state: str
    """One of `STATES`."""
    reasons: tuple[str, ...]
    level: float
    """A p-value up to this is an alarm."""
    tests: Mapping[str, ShiftTest]
    """By the name of the test; docs/watching.md explains each."""
    score_mean: float | None
    """Mean reward, in standard deviations of the reference's, 0 there; None: not finite."""
    kl_nats: float | None

    def to_json(self) -> dict[str, Any]:
        """A line of `looks.jsonl`."""
        tests = {name: test._asdict() for name, test in self.tests.items()}
        return {**asdict(self), "tests": tests}

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> "Look":
        """The inverse of `to_json`."""
        tests = {name: ShiftTest(**test) for name, test in row["tests"].items()}
        return cls(**{**row, "tests": tests, "reasons": tuple(row["reasons"])})


Test = Callable[[Measured, Measured, int, np.random.Generator], ShiftTest]


def _spread(
    reference: Measured, fresh: Measured, most: int, draw: np.random.Generator
) -> ShiftTest:
    return spread_test(reference.scores, fresh.scores, most=most, generator=draw)


def _reward(
    reference: Measured, fresh: Measured, most: int, draw: np.random.Generator
) -> ShiftTest:
    return reward_test(reference.scores, fresh.scores, most=most, generator=draw)


def _shift(reference: Measured, fresh: Measured, most: int, draw: np.random.Generator) -> ShiftTest:
    assert reference.states is not None  # `_tests_for` has checked both
    assert fresh.states is not None
    return shift_test(reference.states, fresh.states, most=most, generator=draw)


def _disagreement(
    reference: Measured, fresh: Measured, most: int, draw: np.random.Generator
) -> ShiftTest:
    assert reference.members is not None
    assert fresh.members is not None
    return disagreement_test(reference.members, fresh.members, most=most, generator=draw)


def _length(
    reference: Measured, fresh: Measured, most: int, draw: np.random.Generator
) -> ShiftTest:
    sides = [(side.scores, side.lengths) for side in (reference, fresh)]
    return length_test(*sides, most=most, generator=draw)


TESTS: Final[Mapping[str, Test]] = {
    "spread": _spread,
    "reward": _reward,
    "shift": _shift,
    "disagreement": _disagreement,
    "length": _length,
}
"""Each from reference, fresh, relabellings at most, and who draws them."""
_NEEDS: Final = {"shift": "states", "disagreement": "members"}


class Watch:
    """The looks of one run: what it compares with, and how much of the alarm budget is spent.

    Args:
        reference: The reference policy's responses as the reward model sees them.
        rules: When it says what.
        folder: Gets `looks.jsonl`; looks that stand there already count. None: nothing is kept.

    Raises:
        FormatError: When the folder's looks are broken.
    """

    def __init__(
        self, reference: Measured, rules: WatchRules | None = None, folder: Path | None = None
    ) -> None:
        self.reference = reference
        self.rules = rules or WatchRules()
        self.folder = folder
        self.looks: list[Look] = read_looks(folder) if folder is not None else []

    @property
    def state(self) -> str:
        """What the newest look says; `fine` before the first."""
        return self.looks[-1].state if self.looks else "fine"

    def look(self, fresh: Measured, *, step: int, kl: Estimate | None = None) -> Look:
        """Take one look, and keep it.

        Args:
            fresh: The watched policy's responses to the same prompts, by the same reward model.
            step: Where the policy stands, as the user counts.
            kl: To the reference policy.

        Raises:
            ShapeError: When prompts are others than the reference's.

        Writes:
            A line of `looks.jsonl`.
        """
        number = len(self.looks) + 1
        names = _tests_for(self.reference, fresh)
        level = self.rules.budget.level(number, len(names))
        tests: dict[str, ShiftTest] = {}
        mean = None
        if np.isfinite(fresh.scores).all():
            for name in names:
                seed = int(fingerprint("relabel", self.rules.seed, number, name), 16) % 2**32
                draw = np.random.default_rng(seed)
                tests[name] = TESTS[name](self.reference, fresh, num_relabellings(level), draw)
            before = self.reference.scores
            unit = float(before.std()) or 1.0
            mean = float((fresh.scores.mean() - before.mean()) / unit)
        value = None if kl is None else kl.value
        state, reasons = _judge(self.rules, tests, level, value)
        found = Look(number, step, state, reasons, level, tests, mean, value)
        self.looks.append(found)
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            append_json_line(self.folder / LOOKS_FILE, found.to_json())
        return found

    def compare_with(self, reference: Measured) -> None:
        """Go on from here: after an adaptation, the responses on which the new model was trained.

        What is spent of the alarm budget stays spent.
        """
        self.reference = reference


def read_looks(folder: Path) -> list[Look]:
    """The looks that a watch has kept in a folder; none where it has taken none.

    Raises:
        FormatError: When a line is not a look.
    """
    path = folder / LOOKS_FILE
    if not path.exists():
        return []
    try:
        return [Look.from_json(row) for row in read_json_lines(path)]
    except (KeyError, TypeError) as error:
        raise FormatError(
            f"{path}: expected looks of `metarm watch`, got {error!r}. Move the file away."
        ) from error


def worst(states: "list[str]") -> str:
    """The worst of some states; `fine` of none.

    Example:
        >>> worst(["look", "adapt", "fine"])
        'adapt'
    """
    return max(states, key=STATES.index, default="fine")


def _tests_for(reference: Measured, fresh: Measured) -> list[str]:
    return [
        name
        for name in TESTS
        if name not in _NEEDS
        or all(getattr(side, _NEEDS[name]) is not None for side in (reference, fresh))
    ]


def _judge(
    rules: WatchRules, tests: Mapping[str, ShiftTest], level: float, kl: float | None
) -> tuple[str, tuple[str, ...]]:
    """The worst of what follows from each figure, and every reason."""
    found: list[tuple[str, str]] = []
    if not tests:
        found.append(("stop", "a reward is not finite: the reward model is broken"))
    if kl is not None and rules.kl_budget is not None and kl > rules.kl_budget:
        found.append(("stop", f"KL is {kl:.2f} nats, above the budget of {rules.kl_budget:g}"))
    for name, test in tests.items():
        if test.p_value <= level:
            found.append(_MEANING[name](rules, test.effect))
    reasons = tuple(f"{state}: {reason}" for state, reason in found)
    return worst([state for state, _ in found]), reasons


def _spread_means(rules: WatchRules, ratio: float) -> tuple[str, str]:
    state = "look"
    if ratio < rules.adapt_below:
        state = "stop" if ratio < rules.stop_below else "adapt"
    return state, f"within a prompt, rewards spread {ratio:.2f} times as far as the reference's"


def _reward_means(rules: WatchRules, rise: float) -> tuple[str, str]:
    return "look", f"rewards are {rise:.2f} standard deviations above the reference's"


def _shift_means(rules: WatchRules, discrepancy: float) -> tuple[str, str]:
    return "look", f"responses are others than the reference's (MMD^2 {discrepancy:.3f})"


def _disagreement_means(rules: WatchRules, ratio: float) -> tuple[str, str]:
    state = "adapt" if ratio > rules.disagree_above else "look"
    return state, f"members disagree {ratio:.2f} times as much as on the reference's responses"


def _length_means(rules: WatchRules, rise: float) -> tuple[str, str]:
    return "look", f"reward goes along with length more than before (correlation +{rise:.2f})"


_MEANING: Final[Mapping[str, Callable[[WatchRules, float], tuple[str, str]]]] = {
    "spread": _spread_means,
    "reward": _reward_means,
    "shift": _shift_means,
    "disagreement": _disagreement_means,
    "length": _length_means,
}
