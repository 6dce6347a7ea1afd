# SPDX-License-Identifier: Apache-2.0
"""The map's made-up shifts are what their settings say, and a longer map begins with a shorter."""

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch

from metarm.bench.advice_rule import CANDIDATES
from metarm.bench.foretell import main_axis


@pytest.fixture(scope="module")
def space(repository: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "feature_space", repository / "benchmarks" / "feature_space.py"
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_settings_are_a_sequence_within_the_axes(space: ModuleType) -> None:
    few, many = space.draw_settings(4), space.draw_settings(16)
    assert many[:4] == few
    for name, (low, high) in space.AXES.items():
        values = [getattr(setting, name) for setting in many]
        assert low - 10 <= min(values) < max(values) <= high + 10, name
        assert len(set(values)) > 12, name


def test_a_draw_is_what_its_setting_says(space: ModuleType) -> None:
    setting = space.Setting(2000, 0.5, 20, 4.0, 0.6, 3.0)
    drawn = space.build_space(setting, 0)
    problem = drawn.problem
    groups = torch.cat([problem.groups, problem.watched_groups])
    axis, share = main_axis(problem.features, groups)
    assert share == pytest.approx(16 / (16 + 19 * 0.25), abs=0.03)
    # Gold is linear: its direction is found by least squares.
    truth = torch.linalg.lstsq(problem.features, drawn.gold[:, None]).solution.squeeze()
    assert abs(axis @ truth / truth.norm()).item() == pytest.approx(0.6, abs=0.05)
    states = problem.features[groups.flatten()]
    assert states.mean(0).norm().item() == pytest.approx(3.0, abs=0.5)
    gaps = drawn.gold[problem.pairs[:, 0]] - drawn.gold[problem.pairs[:, 1]]
    expected = torch.sigmoid(gaps.abs() / 0.5).mean().item()
    assert (gaps > 0).float().mean().item() == pytest.approx(expected, abs=0.03)
    own = [problem.pairs, problem.validation, groups, problem.own_labels, drawn.tests]
    rows = torch.cat([part.flatten() for part in own])
    assert len(rows) == len(rows.unique()) == len(problem.features)


def test_a_row_holds_figures_and_every_mode(space: ModuleType, monkeypatch) -> None:
    short = space.SETTINGS.model_copy(update={"num_steps": 4, "measure_every": 2})
    monkeypatch.setattr(space, "SETTINGS", short)
    setting = replace(space.draw_settings(1)[0], num_pairs=100, num_features=16)
    runs = space.run_setting(setting, [0, 1])
    assert [run["seed"] for run in runs] == [0, 1]
    for run in runs:
        assert list(run["methods"]) == ["plain", *CANDIDATES]
        for own in run["methods"].values():
            assert 0 < own["shifted"] < 1
            assert len(bin(int(own["probe"], 16))) - 3 == space.NUM_PROBE
        assert run["figures"]["axis_share"] > 0
