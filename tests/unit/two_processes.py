# SPDX-License-Identifier: Apache-2.0
"""A script for `torch.distributed.run`: train, then write each process's weights and log."""

import json
import sys
from pathlib import Path

from safetensors.torch import save_file

from unit.reward_problem import make_trainer, weights


def main(folder: str, output_dir: str, options: str) -> None:
    """Train the model in `folder` with `options`, a JSON object."""
    trainer = make_trainer(
        Path(folder), Path(output_dir), ddp_backend="gloo", **json.loads(options)
    )
    trainer.train()
    rank = trainer.accelerator.process_index
    kind = str(trainer.accelerator.distributed_type)
    save_file(weights(trainer.model), Path(output_dir) / f"rank_{rank}.safetensors")
    record = {"kind": kind, "log": trainer.state.log_history}
    (Path(output_dir) / f"rank_{rank}.json").write_text(json.dumps(record), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
