# SPDX-License-Identifier: Apache-2.0
"""A watch on disk: begun, opened, moved on to a new reward model; what is broken is one error."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from metarm.errors import ConfigError, DataError, FormatError
from metarm.progress import SilentProgress
from metarm.storage import read_json, write_json
from metarm.watching.folder import OpenWatch, open_watch, start_watch
from metarm.watching.measuring import measure
from metarm.watching.probes import ProbePlan
from metarm.watching.thresholds import AlarmBudget
from metarm.watching.watch import WatchRules
from tiny_models import save_reward_model
from unit.watching.conftest import PROMPTS

PLAN = ProbePlan(num_prompts=6, num_reference=3, num_fresh=2, max_completion_length=4)
RULES = WatchRules(budget=AlarmBudget(0.1, 5), kl_budget=3.0)


def begin(folder: Path, watched: Path, rules: WatchRules = RULES) -> OpenWatch:
    return start_watch(
        folder,
        reference_policy=str(watched / "policy"),
        reward_model=str(watched / "reward"),
        prompts=PROMPTS,
        plan=PLAN,
        rules=rules,
        progress=SilentProgress(),
    )


@pytest.fixture(scope="module")
def begun(watched: Path, tmp_path_factory) -> Path:
    """A watch with one look; copy it to change it."""
    folder = tmp_path_factory.mktemp("begun") / "watch"
    begin(folder, watched).look_at(watched / "other", step=3, progress=SilentProgress())
    return folder


@pytest.fixture
def own(begun: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(begun, tmp_path / "watch"))


def test_it_is_opened_as_it_was(own: Path) -> None:
    found = open_watch(own)
    assert found.record.rules == RULES
    assert [look.step for look in found.watch.looks] == [3]
    assert found.watch.looks[0].kl_nats > 0
    np.testing.assert_array_equal(
        found.watch.reference.scores, measure(found.score, found.probes.groups).scores
    )


def test_it_is_begun_once(own: Path, watched: Path) -> None:
    assert len(begin(own, watched).watch.looks) == 1
    with pytest.raises(ConfigError, match="other rules"):
        begin(own, watched, WatchRules())


def test_after_an_adaptation_it_goes_on_from_there(own: Path, tmp_path: Path, watched) -> None:
    save_reward_model(tmp_path / "new", seed=8)
    before = open_watch(own)
    look, fresh = before.look_at(watched / "other", step=4, progress=SilentProgress())
    before.adopt(tmp_path / "new", look)
    after = open_watch(own)
    assert after.record.reward_model == str((tmp_path / "new").resolve())
    assert after.record.compared_with == "fresh_0002.jsonl"
    assert len(after.watch.looks) == 2
    for opened in (before, after):
        expected = measure(opened.score, fresh.groups)
        np.testing.assert_array_equal(opened.watch.reference.scores, expected.scores)
        assert opened.watch.reference.scores.shape == (6, 2)


def test_a_watch_that_is_not_there_or_broken(own: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="begin one with"):
        open_watch(tmp_path)
    document = read_json(own / "watch.json")
    for broken in ([], {}, {**document, "rules": {"budget": {"alpha": 7}}}):
        write_json(own / "watch.json", broken)
        with pytest.raises(FormatError, match="record of a watch"):
            open_watch(own)
