# SPDX-License-Identifier: Apache-2.0
"""Two processes with half a batch each train what one process with the whole batch does."""

import json
import os
import subprocess
import sys

import pytest
from safetensors.torch import load_file

from unit.reward_problem import distance, is_same, make_trainer, weights

pytestmark = pytest.mark.slow


def _in_two_processes(repository, folder, output_dir, options):
    output_dir.mkdir()
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    script = repository / "tests" / "unit" / "two_processes.py"
    done = subprocess.run(
        [*command, str(script), str(folder), str(output_dir), json.dumps(options)],
        env={**os.environ, "PYTHONPATH": str(repository / "tests"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return [
        (
            load_file(output_dir / f"rank_{rank}.safetensors"),
            json.loads((output_dir / f"rank_{rank}.json").read_text(encoding="utf-8")),
        )
        for rank in range(2)
    ]


@pytest.mark.parametrize(
    "options",
    [
        {"meta_mode": "ascent", "meta_learning_rate": 0.05},
        {"meta_mode": "descent", "meta_step_length": 0.05, "gradient_accumulation_steps": 2},
        {"meta_mode": "joint", "meta_weight": 0.7, "gradient_accumulation_steps": 2},
        {"meta_mode": "ascent", "meta_step_length": 0.05, "meta_batch_size": 1},
        {"meta_mode": "joint", "meta_weight": 0.7, "sources": ["a", "b"]},
        {"meta_mode": "joint", "meta_weight": 9.0, "sources": ["a", "b"], "meta_batch_size": 1},
    ],
    ids=[
        "ascent",
        "descent accumulated",
        "joint accumulated",
        "fewer groups than processes",
        "two sources",
        "two sources, fewer groups than processes",
    ],
)
def test_two_processes_are_one(repository, reward_model_dir, tmp_path, options):
    # Five groups do not split evenly: the mean over processes must weigh their shares.
    options = {"meta_batch_size": 5} | options
    found = _in_two_processes(
        repository,
        reward_model_dir,
        tmp_path / "two",
        options | {"per_device_train_batch_size": 2},
    )
    one = make_trainer(reward_model_dir, tmp_path / "one", **options)
    one.train()
    (first, record), (second, _) = found
    assert record["kind"].endswith("MULTI_CPU")
    assert is_same(first, second)
    assert distance(weights(one.model), first) < 1e-5
    plain = make_trainer(reward_model_dir, tmp_path, **(options | {"meta_mode": "off"}))
    plain.train()
    assert distance(weights(plain.model), first) > 1e-4
    for mine, its in zip(one.state.log_history[:3], record["log"][:3], strict=True):
        names = {name for name in mine if name.startswith("meta/")}
        assert names == {name for name in its if name.startswith("meta/")}
        for name in names:
            assert mine[name] == pytest.approx(its[name], abs=1e-4), name


@pytest.mark.parametrize("mode", ["joint", "descent"])
def test_two_processes_set_the_strength_as_one(repository, reward_model_dir, tmp_path, mode):
    """Guarded by sixty groups, of which they watch the same ones and decide together."""
    options = {"meta_mode": mode, "meta_batch_size": 4, "num_groups": 60, "max_steps": 4}
    found = _in_two_processes(
        repository, reward_model_dir, tmp_path / "two", options | {"per_device_train_batch_size": 2}
    )
    one = make_trainer(reward_model_dir, tmp_path / "one", **options)
    one.train()
    (first, record), (second, _) = found
    assert is_same(first, second)
    assert distance(weights(one.model), first) < 1e-4
    for mine, its in zip(one.state.log_history[:4], record["log"][:4], strict=True):
        assert mine["meta/strength"] == its["meta/strength"]
        assert mine["meta/rank_correlation"] == pytest.approx(its["meta/rank_correlation"], abs=0.1)
