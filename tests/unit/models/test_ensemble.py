# SPDX-License-Identifier: Apache-2.0
"""An ensemble's score is the mean of its members' standardised scores, less their spread."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from metarm.models.ensemble import first_member, load_reward, save_ensemble
from metarm.models.reward_model import load_score_function
from metarm.schema import PreferencePair
from tiny_models import save_reward_model

PAIRS = [PreferencePair("a", " b c", " d"), PreferencePair("b", " e", " a a f")]
PROMPTS, RESPONSES = ["a", "c", "a"], [" f", " b b", " d e a"]


@pytest.fixture
def members(tmp_path: Path) -> list[Path]:
    return [save_reward_model(tmp_path / f"member_{n}", seed=n) for n in range(3)]


@pytest.mark.parametrize("pessimism", [0.0, 0.7])
def test_the_score_by_hand(members: list[Path], tmp_path: Path, pessimism: float) -> None:
    save_ensemble(tmp_path / "reward", members, PAIRS, pessimism=pessimism)
    rows = []
    for member in members:
        score = load_score_function(member)
        unit = np.array(score(["a", "a", "b", "b"], [" b c", " d", " e", " a a f"]))
        rows.append((np.array(score(PROMPTS, RESPONSES)) - unit.mean()) / unit.std())
    expected = np.mean(rows, axis=0) - pessimism * np.std(rows, axis=0)
    found = load_reward(tmp_path / "reward")(PROMPTS, RESPONSES)
    assert found == pytest.approx(expected.tolist(), abs=1e-6)
    assert np.std(rows, axis=0).min() > 1e-3, "members that agree would say nothing"


def test_it_may_be_moved_with_its_members(members: list[Path], tmp_path: Path) -> None:
    save_ensemble(tmp_path / "reward", members, PAIRS)
    before = load_reward(tmp_path / "reward")(PROMPTS, RESPONSES)
    moved = tmp_path / "moved"
    moved.mkdir()
    for name in ("reward", "member_0", "member_1", "member_2"):
        shutil.move(tmp_path / name, moved / name)
    assert load_reward(moved / "reward")(PROMPTS, RESPONSES) == before
    assert Path(first_member(moved / "reward")).resolve() == (moved / "member_0").resolve()


def test_one_reward_model_is_what_it_was(members: list[Path]) -> None:
    one = load_reward(members[1])
    assert one(PROMPTS, RESPONSES) == load_score_function(members[1])(PROMPTS, RESPONSES)
    assert first_member(members[1]) == members[1]


def test_a_bar_counts_every_response_once(members: list[Path], tmp_path: Path) -> None:
    class Bar:
        steps = 0

        def advance(self, steps: int = 1, note: str = "") -> None:
            self.steps += steps

    save_ensemble(tmp_path / "reward", members, PAIRS)
    bar = Bar()
    load_reward(tmp_path / "reward").reporting_to(bar)(PROMPTS, RESPONSES)
    assert bar.steps == len(RESPONSES)
