# SPDX-License-Identifier: Apache-2.0
"""What a watch says of planted shifts, what it keeps, and that it goes on where it was."""

import json
from pathlib import Path

import numpy as np
import pytest

from metarm.errors import ConfigError, FormatError, ShapeError
from metarm.schema import Estimate
from metarm.watching.measuring import Measured
from metarm.watching.thresholds import AlarmBudget
from metarm.watching.watch import STATES, Watch, WatchRules, read_looks, worst

PROMPTS = 80


def side(seed: int, k: int, *, spread: float = 1.0, move: float = 0.0, members=None) -> Measured:
    draw = np.random.default_rng(seed)
    scores = spread * draw.normal(size=(PROMPTS, k))
    states = draw.normal(size=(PROMPTS, k, 5)) + move
    lengths = 10 + draw.integers(0, 9, size=(PROMPTS, k)).astype(float)
    parts = None
    if members is not None:
        parts = scores + members * np.random.default_rng(seed + 1).normal(size=(3, PROMPTS, k))
    return Measured(scores, lengths, states, parts)


REFERENCE = side(0, 8)


def rules(**changes) -> WatchRules:
    return WatchRules(budget=AlarmBudget(0.05, 10), **changes)


@pytest.mark.parametrize(
    ("fresh", "state", "reason"),
    [
        (side(1, 4), "fine", None),
        (side(1, 4, move=1.0), "look", "responses are others"),
        (side(1, 4, spread=0.6), "adapt", "rewards spread 0."),
        (side(1, 4, spread=0.1), "stop", "rewards spread 0."),
        (side(1, 4, spread=3.0), "fine", None),
    ],
)
def test_what_it_says(fresh: Measured, state: str, reason: str | None) -> None:
    look = Watch(REFERENCE, rules()).look(fresh, step=7)
    assert look.state == state
    assert (look.number, look.step) == (1, 7)
    assert set(look.tests) == {"spread", "reward", "shift", "length"}
    if reason is None:
        assert look.reasons == ()
    else:
        assert any(reason in text for text in look.reasons)
    for text in look.reasons:
        assert text.split(":")[0] in STATES


def test_a_sure_loss_that_is_small_is_to_be_looked_at() -> None:
    small = side(1, 4, spread=0.6)
    assert Watch(REFERENCE, rules(adapt_below=0.5)).look(small, step=1).state == "look"


def test_members_that_part_ask_for_an_adaptation() -> None:
    reference = side(0, 8, members=0.2)
    watch = Watch(reference, rules())
    assert watch.look(side(1, 4, members=0.2), step=1).state == "fine"
    found = watch.look(side(2, 4, members=0.6), step=2)
    assert found.state == "adapt"
    assert "disagree" in found.reasons[0]
    assert set(found.tests) == {"spread", "reward", "shift", "disagreement", "length"}


def test_the_kl_budget_and_broken_rewards_stop() -> None:
    watch = Watch(REFERENCE, rules(kl_budget=5.0))
    assert watch.look(side(1, 4), step=1, kl=Estimate(4.9, 4, 6, 9)).state == "fine"
    spent = watch.look(side(2, 4), step=2, kl=Estimate(5.1, 4, 6, 9))
    assert spent.state == "stop"
    assert "5.10 nats, above the budget of 5" in spent.reasons[0]
    broken = side(3, 4)
    broken.scores[0, 0] = np.inf
    found = watch.look(broken, step=3)
    assert (found.state, found.tests, found.score_mean) == ("stop", {}, None)


def test_of_a_callable_rewards_and_lengths_are_tested() -> None:
    plain = [Measured(one.scores, one.lengths, None, None) for one in (REFERENCE, side(1, 4))]
    look = Watch(plain[0], rules()).look(plain[1], step=1)
    assert set(look.tests) == {"spread", "reward", "length"}
    assert look.level == pytest.approx(0.05 * 0.9 / 10 / 3)


def test_looks_are_kept_and_the_budget_stays_spent(tmp_path: Path) -> None:
    first = Watch(REFERENCE, rules(), tmp_path)
    looks = [first.look(side(n, 4), step=10 * n, kl=Estimate(1.0, 0, 2, 3)) for n in (1, 2)]
    again = Watch(REFERENCE, rules(), tmp_path)
    assert again.looks == looks == read_looks(tmp_path)
    third = again.look(side(3, 4, move=1.0), step=30)
    assert third.number == 3
    # The same as one that was never interrupted.
    for n in (1, 2):
        Watch(REFERENCE, rules()).look(side(n, 4), step=n)
    straight = Watch(REFERENCE, rules())
    for n, fresh in ((1, side(1, 4)), (2, side(2, 4)), (3, side(3, 4, move=1.0))):
        newest = straight.look(fresh, step=10 * n)
    assert newest.tests == third.tests
    assert again.state == "look"
    rows = [json.loads(line) for line in (tmp_path / "looks.jsonl").read_text("utf-8").splitlines()]
    assert [row["state"] for row in rows] == ["fine", "fine", "look"]


def test_after_an_adaptation_it_compares_with_where_the_policy_was() -> None:
    watch = Watch(REFERENCE, rules())
    assert watch.look(side(1, 4, spread=0.5), step=1).state == "adapt"
    watch.compare_with(side(1, 4, spread=0.5))
    assert watch.look(side(2, 4, spread=0.5), step=2).state == "fine"
    assert watch.looks[-1].number == 2


def test_other_prompts_are_refused_and_cost_nothing(tmp_path: Path) -> None:
    watch = Watch(REFERENCE, rules(), tmp_path)
    few = side(1, 4)
    with pytest.raises(ShapeError, match="same prompts"):
        watch.look(Measured(few.scores[1:], few.lengths[1:], few.states[1:], None), step=1)
    assert watch.looks == []
    assert not (tmp_path / "looks.jsonl").exists()


@pytest.mark.parametrize("line", ['{"number": 1}', "[]", "nonsense"])
def test_broken_looks_are_one_error(tmp_path: Path, line: str) -> None:
    (tmp_path / "looks.jsonl").write_text(f"{line}\n", "utf-8")
    with pytest.raises(FormatError, match="looks"):
        read_looks(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [{"adapt_below": 1.5}, {"stop_below": 0.95}, {"disagree_above": 0.5}, {"kl_budget": 0.0}],
)
def test_rules_that_contradict_themselves(changes) -> None:
    with pytest.raises(ConfigError):
        WatchRules(**changes)


def test_the_worst_of_states() -> None:
    assert worst([]) == "fine"
    assert worst(["fine", "stop", "look"]) == "stop"
