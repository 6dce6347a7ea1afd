# SPDX-License-Identifier: Apache-2.0
"""The page on choosing: its command can be typed, its names and tables are the code's."""

import importlib.util
import json
import re
import shlex
from pathlib import Path
from types import ModuleType

import pytest

from docs.pages import REPOSITORY, fenced_blocks, logical_lines
from integration.made_up_shift import save_shift
from metarm.choosing.settings import SelectSettings
from metarm.choosing.stopping import NUM_FUTURES, StopRule
from metarm.choosing.strategies import STRATEGIES
from metarm.cli.app import run_command
from metarm.storage import read_json_lines
from tiny_models import save_reward_model

PAGE = (REPOSITORY / "docs" / "choosing.md").read_text(encoding="utf-8")


def _benchmark(name: str) -> ModuleType:
    path = REPOSITORY / "benchmarks" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _results(name: str) -> dict:
    path = REPOSITORY / "benchmarks" / "results" / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8"))


def test_every_strategy_is_on_the_page() -> None:
    body = PAGE.split("\n## Strategies\n")[1].split("\n## ")[0]
    assert re.findall(r"^\| `([^`]+)` \|", body, re.MULTILINE) == list(STRATEGIES)


def test_numbers_are_those_of_the_code() -> None:
    assert StopRule().least_gain == SelectSettings().least_gain
    assert f"`least_gain={StopRule().least_gain:g}`" in PAGE
    assert f"counted before and after; {NUM_FUTURES} times" in PAGE.replace("\n", " ")
    assert SelectSettings().strategy == "mix"


def test_tables_are_those_of_the_results() -> None:
    choosing, labels = _benchmark("choosing"), _benchmark("labels")
    assert choosing.render(PAGE, choosing.tables(_results("choosing"))) == PAGE
    assert labels.render(PAGE, _results("labels")) == PAGE


def test_the_command_can_be_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_shift(tmp_path)
    save_reward_model(tmp_path / "reward")
    monkeypatch.chdir(tmp_path)
    block = next(block for block in fenced_blocks(PAGE) if block.language == "sh")
    (command,) = logical_lines(block.text)
    assert run_command(shlex.split(command)[1:]) == 0
    assert len(list(read_json_lines(tmp_path / "runs/selected/pairs.jsonl"))) == 50
