# SPDX-License-Identifier: Apache-2.0
"""A script for `torch.distributed.run`: train each case, then write each process's weights and log.

Starting two processes takes longer than all the cases, so they are of one start.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

from patience import PATIENCE_SECONDS

__all__ = ["in_two_processes", "start_two", "train_folder"]


def start_two(script: Path, arguments: list[str], repository: Path) -> None:
    """Run a script in two processes of one launcher, to its end."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    source = os.environ.get("PYTHONPATH", "")
    paths = [str(repository / "tests"), *([source] if source else [])]
    done = subprocess.run(
        [*command, str(script), *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-6000:]


def in_two_processes(
    repository: Path, folder: Path, output_dir: Path, cases: Mapping[str, Mapping[str, Any]]
) -> dict[str, list[tuple[dict[str, Any], dict[str, Any]]]]:
    """Weights and record of each process, by case.

    Args:
        repository: The checkout.
        folder: The model to begin from.
        output_dir: To write into.
        cases: Options of `make_trainer`; `sharded: true` is FSDP2, where process 0 has all weights
            and process 1 none, `resume: N` stops after N steps and goes on from the checkpoint;
            `settings` are those of `train_folder`, sharded.
    """
    output_dir.mkdir()
    arguments = [str(folder), str(output_dir), json.dumps(cases)]
    start_two(repository / "tests" / "unit" / "two_processes.py", arguments, repository)
    return {
        name: [
            (
                load_file(output_dir / name / f"rank_{rank}.safetensors"),
                json.loads((output_dir / name / f"rank_{rank}.json").read_text("utf-8")),
            )
            for rank in range(2)
        ]
        for name in cases
    }


class _KilledError(Exception):
    """As a loss of power would end a training."""


class _Kill(TrainerCallback):
    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        raise _KilledError


def _train(folder: Path, output_dir: Path, options: dict[str, Any]) -> None:
    from unit.reward_problem import make_trainer, weights
    from unit.sharding import make_plugin, sharding

    is_sharded, stop = options.pop("sharded", False), options.pop("resume", 0)
    options = {"per_device_train_batch_size": 2, "ddp_backend": "gloo"} | options
    with sharding(make_plugin()) if is_sharded else nullcontext():
        if stop:
            options |= {"save_strategy": "steps", "save_steps": stop}
            with suppress(_KilledError):
                make_trainer(folder, output_dir, given={"callbacks": [_Kill()]}, **options).train()
            trainer = make_trainer(folder, output_dir, **options)
            trainer.train(resume_from_checkpoint=str(output_dir / f"checkpoint-{stop}"))
        else:
            trainer = make_trainer(folder, output_dir, **options)
            trainer.train()
        rank, kind = trainer.accelerator.process_index, trainer.accelerator.distributed_type
        if is_sharded:
            trainer.save_model(str(output_dir / "saved"))
            found = trainer.accelerator.get_state_dict(trainer.model)
        else:
            found = weights(trainer.model)
    save_file(
        {n: t.contiguous() for n, t in found.items()}, output_dir / f"rank_{rank}.safetensors"
    )
    guard = trainer.guard
    record = {
        "kind": str(kind),
        "log": trainer.state.log_history,
        "factor": None if guard is None else guard.factor,
    }
    (output_dir / f"rank_{rank}.json").write_text(json.dumps(record), encoding="utf-8")


def train_folder(folder: Path, output_dir: Path, options: Mapping[str, Any]) -> dict[str, Any]:
    """What `metarm reward` does: a saved folder, and what is known of it."""
    from metarm.config import RewardSettings
    from metarm.progress import SilentProgress
    from metarm.schema import PreferencePair, ResponseGroup
    from metarm.training import train_reward_model
    from unit.reward_problem import group_rows, pair_rows

    pairs = [PreferencePair(row["prompt"], row["chosen"], row["rejected"]) for row in pair_rows(30)]
    groups = [ResponseGroup(row["prompt"], tuple(row["responses"])) for row in group_rows(60)]
    done = train_reward_model(
        model=str(folder),
        pairs=pairs[:24],
        test_pairs=pairs[24:],
        groups=groups,
        settings=RewardSettings(**({"max_steps": 4, "learning_rate": 1e-3} | dict(options))),
        output_dir=output_dir,
        seed=0,
        progress=SilentProgress(),
        probe=pairs[:6],
    )
    return {"accuracy": done.accuracy.value, "kept": done.guard.kept if done.guard else None}


def _train_folder(folder: Path, output_dir: Path, options: Mapping[str, Any]) -> None:
    import torch

    from unit.sharding import make_plugin, sharding

    with sharding(make_plugin()):
        record = train_folder(folder, output_dir / "saved", options)
    rank = torch.distributed.get_rank()
    save_file({}, output_dir / f"rank_{rank}.safetensors")
    (output_dir / f"rank_{rank}.json").write_text(json.dumps(record), encoding="utf-8")


def main(folder: str, output_dir: str, cases: str) -> None:
    """Train the model in `folder` once for each of `cases`, a JSON object."""
    for name, options in json.loads(cases).items():
        place = Path(output_dir) / name
        place.mkdir(exist_ok=True)
        if "settings" in options:
            _train_folder(Path(folder), place, options["settings"])
        else:
            _train(Path(folder), place, options)


if __name__ == "__main__":
    main(*sys.argv[1:])
