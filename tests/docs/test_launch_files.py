# SPDX-License-Identifier: Apache-2.0
"""accelerate takes the launch files, and what it makes of them is what the meta step supports."""

import os
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from accelerate.utils.launch import prepare_multi_gpu_env

from metarm.training import MetaRewardConfig
from metarm.training.support import refuse_unsupported

FOLDER = Path(__file__).parents[2] / "configs" / "launch"
FILES = sorted(FOLDER.glob("*.yaml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_launch_file_is_what_its_name_says(path, tmp_path, monkeypatch) -> None:
    config = load_config_from_file(str(path))
    nodes = {"one": 1, "two": 2}[path.stem.split("_")[1]]
    assert (config.num_machines, config.num_processes) == (nodes, 8 * nodes)
    is_sharded = path.stem.startswith("fsdp2")
    kind = DistributedType.FSDP if is_sharded else DistributedType.MULTI_GPU
    assert config.distributed_type == kind

    before = dict(os.environ)
    words = ["--config_file", str(path), "--module", "metarm", "reward", "--help"]
    arguments, *_ = _validate_launch_command(launch_command_parser().parse_args(words))
    environment = prepare_multi_gpu_env(arguments)
    for name, value in environment.items():
        if before.get(name) != value:
            monkeypatch.setenv(name, value)
    assert environment["ACCELERATE_MIXED_PRECISION"] == "no"
    assert environment.get("ACCELERATE_USE_FSDP", "false") == str(is_sharded).lower()
    plugin = FullyShardedDataParallelPlugin() if is_sharded else None
    if plugin is not None:
        assert plugin.fsdp_version == 2
        assert plugin.reshard_after_forward is True
        assert "FULL_STATE_DICT" in str(plugin.state_dict_type)
    stand_in = SimpleNamespace(
        distributed_type=kind,
        is_fsdp2=is_sharded,
        parallelism_config=None,
        state=SimpleNamespace(fsdp_plugin=plugin),
    )
    settings = MetaRewardConfig(str(tmp_path), use_cpu=True, bf16=False)
    model = SimpleNamespace(config=SimpleNamespace(), modules=list)
    refuse_unsupported(settings, stand_in, model)


def test_there_are_the_files_that_the_page_names() -> None:
    assert [path.stem for path in FILES] == ["ddp_one_node", "fsdp2_one_node", "fsdp2_two_nodes"]


def test_the_script_for_slurm_is_one_that_bash_reads() -> None:
    script = FOLDER / "slurm.sh"
    subprocess.run(["bash", "-n", str(script)], check=True)
    text = script.read_text(encoding="utf-8")
    assert "configs/launch/fsdp2_two_nodes.yaml" in text
    assert "#SBATCH --nodes=2" in text
