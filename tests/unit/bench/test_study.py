# SPDX-License-Identifier: Apache-2.0
"""A search over an objective that is known: found, explained, pruned and taken up again."""

import math
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from metarm.bench.recipes import Recipe, read_recipe
from metarm.bench.space import Dimension
from metarm.bench.study import measure_importances, open_study, read_trials, run_trials
from metarm.bench.trajectory import Cost, Trajectory
from metarm.bench.tune import objective_value
from metarm.bench.tuning_results import Trial
from metarm.errors import FingerprintError
from metarm.progress import SilentProgress

SPACE = {"strength": Dimension(0.01, 10.0, 0.02), "num_groups": Dimension(8, 128, 32, True)}


def parabola(settings: Mapping[str, float], place: int) -> float:
    """Highest at strength 1, indifferent to groups; seeds are as far apart as they are numbered."""
    return 0.8 - 0.05 * math.log10(settings["strength"]) ** 2 - 0.1 * place


def search(
    path: Path, count: int, measure=parabola, *, prune: bool = False, is_held: bool = True
) -> list[Trial]:
    study = open_study(path, {"about": 1}, SPACE, is_held=is_held)
    with SilentProgress().stage("trials", count) as bar:
        run_trials(
            study, measure, SPACE, num_seeds=3, count=count, seed=0, worker=0, prune=prune,
            deadline=None, bar=bar,
        )  # fmt: skip
    return read_trials(study)


def test_it_finds_what_is_there_and_says_what_mattered(tmp_path: Path) -> None:
    trials = search(tmp_path / "study", 25)
    assert trials[0].is_default
    assert trials[0].settings == {"strength": 0.02, "num_groups": 32}
    assert trials[0].values == pytest.approx([parabola(trials[0].settings, n) for n in range(3)])
    best = max(trials, key=lambda trial: trial.value)
    assert 0.5 < best.settings["strength"] < 2
    study = open_study(tmp_path / "study", {"about": 1}, SPACE, is_held=True)
    found = measure_importances(study, list(SPACE))
    assert found is not None
    assert found["strength"] > 0.8
    assert sum(found.values()) == pytest.approx(1)


def test_importances_need_trials(tmp_path: Path) -> None:
    search(tmp_path / "study", 19)
    study = open_study(tmp_path / "study", {"about": 1}, SPACE, is_held=True)
    assert measure_importances(study, list(SPACE)) is None


def worst_default(settings: Mapping[str, float], place: int) -> float:
    return 0.0 if settings["strength"] == 0.02 else parabola(settings, place)


def test_the_first_ten_are_not_pruned_and_others_have_two_seeds_at_least(tmp_path: Path) -> None:
    trials = search(tmp_path / "study", 20, worst_default, prune=True)
    pruned = [trial for trial in trials if trial.is_pruned]
    assert pruned
    assert {len(trial.values) for trial in pruned} == {2}
    assert not any(trial.is_pruned for trial in trials[:10])


def test_the_default_is_not_pruned_where_it_comes_late(tmp_path: Path) -> None:
    def stopped(settings: Mapping[str, float], place: int) -> float:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search(tmp_path / "study", 1, stopped)
    trials = search(tmp_path / "study", 12, prune=True, is_held=False)
    assert not any(trial.is_default for trial in trials)
    trials = search(tmp_path / "study", 1, worst_default, prune=True)
    assert trials[-1].is_default
    assert trials[-1].values == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("place", [0, 1, 11])
def test_a_trial_that_was_cut_is_run_again(tmp_path: Path, place: int) -> None:
    whole = search(tmp_path / "whole", 13)
    calls = 0

    def stopped(settings: Mapping[str, float], seed: int) -> float:
        nonlocal calls
        calls += 1
        if calls == 3 * place + 2:
            raise KeyboardInterrupt
        return parabola(settings, seed)

    with pytest.raises(KeyboardInterrupt):
        search(tmp_path / "parts", 13, stopped)
    assert search(tmp_path / "parts", 13 - place) == whole


def test_a_process_that_cannot_know_leaves_running_trials_alone(tmp_path: Path) -> None:
    study = open_study(tmp_path / "study", {"about": 1}, SPACE, is_held=True)
    with pytest.warns(UserWarning, match="Heartbeat"):
        running = study.ask()
    open_study(tmp_path / "study", {"about": 1}, SPACE, is_held=False)
    study.tell(running, 0.5)
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"]


def test_no_trial_begins_after_the_deadline(tmp_path: Path) -> None:
    study = open_study(tmp_path / "study", {"about": 1}, SPACE, is_held=True)
    with SilentProgress().stage("trials", 5) as bar:
        run_trials(
            study, parabola, SPACE, num_seeds=3, count=5, seed=0, worker=0, prune=False,
            deadline=0.0, bar=bar,
        )  # fmt: skip
    assert read_trials(study) == []


def test_another_search_is_refused(tmp_path: Path) -> None:
    open_study(tmp_path / "study", {"about": 1, "same": 0}, SPACE, is_held=True)
    with pytest.raises(FingerprintError, match=r"other settings \(about, more\)"):
        open_study(tmp_path / "study", {"about": 2, "same": 0, "more": 3}, SPACE, is_held=True)


def trajectory(problem, score: float = 1.0) -> Trajectory:
    """Gold scores, which order all made-up pairs as labelled, times `score`."""
    scores = score * problem.features.sum(1, keepdim=True).T
    return Trajectory((1,), scores, (0.25 * score,), Cost())


def test_it_is_judged_by_validation_pairs_or_by_labels_it_did_not_train_on(made_up) -> None:
    _, problem = made_up()
    found = trajectory(problem)
    assert objective_value(problem, Recipe(), found, 0) == 0.25
    for wrong in (slice(0, 2), slice(5, 6)):
        problem.own_labels[wrong] = problem.own_labels[wrong].flip(1)
    assert objective_value(problem, Recipe(), found, 5) == pytest.approx(3 / 5)
    assert objective_value(problem, read_recipe("5-labels"), found, 20) == pytest.approx(19 / 20)


def test_scores_that_are_not_numbers_order_nothing(made_up) -> None:
    _, problem = made_up()
    found = trajectory(problem, math.nan)
    assert not torch.isfinite(found.scores).any()
    assert objective_value(problem, Recipe(), found, 0) == 0.5
    assert objective_value(problem, Recipe(), found, 10) == 0.5
