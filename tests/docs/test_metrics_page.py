# SPDX-License-Identifier: Apache-2.0
"""The metrics page names what is really written: fields of scorecards, keys of logs."""

import ast
import re
from dataclasses import fields
from pathlib import Path

import pytest

from docs.pages import REPOSITORY
from metarm.config_optimize import OptimizeSettings
from metarm.models.reward_model import load_score_function
from metarm.policy.optimizers import OPTIMIZERS, build_optimizer
from metarm.progress import SilentProgress
from metarm.schema import PreferencePair, Scorecard
from metarm.storage import read_json_lines
from tiny_models import save_causal_lm, save_reward_model

PAGE = REPOSITORY / "docs" / "metrics.md"


def rows(section: str) -> dict[str, list[str]]:
    """The rows of a section's table by the name in their first cell."""
    body = PAGE.read_text(encoding="utf-8").split(f"\n## {section}\n")[1].split("\n## ")[0]
    lines = re.findall(r"^\| `([^`]+)` \|(.*)\|$", body, re.MULTILINE)
    assert len(lines) == len(dict(lines)), "each name once"
    return {name: [cell.strip() for cell in rest.split(" | ")] for name, rest in lines}


def test_every_field_of_the_scorecard_in_its_order() -> None:
    assert list(rows("The scorecard")) == [field.name for field in fields(Scorecard)]


def test_the_page_says_which_fields_can_be_none() -> None:
    optional = {field.name for field in fields(Scorecard) if "None" in str(field.type)}
    assert {name for name, cells in rows("The scorecard").items() if cells[-1] != ""} == optional


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    save_causal_lm(folder / "policy")
    save_reward_model(folder / "reward")
    return folder


@pytest.mark.parametrize("algo", OPTIMIZERS)
def test_every_key_of_the_policys_log(algo: str, models: Path, tmp_path: Path) -> None:
    settings = OptimizeSettings(
        algo=algo,
        num_iterations=2,
        batch_size=4,
        max_completion_length=3,
        value_warmup_iterations=1,
        num_candidates=2,
        num_generations=2,
        ptx_coef=0.1,
    )
    texts = [("a", " b"), ("c", " d")]
    pairs = [PreferencePair(prompt, response, " f") for prompt, response in texts]
    build_optimizer(settings, pairs=pairs, demonstrations=texts)(
        policy_dir=models / "policy",
        reference_dir=models / "policy",
        reward_model_dir=models / "reward",
        score=load_score_function(models / "reward"),
        prompts=["a", "b c"],
        output_dir=tmp_path,
        seed=0,
        monitor=lambda prompts, responses: [0.0] * len(responses),
        progress=SilentProgress(),
    )
    written = {key for row in read_json_lines(tmp_path / "metrics.jsonl") for key in row}
    stated = {
        name for name, cells in rows("The policy's log").items() if algo in cells[-1].split(", ")
    }
    assert written == stated


def test_every_key_of_the_policys_log_has_a_writer() -> None:
    writers = {
        name for cells in rows("The policy's log").values() for name in cells[-1].split(", ")
    }
    assert writers == set(OPTIMIZERS)


def test_every_key_of_the_meta_step() -> None:
    """Read, not imported: the module's imports take seconds."""
    folder = REPOSITORY / "src" / "metarm" / "training"
    source = "\n".join(path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.py")))
    (table,) = (
        ast.literal_eval(node.value)
        for node in ast.parse(source).body
        if isinstance(node, ast.AnnAssign) and getattr(node.target, "id", "") == "META_METRICS"
    )
    assert list(rows("The meta step's log")) == list(table)
    mixture = (REPOSITORY / "src" / "metarm" / "data" / "meta_mixture.py").read_text("utf-8")
    written = set(re.findall(r'\["((?:meta|tokens)/\w+)"\]', source))
    written |= {f"{name}<source>" for name in re.findall(r'\[f"(meta/\w+_)\{', mixture)}
    assert written == set(table)
