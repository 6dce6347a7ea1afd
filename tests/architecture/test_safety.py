# SPDX-License-Identifier: Apache-2.0
"""Nothing reads files in a way that could run code, and nothing leans on unstable parts of TRL."""

import ast
from pathlib import Path

import pytest

from architecture.syntax import (
    REPOSITORY,
    UNSTABLE_PACKAGE,
    source_files,
    unsafe_places,
    unstable_places,
)

UNSAFE = [
    "import pickle",
    "from pickle import loads",
    "import torch\nstate = torch.load('weights.pt')",
    "from torch import load",
    "eval('1 + 1')",
    "exec('x = 1')",
    "import yaml\nyaml.load(text, yaml.Loader)",
    "import os\nos.system('ls')",
    "import subprocess\nsubprocess.run('ls', shell=True)",
    "import numpy\nnumpy.load(path, allow_pickle=True)",
    "AutoModel.from_pretrained(name, trust_remote_code=True)",
    "AutoModel.from_pretrained(name, use_safetensors=False)",
]
SAFE = [
    "model.eval()",
    "from safetensors.torch import load_file",
    "json.loads(text)",
    "re.compile(p)",
]
UNSTABLE = [
    f"import {UNSTABLE_PACKAGE}",
    f"from {UNSTABLE_PACKAGE}.ppo import PPOTrainer",
    "from trl import experimental",
    f"import importlib\nimportlib.import_module('{UNSTABLE_PACKAGE}.ppo')",
    f"import trl\nx = {UNSTABLE_PACKAGE}.ppo",
]


def _id(path: Path) -> str:
    return path.relative_to(REPOSITORY).as_posix()


@pytest.mark.parametrize("text", UNSAFE)
def test_the_rule_finds_unsafe_reading(text: str) -> None:
    assert unsafe_places(ast.parse(text))


@pytest.mark.parametrize("text", SAFE)
def test_the_rule_leaves_safe_reading_alone(text: str) -> None:
    assert not unsafe_places(ast.parse(text))


@pytest.mark.parametrize("text", UNSTABLE)
def test_the_rule_finds_unstable_imports(text: str) -> None:
    assert unstable_places(ast.parse(text))


@pytest.mark.parametrize("path", source_files("src", "examples", "benchmarks"), ids=_id)
def test_reading_a_file_runs_no_code(path: Path) -> None:
    assert not unsafe_places(ast.parse(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize("path", source_files("src", "tests", "examples", "benchmarks"), ids=_id)
def test_nothing_leans_on_unstable_parts_of_trl(path: Path) -> None:
    assert not unstable_places(ast.parse(path.read_text(encoding="utf-8")))
