# SPDX-License-Identifier: Apache-2.0
"""The rule: its fit against closed forms, its figures cut to the map, its file readable."""

import json
from dataclasses import fields, replace

import numpy as np
import pytest

from metarm.bench.advice_rule import (
    CANDIDATES,
    INPUTS,
    LARGEST_CHANGE,
    AdviceRule,
    figure_inputs,
    fit_method,
    load_rule,
    rule_columns,
)
from metarm.bench.foretell import Figures

FIGURES = Figures(**{field.name: 0.6 for field in fields(Figures)} | {"pairs_per_dimension": 10.0})


def runs(count: int = 400, noise: float = 0.0):
    """Changes that are linear in two of three columns; folds of two runs each setting."""
    draw = np.random.default_rng(0)
    columns = draw.uniform(-1, 1, (count, 3))
    changes = 0.01 + 0.02 * columns[:, 0] - 0.01 * columns[:, 2]
    changes = changes + noise * draw.standard_normal(count)
    return columns, changes, np.arange(count) // 2 % 10


def test_a_linear_change_is_found() -> None:
    columns, changes, folds = runs()
    rule, left_out = fit_method(columns, changes, folds)
    assert rule.change == pytest.approx((0.01, 0.02, 0.0, -0.01), abs=2e-4)
    assert left_out.change == pytest.approx(changes, abs=2e-4)
    # It helps where the change is above half a point: the chances say so without knowing the run.
    assert ((left_out.helps > 0.5) == (changes > 0.005)).mean() > 0.97
    assert ((left_out.hurts > 0.5) == (changes < -0.005)).mean() > 0.97


def test_intervals_hold_and_chances_are_calibrated_under_noise() -> None:
    columns, changes, folds = runs(4000, noise=0.01)
    rule, left_out = fit_method(columns, changes, folds)
    cut = np.clip(changes, -LARGEST_CHANGE, LARGEST_CHANGE)
    held = np.abs(cut - left_out.change) <= left_out.half_width
    assert held.mean() == pytest.approx(0.95, abs=0.01)
    assert np.median(left_out.half_width) == pytest.approx(1.96 * 0.01, rel=0.1)
    for said, was in ((left_out.helps, changes > 0.005), (left_out.hurts, changes < -0.005)):
        for low in (0.1, 0.4, 0.7):
            rows = (said > low) & (said < low + 0.2)
            assert was[rows].mean() == pytest.approx(said[rows].mean(), abs=0.06)
    found = rule.forecast(np.array([1.0, 0.0, 0.0]))
    assert found.change == pytest.approx(0.03, abs=0.001)
    assert found.low < 0.03 < found.high


def test_what_is_left_out_is_not_seen() -> None:
    """Targets of pure noise cannot be foretold, however many columns there are."""
    draw = np.random.default_rng(1)
    columns, changes = draw.uniform(-1, 1, (200, 60)), 0.01 * draw.standard_normal(200)
    _, left_out = fit_method(columns, changes, np.arange(200) % 10)
    assert np.mean((changes - left_out.change) ** 2) > 0.98 * np.mean(changes**2)


def test_columns_are_products_of_inputs_cut_to_their_range() -> None:
    found = rule_columns(np.array([5.0, -9.0]), [1.0, 0.0], [5.0, 4.0])
    assert found.tolist() == [1.0, -1.0, 1.0, -1.0, 1.0]
    middle = rule_columns(np.array([[3.0, 1.0]]), [1.0, 0.0], [5.0, 4.0])
    assert middle.tolist() == [[0.0, -0.5, 0.0, 0.0, 0.25]]


def test_the_stored_rule_is_whole() -> None:
    rule = load_rule()
    assert set(rule.methods) == set(CANDIDATES)
    inputs = figure_inputs(FIGURES, 0.8)
    size = 1 + rule_columns(inputs, rule.low, rule.high).size
    for own in rule.methods.values():
        assert {len(own.change), len(own.log_error), len(own.helps), len(own.hurts)} == {size}
    assert all(low < high for low, high in zip(rule.low, rule.high, strict=True))
    assert AdviceRule.from_json(json.loads(json.dumps(rule.to_json()))) == rule
    found = rule.forecast("joint-0.3", FIGURES, 0.8)
    assert abs(found.change) <= LARGEST_CHANGE
    assert found.low < found.change < found.high
    assert 0 < found.helps < 1
    assert {"command", "settings", "on_the_map", "on_real_shifts"} <= set(rule.provenance)


def test_figures_beyond_the_map_count_as_its_edge_and_are_named() -> None:
    rule = load_rule()
    edge = rule.range_of("axis_share")[1]
    assert rule.outside(replace(FIGURES, axis_share=edge + 0.01)) == ["axis_share"]
    at_edge, beyond = (
        rule.forecast("joint-1", replace(FIGURES, axis_share=share), 0.8).change
        for share in (edge, edge + 5)
    )
    assert at_edge == pytest.approx(beyond)
    assert INPUTS.index("axis_share") < len(INPUTS) - 1
